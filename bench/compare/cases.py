"""What is compared, and how far results may be from each other."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# Of one rounding to the dtype, and of two libraries' whole results from each other: both relative. Of TF32 the bound of
# docs/numerics.md.
ROUNDING = {"float32": 1e-6, "tf32": 3 * 2.0**-10, "bfloat16": 2.0**-8, "float16": 2.0**-11}
APART = {"float32": 2e-5, "tf32": 3 * 2.0**-10, "bfloat16": 4e-2, "float16": 5e-3}
WIDER = {"float32": torch.float64, "bfloat16": torch.float32, "float16": torch.float32}

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    dtype: str
    dim: int
    seq: int
    causal: bool
    batch: int
    heads: int
    group: int = 1  # query heads of a key head

    @property
    def name(self) -> str:
        grouped = f"-g{self.group}" if self.group > 1 else ""
        return f"{self.dtype}-d{self.dim}-n{self.seq}-{'causal' if self.causal else 'dense'}{grouped}"

    @property
    def heads_kv(self) -> int:
        return self.heads // self.group

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.seq, self.heads, self.dim)

    @property
    def shape_kv(self) -> tuple[int, int, int, int]:
        return (self.batch, self.seq, self.heads_kv, self.dim)

    def matches(self, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatch(self.name, pattern) for pattern in patterns)

    def flops(self, backward: bool) -> float:
        """Of the pairs that attend."""
        pairs = self.seq * (self.seq + 1) / 2 if self.causal else self.seq**2
        return (10 if backward else 4) * self.dim * pairs * self.batch * self.heads

    def nominal_flops(self, backward: bool) -> float:
        """As papers about GPUs count: 4 b h s^2 d forward, half of it if causal, and 2.5 times that backward."""
        pairs = self.seq**2 / (2 if self.causal else 1)
        return (10 if backward else 4) * self.dim * pairs * self.batch * self.heads

    def heads_to_check(self) -> list[tuple[int, int]]:
        """The two (batch, key head) pairs that are checked in a wider dtype: the first and the last."""
        return [(0, 0), (self.batch - 1, self.heads_kv - 1)]

    def part(self, x: torch.Tensor, batch: int, head_kv: int) -> torch.Tensor:
        """Of a tensor with query heads or key heads: those of one key head of one batch."""
        width = x.shape[2] // self.heads_kv
        return x[batch : batch + 1, :, head_kv * width : (head_kv + 1) * width]


def torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, backend: SDPBackend):
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def torch_leaves(tensors: Sequence[torch.Tensor]) -> Tensors:
    """[batch, heads, seq, dim] views of [batch, seq, heads, dim] tensors, each a leaf of the graph."""
    return tuple(x.detach().transpose(1, 2).requires_grad_() for x in tensors)


def exact(case: Case, tensors: Sequence[torch.Tensor], backward: bool, backend: SDPBackend) -> list[Tensors]:
    """(out,) or (dq, dk, dv) of each of the heads that are checked, from q, k, v and dout in the next wider dtype."""
    results = []
    for batch, head in case.heads_to_check():
        q, k, v, dout = (case.part(x, batch, head).to(WIDER[case.dtype]) for x in tensors)
        of_queries = []
        of_keys: Tensors = ()
        for member in range(case.group):  # one at a time: a matrix of scores takes gigabytes
            leaves = torch_leaves((q[:, :, member : member + 1], k, v))
            out = torch_attention(*leaves, case.causal, backend)
            if not backward:
                of_queries.append(out.detach())
                continue
            dq, *rest = torch.autograd.grad(out, leaves, dout[:, :, member : member + 1].transpose(1, 2))
            of_queries.append(dq)
            of_keys = tuple(x + y for x, y in zip(of_keys, rest, strict=True)) if of_keys else tuple(rest)
        results.append(tuple(x.transpose(1, 2) for x in (torch.cat(of_queries, 1), *of_keys)))
    return results


def relative_error(x: torch.Tensor, reference: torch.Tensor) -> float:
    """||x - reference|| / ||reference||; infinity where there is a NaN."""
    error = float((x.double() - reference.double()).norm() / reference.double().norm())
    return math.inf if math.isnan(error) else error


def error_of_heads(case: Case, results: Tensors, expected: Sequence[Tensors]) -> float:
    """The largest error of (out,) or (dq, dk, dv) over the heads that are checked."""
    return max(
        relative_error(case.part(x, batch, head), e)
        for (batch, head), of_head in zip(case.heads_to_check(), expected, strict=True)
        for x, e in zip(results, of_head, strict=True)
    )


def apart(results: Tensors, others: Tensors) -> float:
    return max(relative_error(x, y) for x, y in zip(results, others, strict=True))
