"""The libraries that are compared on a GPU, each as calls that return (out,) or (dq, dk, dv) shaped as the inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tessera
import torch
from torch.nn.attention import SDPBackend

from .cases import Case, Tensors, torch_attention, torch_leaves

Call = Callable[[], Tensors]


class Tessera:
    """With `impl`, calls of that Impl; `options` are more of forward's and backward's."""

    def __init__(self, name: str = "Tessera", deterministic: bool = True, impl: str = "", **options: Any):
        self.name = name
        self.deterministic = deterministic
        self.impl = impl
        self.options: dict[str, Any] = {**({"impl": impl} if impl else {}), **options}
        self.kernels: list[str] = []  # of the last call, where an Impl was asked for by name

    def products(self, case: Case) -> str:
        """What the factors of products are rounded to: a key of cases.ROUNDING."""
        return "tf32" if self.options.get("float32_products") == "tf32" else case.dtype

    def takes(self, case: Case, backward: bool) -> bool:
        return True

    def call(self, case: Case, tensors: Tensors, backward: bool) -> Call:
        q, k, v, dout = tensors
        options: dict[str, Any] = {"causal": case.causal, **self.options}
        if self.impl:
            self.kernels = require_impl(self.impl, tensors, backward, **options, deterministic=self.deterministic)
        if not backward:
            return lambda: tessera.forward(q, k, v, **options)[:1]
        out, lse = tessera.forward(q, k, v, **options)
        options["deterministic"] = self.deterministic
        return lambda: tuple(tessera.backward(dout, q, k, v, out, lse, **options)[:3])


def require_impl(name: str, tensors: Tensors, backward: bool, **options: Any) -> list[str]:
    """The kernels of the plan that a call with these options has; raises RuntimeError if it is another Impl's."""
    q, k, v = tensors[:3]
    page = tessera.explain(q, k, v, backward=backward, **options)
    rows = [line.split() for line in page.splitlines()]
    chosen = next(row[1] for row in rows if row and row[0] == "impl")
    if chosen != name:
        raise RuntimeError(f"{chosen} computed what {name} was asked for")
    return [row[1].rstrip(":") for row in rows if row and row[0] == "kernel"]


class Torch:
    """scaled_dot_product_attention, held to one of its backends."""

    def __init__(self, name: str, backend: SDPBackend, most_score_bytes: float = math.inf):
        self.name = name
        self.backend = backend
        self.most_score_bytes = most_score_bytes

    def products(self, case: Case) -> str:
        return case.dtype

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
