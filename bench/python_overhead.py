#!/usr/bin/env python3
"""Host time of one eager call on the GPU, beside torch's scaled_dot_product_attention.

The problem is so small that the device is always ahead of the host: what is timed is Python, the binding, the plan
cache and the launches. Median of many batches of calls, all libraries by turns.

    python3 bench/python_overhead.py [--calls N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tessera
import tessera.torch
import torch
from torch.nn.functional import scaled_dot_product_attention

BATCHES = 30
SHAPE = (1, 128, 4, 64)  # batch, tokens, heads, head dim


def inputs(requires_grad: bool) -> list[torch.Tensor]:
    return [torch.randn(SHAPE, device="cuda", dtype=torch.bfloat16, requires_grad=requires_grad) for _ in range(3)]


def sdpa(tensors: list[torch.Tensor]) -> Callable[[], object]:
    q, k, v = (x.transpose(1, 2) for x in tensors)
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=True)


def training_step(forward: Callable[[], torch.Tensor], tensors: list[torch.Tensor]) -> Callable[[], object]:
    dout = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), tensors, dout)


def calls() -> dict[str, Callable[[], object]]:
    plain, trained = inputs(False), inputs(True)
    head_major = [x.transpose(1, 2).detach().requires_grad_() for x in trained]
    return {
        "forward: torch SDPA": sdpa(plain),
        "forward: tessera.torch.attention": lambda: tessera.torch.attention(*plain, causal=True),
        "forward: tessera.forward": lambda: tessera.forward(*plain, causal=True),
        "forward + backward: torch SDPA": training_step(
            lambda: scaled_dot_product_attention(*head_major, is_causal=True), head_major
        ),
        "forward + backward: tessera.torch.attention": training_step(
            lambda: tessera.torch.attention(*trained, causal=True), trained
        ),
    }


def host_seconds(call: Callable[[], object], count: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=50, help="calls in a batch (50)")
    parser.add_argument("--json", type=Path, help="write the medians, in microseconds, to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(0, "python_overhead: torch sees no GPU; nothing to measure\n")
    functions = calls()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        host_seconds(function, arguments.calls)
    for _ in range(BATCHES):
        for name, function in functions.items():
            samples[name].append(host_seconds(function, arguments.calls) * 1e6)
    medians = {name: round(statistics.median(times), 2) for name, times in samples.items()}
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, host time of a call, median of {BATCHES} batches"
    )
    for name, microseconds in medians.items():
        print(f"  {name:<45}{microseconds:8.1f} us")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(medians, indent=2) + "\n")


if __name__ == "__main__":
    main()
