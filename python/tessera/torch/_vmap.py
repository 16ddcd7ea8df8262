"""torch.func.vmap over the operators: the mapped dimension becomes a part of the batch.

That is exact for everything that each sequence of the batch has for itself. What the sequences share and the map would
split (gradients of sinks), and what depends on the place in the batch (dropout, some functions), is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import _ops

_BY_BATCH = ("mask", "bias")  # [batch or 1, ...]
# The operator backward: dout, dlse, q, k, v, out, lse; with_dbias, with_dsinks; then the options.
_TENSORS = 7
_Q = 2
_OPTIONS = _TENSORS + 2
_BIAS = list(_ops.TENSOR_OPTIONS).index("bias")


def _refuse(what: str) -> None:
    raise NotImplementedError(f"vmap: {what}; accepted: a loop over the mapped dimension, or the same without it")


def _folded(x: Tensor, dim: int | None, size: int) -> Tensor:
    """[mapped * batch, ...] of [batch, ...] with a mapped dimension somewhere, or without one."""
    x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.reshape(size * x.shape[1], *x.shape[2:])


def _unfolded(x: Tensor, size: int) -> Tensor:
    return x.reshape(size, x.shape[0] // size, *x.shape[1:])


def _fold_options(options: Sequence[Any], dims: Sequence[int | None], size: int, batch: int) -> list[Any]:
    given = dict(zip((*_ops.TENSOR_OPTIONS, *_ops.SCALAR_OPTIONS), options, strict=True))
    mapped = dict(zip(given, dims, strict=True))
    if given["cu_seqlens_q"] is not None:
        _refuse("the ragged layout (cu_seqlens_q)")
    if given["dropout_p"] > 0:
        _refuse(f"dropout_p: {given['dropout_p']}")
    for name in _ops.FUNCTIONS:
        function = _ops.function_of(name, given[name])
        if function is not None and function.depends_on_batch:
            _refuse(f"a {name} that depends on the batch")
    if mapped["sinks"] is not None:
        _refuse("sinks that differ along the mapped dimension")
    for name in _BY_BATCH:
        x, dim = given[name], mapped[name]
        if x is not None and (dim is not None or x.shape[0] != 1):
            whole = x if dim is None else x.movedim(dim, 0)
            if dim is not None and whole.shape[1] == 1:
                whole = whole.expand(size, batch, *whole.shape[2:])
            given[name] = _folded(whole, None if dim is None else 0, size)
    for name in ("query_ids", "key_ids", "key_lengths"):
        if given[name] is not None:
            given[name] = _folded(given[name], mapped[name], size)
    slopes, dim = given["alibi_slopes"], mapped["alibi_slopes"]
    if slopes is not None and (dim is not None or slopes.ndim > 1):
        heads = slopes.shape[-1] if dim is None else slopes.movedim(dim, 0).shape[-1]
        whole = slopes.expand(size, *slopes.shape) if dim is None else slopes.movedim(dim, 0)
        rows = whole.unsqueeze(1) if whole.ndim == 2 else whole
        given["alibi_slopes"] = rows.expand(size, batch, heads).reshape(size * batch, heads)
    return list(given.values())


def _batch(x: Tensor, dim: int | None) -> int:
    return int((x if dim is None else x.movedim(dim, 0)[0]).shape[0])


def _forward(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
    size = info.batch_size
    batch = _batch(arguments[0], in_dims[0])
    qkv = [_folded(x, dim, size) for x, dim in zip(arguments[:3], in_dims[:3], strict=True)]
    out, lse = _ops.forward(*qkv, *_fold_options(arguments[3:], in_dims[3:], size, batch))
    return (_unfolded(out, size), _unfolded(lse, size)), (0, 0)


def _backward(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
    size = info.batch_size
    batch = _batch(arguments[_Q], in_dims[_Q])
    tensors = [
        None if x is None else _folded(x, dim, size)
        for x, dim in zip(arguments[:_TENSORS], in_dims[:_TENSORS], strict=True)
    ]
    with_dbias, with_dsinks = arguments[_TENSORS:_OPTIONS]
    if with_dsinks:
        _refuse("the gradient of sinks")
    options = _fold_options(arguments[_OPTIONS:], in_dims[_OPTIONS:], size, batch)
    if with_dbias:
        # Each of the mapped problems has a gradient of its own, also of a bias that they share.
        options[_BIAS] = options[_BIAS].expand(size * batch, *options[_BIAS].shape[1:])
    dq, dk, dv, dbias, dsinks = _ops.backward(*tensors, with_dbias, False, *options)
    if with_dbias:
        dbias = _unfolded(dbias, size)
        if _batch(arguments[_OPTIONS + _BIAS], in_dims[_OPTIONS + _BIAS]) == 1:
            dbias = dbias.sum(dim=1, keepdim=True)
    gradients = tuple(_unfolded(x, size) for x in (dq, dk, dv))
    return (*gradients, dbias, dsinks), (0, 0, 0, 0 if with_dbias else None, None)


def register() -> None:
    _ops.forward.register_vmap(_forward)
    _ops.backward.register_vmap(_backward)
