"""Decoding beside torch's attention backends on a GPU: few queries over many keys; compare_torch.py --decode.

The bar is memory: every row says which share of the rate of a copy, measured in the same run, Q, the keys in use and O
come to, each counted once. What fits into the L2 cache is read from several copies in turn.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import tessera
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from . import gpu

MOST_COPIES = 16
MOST_ERROR = 1e-2  # of bfloat16 against float32
BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention-2": SDPBackend.FLASH_ATTENTION}


@dataclass(frozen=True)
class DecodeCase:
    batch: int
    keys: int
    queries: int = 1
    heads_q: int = 32
    heads_kv: int = 8
    dim: int = 128
    page_size: int = 0  # 0: not paged

    @property
    def name(self) -> str:
        pages = f"-page{self.page_size}" if self.page_size else ""
        return f"b{self.batch}-q{self.queries}-k{self.keys}-h{self.heads_q}:{self.heads_kv}-d{self.dim}{pages}"

    @property
    def bytes(self) -> int:
        keys = 2 * self.batch * self.keys * self.heads_kv * self.dim
        return 2 * (keys + 2 * self.batch * self.queries * self.heads_q * self.dim)


CASES = (
    DecodeCase(1, 65536),
    DecodeCase(64, 4096),
    DecodeCase(64, 4096, page_size=16),
    DecodeCase(1, 8192),
    DecodeCase(16, 8192, queries=4),
    DecodeCase(16, 8192, queries=16),
    DecodeCase(16, 8192, heads_kv=32, dim=64),
    DecodeCase(16, 8192, heads_q=16, heads_kv=4, dim=256),
    DecodeCase(1, 65536, heads_q=64, heads_kv=1),
)


class Inputs:
    """q, k and v of one case, contiguous and, where the case is paged, as pages in random order."""

    def __init__(self, case: DecodeCase):
        def normal(seq: int, heads: int) -> torch.Tensor:
            return torch.randn(case.batch, seq, heads, case.dim, device="cuda", dtype=torch.bfloat16)

        self.q, self.k, self.v = (
            normal(case.queries, case.heads_q),
            normal(case.keys, case.heads_kv),
            normal(case.keys, case.heads_kv),
        )
        self.out = torch.empty_like(self.q)
        self.lse = torch.empty(case.batch, case.heads_q, case.queries, device="cuda")
        self.caches, self.options = (self.k, self.v), {}
        if case.page_size:
            pages = case.batch * case.keys // case.page_size
            order = torch.randperm(pages, device="cuda")
            shape = (pages, case.page_size, case.heads_kv, case.dim)
            self.caches = tuple(torch.empty_like(x).view(shape) for x in (self.k, self.v))
            for cache, x in zip(self.caches, (self.k, self.v), strict=True):
                cache[order] = x.view(shape)
            self.options = {"page_table": order.int().view(case.batch, -1)}

    def tessera(self) -> torch.Tensor:
        tessera.forward(self.q, *self.caches, out=self.out, lse=self.lse, **self.options)
        return self.out

    def torch(self, backend: SDPBackend) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        with sdpa_kernel(backend), torch.no_grad():
            return scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)

    def error(self, out: torch.Tensor) -> float:
        """Of the first sequence, against float32."""
        q, k, v = (x[:1].float().transpose(1, 2) for x in (self.q, self.k, self.v))
        group = q.shape[1] // k.shape[1]
        weights = torch.softmax(q @ k.repeat_interleave(group, 1).transpose(2, 3) / math.sqrt(q.shape[-1]), -1)
        expected = (weights @ v.repeat_interleave(group, 1)).transpose(1, 2)
        return float((out[:1].float() - expected).norm() / expected.norm())


def run_case(
    case: DecodeCase, device: gpu.CudaDevice, arguments: argparse.Namespace, copy_rate: float
) -> dict[str, Any]:
    torch.manual_seed(case.keys)
    copies = (
        1 if case.bytes > 2 * device.l2_bytes else min(MOST_COPIES, 1 + math.ceil(2 * device.l2_bytes / case.bytes))
    )
    inputs = [Inputs(case) for _ in range(copies)]
    calls: dict[str, list[Callable[[], Any]]] = {"Tessera": [x.tessera for x in inputs]}
    for name, backend in BACKENDS.items() if not case.page_size else ():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                inputs[0].torch(backend)
        except RuntimeError:
            continue
        calls[name] = [lambda x=x, backend=backend: x.torch(backend) for x in inputs]
    timings = gpu.take_turns(device, calls, arguments.seconds, arguments.rounds)
    row: dict[str, Any] = {**asdict(case), "name": case.name, "bytes": case.bytes}
    row["impl"] = tessera.explain(inputs[0].q, *inputs[0].caches, **inputs[0].options).split("impl")[1].split()[0]
    row["error"] = inputs[0].error(inputs[0].tessera())
    for name, timing in timings.items():
        row[name] = {"us": timing.seconds * 1e6, "share_of_copy_rate": case.bytes / timing.seconds / copy_rate}
    return row


def print_row(row: dict[str, Any]) -> None:
    cells = [
        f"{row[name]['us']:>9.1f} {100 * row[name]['share_of_copy_rate']:>4.0f} %" if name in row else f"{'-':>16}"
        for name in ("Tessera", *BACKENDS)
    ]
    print(f"{row['name']:34} {row['impl']:8}" + "  ".join(cells) + f"  {row['error']:.1e}", flush=True)


def main(arguments: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print("compare_torch: torch finds no CUDA device", file=sys.stderr)
        return 2
    device = gpu.CudaDevice(arguments.method)
    with device.active():
        copy_rate = device.copy_rate()
        environment = {**device.describe(), "copy_bytes_per_second": copy_rate}
        print(", ".join(f"{key} {value}" for key, value in environment.items()))
        columns = "  ".join(f"{name + ' us':>9} copy" for name in ("Tessera", "cuDNN", "FA2"))
        print(f"copy rate {copy_rate / 1e12:.2f} TB/s\n\n{'case':34} {'impl':8}{columns}  error")
        rows = []
        for case in CASES:
            rows.append(run_case(case, device, arguments, copy_rate))
            print_row(rows[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    wrong = [row["name"] for row in rows if not row["error"] <= MOST_ERROR]
    if wrong:
        print(f"\nwrong: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0
