"""Block masks beside torch's compiled FlexAttention on a GPU; compare_torch.py --device cuda --block-sparse."""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import tessera
import torch
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config
from torch.nn.attention import flex_attention as flex

from . import gpu
from .cases import APART, ROUNDING, Tensors, apart, relative_error, torch_leaves

DTYPE = "bfloat16"
BLOCK = 128
HEADS = 16
DIMS = (64, 128)
LENGTHS = (4096, 16384, 65536)
QUICK_LENGTHS = (4096, 16384)
MASKS = ("butterfly", "random12.5", "random50")
DENSITIES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the line of time against density
LINE_LENGTH = 16384
CHECKED_QUERIES = 1024  # of one head, at both ends of the sequence, where the reference holds a row of scores for each
FLEX = "FlexAttention"
Call = Callable[[], Tensors]


@dataclass(frozen=True)
class Case:
    dim: int
    seq: int
    mask: str

    @property
    def name(self) -> str:
        return f"{DTYPE}-d{self.dim}-n{self.seq}-{self.mask}"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (1, self.seq, HEADS, self.dim)

    def kept(self) -> torch.Tensor:
        """bool [rows, columns] of blocks."""
        count = self.seq // BLOCK
        index = torch.arange(count)
        if self.mask == "butterfly":
            distance = index[:, None] ^ index[None]
            return (distance & (distance - 1)) == 0
        share = float(self.mask.removeprefix("random")) / 100
        kept = torch.rand(count, count, generator=torch.Generator().manual_seed(count)) < share
        return kept | (index[:, None] == index[None])  # no row is empty, for which the libraries differ

    def flops(self, density: float, backward: bool) -> float:
        return (10 if backward else 4) * HEADS * self.dim * self.seq**2 * density


def flex_missing() -> str | None:
    """Why FlexAttention cannot be compiled here."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "triton finds no C compiler"
    return None


class Flex:
    def __init__(self) -> None:
        functorch_config.donated_buffer = False  # the backward pass is timed many times on one graph
        # One compilation for each length, head dim and pass; above torch's limit it would run uncompiled.
        limit = "recompile_limit" if hasattr(dynamo_config, "recompile_limit") else "cache_size_limit"
        setattr(dynamo_config, limit, 64)
        self.attention = torch.compile(flex.flex_attention, dynamic=False)

    @staticmethod
    def block_mask(kept: torch.Tensor, seq: int) -> Any:
        counts = kept.sum(1, dtype=torch.int32)[None, None].cuda()
        indices = (~kept).int().argsort(dim=1, stable=True).int()[None, None].cuda()
        none = torch.zeros_like(counts)
        return flex.BlockMask.from_kv_blocks(
            none, torch.zeros_like(indices), counts, indices, BLOCK_SIZE=BLOCK, seq_lengths=(seq, seq)
        )

    def call(self, tensors: Tensors, kept: torch.Tensor, backward: bool) -> Call:
        return self.call_with(tensors, backward, block_mask=self.block_mask(kept, tensors[0].shape[1]))

    def call_with(self, tensors: Tensors, backward: bool, **options: Any) -> Call:
        leaves = torch_leaves(tensors[:3])
        if not backward:

            def forward() -> Tensors:
                with torch.no_grad():
                    return (self.attention(*leaves, **options).transpose(1, 2),)

            return forward
        out = self.attention(*leaves, **options)
        dout = tensors[3].transpose(1, 2)

        def gradients() -> Tensors:
            found = torch.autograd.grad(out, leaves, dout, retain_graph=True)
            return tuple(x.transpose(1, 2) for x in found)

        return gradients


def tessera_call(tensors: Tensors, backward: bool, blocks: tessera.BlockMask | None, deterministic: bool) -> Call:
    q, k, v, dout = tensors
    options: dict[str, Any] = {} if blocks is None else {"blocks": blocks}
    if not backward:
        return lambda: tessera.forward(q, k, v, **options)[:1]
    out, lse = tessera.forward(q, k, v, **options)
    options["deterministic"] = deterministic
    return lambda: tuple(tessera.backward(dout, q, k, v, out, lse, **options)[:3])


def block_mask(kept: torch.Tensor, seq: int) -> tessera.BlockMask:
    return tessera.BlockMask.from_blocks(kept[None, None], seq, seq, BLOCK, BLOCK)


def exact_rows(tensors: Tensors, kept: torch.Tensor, head: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """O of some queries of one head in float32, a few blocks of rows at a time."""
    q, k, v = (x[0, :, head].float() for x in tensors[:3])
    for first in {0, q.shape[0] - min(CHECKED_QUERIES, q.shape[0])}:
        rows = slice(first, first + min(CHECKED_QUERIES, q.shape[0]))
        of_rows = kept[first // BLOCK : rows.stop // BLOCK].cuda()
        attends = of_rows.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        scores = (q[rows] @ k.T) * q.shape[1] ** -0.5
        yield rows, scores.masked_fill(~attends, -math.inf).softmax(1) @ v


def forward_error(tensors: Tensors, kept: torch.Tensor, out: torch.Tensor) -> float:
    return max(
        relative_error(out[0, rows, head], expected)
        for head in (0, HEADS - 1)
        for rows, expected in exact_rows(tensors, kept, head)
    )


def gradient_error(tensors: Tensors, kept: torch.Tensor, gradients: Tensors) -> float:
    """Of one head, where its whole score matrix fits; dQ, dK and dV."""
    if tensors[0].shape[1] > LINE_LENGTH:
        return math.nan
    head = HEADS - 1
    leaves = tuple(x[0, :, head].float().requires_grad_() for x in tensors[:3])
    attends = kept.cuda().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    scores = (leaves[0] @ leaves[1].T) * leaves[0].shape[1] ** -0.5
    out = scores.masked_fill(~attends, -math.inf).softmax(1) @ leaves[2]
    expected = torch.autograd.grad(out, leaves, tensors[3][0, :, head].float())
    return max(relative_error(x[0, :, head], e) for x, e in zip(gradients, expected, strict=True))


class Comparison:
    """One length and head dim: inputs, and the dense kernel's rate."""

    def __init__(self, device: gpu.CudaDevice, dim: int, seq: int, arguments: argparse.Namespace, peer: Flex | None):
        torch.manual_seed(seq + dim)
        self.device, self.arguments, self.peer = device, arguments, peer
        self.dense = Case(dim, seq, "dense")
        self.tensors: Tensors = tuple(
            torch.randn(self.dense.shape, device="cuda", dtype=getattr(torch, DTYPE)) for _ in range(4)
        )
        self.dense_seconds: dict[bool, float] = {}

    def time(self, calls: dict[str, Call]) -> dict[str, float]:
        timings = gpu.take_turns(
            self.device,
            {name: [call] for name, call in calls.items()},
            self.arguments.seconds,
            self.arguments.rounds,
        )
        return {name: timing.seconds for name, timing in timings.items()}

    def run(self, case: Case, backward: bool) -> dict[str, Any]:
        kept = case.kept()
        density = float(kept.float().mean())
        blocks = block_mask(kept, case.seq)
        calls = {"Tessera": tessera_call(self.tensors, backward, blocks, True)}
        if backward and self.arguments.deterministic != "on":
            calls["Tessera, any order"] = tessera_call(self.tensors, backward, blocks, False)
        refused = ""
        if self.peer is not None:
            try:
                calls[FLEX] = self.peer.call(self.tensors, kept, backward)
                calls[FLEX]()
            except Exception as error:  # whatever the compiler raises
                calls.pop(FLEX, None)
                refused = str(error).partition("\n")[0]
        check = gradient_error if backward else (lambda t, k, results: forward_error(t, k, results[0]))
        results = {name: call() for name, call in calls.items()}
        errors = {name: check(self.tensors, kept, found) for name, found in results.items()}
        distance = apart(results["Tessera"], results[FLEX]) if FLEX in results else 0.0
        results.clear()
        allowed = 2 * errors.get(FLEX, ROUNDING[DTYPE]) + ROUNDING[DTYPE]
        agree = distance <= APART[DTYPE] and all(
            math.isnan(error) or error <= allowed for name, error in errors.items() if name != FLEX
        )
        # Clocks fall in a long run: the dense kernel is timed beside each mask.
        calls["dense"] = tessera_call(self.tensors, backward, None, True)
        seconds = self.time(calls)
        rates = {
            name: case.flops(1.0 if name == "dense" else density, backward) / time for name, time in seconds.items()
        }
        return {
            **asdict(case),
            "dtype": DTYPE,
            "heads": HEADS,
            "pass": "backward" if backward else "forward",
            "density": density,
            "milliseconds": {name: time * 1e3 for name, time in seconds.items()},
            "tflops": {name: rate / 1e12 for name, rate in rates.items()},
            "over_flex": seconds[FLEX] / seconds["Tessera"] if FLEX in seconds else None,
            "of_dense_rate": rates["Tessera"] / rates["dense"],
            "errors": errors,
            "apart": distance,
            "refused": refused,
            "agree": agree,
        }


def checked(error: float) -> str:
    """Gradients of long sequences are compared with FlexAttention's alone."""
    return "-" if math.isnan(error) else f"{error:.1e}"


def print_row(row: dict[str, Any]) -> None:
    over = "     -" if row["over_flex"] is None else f"{row['over_flex']:5.2f}x"
    theirs = row["milliseconds"].get(FLEX)
    print(
        f"{row['pass']:8} {row['dim']:>3} {row['seq']:>6} {row['mask']:10} {row['density']:>7.2%} "
        f"{row['milliseconds']['Tessera']:>9.3f} {'-' if theirs is None else f'{theirs:.3f}':>9} {over} "
        f"{row['tflops']['Tessera']:>7.0f} {row['of_dense_rate']:>7.1%} {checked(row['errors']['Tessera']):>8}"
        f"{'' if row['agree'] else '  DISAGREES'}{'  ' + row['refused'] if row['refused'] else ''}",
        flush=True,
    )


def density_line(comparison: Comparison, backward: bool) -> dict[str, Any]:
    """Least squares through the times at six densities."""
    points = []
    for density in DENSITIES:
        case = Case(comparison.dense.dim, comparison.dense.seq, f"random{density * 100:g}")
        kept = case.kept()
        call = tessera_call(comparison.tensors, backward, block_mask(kept, case.seq), True)
        points.append((float(kept.float().mean()), comparison.time({"Tessera": call})["Tessera"]))
    xs, ys = zip(*points, strict=True)
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x in xs)
    fixed = mean_y - slope * mean_x
    residual = sum((y - fixed - slope * x) ** 2 for x, y in points)
    r_squared = 1 - residual / sum((y - mean_y) ** 2 for y in ys)
    line = {
        "dim": comparison.dense.dim,
        "seq": comparison.dense.seq,
        "pass": "backward" if backward else "forward",
        "points": points,
        "fixed_ms": fixed * 1e3,
        "slope_ms": slope * 1e3,
        "r_squared": r_squared,
    }
    print(
        f"{line['pass']:8} d{line['dim']} {line['seq']} tokens: {line['fixed_ms']:.3f} ms + {line['slope_ms']:.3f} ms "
        f"times density, R^2 {r_squared:.5f} over {len(points)} densities",
        flush=True,
    )
    return line


def main(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("compare_torch: no CUDA device that torch can use; see torch.cuda.is_available()", file=sys.stderr)
        return 2
    reason = flex_missing()
    if reason:
        print(f"note: no FlexAttention beside Tessera: {reason}")
    lengths = QUICK_LENGTHS if arguments.quick else LENGTHS
    cases = [Case(dim, seq, mask) for dim in DIMS for seq in lengths for mask in MASKS]
    cases = [case for case in cases if any(fnmatch.fnmatch(case.name, glob) for glob in arguments.cases)]
    if not cases:
        print(f"compare_torch: no case has a name like {' '.join(arguments.cases)}", file=sys.stderr)
        return 2
    device = gpu.CudaDevice(arguments.method)
    peer = None if reason else Flex()
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    environment = device.describe()

    def save() -> None:
        if arguments.json:
            record = {"environment": environment, "flex_missing": reason, "rows": rows, "lines": lines}
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")

    print(", ".join(f"{key} {value}" for key, value in environment.items() if value))
    print(
        f"{HEADS} heads, {DTYPE}, blocks of {BLOCK} x {BLOCK}; TFLOP/s of the kept blocks\n\n{'pass':8} {'dim':>3} "
        f"{'seq':>6} {'mask':10} {'kept':>7} {'ms':>9} {'Flex ms':>9} {'ratio':>6} {'TFLOP/s':>7} {'/ dense':>7} "
        f"{'error':>8}"
    )
    with device.active():
        for dim, seq in dict.fromkeys((case.dim, case.seq) for case in cases):
            comparison = Comparison(device, dim, seq, arguments, peer)
            for backward in (name == "backward" for name in arguments.passes):
                for case in (x for x in cases if (x.dim, x.seq) == (dim, seq)):
                    rows.append(comparison.run(case, backward))
                    print_row(rows[-1])
                    save()
                if seq == LINE_LENGTH and not arguments.no_lines:
                    lines.append(density_line(comparison, backward))
                    save()
            del comparison
    disagreements = [row for row in rows if not row["agree"]]
    if disagreements:
        print(f"\n{len(disagreements)} results disagree", file=sys.stderr)
    return 1 if disagreements else 0
