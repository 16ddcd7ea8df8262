"""The sm80 family on a GPU, beside the backends of torch for the same inputs; compare_torch.py --device cuda --sm80.

bfloat16 beside FlashAttention-2, float32 with exact and with TF32 products beside the efficient backend. The backward
pass is timed in turns, the default, and in any order.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from . import gpu, ratios
from .cases import Case
from .cuda import MODEL_WIDTH, Pass, make_inputs
from .libraries import Tessera, Torch

IMPL = "sm80"
DIMS = (64, 128)


@dataclass(frozen=True)
class Inputs:
    """One dtype: its cases, its peer, and what Tessera runs beside it."""

    dtype: str
    lengths: tuple[int, ...]
    share_of_tokens: float  # of --tokens: float32 is several times slower
    peer: tuple[str, SDPBackend]
    ours: dict[str, dict[str, Any]]  # options of Tessera by name; the first one's results are what others are held to

    def cases(self, arguments: argparse.Namespace) -> list[Case]:
        tokens = int(arguments.tokens * self.share_of_tokens)
        cases = [
            Case(self.dtype, dim, seq, causal, max(1, tokens // seq), arguments.heads or MODEL_WIDTH // dim)
            for dim, causal, seq in itertools.product(DIMS, (False, True), self.lengths)
        ]
        return [case for case in cases if case.matches(arguments.cases)]

    def libraries(self, backward: bool) -> list[Tessera]:
        made = {}
        for name, options in self.ours.items():
            made[name] = Tessera(name, impl=IMPL, **options)
            if backward:
                unordered = f"{name}, any order"
                made[unordered] = Tessera(unordered, deterministic=False, impl=IMPL, **options)
        return list(made.values())


INPUTS = (
    Inputs(
        "bfloat16",
        (512, 1024, 2048, 4096, 8192, 16384),
        1.0,
        ("FlashAttention-2", SDPBackend.FLASH_ATTENTION),
        {"bfloat16": {}},
    ),
    Inputs(
        "float32",
        (512, 1024, 2048, 4096),
        0.5,
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
        {"float32": {}, "TF32": {"float32_products": "tf32"}},
    ),
)


def run_pass(
    device: gpu.CudaDevice, inputs: Inputs, case: Case, backward: bool, arguments: argparse.Namespace
) -> dict[str, Any]:
    ours, peer = inputs.libraries(backward), Torch(*inputs.peer)
    one = Pass(case, make_inputs(case, device.l2_bytes, device.name), backward)
    one.measure(device, ours, [peer], arguments)
    flops = case.nominal_flops(backward)
    rates = {name: flops / timing.seconds for name, timing in one.times.items()}
    names = [library.name for library in ours]
    return {
        **asdict(case),
        "pass": "backward" if backward else "forward",
        "impl": IMPL,
        "kernels": {library.name: library.kernels for library in ours},
        "peer": peer.name,
        "tflops": {name: rate / 1e12 for name, rate in rates.items()},
        "timing": {name: timing._asdict() for name, timing in one.times.items()},
        "over_peer": {name: rates[name] / rates[peer.name] for name in names if {name, peer.name} <= rates.keys()},
        "errors": one.errors,
        "apart": one.apart,
        "refused": one.refused,
        "agree": one.agree(names),
    }


def line(row: dict[str, Any]) -> str:
    of_peer = row["tflops"].get(row["peer"])
    ours = "  ".join(
        f"{name} {row['tflops'][name]:5.1f} {ratio:5.3f}x {row['errors'][name]:.1e}"
        for name, ratio in row["over_peer"].items()
    )
    return (
        f"{row['pass']:8} {row['dim']:>3} {row['seq']:>5} {'causal' if row['causal'] else 'dense':6} "
        f"{row['peer']} {'-' if of_peer is None else f'{of_peer:.1f}':>5}  {ours}"
        f"{'' if row['agree'] else '  DISAGREES'}{''.join(f'  {n}: {why}' for n, why in row['refused'].items())}"
    )


def compare(device: gpu.CudaDevice, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for inputs in INPUTS:
        for case in inputs.cases(arguments):
            for name in arguments.passes:
                rows.append(run_pass(device, inputs, case, name == "backward", arguments))
                print(line(rows[-1]), flush=True)
    return rows


def main(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("compare_torch: no CUDA device that torch can use; see torch.cuda.is_available()", file=sys.stderr)
        return 2
    if not any(inputs.cases(arguments) for inputs in INPUTS):
        print(f"compare_torch: no case has a name like {' '.join(arguments.cases)}", file=sys.stderr)
        return 2
    device = gpu.CudaDevice(arguments.method)
    environment = device.describe()
    print(", ".join(f"{key} {value}" for key, value in environment.items() if value))
    print(
        f"{arguments.tokens} tokens ({arguments.tokens // 2} of float32), Impl {IMPL}: TFLOP/s, ratio to torch's "
        f"backend, error\n"
    )
    with device.active():
        rows = compare(device, arguments)
    summary = ratios.summarise(rows, "over_peer")
    ratios.print_summary(summary, DIMS)
    if arguments.json:
        record = {"environment": environment, "summary": summary, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    disagreements = [row for row in rows if not row["agree"]]
    if disagreements:
        print(f"\n{len(disagreements)} results disagree or are missing", file=sys.stderr)
    return 1 if disagreements else 0
