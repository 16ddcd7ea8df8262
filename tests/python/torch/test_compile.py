"""torch.compile without graph breaks, opcheck, torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import tessera
import torch
from tessera.torch import _ops, attention
from tessera.torch._attention import _arguments


def inputs(*, grad: bool = True) -> list[torch.Tensor]:
    return [torch.randn(2, n, h, 8, requires_grad=grad) for n, h in ((9, 4), (12, 2), (12, 2))]


OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"mask": tessera.Mask(causal=True, window=(5, None)), "softcap": 4.0},
    "boolean, bias and sinks": {
        "mask": torch.rand(2, 1, 9, 12) > 0.3,
        "bias": torch.randn(1, 4, 9, 12, requires_grad=True),
        "sinks": torch.randn(4, requires_grad=True),
    },
    "dropout": {"dropout_p": 0.25, "dropout_seed": 9},
    "lengths": {"key_lengths": torch.tensor([12, 5]), "alibi_slopes": torch.rand(4)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_opcheck(options: dict[str, Any]) -> None:
    qkv = inputs()
    tensors, scalars = _arguments(options if "mask" not in options else _fields(options), qkv[0])
    torch.library.opcheck(_ops.forward, (*qkv, *tensors, *scalars))
    out, lse = _ops.forward(*qkv, *tensors, *scalars)
    given = [None if x is None else x.detach() for x in (torch.randn_like(out), None, *qkv, out, lse, *tensors)]
    has = dict(zip(_ops.TENSOR_OPTIONS, tensors, strict=True))
    wanted = (has["bias"] is not None, has["sinks"] is not None)
    torch.library.opcheck(_ops.backward, (*given[:7], *wanted, *given[7:], *scalars))


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    return tessera._options.with_mask_fields(options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_compile_without_graph_breaks(options: dict[str, Any]) -> None:
    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q * 2, k, v, **options).sin()

    qkv = inputs()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    out, expected = compiled(*qkv), block(*qkv)
    torch.testing.assert_close(out, expected)
    dout = torch.randn_like(out)
    for x, y in zip(torch.autograd.grad(out, qkv, dout), torch.autograd.grad(expected, qkv, dout), strict=True):
        torch.testing.assert_close(x, y)


def test_compile_with_inductor_dynamic_shapes_and_a_drawn_seed() -> None:
    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v, causal=True, dropout_p=0.5) + 1

    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    results = []
    for length in (9, 14):
        q, k, v = (torch.randn(1, length, 2, 8) for _ in range(3))
        results += [compiled(q, k, v), compiled(q, k, v)]
    assert results[2].shape == (1, 14, 2, 8)
    assert not torch.equal(results[2], results[3])


def test_compile_under_autocast() -> None:
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(*inputs()).dtype == torch.bfloat16


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return attention(q, k, v, causal=True)

    qkv = tuple(inputs(grad=False))
    exported = torch.export.export(Model(), qkv)
    torch.testing.assert_close(exported.module()(*qkv), attention(*qkv, causal=True))


VMAPPED: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {
    "plain": ({}, {"causal": True}),
    "shared options": (
        {},
        {"bias": torch.randn(1, 4, 9, 12), "sinks": torch.randn(4), "key_lengths": torch.tensor([12, 5])},
    ),
    "a bias for each": ({"bias": torch.randn(3, 1, 4, 9, 12)}, {}),
    "a mask for each": ({"mask": torch.rand(3, 1, 1, 9, 12) > 0.3}, {}),
    "slopes for each": ({"alibi_slopes": torch.rand(3, 4)}, {}),
    "slopes by batch": ({}, {"alibi_slopes": torch.rand(2, 4)}),
}


@pytest.mark.parametrize(("mapped", "shared"), VMAPPED.values(), ids=VMAPPED.keys())
def test_vmap(mapped: dict[str, torch.Tensor], shared: dict[str, Any]) -> None:
    q = torch.randn(2, 3, 9, 4, 8)
    k, v = torch.randn(3, 2, 12, 2, 8), torch.randn(2, 12, 2, 8)

    def call(q: Any, k: Any, v: Any, own: Any) -> Any:
        return attention(q, k, v, **own, **shared)

    out = torch.func.vmap(call, in_dims=(1, 0, None, 0))(q, k, v, mapped)
    for i in range(3):
        expected = attention(q[:, i], k[i], v, **{name: x[i] for name, x in mapped.items()}, **shared)
        torch.testing.assert_close(out[i], expected)


def test_gradients_for_each_sample() -> None:
    q, k, v = (x.detach() for x in inputs())
    bias, targets = torch.randn(1, 4, 9, 12), torch.randn(5, 2, 9, 4, 8)

    def loss(q: Any, bias: Any, target: Any) -> Any:
        return (attention(q, k, v, bias=bias) - target).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0))(q, bias, targets)
    for i in range(5):
        for x, y in zip(gradients, torch.func.grad(loss, argnums=(0, 1))(q, bias, targets[i]), strict=True):
            torch.testing.assert_close(x[i], y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_p": 0.5, "dropout_seed": 1}, "dropout_p: 0.5"),
        ({"cu_seqlens_q": torch.tensor([0, 4, 6])}, "cu_seqlens_q"),
    ],
)
def test_what_vmap_refuses(options: dict[str, Any], message: str) -> None:
    x = torch.randn(3, 6, 2, 8) if "cu_seqlens_q" in options else torch.randn(3, 1, 6, 2, 8)
    with pytest.raises(NotImplementedError, match=f"vmap: .*{message}"):
        torch.func.vmap(lambda x: attention(x, x, x, **options))(x)


def test_second_derivatives_of_functions_raise() -> None:
    q, k, v = (x.detach() for x in inputs())
    gradient = torch.func.grad(lambda q: attention(q, k, v).square().sum())
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.func.grad(lambda q: gradient(q).sum())(q)
