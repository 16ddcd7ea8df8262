"""Attention on JAX arrays, on the CPU, with gradients, inside jit, and vmap one by one.

    out = tessera.jax.attention(q, k, v, causal=True)

A host callback (jax.pure_callback) computes; custom_vjp gives it gradients. bfloat16 is computed in float32, since
NumPy, in which callbacks get their arrays, cannot hand bfloat16 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

import tessera

from ._options import Options, with_mask_fields

if TYPE_CHECKING:
    from typing_extensions import Unpack

_DIFFERENTIABLE = ("bias", "sinks")
_INTEGERS = ("key_lengths", "cu_seqlens_q", "cu_seqlens_k")
_ARRAYS = (*_DIFFERENTIABLE, "mask", "alibi_slopes", "query_ids", "key_ids", *_INTEGERS)


@overload
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, return_lse: Literal[False] = False, **options: Unpack[Options]
) -> jax.Array: ...
@overload
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, return_lse: Literal[True], **options: Unpack[Options]
) -> tuple[jax.Array, jax.Array]: ...
def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, return_lse: bool = False, **options: Unpack[Options]
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """softmax(scale Q K^T) V, differentiable: out, or (out, lse) with return_lse.

    q    [batch, seq_q, heads_q, dim_qk] or, with cu_seqlens_q, [total_q, heads_q, dim_qk]
    k    [batch, seq_k, heads_kv, dim_qk]; heads_kv divides heads_q
    v    [batch, seq_k, heads_kv, dim_v]
    out  [batch, seq_q, heads_q, dim_v]
    lse  [batch, heads_q, seq_q] or, ragged, [heads_q, total_q]; float32, or float64 for float64 inputs

    The options are those of tessera.Options; tensors and integers among them may be traced arrays. Gradients flow to q,
    k, v, bias and sinks, from out and lse alike. dropout_seed has to be given with dropout_p, and output_dtype is
    refused: convert the result.
    """
    given = with_mask_fields(options)
    if given.get("dropout_p") and given.get("dropout_seed") is None:
        raise ValueError("dropout_seed: None with dropout_p; accepted: 0 to 2^64 - 1")
    if given.get("output_dtype") is not None:
        raise ValueError(f"output_dtype: {given['output_dtype']}; accepted: None")
    segments = given.pop("segments", None)
    if segments is not None:
        pair = segments if isinstance(segments, tuple) and len(segments) == 2 else (segments, segments)
        given["query_ids"], given["key_ids"] = pair
    arrays = {name: jnp.asarray(given.pop(name)) for name in _ARRAYS if given.get(name) is not None}
    out, lse = _differentiable(given)(q, k, v, arrays)
    return (out, lse) if return_lse else out


def _differentiable(fixed: dict[str, Any]) -> Any:
    """The function (q, k, v, arrays) -> (out, lse) with these other options."""

    @jax.custom_vjp
    def call(q: Any, k: Any, v: Any, arrays: dict[str, Any]) -> Any:
        ragged = "cu_seqlens_q" in arrays
        *rows, heads, _dim = q.shape
        lse_shape = (heads, *rows) if ragged else (rows[0], heads, rows[1])
        shapes = (
            jax.ShapeDtypeStruct((*rows, heads, v.shape[-1]), q.dtype),
            jax.ShapeDtypeStruct(lse_shape, jnp.float64 if q.dtype == jnp.float64 else jnp.float32),
        )

        def compute(q: Any, k: Any, v: Any, arrays: dict[str, Any]) -> Any:
            results = tessera.forward(_numpy(q), _numpy(k), _numpy(v), **_options(fixed, arrays))
            return _like(results, shapes)

        return jax.pure_callback(compute, shapes, q, k, v, arrays, vmap_method="sequential")

    def call_forward(q: Any, k: Any, v: Any, arrays: dict[str, Any]) -> Any:
        out, lse = call(q, k, v, arrays)
        return (out, lse), (q, k, v, out, lse, arrays)

    def call_backward(saved: Any, cotangents: Any) -> Any:
        q, k, v, _out, _lse, arrays = saved
        wanted = [name for name in _DIFFERENTIABLE if name in arrays]
        inputs = (q, k, v, *(arrays[name] for name in wanted))
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs)

        def compute(cotangents: Any, saved: Any) -> Any:
            q, k, v, out, lse, arrays = saved
            dout, dlse = cotangents
            gradients = tessera.backward(
                *(_numpy(x) for x in (dout, q, k, v, out, lse)),
                dlse=_numpy(dlse),
                dbias="bias" in arrays,
                dsinks="sinks" in arrays,
                **_options(fixed, arrays),
            )
            return _like([x for x in gradients if x is not None], shapes)

        dq, dk, dv, *rest = jax.pure_callback(compute, shapes, cotangents, saved, vmap_method="sequential")
        of_arrays = dict.fromkeys(arrays) | dict(zip(wanted, rest, strict=True))
        return dq, dk, dv, of_arrays

    call.defvjp(call_forward, call_backward)
    return call


def _options(fixed: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {name: _numpy(x) for name, x in arrays.items()}
    if "query_ids" in given:
        given["segments"] = (given.pop("query_ids").ravel(), given.pop("key_ids").ravel())
    return {**fixed, **given}


def _numpy(x: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(x)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def _like(results: Any, shapes: Any) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(x.astype(shape.dtype, copy=False) for x, shape in zip(results, shapes, strict=True))
