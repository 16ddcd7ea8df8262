"""The short way that eager calls on a GPU take: the same results as the operators, and the same errors."""

from __future__ import annotations

from typing import Any

import pytest
import tessera
import tessera.torch
import torch
from tessera.torch import _eager, _ops
from tessera.torch._attention import _arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def tensors(requires_grad: bool = False, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    q = torch.randn(2, 150, 4, 64, device="cuda", dtype=dtype, requires_grad=requires_grad)
    k, v = (torch.randn(2, 201, 2, 64, device="cuda", dtype=dtype, requires_grad=requires_grad) for _ in range(2))
    return [q, k, v]


def by_operator(inputs: list[torch.Tensor], options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    arrays, scalars = _arguments(options, inputs[0])
    return _ops.differentiable(*inputs, *arrays, *scalars)


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window": (70, 3), "scale": 0.2}, {"causal": True, "alignment": "top_left"}]
)
def test_same_bits_as_the_operators(options: dict[str, Any]) -> None:
    inputs = tensors(requires_grad=True)
    dout = torch.randn(2, 4, 150, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    assert _eager.find(*inputs, options) is not None
    out = tessera.torch.attention(*inputs, **options)
    expected, expected_lse = by_operator(inputs, options)
    assert torch.equal(out, expected)
    for one, other in zip(
        torch.autograd.grad(out, inputs, dout), torch.autograd.grad(expected, inputs, dout), strict=True
    ):
        assert torch.equal(one, other)
    with torch.no_grad():
        out, lse = tessera.torch.attention(*inputs, return_lse=True, **options)
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)


def test_a_mask_object_is_part_of_the_key() -> None:
    inputs = tensors()
    causal = tessera.torch.attention(*inputs, mask=tessera.Mask(causal=True))
    assert torch.equal(causal, tessera.torch.attention(*inputs, causal=True))
    assert not torch.equal(causal, tessera.torch.attention(*inputs, mask=tessera.Mask()))


def test_strides_are_part_of_the_key() -> None:
    q, k, v = tensors()
    expected = tessera.torch.attention(q, k, v)
    head_major = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(tessera.torch.attention(head_major, k, v), expected)


def test_expanded_gradient() -> None:
    inputs = tensors(requires_grad=True)
    out = tessera.torch.attention(*inputs)
    for one, other in zip(
        torch.autograd.grad(out.sum(), inputs, retain_graph=True),
        torch.autograd.grad(out, inputs, torch.ones_like(out)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_current_stream() -> None:
    inputs = tensors()
    expected = tessera.torch.attention(*inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = tessera.torch.attention(*inputs)
    stream.synchronize()
    assert torch.equal(out, expected)


def test_what_it_leaves_to_the_operators() -> None:
    q, k, v = tensors()
    assert _eager.find(q, k, v, {"dropout_p": 0.1}) is None
    assert _eager.find(q, k, v, {"key_lengths": [3, 4]}) is None
    assert _eager.find(q, k, v, {"bias": torch.zeros(1, 1, 1, 1, device="cuda")}) is None
    assert _eager.find(q, k, v, {"mask": torch.ones(1, 1, 150, 201, dtype=torch.bool, device="cuda")}) is None
    assert _eager.find(*tensors(dtype=torch.float32), {}) is None
    assert _eager.find(torch.nn.Parameter(q), k, v, {}) is None
    assert _eager.find(q.cpu(), k.cpu(), v.cpu(), {}) is None


@pytest.mark.parametrize("options", [{"scale": "wide"}, {"window": (1, 2, 3)}, {"softcap": -1.0}, {"impl": "sm12"}])
def test_wrong_options_raise_as_everywhere(options: dict[str, Any]) -> None:
    inputs = tensors()
    with pytest.raises((ValueError, TypeError, NotImplementedError)) as short:
        tessera.torch.attention(*inputs, **options)
    with pytest.raises((ValueError, TypeError, NotImplementedError)) as general:
        tessera.forward(*inputs, **options)
    assert str(short.value) == str(general.value)


def test_tensors_on_two_devices_are_refused() -> None:
    q, k, v = tensors()
    with pytest.raises(ValueError, match="k device"):
        tessera.torch.attention(q, k.cpu(), v)
