"""tessera.torch.attention: values and gradients over options and layouts, gradcheck, autocast."""

from __future__ import annotations

import copy
from typing import Any

import oracle
import pytest
import tessera
import torch
from tessera.torch import attention

BOUND = {torch.float32: 2e-6, torch.bfloat16: 8 * 2.0**-8, torch.float16: 8 * 2.0**-11}
ALL = float("inf")


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x.detach().requires_grad_()


def sequences(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [normal(2, 37, 4, 24, dtype=dtype), normal(2, 53, 2, 24, dtype=dtype), normal(2, 53, 2, 16, dtype=dtype)]


def padded(lengths: list[int], keys: int) -> torch.Tensor:
    return (torch.arange(keys)[None] < torch.tensor(lengths)[:, None])[:, None, None]


SEGMENTS = (torch.arange(37) // 13, torch.arange(53) // 19)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dense": ({}, {}),
    "causal": ({"causal": True}, {"visible": oracle.band(37, 53, ALL, 0, 16)}),
    "window": ({"mask": tessera.Mask(window=(8, 3))}, {"visible": oracle.band(37, 53, 8, 3, 16)}),
    "top-left": ({"causal": True, "alignment": "top_left"}, {"visible": oracle.band(37, 53, ALL, 0, 0)}),
    "at 3": ({"causal": True, "alignment": 3}, {"visible": oracle.band(37, 53, ALL, 0, 3)}),
    "boolean band": ({"mask": oracle.band(37, 53, 5, 2, 4)}, {"visible": oracle.band(37, 53, 5, 2, 4)}),
    "boolean holes": (
        {"mask": torch.arange(37 * 53).reshape(37, 53) % 3 > 0},
        {"visible": torch.arange(37 * 53).reshape(37, 53) % 3 > 0},
    ),
    "key lengths": ({"key_lengths": torch.tensor([53, 11])}, {"visible": padded([53, 11], 53)}),
    "segments": (
        {"segments": tuple(ids.repeat(2) for ids in SEGMENTS)},
        {"visible": SEGMENTS[0][:, None] == SEGMENTS[1][None, :]},
    ),
    "softcap and scale": ({"softcap": 3.0, "scale": 0.7}, {"softcap": 3.0, "scale": 0.7}),
}


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize(("options", "meaning"), CASES.values(), ids=CASES.keys())
def test_values_and_gradients(options: dict[str, Any], meaning: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = sequences(dtype)
    ours, exact = [leaf(x) for x in tensors], [leaf(x.double()) for x in tensors]
    out, lse = attention(*ours, return_lse=True, **options)
    expected_out, expected_lse = oracle.attention(*exact, **meaning)
    dout, dlse = torch.randn_like(expected_out), torch.randn_like(expected_lse)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert oracle.relative_error(out, expected_out) <= BOUND[dtype]
    assert oracle.relative_error(lse, expected_lse) <= BOUND[torch.float32] * 8
    gradients = torch.autograd.grad((out, lse), ours, (dout.to(dtype), dlse.float()))
    wanted = torch.autograd.grad((expected_out, expected_lse), exact, (dout.to(dtype).double(), dlse.float().double()))
    for x, y in zip(gradients, wanted, strict=True):
        assert x.dtype == dtype
        assert oracle.relative_error(x, y) <= BOUND[dtype]


def test_gradients_of_bias_and_sinks() -> None:
    tensors = sequences()
    bias, sinks = normal(4, 1, 53), normal(4)  # a bias of three dimensions broadcasts
    ours = [leaf(x) for x in (*tensors, bias, sinks)]
    exact = [leaf(x.double()) for x in (*tensors, bias, sinks)]
    out = attention(*ours[:3], bias=ours[3], sinks=ours[4])
    expected, _ = oracle.attention(*exact[:3], bias=exact[3], sinks=exact[4])
    dout = torch.randn_like(expected)
    gradients = torch.autograd.grad(out, ours, dout.float())
    for x, y in zip(gradients, torch.autograd.grad(expected, exact, dout.float().double()), strict=True):
        assert oracle.relative_error(x, y) <= BOUND[torch.float32]


def test_the_gradient_of_a_bias_beside_a_boolean_mask_has_the_shape_of_the_bias() -> None:
    q, k, v = sequences()
    bias, holes = leaf(normal(1, 4, 1, 53)), torch.rand(2, 1, 37, 53) > 0.3
    (gradient,) = torch.autograd.grad(attention(q, k, v, bias=bias, mask=holes).square().sum(), bias)
    exact = leaf(bias.double())
    expected, _ = oracle.attention(q.double(), k.double(), v.double(), visible=holes, bias=exact)
    (wanted,) = torch.autograd.grad(expected.square().sum(), exact)
    assert gradient.shape == bias.shape
    assert oracle.relative_error(gradient, wanted) <= BOUND[torch.float32]


LAYOUTS = {
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "dim first": lambda x: x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
    "sliced": lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
    "every other token": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts(layout: Any) -> None:
    tensors = sequences()
    expected = attention(*tensors)
    ours = [leaf(layout(x)) for x in tensors]
    out = attention(*ours)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    plain = [leaf(x) for x in tensors]
    # The gradient of sum() is one number with strides of zero.
    wanted = torch.autograd.grad(attention(*plain).sum(), plain)
    for x, y in zip(torch.autograd.grad(out.sum(), ours), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_expanded_inputs() -> None:
    q, k, v = normal(1, 9, 1, 8), normal(1, 12, 1, 8), normal(1, 12, 1, 8)
    out = attention(q.expand(3, 9, 4, 8), k.expand(3, 12, 4, 8), v.expand(3, 12, 4, 8))
    expected, _ = oracle.attention(q.double(), k.double(), v.double())
    assert oracle.relative_error(out, expected.expand(3, 9, 4, 8)) <= BOUND[torch.float32]


def test_ragged() -> None:
    starts = torch.tensor([0, 5, 5, 30], dtype=torch.int32)
    q, k, v = (leaf(normal(30, 2, 16)) for _ in range(3))
    out = attention(q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts, causal=True)
    gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
    parts = [attention(*(x[None, a:b] for x in (q, k, v)), causal=True)[0] for a, b in ((0, 5), (5, 30))]
    expected = torch.cat(parts)
    torch.testing.assert_close(out, expected)
    for x, y in zip(gradients, torch.autograd.grad(expected.square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(x, y)


def test_dropout_follows_torchs_generator() -> None:
    q, k, v = sequences()
    torch.manual_seed(3)
    first, second = attention(q, k, v, dropout_p=0.5), attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    again = attention(q, k, v, dropout_p=0.5)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    seeded = attention(q, k, v, dropout_p=0.5, dropout_seed=2**63 + 5)
    expected, _ = tessera.forward(q, k, v, dropout_p=0.5, dropout_seed=2**63 + 5)
    assert torch.equal(seeded, expected)


OPTIONS_OF_GRADCHECK: dict[str, dict[str, Any]] = {
    "causal": {"causal": True, "softcap": 2.0},
    "dropout": {"dropout_p": 0.25, "dropout_seed": 3},
    "boolean": {"mask": torch.arange(5 * 6).reshape(5, 6) % 4 > 0},
}


@pytest.mark.parametrize("options", OPTIONS_OF_GRADCHECK.values(), ids=OPTIONS_OF_GRADCHECK.keys())
def test_gradcheck(options: dict[str, Any]) -> None:
    """In float64, which the reference computes."""
    shapes = [(1, 5, 2, 3), (1, 6, 1, 3), (1, 6, 1, 4), (1, 2, 5, 6), (2,)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def call(q: Any, k: Any, v: Any, bias: Any, sinks: Any) -> Any:
        return attention(q, k, v, bias=bias, sinks=sinks, return_lse=True, **options)

    assert torch.autograd.gradcheck(call, inputs)


def test_only_what_needs_a_gradient_gets_one() -> None:
    q, k, v = sequences()
    keys = leaf(k)
    _out, lse = attention(q, keys, v, return_lse=True)
    exact = leaf(k.double())
    (dk,) = torch.autograd.grad(lse.sum(), keys)
    (expected,) = torch.autograd.grad(oracle.attention(q.double(), exact, v.double())[1].sum(), exact)
    assert oracle.relative_error(dk, expected) <= BOUND[torch.float32]
    assert not attention(q, k, v).requires_grad


def test_second_derivatives_raise() -> None:
    q, k, v = (leaf(x) for x in sequences())
    (dq,) = torch.autograd.grad(attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        dq.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    q, k, v = (leaf(x) for x in sequences())
    sinks = normal(4)
    with torch.autocast("cpu", dtype=dtype):
        out = attention(q, k, v, sinks=sinks)
        direct = attention(*(x.to(dtype) for x in (q, k, v)), sinks=sinks)
    assert out.dtype == dtype
    assert torch.equal(out, direct)
    (dq,) = torch.autograd.grad(out.float().square().sum(), q)
    assert dq.dtype == torch.float32


def test_float32_outputs_of_bfloat16() -> None:
    q, k, v = (leaf(x) for x in sequences(torch.bfloat16))
    out = attention(q, k, v, output_dtype=torch.float32)
    assert out.dtype == torch.float32
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert dq.dtype == torch.bfloat16


def test_attention_in_a_module_trains_and_copies() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(16, 48)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return attention(*self.linear(x).view(*x.shape[:2], 3, 2, 8).unbind(2), causal=True).flatten(2)

    block = Block()
    x = normal(2, 10, 16)
    target = normal(2, 10, 16)
    optimiser = torch.optim.SGD(block.parameters(), lr=0.5)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = (block(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    torch.testing.assert_close(copy.deepcopy(block)(x), block(x))


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": ({"casual": True}, TypeError, "unknown options: casual"),
    "scale": ({"scale": ALL}, ValueError, "scale: inf; accepted: finite numbers"),
    "no number": ({"softcap": "big"}, ValueError, "softcap: 'big'; accepted: a number"),
    "window": ({"window": 4}, ValueError, "window: 4; accepted: a pair of integers or None"),
    "alignment": ({"alignment": "left"}, ValueError, 'alignment: "left"; accepted: "bottom_right"'),
    "mask twice": ({"mask": tessera.Mask(causal=True), "window": (1, 1)}, ValueError, "beside window"),
    "mask shape": ({"mask": torch.ones(3, 1, 37, 53, dtype=torch.bool)}, ValueError, "mask: bool[3, 1, 37, 53]"),
    "mask dtype": ({"mask": torch.ones(37, 53)}, ValueError, "mask: a tensor that is not boolean"),
    "dropout seed": ({"dropout_p": 0.5, "dropout_seed": -1}, ValueError, "dropout_seed: -1; accepted: 0 to 2^64 - 1"),
    "slopes": ({"alibi_slopes": torch.zeros(4, requires_grad=True)}, NotImplementedError, "alibi_slopes"),
    "impl": ({"impl": "magic"}, ValueError, "magic"),
    "no mask": ({"mask": "causal"}, TypeError, "mask: 'causal'; accepted: a boolean tensor or tessera.Mask"),
    "no tensor": ({"sinks": [1.0, 2.0]}, TypeError, "sinks: [1.0, 2.0]; accepted: a torch tensor"),
    "no blocks": ({"blocks": 3}, ValueError, "blocks: 3; accepted: a tessera.BlockMask"),
    "no boolean": ({"causal": "yes"}, ValueError, "causal: 'yes'; accepted: True or False"),
    "lengths": ({"key_lengths": torch.tensor([3, 99])}, ValueError, "key_lengths[1]: 99"),
}


@pytest.mark.parametrize(("options", "kind", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as raised:
        attention(*sequences(), **options)
    assert message in str(raised.value)


def test_what_is_no_tensor() -> None:
    q, k, _ = sequences()
    with pytest.raises(TypeError, match="v: list; accepted: a torch tensor"):
        attention(q, k, [1.0])


def test_the_plain_function_does_not_lose_gradients_silently() -> None:
    q, k, v = sequences()
    with pytest.raises(TypeError, match=r"q: a tensor that requires grad; .*tessera.torch.attention"):
        tessera.attention(leaf(q), k, v)


def test_plain_functions_on_torch_tensors() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = sequences(dtype)
        out, lse = tessera.forward(q, k, v, causal=True)
        dout = normal(*out.shape, dtype=dtype)
        gradients = tessera.backward(dout, q, k, v, out, lse, causal=True)
        assert all(isinstance(x, torch.Tensor) for x in (out, lse, *gradients[:3]))
        leaves = [leaf(x) for x in (q, k, v)]
        torch_out = attention(*leaves, causal=True)
        assert torch.equal(torch_out, out)
        for x, y in zip(gradients[:3], torch.autograd.grad(torch_out, leaves, dout), strict=True):
            assert torch.equal(x, y)
