"""Score and mask functions with gradients, in compiled graphs and under vmap."""

from __future__ import annotations

from typing import Any

import pytest
import tessera
import tessera.torch
import torch

GATED = tessera.ScoreFunction(
    """
template <class T>
T score(T s, tessera::Index i, const float* params) {
  const float distance = static_cast<float>(abs(i.query - i.key));
  return s - params[i.head] * ((T(1) + tanh(s)) / 2) * log(1.0F + distance);
}
""",
    [0.5, 0.25],
    name="gated",
)
DILATED = tessera.MaskFunction(
    """
bool keep(tessera::Index i) {
  return i.key <= i.query && (i.query - i.key) % 3 == 0;
}
""",
    name="dilated",
)
OF_THE_BATCH = tessera.MaskFunction("bool keep(tessera::Index i) { return i.key <= i.query + i.batch; }")


def inputs(*leading: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    return tuple(
        torch.randn(*leading, 2, 13, 2, 8, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)
    )


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5
    apart = torch.arange(13)[:, None] - torch.arange(13)[None, :]
    strength = torch.tensor([0.5, 0.25])[:, None, None]
    scores = scores - strength * (1 + scores.tanh()) / 2 * apart.abs().log1p()
    scores = scores.masked_fill((apart < 0) | (apart % 3 != 0), float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    return tessera.torch.attention(q, k, v, score_function=GATED, mask_function=DILATED, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients(dtype: torch.dtype) -> None:
    q, k, v = inputs(dtype=dtype)
    out = attention(q, k, v)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=dtype)
    ours = torch.autograd.grad(out, (q, k, v), dout)
    theirs = torch.autograd.grad(expected(q, k, v), (q, k, v), dout)
    torch.testing.assert_close(out, expected(q, k, v), atol=2e-6, rtol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=5e-6, rtol=1e-5)


def test_numerical_gradients() -> None:
    assert torch.autograd.gradcheck(attention, inputs())


def test_in_a_compiled_graph() -> None:
    def twice(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tessera.torch.attention(attention(q, k, v), k, v, score_function=GATED).sum()

    q, k, v = inputs(dtype=torch.float32)
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    theirs = torch.autograd.grad(twice(q, k, v), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="needs torch 2.5")
def test_vmap() -> None:
    q, k, v = (x.detach() for x in inputs(3, dtype=torch.float32))
    mapped = torch.func.vmap(attention)(q, k, v)
    torch.testing.assert_close(mapped, torch.stack([attention(*row) for row in zip(q, k, v, strict=True)]))
    with pytest.raises(NotImplementedError, match="vmap: a mask_function that depends on the batch"):
        torch.func.vmap(lambda *row: tessera.torch.attention(*row, mask_function=OF_THE_BATCH))(q, k, v)


def test_start_and_refusals() -> None:
    q, k, v = (x.detach() for x in inputs(dtype=torch.float32))
    below = tessera.MaskFunction("bool keep(tessera::Index i) { return i.key <= i.query; }")
    ours = tessera.torch.attention(q[:, -4:], k, v, mask_function=below, function_start=(0, 0, 9, 0))
    torch.testing.assert_close(ours, tessera.torch.attention(q[:, -4:], k, v, causal=True))
    with pytest.raises(ValueError, match=r"score_function: .*; accepted: a tessera.ScoreFunction"):
        tessera.torch.attention(q, k, v, score_function=below)  # type: ignore[arg-type]
