"""Tessera beside torch's attention backends on a GPU; compare_torch.py --device cuda."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from . import gpu, libraries
from .cases import APART, ROUNDING, Case, Tensors, apart, error_of_heads, exact
from .libraries import Call

DIMS = (64, 128, 256)
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
QUICK_LENGTHS = (512, 4096, 16384)
MODEL_WIDTH = 2048  # heads times head dim
ROUNDS_OF_THE_SLOW = 3  # of a library that is ten times slower
MOST_INPUTS = 16

Library = libraries.Tessera | libraries.Torch


def make_cases(arguments: argparse.Namespace) -> list[Case]:
    lengths = arguments.lengths or (QUICK_LENGTHS if arguments.quick else LENGTHS)
    cases = [
        Case(dtype, dim, seq, causal, max(1, arguments.tokens // seq), arguments.heads or MODEL_WIDTH // dim, group)
        for group, dtype, dim, causal, seq in itertools.product(
            arguments.groups, arguments.dtypes, DIMS, (False, True), lengths
        )
    ]
    for case in cases:
        if case.heads % case.group != 0:
            raise ValueError(f"--groups: {case.group}; accepted: divisors of {case.heads}, the heads of d{case.dim}")
    return [case for case in cases if case.matches(arguments.cases)]


def make_inputs(case: Case, l2_bytes: int, kind: str) -> list[Tensors]:
    """q, k, v and dout; several of them where they would otherwise stay in the L2 cache from call to call."""
    torch.manual_seed(case.seq * 2 + case.causal)
    bytes_of_one = (math.prod(case.shape) + 2 * math.prod(case.shape_kv)) * getattr(torch, case.dtype).itemsize
    count = 1 if bytes_of_one > l2_bytes else min(MOST_INPUTS, 1 + math.ceil(2 * l2_bytes / bytes_of_one))

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, device=kind, dtype=getattr(torch, case.dtype))

    shapes = (case.shape, case.shape_kv, case.shape_kv, case.shape)
    return [tuple(normal(shape) for shape in shapes) for _ in range(count)]


class Pass:
    """One pass of one case: every library's results, checked, and times."""

    def __init__(self, case: Case, inputs: list[Tensors], backward: bool):
        self.case, self.inputs, self.backward = case, inputs, backward
        self.expected = exact(case, inputs[0], backward, SDPBackend.MATH)
        self.products: dict[str, str] = {}
        self.errors: dict[str, float] = {}
        self.apart: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        self.times: dict[str, gpu.Timing] = {}

    def prepared(self, some: Iterable[Library], reference: Tensors | None) -> tuple[dict[str, list[Call]], Any]:
        """The calls of each library that computes this, whose results are checked here; and the first one's results."""
        calls = {}
        for library in some:
            try:
                calls[library.name] = [library.call(self.case, tensors, self.backward) for tensors in self.inputs]
                results = calls[library.name][0]()
            except (RuntimeError, NotImplementedError) as error:
                calls.pop(library.name, None)
                self.refused[library.name] = str(error).partition("\n")[0]
                continue
            self.products[library.name] = library.products(self.case)
            self.errors[library.name] = error_of_heads(self.case, results, self.expected)
            if reference is None:
                reference = results
            else:
                self.apart[library.name] = apart(reference, results)
        return calls, reference

    def measure(self, device: gpu.CudaDevice, ours: Sequence[Library], peers: Sequence[Library], options: Any) -> None:
        fast = [x for x in peers if x.name != "math"]
        slow = [x for x in peers if x.name == "math" and x.takes(self.case, self.backward)]
        calls, reference = self.prepared([*ours, *fast], None)
        if calls:
            self.times = gpu.take_turns(device, calls, options.seconds, options.rounds)
        calls.clear()
        calls, reference = self.prepared(slow, reference)
        if calls:
            self.times |= gpu.take_turns(device, calls, 0, ROUNDS_OF_THE_SLOW)

    def agree(self, ours: Sequence[str]) -> bool:
        """Two heads of ours have at most twice the worst peer's error and one rounding, and no whole results are far
        apart."""
        theirs = [error for name, error in self.errors.items() if name not in ours]
        allowed = 2 * max(theirs, default=0.0)
        close = all(distance <= APART[self.products[name]] for name, distance in self.apart.items())
        return close and all(
            name in self.errors and self.errors[name] <= allowed + ROUNDING[self.products[name]] for name in ours
        )

    def row(self, ours: Sequence[str], matrix_rate: float) -> dict[str, Any]:
        flops = self.case.nominal_flops(self.backward)
        rates = {name: flops / timing.seconds for name, timing in self.times.items()}
        mine = rates.get(ours[0])
        theirs = {name: rate for name, rate in rates.items() if name not in ours}
        best = max(theirs, key=theirs.__getitem__, default=None)

        def over(rate: float | None) -> float | None:
            return mine / rate if mine and rate else None

        return {
            **asdict(self.case),
            "pass": "backward" if self.backward else "forward",
            "tflops": {name: rate / 1e12 for name, rate in rates.items()},
            "timing": {name: timing._asdict() for name, timing in self.times.items()},
            "over_cudnn": over(theirs.get("cuDNN")),
            "over_best": over(theirs[best] if best else None),
            "best_peer": best,
            "share_of_matrix_rate": mine / matrix_rate if mine else None,
            "deterministic_over_any_order": over(rates.get(ours[1])) if len(ours) > 1 and self.backward else None,
            "errors": self.errors,
            "apart": self.apart,
            "refused": self.refused,
            "agree": self.agree(ours),
        }


def _number(value: float | None, width: int, digits: int, unit: str = "") -> str:
    return "-".rjust(width) if value is None else f"{value:.{digits}f}{unit}".rjust(width)


def header(names: Sequence[str]) -> str:
    rates = " ".join(f"{name:>{max(7, len(name))}}" for name in names)
    return (
        f"{'dtype':8} {'pass':8} {'dim':>3} {'heads':>5} {'seq':>6} {'mask':6} {rates} {'/ cuDNN':>7} {'/ best':>6} "
        f"{'of matrix rate':>14} {'/ any order':>11} {'error':>7}"
    )


def line(row: dict[str, Any], names: Sequence[str]) -> str:
    rates = " ".join(_number(row["tflops"].get(name), max(7, len(name)), 1) for name in names)
    share = row["share_of_matrix_rate"]
    error = row["errors"].get(names[0])
    notes = "" if row["agree"] else "  DISAGREES"
    notes += "".join(f"  {name}: {reason}" for name, reason in row["refused"].items())
    heads = f"{row['heads']}:{row['heads'] // row['group']}"
    return (
        f"{row['dtype']:8} {row['pass']:8} {row['dim']:>3} {heads:>5} {row['seq']:>6} "
        f"{'causal' if row['causal'] else 'dense':6} {rates} "
        f"{_number(row['over_cudnn'], 7, 2, 'x')} {_number(row['over_best'], 6, 2, 'x')} "
        f"{_number(share and share * 100, 14, 1, ' %')} {_number(row['deterministic_over_any_order'], 11, 3)} "
        f"{'-' if error is None else f'{error:.1e}':>7}{notes}"
    )


RATIOS = {
    "over_cudnn": "/ cuDNN",
    "over_best": "/ best peer",
    "deterministic_over_any_order": "/ any order",
    "over_ungrouped": "/ ungrouped",
}


def compare_groups(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to each row the ratio to the one with a key head for each query head, where both were measured."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("pass", *Case.__dataclass_fields__) if name != "group")

    ungrouped = {key(row): row for row in rows if row["group"] == 1}
    for row in rows:
        name = next(iter(row["tflops"]), None)
        alike = ungrouped.get(key(row), {"tflops": {}})["tflops"].get(name)
        row["over_ungrouped"] = row["tflops"][name] / alike if row["group"] > 1 and alike else None


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric mean and worst case of each ratio, for each (dtype, pass)."""
    summary = []
    for key in dict.fromkeys((row["dtype"], row["pass"]) for row in rows):
        for ratio in RATIOS:
            group = [row for row in rows if (row["dtype"], row["pass"]) == key and row[ratio]]
            if not group:
                continue
            worst = min(group, key=lambda row: row[ratio])
            summary.append(
                {
                    "dtype": key[0],
                    "pass": key[1],
                    "ratio": ratio,
                    "cases": len(group),
                    "geometric_mean": math.exp(statistics.fmean(math.log(row[ratio]) for row in group)),
                    "slower": sum(row[ratio] < 1 for row in group),
                    "worst": worst[ratio],
                    "worst_case": Case(**{name: worst[name] for name in Case.__dataclass_fields__}).name,
                }
            )
    return summary


def print_summary(summary: Sequence[dict[str, Any]]) -> None:
    print(f"\n{'dtype':8} {'pass':8} {'':12} {'cases':>5} {'geometric mean':>14} {'slower':>6} {'worst':>7}")
    for row in summary:
        print(
            f"{row['dtype']:8} {row['pass']:8} {RATIOS[row['ratio']]:12} {row['cases']:>5} "
            f"{row['geometric_mean']:>13.3f}x {row['slower']:>6} {row['worst']:>6.3f}x  {row['worst_case']}"
        )


def compare(device: gpu.CudaDevice, cases: Sequence[Case], arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the table as it is measured, and returns it with everything else."""
    ours, peers = libraries.ours(arguments.deterministic), libraries.peers()
    names = [library.name for library in (*ours, *peers)]
    environment = device.describe()
    rates = {"matrix_flops": device.matrix_rate(), "copy_bytes": device.copy_rate()}
    print(", ".join(f"{key} {value}" for key, value in environment.items() if value))
    print(
        f"matrix products {rates['matrix_flops'] / 1e12:.1f} TFLOP/s (8192^3, bfloat16), "
        f"copies {rates['copy_bytes'] / 1e12:.2f} TB/s\n"
        f"{arguments.tokens} tokens, TFLOP/s, medians of {arguments.rounds} rounds or more\n\n{header(names)}"
    )
    rows = []
    for case in cases:
        inputs = make_inputs(case, device.l2_bytes, device.name)
        for backward in (name == "backward" for name in arguments.passes):
            of_pass = ours if backward else ours[:1]
            one = Pass(case, inputs, backward)
            one.measure(device, of_pass, peers, arguments)
            rows.append(one.row([library.name for library in of_pass], rates["matrix_flops"]))
            print(line(rows[-1], names), flush=True)
    rates["matrix_flops_after"] = device.matrix_rate()
    compare_groups(rows)
    summary = summarise(rows)
    print_summary(summary)
    print(f"\nmatrix products after all that: {rates['matrix_flops_after'] / 1e12:.1f} TFLOP/s")
    return {"environment": environment, "rates": rates, "summary": summary, "rows": rows}


def main(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("compare_torch: no CUDA device that torch can use; see torch.cuda.is_available()", file=sys.stderr)
        return 2
    try:
        cases = make_cases(arguments)
    except ValueError as error:
        print(f"compare_torch: {error}", file=sys.stderr)
        return 2
    if not cases:
        print(f"compare_torch: no case has a name like {' '.join(arguments.cases)}", file=sys.stderr)
        return 2
    # Why a backend of torch takes no case is in the table already.
    warnings.filterwarnings("ignore", category=UserWarning)
    device = gpu.CudaDevice(arguments.method)
    with device.active():
        record = compare(device, cases, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    disagreements = [row for row in record["rows"] if not row["agree"]]
    if disagreements:
        print(f"\n{len(disagreements)} results disagree or are missing", file=sys.stderr)
    return 1 if disagreements else 0
