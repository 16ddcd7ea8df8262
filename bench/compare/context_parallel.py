"""Times torch's context_parallel with cuDNN, one process for each GPU, for bench/scaling.py."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.experimental import _attention, context_parallel
from torch.nn.attention import SDPBackend, sdpa_kernel

ROTATE_METHODS = ("allgather", "alltoall")


def set_rotate_method(name: str) -> None:
    """It has moved between versions of torch."""
    setter = getattr(_attention, "set_rotate_method", None)
    if setter is None:
        from torch.distributed.tensor.experimental import _context_parallel  # noqa: PLC0415

        setter = _context_parallel.set_rotate_method
    setter(name)


@contextlib.contextmanager
def sharded(mesh: Any, tensors: list[torch.Tensor]) -> Iterator[None]:
    with (
        sdpa_kernel(SDPBackend.CUDNN_ATTENTION),
        context_parallel(mesh, buffers=tensors, buffer_seq_dims=[2] * len(tensors)),
    ):
        yield


def median_seconds(work: Callable[[], Any], min_time: float) -> float:
    """The slowest rank's median; all ranks make as many runs."""

    def once() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        dist.barrier()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    for _ in range(2):
        warm = once()
    runs = torch.tensor(max(3, min(50, int(min_time / warm))), device="cuda")
    dist.broadcast(runs, 0)
    median = torch.tensor(statistics.median(once() for _ in range(int(runs))), device="cuda")
    dist.all_reduce(median, op=dist.ReduceOp.MAX)
    return float(median)


def measure(mesh: Any, options: argparse.Namespace, heads: str, tokens: int, method: str) -> dict[str, Any]:
    set_rotate_method(method)
    queries, keys = map(int, heads.split(":"))
    torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator(device="cuda").manual_seed(7)  # the same whole tensors on every rank
    shape = (1, queries, tokens * options.ranks, options.dim)
    q, k, v, dout = (
        torch.randn((1, heads_of, *shape[2:]), device="cuda", dtype=options.torch_dtype, generator=generator)
        for heads_of in (queries, keys, keys, queries)
    )
    with sharded(mesh, [q, k, v, dout]):
        inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v)]

        def attention() -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=queries != keys)

        def both() -> None:
            torch.autograd.grad(attention(), inputs, dout)

        with torch.no_grad():
            forward = median_seconds(attention, options.min_time)
        together = median_seconds(both, options.min_time)
    return {
        "name": f"torch {method}",
        "tokens": tokens,
        "heads": heads,
        "seconds": {"forward": forward, "backward": together - forward},
        "held_bytes": {"backward": torch.cuda.max_memory_allocated()},
    }


def worker(rank: int, options: argparse.Namespace) -> None:
    torch.cuda.set_device(rank)
    options.torch_dtype = getattr(torch, options.dtype)
    dist.init_process_group("nccl", rank=rank, world_size=options.ranks, device_id=torch.device("cuda", rank))
    mesh = init_device_mesh("cuda", (options.ranks,))
    cells = []
    for heads in options.heads:
        for tokens in options.tokens:
            for method in ROTATE_METHODS:
                try:
                    cells.append(measure(mesh, options, heads, tokens, method))
                except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
                    if rank == 0:
                        print(f"context_parallel: {method}, heads {heads}: {error}", file=sys.stderr)
                torch.cuda.empty_cache()
                if rank == 0:  # what there is, should a later cell never end
                    draft = Path(options.json + ".part")
                    draft.write_text(json.dumps(cells))
                    draft.replace(options.json)
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--tokens", type=lambda text: [int(part) for part in text.split(",")], required=True)
    parser.add_argument("--heads", type=lambda text: text.split(","), required=True)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--min-time", type=float, default=0.3)
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29517")
    torch.multiprocessing.spawn(worker, (options,), nprocs=options.ranks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
