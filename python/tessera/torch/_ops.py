"""torch.ops.tessera.forward and .backward: attention as custom operators, with fake implementations and autograd.

Operators take tensors and scalars alone, so that a graph can hold them; what Python gives as lists of integers are
int64 tensors here. The order of the arguments is TENSOR_OPTIONS, then SCALAR_OPTIONS.
"""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

import tessera

# Name and type in the operators' schemas, in order.
TENSOR_OPTIONS = {
    "mask": "Tensor?",
    "blocks": "Tensor?",  # the bytes of a BlockMask
    "bias": "Tensor?",
    "alibi_slopes": "Tensor?",
    "sinks": "Tensor?",
    "query_ids": "Tensor?",
    "key_ids": "Tensor?",
    "key_lengths": "Tensor?",
    "cu_seqlens_q": "Tensor?",
    "cu_seqlens_k": "Tensor?",
    "dropout_seed": "Tensor?",
}
SCALAR_OPTIONS = {
    "score_function": "str?",  # the bytes of a ScoreFunction, in base 64
    "mask_function": "str?",
    "causal": "bool",
    "window_left": "int?",
    "window_right": "int?",
    "top_left": "bool",
    "diagonal": "int?",
    "scale": "float?",
    "softcap": "float",
    "dropout_p": "float",
    "dropout_start": "int[]?",
    "function_start": "int[]?",
    "output_dtype": "str?",
    "impl": "str?",
    "isa": "str?",
    "threads": "int",
    "deterministic": "bool",
    "float32_products": "str?",
}
FUNCTIONS: dict[str, Any] = {"score_function": tessera.ScoreFunction, "mask_function": tessera.MaskFunction}
_NAMES = (*TENSOR_OPTIONS, *SCALAR_OPTIONS)
_SCHEMA = ", ".join(f"{kind} {name}" for name, kind in (TENSOR_OPTIONS | SCALAR_OPTIONS).items())
_FORWARD_INPUTS = 3  # q, k, v


def text_of(function: Any) -> str | None:
    """A ScoreFunction or MaskFunction as a constant that a graph can hold."""
    return None if function is None else base64.b64encode(function.to_bytes()).decode()


def function_of(name: str, text: str | None) -> Any:
    return None if text is None else FUNCTIONS[name].from_bytes(base64.b64decode(text))


def _named(values: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(_NAMES, values, strict=True))


def _options(values: tuple[Any, ...]) -> dict[str, Any]:
    """The operators' arguments as the keywords of tessera.forward and tessera.backward."""
    given = _named(values)
    for name in ("mask", "bias", "alibi_slopes", "sinks"):
        if given[name] is not None:
            given[name] = given[name].detach()
    if given["blocks"] is not None:
        given["blocks"] = tessera.BlockMask.from_bytes(bytes(given["blocks"].numpy()))
    for name in FUNCTIONS:
        given[name] = function_of(name, given[name])
    query_ids, key_ids = given.pop("query_ids"), given.pop("key_ids")
    given["segments"] = None if query_ids is None else (query_ids, key_ids)
    sides = (given.pop("window_left"), given.pop("window_right"))
    given["window"] = None if sides == (None, None) else sides
    diagonal = given.pop("diagonal")
    given["alignment"] = "top_left" if given.pop("top_left") else diagonal
    given["causal"] = given["causal"] or None
    seed = given["dropout_seed"]
    # A negative number is the same 64 bits read as signed, which is what an int64 tensor holds.
    given["dropout_seed"] = None if seed is None else int(seed.item()) % 2**64
    for name in ("dropout_start", "function_start"):
        start = given[name]
        given[name] = None if start is None else tuple(start)
    given["threads"] = given["threads"] or torch.get_num_threads()
    return given


def _readable(x: Tensor) -> Tensor:
    """Without its graph and with a last dimension that has stride 1; a copy only where it has not."""
    x = x.detach()
    return x if x.numel() == 0 or x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _output_dtype(q: Tensor, options: dict[str, Any]) -> torch.dtype:
    name = options["output_dtype"]
    return q.dtype if name is None else getattr(torch, name)


def _lse_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


@torch.library.custom_op(
    "tessera::forward", mutates_args=(), schema=f"(Tensor q, Tensor k, Tensor v, {_SCHEMA}) -> (Tensor, Tensor)"
)
def forward(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return tessera.forward(_readable(q), _readable(k), _readable(v), **_options(options))


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    given = _named(options)
    *rows, heads, _dim = q.shape
    lse_shape = (heads, rows[0]) if given["cu_seqlens_q"] is not None else (rows[0], heads, rows[1])
    out = q.new_empty((*rows, heads, v.shape[-1]), dtype=_output_dtype(q, given))
    return out, q.new_empty(lse_shape, dtype=_lse_dtype(q))


@torch.library.custom_op(
    "tessera::backward",
    mutates_args=(),
    schema=(
        "(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool with_dbias, "
        f"bool with_dsinks, {_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    with_dbias: bool,
    with_dsinks: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv, dbias and dsinks; the last two are empty tensors where they are not wanted."""
    dout, q, k, v, out = (_readable(x) for x in (dout, q, k, v, out))
    dq, dk, dv, dbias, dsinks = tessera.backward(
        dout,
        q,
        k,
        v,
        out,
        lse.detach(),
        dlse=None if dlse is None else dlse.detach(),
        dbias=with_dbias,
        dsinks=with_dsinks,
        **_options(options),
    )
    return dq, dk, dv, q.new_empty(0) if dbias is None else dbias, q.new_empty(0) if dsinks is None else dsinks


@backward.register_fake
def _(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    with_dbias: bool,
    with_dsinks: bool,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = _named(options)
    dtype = _output_dtype(q, given)
    dq, dk, dv = (x.new_empty(x.shape, dtype=dtype) for x in (q, k, v))
    bias, sinks = given["bias"], given["sinks"]
    dbias = bias.new_empty(bias.shape) if with_dbias else q.new_empty(0)
    dsinks = sinks.new_empty(sinks.shape) if with_dsinks else q.new_empty(0)
    return dq, dk, dv, dbias, dsinks


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    options = inputs[_FORWARD_INPUTS:]
    tensors = options[: len(TENSOR_OPTIONS)]
    ctx.scalars = options[len(TENSOR_OPTIONS) :]
    ctx.save_for_backward(*inputs[:_FORWARD_INPUTS], *output, *tensors)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None, run: Any = backward) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    needed = _named(ctx.needs_input_grad[_FORWARD_INPUTS:])
    if dout is None:
        dout = torch.zeros_like(out)
    dq, dk, dv, dbias, dsinks = run(
        dout, dlse, q, k, v, out, lse, needed["bias"], needed["sinks"], *tensors, *ctx.scalars
    )
    of_options = dict.fromkeys(_NAMES)
    if needed["bias"]:
        of_options["bias"] = dbias
    if needed["sinks"]:
        of_options["sinks"] = dsinks
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), *of_options.values()


forward.register_autograd(_gradients, setup_context=_setup_context)


# torch.func.grad and vjp do not see the formulas of custom operators, but those of functions, which in eager mode cost
# less time around the computation too. Graphs keep the operator.
class _BackwardFunction(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = backward(*arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError("second derivatives: wanted; accepted: first derivatives alone")


class _ForwardFunction(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = forward(*arguments)
        return result

    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, dout, dlse, _BackwardFunction.apply)


def differentiable(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator forward, with gradients for whatever differentiates it."""
    run: Any = _ForwardFunction.apply if _wants_function(arguments) else forward
    result: tuple[Tensor, Tensor] = run(*arguments)
    return result


def _wants_function(arguments: tuple[Any, ...]) -> bool:
    if torch.compiler.is_compiling():
        return False
    needs_gradient = any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
    return torch._C._are_functorch_transforms_active() or (needs_gradient and torch.is_grad_enabled())
