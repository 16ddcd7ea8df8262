"""64K tokens under a butterfly mask on a GPU, beside dense attention and the standard one; compare_torch.py --long.

Forward and backward time, and the memory that a training step takes beside its inputs: results, workspace and the
mask's lists. The standard algorithm keeps scores and weights for the backward pass: what they take is stated, and asked
for.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

import tessera
import torch

from . import gpu
from .block_sparse import DTYPE, HEADS, Case, block_mask, tessera_call
from .cases import Tensors

SEQ = 65536
DIMS = (64, 128)
GIB = 2**30


def measure(
    device: gpu.CudaDevice, tensors: Tensors, blocks: tessera.BlockMask | None, arguments: argparse.Namespace
) -> tuple[dict[str, float], int]:
    """Seconds of each pass, and the bytes that both take beside the inputs."""
    before = device.bytes_in_use(release=True)
    seconds = {}
    for name in ("forward", "backward"):
        call = tessera_call(tensors, name == "backward", blocks, True)
        timing = gpu.take_turns(device, {name: [call]}, arguments.seconds, min(arguments.rounds, 3))
        seconds[name] = timing[name].seconds
    return seconds, device.bytes_in_use() - before


def standard_error(device: gpu.CudaDevice, tensors: Tensors) -> str:
    """What happens when the standard algorithm asks for its scores."""
    seq = tensors[0].shape[1]
    try:
        torch.empty(2, HEADS, seq, seq, dtype=tensors[0].dtype, device=device.name)
    except torch.OutOfMemoryError as error:
        return str(error).partition("\n")[0]
    return ""


def print_row(row: dict[str, Any]) -> None:
    density = f"{row['density']:.2%}" if "density" in row else ""
    times = [f"{row[name] * 1e3:.2f}" if name in row else "-" for name in ("forward", "backward")]
    print(
        f"{row['dim']:>3} {row['attention']:10} {density:>8} {times[0]:>10} {times[1]:>11} {row['bytes'] / GIB:>7.2f}"
        f"  {row.get('error', '')}".rstrip(),
        flush=True,
    )


def compare(device: gpu.CudaDevice, arguments: argparse.Namespace, seq: int = SEQ) -> list[dict[str, Any]]:
    print(f"{seq} tokens, {HEADS} heads, {DTYPE}\n")
    print(f"{'dim':>3} {'attention':10} {'kept':>8} {'forward ms':>10} {'backward ms':>11} {'GiB':>7}")
    rows: list[dict[str, Any]] = []

    def add(case: Case, attention: str, **figures: Any) -> None:
        rows.append({**asdict(case), "attention": attention, **figures})
        print_row(rows[-1])

    for dim in DIMS:
        case = Case(dim, seq, "butterfly")
        tensors: Tensors = tuple(
            torch.randn(case.shape, device=device.name, dtype=getattr(torch, DTYPE)) for _ in range(4)
        )
        kept = case.kept()
        for name, blocks in (("butterfly", block_mask(kept, seq)), ("dense", None)):
            density = 1.0 if blocks is None else float(kept.float().mean())
            seconds, taken = measure(device, tensors, blocks, arguments)
            add(case, name, density=density, **seconds, bytes=taken)
        scores_and_weights = 2 * HEADS * seq**2 * tensors[0].element_size()
        add(case, "standard", bytes=scores_and_weights, error=standard_error(device, tensors))
        del tensors
    return rows


def main(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("compare_torch: no CUDA device that torch can use; see torch.cuda.is_available()", file=sys.stderr)
        return 2
    device = gpu.CudaDevice(arguments.method)
    environment = device.describe()
    print(", ".join(f"{key} {value}" for key, value in environment.items() if value))
    with device.active():
        rows = compare(device, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    return 0
