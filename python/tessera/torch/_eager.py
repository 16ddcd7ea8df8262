"""Eager calls on a GPU without tensors among the options: no operator, no DLPack, a plan looked up by the shapes.

An operator of torch.library costs more host time than a short attention takes on the device. bench/python_overhead.py
measures both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _tessera
from .._options import Mask, plain

# Options whose values are hashable and say everything; others, and those that a call does not know, go the general way.
_SCALARS = frozenset(
    (
        "mask",
        "causal",
        "window",
        "alignment",
        "mask_function",
        "scale",
        "softcap",
        "score_function",
        "function_start",
        "impl",
        "deterministic",
        "float32_products",
        "output_dtype",
    )
)
_MOST_PLANS = 256
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # missing in builds without CUDA

_Key = tuple[object, ...]


class Call:
    """What tessera.torch.attention computes for tensors and options like these; made once for each kind of call."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, object]) -> None:
        self.options = plain(options, q, k)  # type: ignore[arg-type]
        del self.options["stream"]
        dtype = self.options.get("output_dtype")
        self.dtype = q.dtype if dtype is None else getattr(torch, str(dtype).removeprefix("torch."))
        if dtype is not None:
            self.options["output_dtype"] = str(dtype).removeprefix("torch.")
        self.index = q.get_device()
        self.out_shape = (*q.shape[:-1], v.shape[-1])
        self.pass_forward = _tessera.prepare(q.detach(), k.detach(), v.detach(), None, self.options)
        self.out_is_like_q = q.is_contiguous() and self.out_shape == q.shape and self.dtype == q.dtype
        self.lse_shape = self.pass_forward.lse_shape
        self.forward_words = _words(self.pass_forward)
        self.passes_backward: dict[tuple[int, ...], _tessera.Prepared] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, with_lse: bool) -> tuple[Tensor, Tensor | None]:
        # empty_like and new_empty take half the time of empty with its keywords.
        out = torch.empty_like(q) if self.out_is_like_q else q.new_empty(self.out_shape, dtype=self.dtype)
        lse = q.new_empty(self.lse_shape, dtype=torch.float32) if with_lse else None
        workspace = q.new_empty(self.forward_words) if self.forward_words > 0 else None
        self.pass_forward.forward(q, k, v, out, lse, workspace, _current_stream(self.index))  # type: ignore[misc]
        return out, lse

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        strides = dout.stride()
        prepared = self.passes_backward.get(strides)
        if prepared is None:
            prepared = _tessera.prepare(q.detach(), k.detach(), v.detach(), dout.detach(), self.options)
            self.passes_backward[strides] = prepared
        dq, dk, dv = (x.new_empty(x.shape, dtype=self.dtype) for x in (q, k, v))
        words = _words(prepared)
        workspace = q.new_empty(words) if words > 0 else None
        stream = _current_stream(self.index)  # type: ignore[misc]
        prepared.backward(dout, q, k, v, out, lse, dq, dk, dv, workspace, stream)
        if self.dtype == q.dtype:
            return dq, dk, dv
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _words(prepared: _tessera.Prepared) -> int:
    """Elements of 16 bits that hold the workspace."""
    return (prepared.workspace_bytes + 1) // 2


# By the options: the calls, and their places in the list by the tensors.
_calls: dict[_Key, tuple[_tessera.CallTable, list[Call]]] = {}


def find(q: Tensor, k: Tensor, v: Tensor, options: dict[str, object]) -> Call | None:
    """The call for these arguments, or None where it has to go the general way, which takes and checks everything."""
    if not type(q) is type(k) is type(v) is Tensor:
        return None
    if (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    ):
        return None
    try:
        known = _calls.get(tuple(options.items()))
    except TypeError:  # an option that cannot be hashed
        return None
    if known is not None:
        place = known[0].find(q, k, v)
        if place >= 0:
            return known[1][place]
    return _make(q, k, v, options)


def _make(q: Tensor, k: Tensor, v: Tensor, options: dict[str, object]) -> Call | None:
    mask = options.get("mask")
    if not _SCALARS.issuperset(options) or not (mask is None or _is_band(mask)):
        return None
    if not all(x.is_cuda and x.ndim == 4 and x.stride(-1) == 1 for x in (q, k, v)):
        return None
    if q.dtype not in (torch.bfloat16, torch.float16):
        return None
    if sum(len(calls) for _, calls in _calls.values()) >= _MOST_PLANS:
        _calls.clear()
    call = Call(q, k, v, options)
    table, calls = _calls.setdefault(tuple(options.items()), (_tessera.CallTable(), []))
    if table.add(q, k, v) == len(calls):
        calls.append(call)
    return call


def _is_band(mask: object) -> bool:
    return isinstance(mask, Mask) and mask.blocks is None and mask.segments is None


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        out, lse = call.forward(q, k, v, with_lse=True)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.call = call
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        if dout.stride(-1) != 1:
            dout = dout.contiguous()
        return *ctx.call.backward(dout, q, k, v, out, lse), None


def differentiable(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """out, with gradients to q, k and v."""
    run: Any = _Differentiable.apply
    out: Tensor = run(q, k, v, call)
    return out
