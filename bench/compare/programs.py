"""What modifiers of the scores cost in the Hopper kernels: the plain kernel of the same run beside the same kernel with
ALiBi, softcap, dropout or a function of the user's; compare_torch.py --device cuda --programs.

Kernels with a program are compiled when they are first needed: here before the clock runs, several at a time, in a
cache folder that is empty at first, and the seconds of each are in the table.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tessera
import torch

from . import functions, gpu, ratios
from .cases import ROUNDING, Tensors, relative_error
from .libraries import Call, require_impl

IMPL = "sm90"
DTYPE = "bfloat16"
DIMS = (64, 128)
LENGTHS = (4096, 16384)
MODEL_WIDTH = 2048  # heads times head dim
BAR_SECONDS = 2.0  # that a kernel may take to compile
MOST_COMPILERS = 8  # at a time
CHECKED_QUERIES = 1024  # of one head, of the forward pass
SOFTCAP = 20.0
DROPPED_BYTES = 26  # of 256: a probability of about 0.1
SEED = 2**40 + 17
PLAIN = "plain"

Scores = torch.Tensor


@dataclass(frozen=True)
class Program:
    """Options of Tessera for a number of heads on a device, and what they do to one head."""

    options: Callable[[int, str], dict[str, Any]]
    scores: Callable[[Scores, int, torch.Tensor, int], Scores] = lambda s, head, distance, heads: s
    drops: bool = False


def _function(name: str, source: str, params: Callable[[int], torch.Tensor]) -> Callable[[int, str], dict[str, Any]]:
    return lambda heads, device: {
        "score_function": tessera.ScoreFunction(source, params(heads).float().flatten().numpy(), name=name)
    }


def _written(name: str, of: str) -> Program:
    """A function of the table beside FlexAttention, by its name there."""
    score = functions.SCORES[of]

    def scores(s: Scores, head: int, distance: torch.Tensor, heads: int) -> Scores:
        params = score.params(heads).float().to(s.device)
        return score.modifier(params)(s, None, head, distance, 0)

    return Program(_function(name, score.source, score.params), scores)


PROGRAMS = {
    "alibi": Program(
        lambda heads, device: {"alibi_slopes": functions.slopes(heads).to(device)},
        lambda s, head, distance, heads: s - functions.slopes(heads)[head].item() * distance.abs(),
    ),
    "softcap": Program(
        lambda heads, device: {"softcap": SOFTCAP},
        lambda s, head, distance, heads: SOFTCAP * torch.tanh(s / SOFTCAP),
    ),
    "dropout": Program(
        lambda heads, device: {"dropout_p": DROPPED_BYTES / 256, "dropout_seed": SEED},
        drops=True,
    ),
    "scaling": Program(
        _function(
            "scaling",
            "template <class T> T score(T s, tessera::Index i, const float* params) {\n  return s * params[0];\n}\n",
            lambda heads: torch.full((1,), 0.75),
        ),
        lambda s, head, distance, heads: s * 0.75,
    ),
    "distance": _written("distance", "relative"),
    "table": _written("table", "table"),
    "tanh": _written("tanh", "softcap"),
}


def kept_weights(batch: int, head: int, queries: torch.Tensor, keys: int) -> torch.Tensor:
    """bool [queries, keys]: dropout as docs/numerics.md defines it, by Philox4x32-7 (Salmon et al. 2011)."""
    low = 0xFFFFFFFF
    groups = torch.arange(4 * -(-keys // 64), device=queries.device)
    shape = (len(queries), len(groups))
    counter = [
        groups.expand(shape),
        queries[:, None].expand(shape),
        torch.full(shape, head, device=queries.device),
        torch.full(shape, batch, device=queries.device),
    ]
    key = [SEED & low, SEED >> 32]
    for _ in range(7):
        # Products of 64 bits, whose sign does not matter to the bits that are taken.
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (second >> 32) & low ^ counter[1] ^ key[0],
            second & low,
            (first >> 32) & low ^ counter[3] ^ key[1],
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    numbers = torch.stack([word >> shift & 0xFF for word in counter for shift in (0, 8, 16, 24)], dim=-1)
    # [queries, groups of 64 keys, lane, byte] to keys: lane t has keys 2 t, 2 t + 1 of each eight.
    numbers = numbers.view(len(queries), -1, 4, 8, 2).transpose(2, 3).reshape(len(queries), -1)
    return numbers[:, :keys] >= DROPPED_BYTES


@dataclass(frozen=True)
class Case:
    dim: int
    seq: int
    causal: bool

    @property
    def mask(self) -> str:
        return "causal" if self.causal else "dense"

    @property
    def heads(self) -> int:
        return MODEL_WIDTH // self.dim

    def name(self, program: str) -> str:
        return f"{DTYPE}-d{self.dim}-n{self.seq}-{self.mask}-{program}"

    def options(self, program: str, device: str) -> dict[str, Any]:
        of_program = {} if program == PLAIN else PROGRAMS[program].options(self.heads, device)
        return {"causal": self.causal, "impl": IMPL, **of_program}


def all_cases(arguments: argparse.Namespace) -> dict[Case, list[str]]:
    """The programs of each case."""
    cases = [Case(dim, seq, causal) for dim in DIMS for seq in LENGTHS for causal in (False, True)]
    programs = {
        case: [x for x in PROGRAMS if any(fnmatch.fnmatch(case.name(x), glob) for glob in arguments.cases)]
        for case in cases
    }
    return {case: names for case, names in programs.items() if names}


def exact(
    case: Case, program: str, place: tuple[int, int], first: int, q: Scores, k: Scores, v: Scores
) -> torch.Tensor:
    """O of the queries from number `first` on of a (batch, head), in float32."""
    queries = torch.arange(first, first + q.shape[0], device=q.device)
    distance = queries[:, None] - torch.arange(k.shape[0], device=q.device)[None]
    scores = (q @ k.T) * case.dim**-0.5
    scores = PROGRAMS[program].scores(scores, place[1], distance, case.heads) if program != PLAIN else scores
    if case.causal:
        scores = scores.masked_fill(distance < 0, float("-inf"))
    weights = scores.softmax(1)
    if program != PLAIN and PROGRAMS[program].drops:
        weights = weights * kept_weights(*place, queries, k.shape[0]) * (256 / (256 - DROPPED_BYTES))
    return weights @ v


def error(case: Case, program: str, tensors: Tensors, results: Tensors, backward: bool) -> float:
    """Of the last (batch, head): of the last queries, or of whole gradients."""
    batch, head = tensors[0].shape[0] - 1, case.heads - 1
    q, k, v, dout = (x[batch, :, head].float() for x in tensors)
    if not backward:
        first = case.seq - min(CHECKED_QUERIES, case.seq)
        expected = exact(case, program, (batch, head), first, q[first:], k, v)
        return relative_error(results[0][batch, first:, head], expected)
    leaves = tuple(x.requires_grad_() for x in (q, k, v))
    expected = torch.autograd.grad(exact(case, program, (batch, head), 0, *leaves), leaves, dout)
    return max(relative_error(x[batch, :, head], e) for x, e in zip(results, expected, strict=True))


def make_call(case: Case, program: str, tensors: Tensors, backward: bool) -> Call:
    q, k, v, dout = tensors
    options = case.options(program, q.device.type)
    require_impl(IMPL, tensors, backward, **options)
    if not backward:
        return lambda: tessera.forward(q, k, v, **options)[:1]
    out, lse = tessera.forward(q, k, v, **options)
    return lambda: tuple(tessera.backward(dout, q, k, v, out, lse, **options)[:3])


@contextmanager
def empty_cache() -> Iterator[None]:
    """A folder of compiled kernels that has none."""
    variable = "TESSERA_CACHE_DIR"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            os.environ.pop(variable)
            if before is not None:
                os.environ[variable] = before


def compile_all(device: gpu.CudaDevice, cases: dict[Case, list[str]], passes: Sequence[str]) -> list[dict[str, Any]]:
    """Makes the plan of each program, head dim, mask and pass, whose kernel one plan compiles for all lengths."""
    wanted = dict.fromkeys(
        (name, case.dim, case.causal, program) for name in passes for case in cases for program in cases[case]
    )

    def make_plan(key: tuple[str, int, bool, str]) -> dict[str, Any]:
        of_pass, dim, causal, program = key
        case = Case(dim, LENGTHS[0], causal)
        shape = (1, case.seq, case.heads, dim)
        q = torch.empty(shape, device=device.name, dtype=getattr(torch, DTYPE))
        options = case.options(program, device.name)
        row = {"pass": of_pass, "dim": dim, "mask": case.mask, "program": program}
        start = time.perf_counter()
        try:
            kernels = require_impl(IMPL, (q, q, q), of_pass == "backward", **options)
        except (RuntimeError, NotImplementedError) as refusal:
            return {**row, "refused": str(refusal).partition("\n")[0]}
        return {**row, "seconds": time.perf_counter() - start, "kernels": kernels}

    # The first one also loads the compiler.
    make_plan(("forward", DIMS[0], False, "scaling"))
    compilers = max(1, min(MOST_COMPILERS, (os.cpu_count() or 1) // 2))
    with ThreadPoolExecutor(compilers) as pool:
        return list(pool.map(make_plan, wanted))


def print_compiled(compiled: Sequence[dict[str, Any]]) -> None:
    print(f"{'seconds to compile':28} {'most':>6} {'median':>6} {f'> {BAR_SECONDS:g} s':>6}")
    for key in dict.fromkeys((row["pass"], row["dim"]) for row in compiled):
        seconds = sorted(row["seconds"] for row in compiled if (row["pass"], row["dim"]) == key and "seconds" in row)
        if seconds:
            print(
                f"{key[0]:8} d{key[1]:<4} {f'{len(seconds)} kernels':>14} {seconds[-1]:>6.2f} "
                f"{seconds[len(seconds) // 2]:>6.2f} {sum(x > BAR_SECONDS for x in seconds):>6}"
            )
    print(flush=True)


def run_pass(
    device: gpu.CudaDevice, case: Case, programs: Sequence[str], backward: bool, arguments: argparse.Namespace
) -> dict[str, Any]:
    """All programs of a case in turn with the plain kernel."""
    torch.manual_seed(case.seq + case.dim)
    shape = (max(1, arguments.tokens // case.seq), case.seq, case.heads, case.dim)
    tensors = tuple(torch.randn(shape, device=device.name, dtype=getattr(torch, DTYPE)) for _ in range(4))
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    for program in (PLAIN, *programs):
        try:
            calls[program] = make_call(case, program, tensors, backward)
            results = calls[program]()
        except (RuntimeError, NotImplementedError) as refusal:
            calls.pop(program, None)
            refused[program] = str(refusal).partition("\n")[0]
            continue
        errors[program] = error(case, program, tensors, results, backward)
    timings = gpu.take_turns(
        device, {name: [call] for name, call in calls.items()}, arguments.seconds, arguments.rounds
    )
    seconds = {name: timing.seconds for name, timing in timings.items()}
    return {
        "pass": "backward" if backward else "forward",
        "dim": case.dim,
        "seq": case.seq,
        "mask": case.mask,
        "milliseconds": {name: value * 1e3 for name, value in seconds.items()},
        "of_plain": {name: seconds[PLAIN] / value for name, value in seconds.items() if name != PLAIN},
        "errors": errors,
        "refused": refused,
        "agree": not refused and all(value <= 2 * errors[PLAIN] + ROUNDING[DTYPE] for value in errors.values()),
    }


def line(row: dict[str, Any]) -> str:
    cells = " ".join(f"{row['of_plain'][name]:>8.3f}" if name in row["of_plain"] else f"{'-':>8}" for name in PROGRAMS)
    return (
        f"{row['pass']:8} {row['dim']:>3} {row['seq']:>6} {row['mask']:6} {row['milliseconds'].get(PLAIN, 0):>8.3f} "
        f"{cells} {max(row['errors'].values(), default=0):>8.1e}"
        f"{'' if row['agree'] else '  DISAGREES'}{''.join(f'  {n}: {why}' for n, why in row['refused'].items())}"
    )


def compare(
    device: gpu.CudaDevice, cases: dict[Case, list[str]], arguments: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    with empty_cache():
        compiled = compile_all(device, cases, arguments.passes)
        print_compiled(compiled)
        print(
            f"{'pass':8} {'dim':>3} {'seq':>6} {'mask':6} {'plain ms':>8} "
            f"{' '.join(f'{name:>8}' for name in PROGRAMS)} {'error':>8}"
        )
        rows = []
        for case, programs in cases.items():
            for name in arguments.passes:
                rows.append(run_pass(device, case, programs, name == "backward", arguments))
                print(line(rows[-1]), flush=True)
    return {"compiled": compiled, "rows": rows}


def main(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("compare_torch: no CUDA device that torch can use; see torch.cuda.is_available()", file=sys.stderr)
        return 2
    cases = all_cases(arguments)
    if not cases:
        print(f"compare_torch: no case has a name like {' '.join(arguments.cases)}", file=sys.stderr)
        return 2
    device = gpu.CudaDevice(arguments.method)
    environment = device.describe()
    print(", ".join(f"{key} {value}" for key, value in environment.items() if value))
    print(f"{arguments.tokens} tokens, {DTYPE}, 2048 / dim heads, Impl {IMPL}: rates over that of the plain kernel\n")
    with device.active():
        record = compare(device, cases, arguments)
    summary = ratios.summarise(record["rows"], "of_plain")
    ratios.print_summary(summary, DIMS)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"environment": environment, "summary": summary, **record}, indent=1) + "\n"
        )
    disagreements = [row for row in record["rows"] if not row["agree"]]
    if disagreements:
        print(f"\n{len(disagreements)} rows disagree", file=sys.stderr)
    return 1 if disagreements else 0
