"""The drop-ins against what they stand for: torch's own function, and flash_attn's documented semantics."""

from __future__ import annotations

import inspect
import math
from typing import Any

import oracle
import pytest
import tessera.torch
import torch
from torch.nn.functional import scaled_dot_product_attention as torchs

ours = tessera.torch.scaled_dot_product_attention
BOUND = {torch.float32: 2e-6, torch.bfloat16: 8 * 2.0**-8, torch.float16: 8 * 2.0**-11}
ALL = float("inf")

SDPA: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 4, 9, 16), (2, 4, 12, 16), {}),
    "causal is top-left": ((2, 4, 9, 16), (2, 4, 12, 16), {"is_causal": True}),
    "scale": ((2, 4, 9, 16), (2, 4, 12, 16), {"scale": 0.5}),
    "gqa": ((2, 4, 9, 16), (2, 2, 12, 16), {"enable_gqa": True}),
    "boolean": ((2, 4, 9, 16), (2, 4, 12, 16), {"attn_mask": torch.rand(2, 1, 9, 12) > 0.2}),
    "boolean band": ((2, 4, 9, 16), (2, 4, 12, 16), {"attn_mask": oracle.band(9, 12, 3, 1, 3)}),
    "boolean padding": (
        (2, 4, 9, 16),
        (2, 4, 12, 16),
        {"attn_mask": (torch.arange(12) < torch.tensor([[12], [5]]))[:, None, None]},
    ),
    "additive": ((2, 4, 9, 16), (2, 4, 12, 16), {"attn_mask": torch.randn(4, 9, 12)}),
    "three dimensions": ((4, 9, 16), (4, 12, 16), {"attn_mask": torch.randn(9, 12)}),
    "five dimensions": ((3, 2, 4, 9, 16), (3, 2, 4, 12, 16), {"attn_mask": torch.rand(3, 1, 1, 9, 12) > 0.2}),
}


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize(("q_shape", "k_shape", "arguments"), SDPA.values(), ids=SDPA.keys())
def test_scaled_dot_product_attention(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], arguments: dict[str, Any], dtype: torch.dtype
) -> None:
    tensors = [torch.randn(shape).to(dtype) for shape in (q_shape, k_shape, k_shape)]
    leaves, exact = [x.clone().requires_grad_() for x in tensors], [x.double().requires_grad_() for x in tensors]
    mask = arguments.get("attn_mask")
    additive = mask is not None and mask.dtype != torch.bool
    theirs = {**arguments, "attn_mask": mask.double()} if additive else arguments
    out, expected = ours(*leaves, **arguments), torchs(*exact, **theirs)
    dout = torch.randn(expected.shape)
    assert out.shape == expected.shape
    assert oracle.relative_error(out, expected) <= BOUND[dtype]
    gradients = torch.autograd.grad(out, leaves, dout.to(dtype))
    for x, y in zip(gradients, torch.autograd.grad(expected, exact, dout.to(dtype).double()), strict=True):
        assert oracle.relative_error(x, y) <= BOUND[dtype]


def test_the_gradient_of_an_additive_mask() -> None:
    q, k, v = (torch.randn(2, 4, n, 8) for n in (9, 12, 12))
    mask = torch.randn(9, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(q, k, v, mask).square().sum(), mask)
    (expected,) = torch.autograd.grad(torchs(q, k, v, mask).square().sum(), mask)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_dropout_drops_its_share() -> None:
    q, k, v = torch.randn(1, 2, 64, 8), torch.randn(1, 2, 128, 8), torch.eye(128).expand(1, 2, 128, 128)
    weights = ours(q, k, v, dropout_p=0.25)
    assert abs(float((weights != 0).float().mean()) - 0.75) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attn_mask": torch.ones(9, 9, dtype=torch.bool), "is_causal": True}, "attn_mask: given with is_causal"),
        ({"attn_mask": torch.ones(9, 8, dtype=torch.bool)}, "mask: bool"),
    ],
)
def test_what_scaled_dot_product_attention_refuses(arguments: dict[str, Any], message: str) -> None:
    x = torch.randn(1, 2, 9, 8)
    with pytest.raises(ValueError, match=message):
        ours(x, x, x, **arguments)
    with pytest.raises(ValueError, match="key: 1 heads; accepted: those of query, 2, or enable_gqa=True"):
        ours(x, x[:, :1], x[:, :1])


def test_signatures() -> None:
    """The parameters of flash_attn 2.8 and torch 2.13, in their order and with their defaults."""
    flash = (
        "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, "
        "deterministic=False, return_attn_probs=False"
    )
    expected = {
        "scaled_dot_product_attention": (
            "query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False"
        ),
        "flash_attn_func": f"q, k, v, {flash}",
        "flash_attn_varlen_func": (
            f"q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, {flash}, block_table=None"
        ),
        "flash_attn_with_kvcache": (
            "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, "
            "cache_batch_idx=None, cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, "
            "window_size=(-1, -1), softcap=0.0, rotary_interleaved=True, alibi_slopes=None, num_splits=0, "
            "return_softmax_lse=False"
        ),
    }
    for name, parameters in expected.items():
        signature = inspect.signature(getattr(tessera.torch, name))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        assert ", ".join(map(str, bare)) == parameters


FLASH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({"causal": True}, {"visible": oracle.band(9, 12, ALL, 0, 3)}),
    "window": ({"window_size": (4, 1)}, {"visible": oracle.band(9, 12, 4, 1, 3)}),
    "causal and window": ({"window_size": (4, -1), "causal": True}, {"visible": oracle.band(9, 12, 4, 0, 3)}),
    "scale and softcap": ({"softmax_scale": 0.9, "softcap": 2.0}, {"scale": 0.9, "softcap": 2.0}),
}


@pytest.mark.parametrize(("arguments", "meaning"), FLASH.values(), ids=FLASH.keys())
def test_flash_attn_func(arguments: dict[str, Any], meaning: dict[str, Any]) -> None:
    q, k, v = (torch.randn(2, n, h, 16, requires_grad=True) for n, h in ((9, 4), (12, 2), (12, 2)))
    out, lse, probabilities = tessera.torch.flash_attn_func(q, k, v, **arguments, return_attn_probs=True)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected, expected_lse = oracle.attention(*exact, **meaning)
    assert probabilities is None
    assert oracle.relative_error(out, expected) <= BOUND[torch.float32]
    assert oracle.relative_error(lse, expected_lse) <= BOUND[torch.float32]
    (dk,) = torch.autograd.grad(out.square().sum(), k)
    (wanted,) = torch.autograd.grad(expected.square().sum(), exact[1])
    assert oracle.relative_error(dk, wanted) <= BOUND[torch.float32]


def test_flash_attn_func_with_slopes() -> None:
    q, k, v = (torch.randn(2, n, 4, 16) for n in (9, 12, 12))
    slopes = torch.rand(2, 4)
    out = tessera.torch.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes)
    distance = (torch.arange(9)[:, None] + 3 - torch.arange(12)[None, :]).abs()
    bias = -slopes[:, :, None, None].double() * distance
    expected, _ = oracle.attention(q.double(), k.double(), v.double(), oracle.band(9, 12, ALL, 0, 3), bias=bias)
    assert oracle.relative_error(out, expected) <= BOUND[torch.float32]


def test_flash_attn_varlen_func() -> None:
    starts_q = torch.tensor([0, 4, 9], dtype=torch.int32)
    starts_k = torch.tensor([0, 7, 12], dtype=torch.int32)
    q, k, v = (torch.randn(n, 2, 16) for n in (9, 12, 12))
    out = tessera.torch.flash_attn_varlen_func(q, k, v, starts_q, starts_k, 5, 7, causal=True)
    for (a, b), (c, d) in zip(((0, 4), (4, 9)), ((0, 7), (7, 12)), strict=True):
        expected = tessera.torch.flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], causal=True)
        torch.testing.assert_close(out[a:b], expected[0])


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("lengths", [torch.tensor([3, 7], dtype=torch.int32), 5], ids=["tensor", "number"])
def test_flash_attn_with_kvcache_appends(lengths: Any, by_index: bool) -> None:
    q, k, v = (torch.randn(2, 2, h, 8) for h in (4, 2, 2))
    cache_k, cache_v = torch.randn(4, 12, 2, 8), torch.randn(4, 12, 2, 8)
    rows = [3, 1] if by_index else [0, 1]
    caches = (cache_k, cache_v) if by_index else (cache_k[:2], cache_v[:2])
    before = cache_k.clone()
    out, lse = tessera.torch.flash_attn_with_kvcache(
        q,
        *caches,
        k,
        v,
        cache_seqlens=lengths,
        cache_batch_idx=torch.tensor(rows, dtype=torch.int32) if by_index else None,
        causal=True,
        return_softmax_lse=True,
    )
    assert lse.shape == (2, 4, 2)
    for b, row in enumerate(rows):
        used = int(lengths if isinstance(lengths, int) else lengths[b])
        torch.testing.assert_close(cache_k[row, used : used + 2], k[b], rtol=0, atol=0)
        torch.testing.assert_close(cache_k[row, :used], before[row, :used], rtol=0, atol=0)
        torch.testing.assert_close(cache_k[row, used + 2 :], before[row, used + 2 :], rtol=0, atol=0)
        visible = (cache_k[row : row + 1, : used + 2], cache_v[row : row + 1, : used + 2])
        expected = tessera.torch.flash_attn_func(q[b : b + 1], *visible, causal=True)
        torch.testing.assert_close(out[b : b + 1], expected)


def test_flash_attn_with_kvcache_that_is_full() -> None:
    x, cache = torch.randn(2, 2, 2, 8), torch.zeros(2, 4, 2, 8)
    with pytest.raises(ValueError, match=r"cache_seqlens: \[3, 3\] with 2 new keys; accepted: 0 to 2"):
        tessera.torch.flash_attn_with_kvcache(x, cache, cache, x, x, cache_seqlens=3)
    assert not cache.any()
    with pytest.raises(ValueError, match="cache_seqlens: None with k and v"):
        tessera.torch.flash_attn_with_kvcache(x, cache, cache, x, x)
    whole = tessera.torch.flash_attn_with_kvcache(x, cache, cache)
    assert not whole.any()


X, CACHE = torch.zeros(1, 2, 2, 8), torch.zeros(1, 4, 2, 8)


def rotation(positions: torch.Tensor, interleaved: bool, width: int = 6, dim: int = 8) -> torch.Tensor:
    """[..., dim, dim] matrices that rotate the first `width` numbers: pair p by position / 10^p."""
    matrices = torch.eye(dim, dtype=torch.float64).repeat(*positions.shape, 1, 1)
    for pair in range(width // 2):
        i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + width // 2)
        angle = positions.double() / 10**pair
        matrices[..., i, i] = matrices[..., j, j] = angle.cos()
        matrices[..., i, j], matrices[..., j, i] = -angle.sin(), angle.sin()
    return matrices


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_flash_attn_with_kvcache_rotates(interleaved: bool, causal: bool) -> None:
    q, k, v = (torch.randn(2, 3, 2, 8) for _ in range(3))
    cache_k, cache_v = torch.randn(2, 12, 2, 8), torch.randn(2, 12, 2, 8)
    lengths, padding = torch.tensor([4, 7], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32)
    angles = torch.arange(12)[:, None] / 10 ** torch.arange(3)
    shared = {"cache_seqlens": lengths, "cache_leftpad": padding, "causal": causal}
    plain_k, plain_v = cache_k.clone(), cache_v.clone()
    out = tessera.torch.flash_attn_with_kvcache(
        q, cache_k, cache_v, k, v, angles.cos(), angles.sin(), rotary_interleaved=interleaved, **shared
    )
    begin = (lengths - padding)[:, None]
    turn_k = rotation(begin + torch.arange(3), interleaved)
    turn_q = turn_k if causal else rotation(begin.expand(2, 3), interleaved)
    turned_q, turned_k = (
        torch.einsum("bsij,bshj->bshi", turn, x.double()).float() for turn, x in ((turn_q, q), (turn_k, k))
    )
    expected = tessera.torch.flash_attn_with_kvcache(turned_q, plain_k, plain_v, turned_k, v, **shared)
    torch.testing.assert_close(cache_k, plain_k, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_flash_attn_with_kvcache_leaves_the_left_padding_out() -> None:
    q, cache_k, cache_v = torch.randn(2, 2, 4, 8), torch.randn(2, 12, 2, 8), torch.randn(2, 12, 2, 8)
    lengths, padding = torch.tensor([12, 9]), torch.tensor([3, 0])
    out = tessera.torch.flash_attn_with_kvcache(
        q, cache_k, cache_v, cache_seqlens=lengths, cache_leftpad=padding, causal=True
    )
    for b in range(2):
        used = slice(int(padding[b]), int(lengths[b]))
        expected = tessera.torch.flash_attn_func(
            q[b : b + 1], cache_k[b : b + 1, used], cache_v[b : b + 1, used], causal=True
        )
        torch.testing.assert_close(out[b : b + 1], expected)


def test_what_the_cache_function_refuses() -> None:
    with pytest.raises(ValueError, match=r"block_table: shape \[1\]; accepted: \[batch, pages of a sequence\]"):
        tessera.torch.flash_attn_with_kvcache(X, CACHE, CACHE, block_table=torch.zeros(1))
    with pytest.raises(ValueError, match="rotary_cos, rotary_sin: one of them or without k"):
        tessera.torch.flash_attn_with_kvcache(X, CACHE, CACHE, rotary_cos=torch.zeros(4, 4))
    table = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="rotary_cos: 2 positions; accepted: 3 or more"):
        tessera.torch.flash_attn_with_kvcache(X, CACHE, CACHE, X, X, table, table, cache_seqlens=1, causal=True)
    with pytest.raises(ValueError, match=r"v: shape \[1, 2, 2, 7\]; accepted: \[1, 2, 2, 8\]"):
        tessera.torch.flash_attn_with_kvcache(X, CACHE, CACHE, X + 1, X[..., :7], cache_seqlens=1)
    assert not CACHE.any()
    with pytest.raises(ValueError, match="k, v: one of them"):
        tessera.torch.flash_attn_with_kvcache(X, CACHE, CACHE, X, cache_seqlens=1)
    with pytest.raises(ValueError, match=r"cache_seqlens: torch\.float32; accepted: integers"):
        tessera.torch.flash_attn_with_kvcache(X, CACHE, CACHE, cache_seqlens=torch.tensor([1.5]))


def test_what_the_flash_functions_refuse() -> None:
    with pytest.raises(NotImplementedError, match=r"return_attn_probs: True with dropout_p 0\.5"):
        tessera.torch.flash_attn_func(X, X, X, dropout_p=0.5, return_attn_probs=True)
    starts = torch.tensor([0, 2])
    with pytest.raises(NotImplementedError, match="block_table: given"):
        tessera.torch.flash_attn_varlen_func(X[0], X[0], X[0], starts, starts, 2, 2, block_table=starts)
    with pytest.raises(ValueError, match="window left: -2; accepted: 0 or more"):
        tessera.torch.flash_attn_func(X, X, X, window_size=(-2, 0))
    with pytest.raises(ValueError, match="window_size: 3; accepted: a pair of integers"):
        tessera.torch.flash_attn_func(X, X, X, window_size=3)


def test_rows_that_see_nothing_are_zero() -> None:
    q = torch.randn(1, 2, 3, 8)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    out = ours(q, q, q, mask)
    assert not out[:, :, 1].any()
    assert math.isfinite(float(out.sum()))
