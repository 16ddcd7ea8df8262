#!/usr/bin/env python3
"""Causal attention over several GPUs from torch: tessera.torch.distributed beside torch's context_parallel with cuDNN,
and beside one GPU that has the whole sequence, in one run.

    torchrun --nproc-per-node 2 bench/ring_torch.py [--seqs 16K,32K] [--heads 32] [--kv-heads 32] [--transport nccl]

Times are medians of the slowest rank, between two points at which all devices are idle. Lengths are those of one GPU.
context_parallel is timed with both of its rotate methods, where there are as many key heads as query heads. The share
is the time that one GPU takes for the whole sequence, over the number of GPUs, in the ring's time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import tessera.torch
import torch
import torch.distributed as dist
from tessera.distributed import Communicator
from tessera.torch import distributed as ring
from torch import Tensor
from torch.nn import functional

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def tokens(text: str) -> int:
    return int(text[:-1]) * 1024 if text.endswith("K") else int(text)


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """Of the slowest rank."""
    times = []
    for n in range(2 + rounds):
        torch.cuda.synchronize()
        dist.barrier()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        slowest = torch.tensor((time.perf_counter() - start) * 1e3, device="cuda")
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        if n >= 2:
            times.append(float(slowest))
    return statistics.median(times)


def both(attention: Attention, tensors: list[Tensor], rounds: int) -> dict[str, float]:
    """Forward alone, and forward with backward."""
    *inputs, dout = tensors
    leaves = [x.detach().requires_grad_() for x in inputs]
    return {
        "forward": milliseconds(lambda: attention(*inputs), rounds),
        "forward + backward": milliseconds(lambda: torch.autograd.grad(attention(*leaves), leaves, dout), rounds),
    }


def make(seq: int, options: argparse.Namespace) -> list[Tensor]:
    """q, k, v, dout [1, seq, heads, dim], the same on every rank."""
    torch.manual_seed(1)
    heads = (options.heads, options.kv_heads, options.kv_heads, options.heads)
    return [torch.randn(1, seq, n, options.dim, device="cuda", dtype=torch.bfloat16) for n in heads]


def one_gpu(seq: int, options: argparse.Namespace) -> dict[str, float]:
    return both(lambda q, k, v: tessera.torch.attention(q, k, v, causal=True), make(seq, options), 3)


def by_tessera(seq: int, options: argparse.Namespace) -> dict[str, float]:
    attention: Attention = lambda q, k, v: ring.attention(q, k, v, causal=True)  # noqa: E731
    return both(attention, make(seq, options), options.rounds)


def by_context_parallel(seq: int, rotate: str, options: argparse.Namespace) -> dict[str, float]:
    from torch.distributed.tensor.experimental import context_parallel  # noqa: PLC0415
    from torch.distributed.tensor.experimental._attention import set_rotate_method  # noqa: PLC0415
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415

    mesh = dist.device_mesh.init_device_mesh("cuda", (dist.get_world_size(),))
    set_rotate_method(rotate)
    whole = [x.transpose(1, 2).contiguous() for x in make(seq * dist.get_world_size(), options)]
    parallel: AbstractContextManager[None] = context_parallel(
        mesh, buffers=whole, buffer_seq_dims=[2] * 4, no_restore_buffers=set(whole)
    )

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # By the module: context_parallel puts a function of its own there.
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]), parallel:
        require_equality(attention(*whole[:3]), whole[:3])
        return both(attention, whole, options.rounds)


def require_equality(out: Tensor, inputs: list[Tensor]) -> None:
    """What is timed has to be the same: head-major tensors in the layout that is called zigzag here."""
    ours = ring.attention(*(x.transpose(1, 2) for x in inputs), causal=True).transpose(1, 2)
    error = float(torch.linalg.vector_norm((out - ours).float()) / torch.linalg.vector_norm(ours.float()))
    if error > 1e-2:
        raise SystemExit(f"ring_torch: context_parallel and tessera differ by {error:.1e}")


def measure(seq: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    found = {"tessera": by_tessera(seq, options)}
    if options.kv_heads == options.heads and not options.no_context_parallel:
        for rotate in ("allgather", "alltoall"):
            found[f"context_parallel, {rotate}"] = by_context_parallel(seq, rotate, options)
    found["one GPU, whole sequence"] = one_gpu(seq * dist.get_world_size(), options)
    return found


def report(seq: int, found: dict[str, dict[str, float]]) -> None:
    print(f"{seq} tokens of a GPU:")
    for name, times in found.items():
        print(f"  {name:<28}" + "".join(f"{label} {ms:8.2f} ms   " for label, ms in times.items()))
    ours, whole = found["tessera"], found["one GPU, whole sequence"]
    shares = {label: whole[label] / dist.get_world_size() / ms for label, ms in ours.items()}
    print("  share of one GPU's rate      " + "".join(f"{label} {share:8.1%}      " for label, share in shares.items()))
    others = [times for name, times in found.items() if name.startswith("context_parallel")]
    if others:
        faster = {label: min(times[label] for times in others) / ms for label, ms in ours.items()}
        print("  faster than context_parallel " + "".join(f"{label} {x:8.2f} x      " for label, x in faster.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seqs", default="16K,32K", help="tokens of one GPU (16K,32K)")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=32)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--transport", choices=("copy", "nccl", "staged"), help="of tessera (the first that there is)")
    parser.add_argument("--no-context-parallel", action="store_true")
    parser.add_argument("--json", type=Path, help="write the times, in milliseconds, to this file")
    options = parser.parse_args()
    if torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        parser.exit(0, "ring_torch: fewer GPUs than ranks; nothing to measure\n")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    # Kept for the default group, in which all calls are.
    communicator = Communicator.from_process_group(transport=options.transport)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} GPUs, tessera: {communicator.transport}")
    results = {}
    for seq in map(tokens, options.seqs.split(",")):
        results[seq] = measure(seq, options)
        if dist.get_rank() == 0:
            report(seq, results[seq])
    if options.json is not None and dist.get_rank() == 0:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
