"""attention with automatic differentiation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .._options import Options, with_mask_fields
from .._tessera import BlockMask
from . import _eager, _ops

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[False] = False, **options: Unpack[Options]
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **options: Unpack[Options]
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale Q K^T) V, differentiable: out, or (out, lse) with return_lse.

    q    [batch, seq_q, heads_q, dim_qk] or, with cu_seqlens_q, [total_q, heads_q, dim_qk]
    k    [batch, seq_k, heads_kv, dim_qk]; heads_kv divides heads_q
    v    [batch, seq_k, heads_kv, dim_v]
    out  [batch, seq_q, heads_q, dim_v]
    lse  [batch, heads_q, seq_q] or, ragged, [heads_q, total_q]; float32, or float64 for float64 inputs

    The options are those of tessera.Options, with these differences:
      - gradients flow to q, k, v, bias and sinks, from out and lse alike;
      - any strides are taken; a last dimension without stride 1 is copied;
      - bias and a boolean mask may have fewer dimensions, which are added in front, and sinks any floating dtype;
      - key_lengths, cu_seqlens_q, cu_seqlens_k and segments may be integer tensors, also inside a compiled graph;
      - on a GPU these tensors of integers are copied to the CPU, which waits for them, and so is a boolean mask;
      - the stream is torch's current one;
      - dropout_seed, when left out, is drawn from torch's generator, so that torch.manual_seed repeats it;
      - output_dtype may be a torch.dtype; threads 0 stands for torch.get_num_threads().

    Under autocast q, k and v of float32 are computed in autocast's dtype. float64 is computed by the reference.
    Works in torch.compile(fullgraph=True), torch.func.grad and, without dropout or cu_seqlens, torch.func.vmap. There
    are no second derivatives. The same input errors as in tessera.forward, with the same messages.
    """
    if not torch.compiler.is_compiling():
        call = _eager.find(q, k, v, options)  # type: ignore[arg-type]
        if call is not None:
            if not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)):
                out, lse = call.forward(q, k, v, return_lse)
                return (out, lse) if lse is not None else out
            if not return_lse:
                return _eager.differentiable(q, k, v, call)
    given = with_mask_fields(options)
    if given.get("stream") is not None:
        raise ValueError(f"stream: {given['stream']}; accepted: None, inside torch.cuda.stream(...)")
    q, k, v = (_autocast(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v")))
    tensors, scalars = _arguments(given, q)
    out, lse = _ops.differentiable(q, k, v, *tensors, *scalars)
    return (out, lse) if return_lse else out


def _autocast(x: Tensor, name: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: {type(x).__name__}; accepted: a torch tensor")
    kind = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x


def _integers(values: Any) -> Tensor | None:
    if values is None or isinstance(values, Tensor):
        return values
    return torch.as_tensor(values, dtype=torch.int64)


def _seed(given: dict[str, Any]) -> Tensor | None:
    if not given.get("dropout_p"):
        return None
    seed = given.get("dropout_seed")
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)
    if not 0 <= seed < 2**64:
        raise ValueError(f"dropout_seed: {seed}; accepted: 0 to 2^64 - 1")
    return torch.tensor([seed - 2**64 if seed >= 2**63 else seed], dtype=torch.int64)


@torch.compiler.assume_constant_result
def _block_bytes(blocks: BlockMask | None) -> Tensor | None:
    if blocks is not None and not isinstance(blocks, BlockMask):
        raise ValueError(f"blocks: {blocks!r}; accepted: a tessera.BlockMask")
    return None if blocks is None else torch.frombuffer(bytearray(blocks.to_bytes()), dtype=torch.uint8)


@torch.compiler.assume_constant_result
def _function_text(name: str, function: Any) -> str | None:
    kind = _ops.FUNCTIONS[name]
    if function is not None and not isinstance(function, kind):
        raise ValueError(f"{name}: {function!r}; accepted: a tessera.{kind.__name__}")
    return _ops.text_of(function)


def _tensor(given: dict[str, Any], name: str, accepted: str = "a torch tensor") -> Tensor | None:
    value = given.get(name)
    if not isinstance(value, (Tensor, type(None))):
        raise TypeError(f"{name}: {value!r}; accepted: {accepted}")
    return value


def _truth(given: dict[str, Any], name: str, otherwise: bool) -> Any:
    value = given.get(name)
    if not isinstance(value, (bool, torch.SymBool, type(None))):
        raise ValueError(f"{name}: {value!r}; accepted: True or False")
    return otherwise if value is None else value


def _number(given: dict[str, Any], name: str) -> Any:
    value = given.get(name)
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, type(None))):
        raise ValueError(f"{name}: {value!r}; accepted: a number")
    return value


def _sides(window: Any) -> tuple[int | None, int | None]:
    if window is None:
        return None, None
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise ValueError(f"window: {window!r}; accepted: a pair of integers or None")
    return window[0], window[1]


def _four_dimensions(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.ndim >= 4 else x[(None,) * (4 - x.ndim)]


def _arguments(given: dict[str, Any], q: Tensor) -> tuple[list[Any], list[Any]]:
    """The options in the order of the operators."""
    slopes, sinks = _tensor(given, "alibi_slopes"), _tensor(given, "sinks")
    if slopes is not None and slopes.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError("alibi_slopes: a tensor that requires grad; accepted: slopes without a gradient")
    if sinks is not None:
        sinks = sinks.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    segments = given.get("segments")
    pair = segments if isinstance(segments, tuple) and len(segments) == 2 else (segments, segments)
    tensors = {
        "blocks": _block_bytes(given.get("blocks")),
        "mask": _four_dimensions(_tensor(given, "mask", "a boolean tensor or tessera.Mask")),
        "bias": _four_dimensions(_tensor(given, "bias")),
        "alibi_slopes": slopes,
        "sinks": sinks,
        "query_ids": _integers(pair[0]),
        "key_ids": _integers(pair[1]),
        "key_lengths": _integers(given.get("key_lengths")),
        "cu_seqlens_q": _integers(given.get("cu_seqlens_q")),
        "cu_seqlens_k": _integers(given.get("cu_seqlens_k")),
        "dropout_seed": _seed(given),
    }
    left, right = _sides(given.get("window"))
    alignment = given.get("alignment")
    if isinstance(alignment, str) and alignment not in ("top_left", "bottom_right"):
        raise ValueError(f'alignment: "{alignment}"; accepted: "bottom_right", "top_left" or an integer')
    output_dtype = given.get("output_dtype")
    scalars = {
        "score_function": _function_text("score_function", given.get("score_function")),
        "mask_function": _function_text("mask_function", given.get("mask_function")),
        "causal": _truth(given, "causal", False),
        "window_left": left,
        "window_right": right,
        "top_left": alignment == "top_left",
        "diagonal": None if isinstance(alignment, str) else alignment,
        "scale": _number(given, "scale"),
        "softcap": _number(given, "softcap") or 0.0,
        "dropout_p": _number(given, "dropout_p") or 0.0,
        "dropout_start": given.get("dropout_start"),
        "function_start": given.get("function_start"),
        "output_dtype": str(output_dtype).removeprefix("torch.") if output_dtype is not None else None,
        "impl": given.get("impl"),
        "isa": given.get("isa"),
        "threads": given.get("threads") or 0,
        "deterministic": _truth(given, "deterministic", True),
        "float32_products": given.get("float32_products"),
    }
    return [tensors[name] for name in _ops.TENSOR_OPTIONS], [scalars[name] for name in _ops.SCALAR_OPTIONS]
