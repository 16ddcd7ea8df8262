"""Functions that users write, beside compiled FlexAttention on a GPU; compare_torch.py --device cuda --functions."""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import tessera
import torch
from torch.nn.attention import flex_attention as flex

from . import gpu
from .block_sparse import FLEX, Flex, flex_missing
from .cases import APART, ROUNDING, Tensors, apart, relative_error

DTYPE = "bfloat16"
DIMS = (64, 128)
LENGTHS = (4096, 16384)
MODEL_WIDTH = 2048  # heads times head dim
DOCUMENTS = 16  # in a sequence, on average
CHECKED_QUERIES = 1024  # of one head, at both ends of the sequence
LARGEST_SCORES = 1 << 28  # elements of a score matrix that the reference of the gradients holds
Call = Callable[[], Tensors]
Modifier = Callable[..., torch.Tensor]  # of a score and its batch, head, query and key, as FlexAttention has it


@dataclass(frozen=True)
class Score:
    """A score function in both languages, of a parameter for each head."""

    source: str
    params: Callable[[int], torch.Tensor]
    modifier: Callable[[torch.Tensor], Modifier]


def slopes(heads: int) -> torch.Tensor:
    return 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)


def bias_table(heads: int) -> torch.Tensor:
    return torch.randn(heads, 32, generator=torch.Generator().manual_seed(heads))


SCORES = {
    "relative": Score(
        "template <class T> T score(T s, tessera::Index i, const float* params) {\n"
        "  return s - params[i.head] * abs(i.distance());\n}\n",
        slopes,
        lambda params: lambda s, b, h, q, k: s - params[h] * (q - k).abs(),
    ),
    "softcap": Score(
        "template <class T> T score(T s, tessera::Index i, const float* params) {\n"
        "  return params[0] * tanh(s / params[0]);\n}\n",
        lambda heads: torch.full((1,), 20.0),
        lambda params: lambda s, b, h, q, k: params[0] * torch.tanh(s / params[0]),
    ),
    "table": Score(
        "template <class T> T score(T s, tessera::Index i, const float* params) {\n"
        "  return s + params[32 * i.head + min(max(i.query - i.key, 0), 31)];\n}\n",
        bias_table,
        lambda params: lambda s, b, h, q, k: s + params[h, (q - k).clamp(0, 31)],
    ),
}
MASKS = ("dense", "causal", "documents")
DOCUMENT_MASK = (
    "bool keep(tessera::Index i, const float* documents) {\n"
    "  return i.key <= i.query && documents[i.key] == documents[i.query];\n}\n"
)


@dataclass(frozen=True)
class Case:
    dim: int
    seq: int
    mask: str
    score: str  # or "none"

    @property
    def name(self) -> str:
        return f"{DTYPE}-d{self.dim}-n{self.seq}-{self.mask}-{self.score}"

    @property
    def heads(self) -> int:
        return MODEL_WIDTH // self.dim

    def shape(self, tokens: int) -> tuple[int, int, int, int]:
        return (max(1, tokens // self.seq), self.seq, self.heads, self.dim)

    def documents(self) -> torch.Tensor:
        """float32 [seq], the document of each token."""
        generator = torch.Generator().manual_seed(self.seq)
        ends = torch.randint(1, self.seq, (DOCUMENTS - 1,), generator=generator).sort().values
        return torch.searchsorted(ends, torch.arange(self.seq), right=True).float()

    def keeps(self) -> Callable[..., torch.Tensor] | None:
        """The mask as FlexAttention has it."""
        if self.mask == "dense":
            return None
        if self.mask == "causal":
            return lambda b, h, q, k: q >= k
        documents = self.documents().cuda()
        return lambda b, h, q, k: (q >= k) & (documents[q] == documents[k])

    def score_params(self) -> torch.Tensor:
        return SCORES[self.score].params(self.heads).float()

    def modifier(self) -> Modifier | None:
        return None if self.score == "none" else SCORES[self.score].modifier(self.score_params().cuda())

    def options(self) -> dict[str, Any]:
        """Of tessera.forward and backward."""
        options: dict[str, Any] = {"causal": True} if self.mask == "causal" else {}
        if self.mask == "documents":
            options["mask_function"] = tessera.MaskFunction(DOCUMENT_MASK, self.documents().numpy(), name="documents")
        if self.score != "none":
            params = self.score_params().flatten().numpy()
            options["score_function"] = tessera.ScoreFunction(SCORES[self.score].source, params, name=self.score)
        return options

    def without_score(self) -> Case:
        return Case(self.dim, self.seq, self.mask, "none")


def all_cases() -> list[Case]:
    cases = [Case(d, n, mask, score) for d in DIMS for n in LENGTHS for mask in MASKS for score in ("none", *SCORES)]
    return [case for case in cases if case.score != "none" or case.mask == "documents"]


def tessera_call(case: Case, tensors: Tensors, backward: bool) -> Call:
    q, k, v, dout = tensors
    options = case.options()
    if not backward:
        return lambda: tessera.forward(q, k, v, **options)[:1]
    out, lse = tessera.forward(q, k, v, **options)
    return lambda: tuple(tessera.backward(dout, q, k, v, out, lse, **options)[:3])


def segments_call(case: Case, tensors: Tensors, backward: bool) -> Call:
    """The documents as the built-in mask."""
    q, k, v, dout = tensors
    ids = case.documents().int().repeat(q.shape[0]).numpy()
    options: dict[str, Any] = {"causal": True, "segments": ids}
    if not backward:
        return lambda: tessera.forward(q, k, v, **options)[:1]
    out, lse = tessera.forward(q, k, v, **options)
    return lambda: tuple(tessera.backward(dout, q, k, v, out, lse, **options)[:3])


def exact(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, head: int, first: int) -> torch.Tensor:
    """O of one head in float32, of the queries from number `first` on."""
    rows = torch.arange(first, first + q.shape[0], device=q.device)[:, None]
    columns = torch.arange(k.shape[0], device=q.device)[None]
    scores = (q @ k.T) * q.shape[1] ** -0.5
    batch, of_head = (torch.tensor(x, device=q.device) for x in (0, head))
    if (modifier := case.modifier()) is not None:
        scores = modifier(scores, batch, of_head, rows, columns)
    if (keeps := case.keeps()) is not None:
        scores = scores.masked_fill(~keeps(batch, of_head, rows, columns), -math.inf)
    return scores.softmax(1) @ v


def checked_rows(case: Case) -> Iterator[tuple[int, slice]]:
    """Heads and their queries."""
    count = min(CHECKED_QUERIES, case.seq)
    for head in (0, case.heads - 1):
        for first in {0, case.seq - count}:
            yield head, slice(first, first + count)


def forward_error(case: Case, tensors: Tensors, out: torch.Tensor) -> float:
    errors = []
    for head, rows in checked_rows(case):
        q, k, v = (x[-1, :, head].float() for x in tensors[:3])
        errors.append(relative_error(out[-1, rows, head], exact(case, q[rows], k, v, head, rows.start)))
    return max(errors)


def gradient_error(case: Case, tensors: Tensors, gradients: Tensors) -> float:
    """dQ, dK and dV of one head."""
    if case.seq**2 > LARGEST_SCORES:
        return math.nan
    head = case.heads - 1
    leaves = tuple(x[-1, :, head].float().requires_grad_() for x in tensors[:3])
    expected = torch.autograd.grad(exact(case, *leaves, head, 0), leaves, tensors[3][-1, :, head].float())
    return max(relative_error(x[-1, :, head], e) for x, e in zip(gradients, expected, strict=True))


class Comparison:
    def __init__(self, device: gpu.CudaDevice, case: Case, arguments: argparse.Namespace, peer: Flex | None):
        torch.manual_seed(case.seq + case.dim)
        self.device, self.case, self.arguments, self.peer = device, case, arguments, peer
        shape = case.shape(arguments.tokens)
        self.tensors: Tensors = tuple(torch.randn(shape, device="cuda", dtype=getattr(torch, DTYPE)) for _ in range(4))

    def peer_call(self, backward: bool) -> Call:
        keeps, seq = self.case.keeps(), self.case.seq
        mask = None if keeps is None else flex.create_block_mask(keeps, None, None, seq, seq, device="cuda")
        return self.peer.call_with(self.tensors, backward, score_mod=self.case.modifier(), block_mask=mask)

    def run(self, backward: bool) -> dict[str, Any]:
        case = self.case
        start = time.perf_counter()
        calls = {"Tessera": tessera_call(case, self.tensors, backward)}
        calls["Tessera"]()
        torch.cuda.synchronize()
        first_call = time.perf_counter() - start
        if case.mask == "documents" and case.score == "none":
            calls["segments"] = segments_call(case, self.tensors, backward)
        refused = ""
        if self.peer is not None:
            try:
                calls[FLEX] = self.peer_call(backward)
                calls[FLEX]()
            except Exception as error:  # whatever the compiler raises
                calls.pop(FLEX, None)
                refused = str(error).partition("\n")[0]
        results = {name: call() for name, call in calls.items()}
        check = gradient_error if backward else (lambda c, t, found: forward_error(c, t, found[0]))
        errors = {name: check(case, self.tensors, found) for name, found in results.items()}
        distance = apart(results["Tessera"], results[FLEX]) if FLEX in results else 0.0
        results.clear()
        allowed = 2 * errors.get(FLEX, ROUNDING[DTYPE]) + ROUNDING[DTYPE]
        agree = distance <= APART[DTYPE] and all(
            math.isnan(error) or error <= allowed for name, error in errors.items() if name != FLEX
        )
        if case.score != "none":
            calls["without"] = tessera_call(case.without_score(), self.tensors, backward)
        timings = gpu.take_turns(
            self.device,
            {name: [call] for name, call in calls.items()},
            self.arguments.seconds,
            self.arguments.rounds,
        )
        seconds = {name: timing.seconds for name, timing in timings.items()}
        return {
            **asdict(case),
            "dtype": DTYPE,
            "pass": "backward" if backward else "forward",
            "milliseconds": {name: value * 1e3 for name, value in seconds.items()},
            "over_flex": seconds[FLEX] / seconds["Tessera"] if FLEX in seconds else None,
            "of_rate_without": seconds["without"] / seconds["Tessera"] if "without" in seconds else None,
            "of_rate_of_segments": seconds["segments"] / seconds["Tessera"] if "segments" in seconds else None,
            "first_call_seconds": first_call,
            "errors": errors,
            "apart": distance,
            "refused": refused,
            "agree": agree,
        }


def ratio(value: float | None) -> str:
    return "     -" if value is None else f"{value:5.2f}x"


def print_row(row: dict[str, Any]) -> None:
    theirs = row["milliseconds"].get(FLEX)
    of_ours = row["of_rate_without"] if row["of_rate_without"] is not None else row["of_rate_of_segments"]
    error = row["errors"]["Tessera"]
    print(
        f"{row['pass']:8} {row['dim']:>3} {row['seq']:>6} {row['mask']:9} {row['score']:8} "
        f"{row['milliseconds']['Tessera']:>9.3f} {'-' if theirs is None else f'{theirs:.3f}':>9} "
        f"{ratio(row['over_flex'])} {ratio(of_ours)} {row['first_call_seconds']:>7.2f} "
        f"{'-' if math.isnan(error) else f'{error:.1e}':>8}"
        f"{'' if row['agree'] else '  DISAGREES'}{'  ' + row['refused'] if row['refused'] else ''}",
        flush=True,
    )


def main(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("compare_torch: no CUDA device that torch can use; see torch.cuda.is_available()", file=sys.stderr)
        return 2
    reason = flex_missing()
    if reason:
        print(f"note: no FlexAttention beside Tessera: {reason}")
    cases = [case for case in all_cases() if any(fnmatch.fnmatch(case.name, glob) for glob in arguments.cases)]
    if not cases:
        print(f"compare_torch: no case has a name like {' '.join(arguments.cases)}", file=sys.stderr)
        return 2
    device = gpu.CudaDevice(arguments.method)
    peer = None if reason else Flex()
    environment = device.describe()
    print(", ".join(f"{key} {value}" for key, value in environment.items() if value))
    print(
        f"{arguments.tokens} tokens, {DTYPE}, 2048 / dim heads; / ours: the rate without the score function or, of a "
        f"mask function, that of the built-in segments\n\n{'pass':8} {'dim':>3} {'seq':>6} {'mask':9} {'score':8} "
        f"{'ms':>9} {'Flex ms':>9} {'/ Flex':>6} {'/ ours':>6} {'first s':>7} {'error':>8}"
    )
    rows = []
    with device.active():
        for case in cases:
            comparison = Comparison(device, case, arguments, peer)
            for name in arguments.passes:
                rows.append(comparison.run(name == "backward"))
                print_row(rows[-1])
            del comparison
    if arguments.json:
        record = {"environment": environment, "flex_missing": reason, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    disagreements = [row for row in rows if not row["agree"]]
    if disagreements:
        print(f"\n{len(disagreements)} results disagree", file=sys.stderr)
    return 1 if disagreements else 0
