"""The libraries that are compared on a GPU, each as calls that return (out,) or (dq, dk, dv) shaped as the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import tessera
import torch
from torch.nn.attention import SDPBackend

from .cases import Case, Tensors, torch_attention, torch_leaves

Call = Callable[[], Tensors]


class Tessera:
    def __init__(self, name: str = "Tessera", deterministic: bool = True):
        self.name = name
        self.deterministic = deterministic

    def takes(self, case: Case, backward: bool) -> bool:
        return True

    def call(self, case: Case, tensors: Tensors, backward: bool) -> Call:
        q, k, v, dout = tensors
        if not backward:
            return lambda: tessera.forward(q, k, v, causal=case.causal)[:1]
        out, lse = tessera.forward(q, k, v, causal=case.causal)
        options: tessera.Options = {"causal": case.causal, "deterministic": self.deterministic}
        return lambda: tuple(tessera.backward(dout, q, k, v, out, lse, **options)[:3])


class Torch:
    """scaled_dot_product_attention, held to one of its backends."""

    def __init__(self, name: str, backend: SDPBackend, most_score_bytes: float = math.inf):
        self.name = name
        self.backend = backend
        self.most_score_bytes = most_score_bytes

    def takes(self, case: Case, backward: bool) -> bool:
        scores = case.batch * case.heads * case.seq**2
        return scores * getattr(torch, case.dtype).itemsize <= self.most_score_bytes

    def call(self, case: Case, tensors: Tensors, backward: bool) -> Call:
        leaves = torch_leaves(tensors[:3])
        dout = tensors[3].transpose(1, 2)
        if backward:
            graph = torch_attention(*leaves, case.causal, self.backend)
            return lambda: _rows(torch.autograd.grad(graph, leaves, dout, retain_graph=True))

        def forward() -> Tensors:
            with torch.no_grad():
                return _rows((torch_attention(*leaves, case.causal, self.backend),))

        return forward


def _rows(tensors: Tensors) -> Tensors:
    return tuple(x.transpose(1, 2) for x in tensors)


def peers() -> list[Torch]:
    return [
        Torch("cuDNN", SDPBackend.CUDNN_ATTENTION),
        Torch("FlashAttention-2", SDPBackend.FLASH_ATTENTION),
        Torch("math", SDPBackend.MATH, most_score_bytes=2**32),
    ]


def ours(deterministic: str) -> list[Tessera]:
    """Of `on`, `off` or `both`; the first is the one whose ratios are taken."""
    ordered, unordered = Tessera(), Tessera("Tessera, any order", deterministic=False)
    return {"on": [ordered], "off": [unordered], "both": [ordered, unordered]}[deterministic]
