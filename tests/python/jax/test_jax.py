"""tessera.jax.attention: values, gradients, jit, vmap."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tessera
import tessera.jax

RNG = np.random.default_rng(8)


def normal(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), dtype)


def inputs(dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    return normal(2, 9, 4, 8, dtype=dtype), normal(2, 12, 2, 8, dtype=dtype), normal(2, 12, 2, 8, dtype=dtype)


def oracle(
    q: Any, k: Any, v: Any, visible: Any = True, bias: Any = 0.0, sinks: Any = None, softcap: float = 0.0
) -> Any:
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    s = jnp.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(q.shape[-1])
    s = softcap * jnp.tanh(s / softcap) if softcap else s
    s = jnp.where(visible, s + bias, -jnp.inf)
    whole = (
        s
        if sinks is None
        else jnp.concatenate([s, jnp.broadcast_to(sinks[None, :, None, None], (*s.shape[:3], 1))], axis=-1)
    )
    lse = jax.nn.logsumexp(whole, axis=-1)
    return jnp.einsum("bhij,bjhd->bihd", jnp.exp(s - lse[..., None]), v), lse


BAND = np.arange(12)[None, :] <= np.arange(9)[:, None] + 3
CAP = "template <class T> T score(T s, tessera::Index, const float* params) { return params[0] * tanh(s / params[0]); }"
FUNCTIONS = {
    "score_function": tessera.ScoreFunction(CAP, [2.0]),
    "mask_function": tessera.MaskFunction("bool keep(tessera::Index i) { return i.key <= i.query + 3; }"),
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({}, {}),
    "causal": ({"mask": tessera.Mask(causal=True)}, {"visible": BAND}),
    "boolean": ({"mask": BAND[None, None]}, {"visible": BAND}),
    "softcap": ({"softcap": 2.0}, {"softcap": 2.0}),
    "functions": (FUNCTIONS, {"softcap": 2.0, "visible": BAND}),
    "lengths": ({"key_lengths": [12, 5]}, {"visible": (np.arange(12) < np.array([[12], [5]]))[:, None, None]}),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("options", "meaning"), CASES.values(), ids=CASES.keys())
def test_values_and_gradients(options: dict[str, Any], meaning: dict[str, Any], jit: bool) -> None:
    weights = normal(2, 9, 4, 8), normal(2, 4, 9)

    def loss(function: Any) -> Any:
        def of(q: Any, k: Any, v: Any, bias: Any, sinks: Any) -> Any:
            out, lse = function(q, k, v, bias=bias, sinks=sinks)
            return (out * weights[0]).sum() + (lse * weights[1]).sum()

        return of

    ours = loss(lambda *x, **y: tessera.jax.attention(*x, return_lse=True, **y, **options))
    theirs = loss(lambda *x, **y: oracle(*x, **y, **meaning))
    arguments = (*inputs(), normal(1, 4, 9, 12), normal(4))
    gradient = jax.value_and_grad(ours, argnums=range(5))
    value, gradients = (jax.jit(gradient) if jit else gradient)(*arguments)
    expected, expected_gradients = jax.value_and_grad(theirs, argnums=range(5))(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for x, y in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.bfloat16, 0.03), (jnp.float16, 0.004)])
def test_16_bits(dtype: Any, bound: float) -> None:
    qkv = inputs(dtype)
    out = tessera.jax.attention(*qkv, causal=True)
    expected, _ = oracle(*(x.astype(jnp.float32) for x in qkv), visible=BAND)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=bound)
    gradient = jax.grad(lambda q: tessera.jax.attention(q, *qkv[1:]).astype(jnp.float32).sum())(qkv[0])
    assert gradient.dtype == dtype


def test_dropout_is_that_of_the_library() -> None:
    qkv = inputs()
    out = tessera.jax.attention(*qkv, dropout_p=0.5, dropout_seed=3)
    expected = tessera.attention(*(np.asarray(x) for x in qkv), dropout_p=0.5, dropout_seed=3)
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="dropout_seed: None with dropout_p"):
        tessera.jax.attention(*qkv, dropout_p=0.5)


def test_ragged_and_segments_inside_jit() -> None:
    q, k, v = (normal(12, 2, 8) for _ in range(3))
    starts = jnp.array([0, 5, 12])
    out = jax.jit(lambda *x: tessera.jax.attention(*x[:3], cu_seqlens_q=x[3], causal=True))(q, k, v, starts)
    ids = jnp.repeat(jnp.arange(2), jnp.array([5, 7]))
    packed = tessera.jax.attention(q[None], k[None], v[None], segments=ids, causal=True)
    np.testing.assert_allclose(out, packed[0], rtol=1e-5, atol=1e-6)


def test_vmap() -> None:
    q, k, v = normal(3, 1, 9, 2, 8), normal(1, 12, 2, 8), normal(1, 12, 2, 8)
    out = jax.vmap(tessera.jax.attention, in_axes=(0, None, None))(q, k, v)
    for i in range(3):
        np.testing.assert_allclose(out[i], tessera.jax.attention(q[i], k, v), rtol=1e-6)


def test_errors() -> None:
    q, k, v = inputs()
    with pytest.raises(Exception, match="heads_kv: 3; accepted: divisors of heads_q, 4"):
        jax.block_until_ready(tessera.jax.attention(q, normal(2, 12, 3, 8), normal(2, 12, 3, 8)))
    with pytest.raises(ValueError, match="output_dtype: float32; accepted: None"):
        tessera.jax.attention(q, k, v, output_dtype="float32")
