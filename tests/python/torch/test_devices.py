"""torch tensors on a GPU, as far as a machine without one can tell: tensors that say they are there."""

from __future__ import annotations

from typing import Any

import pytest
import tessera
import tessera.torch
import torch
from tessera import _tessera


class OnGpu(torch.Tensor):
    is_cuda = True

    def get_device(self) -> int:
        return 0


def on_gpu(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype).as_subclass(OnGpu)


@pytest.fixture(autouse=True)
def _a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0x40 + index, raising=False)


HOST = torch.zeros(1, 4, 2, 8, dtype=torch.bfloat16)
GPU = on_gpu(1, 4, 2, 8)


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ((GPU, HOST, GPU), {}, "k device: cpu; accepted: cuda:0, where q is"),
        ((HOST, HOST, GPU), {}, "v device: cuda:0; accepted: cpu, where q is"),
        ((GPU, GPU, on_gpu(1, 4, 2, 8, dtype=torch.int16)), {}, "v dtype: torch.int16; accepted: float32, float64"),
        ((on_gpu(1, 1, 4, 2, 8), GPU, GPU), {}, "q rank: 5; accepted: 1 to 4"),
        ((on_gpu(4, 2, 8), GPU, GPU), {}, "q: bfloat16[4, 2, 8]"),
        ((GPU, on_gpu(1, 4, 3, 8), on_gpu(1, 4, 3, 8)), {}, "heads_kv: 3; accepted: divisors of heads_q, 2"),
        ((GPU, GPU, GPU), {"sinks": torch.zeros(2)}, "sinks device: cpu; accepted: cuda:0, where q is"),
    ],
)
def test_tensors_that_do_not_fit(tensors: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        tessera.forward(*tensors, **options)
    assert message in str(raised.value)


@pytest.mark.skipif(bool(tessera.info()["cuda"]["devices"]), reason="there is a CUDA device")
def test_without_a_device_the_reason_is_said() -> None:
    with pytest.raises(NotImplementedError) as raised:
        tessera.forward(GPU, GPU, GPU, causal=True)
    assert tessera.info()["cuda"]["unavailable"] in str(raised.value)


@pytest.mark.parametrize("make", [torch.zeros, on_gpu])
def test_prepared_calls_are_found_by_what_their_tensors_are(make: Any) -> None:
    """By torch's C exchange interface, where it has one, and by attributes, as of a subclass."""
    q, k = make(1, 4, 2, 8, dtype=torch.bfloat16), make(1, 9, 2, 8, dtype=torch.bfloat16)
    if make is torch.zeros and not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("torch has no C exchange interface, without which tensors on the CPU go another way")
    table = _tessera.CallTable()
    assert table.find(q, k, k) == -1
    assert [table.add(q, k, k), table.add(q, q, q), table.add(q, k, k)] == [0, 1, 0]
    assert table.find(make(1, 4, 2, 8, dtype=torch.bfloat16), k, k) == 0
    assert table.find(q, q, q) == 1
    for other in (
        make(1, 4, 2, 8, dtype=torch.float16),
        make(1, 4, 2, 16, dtype=torch.bfloat16),
        make(1, 2, 4, 8, dtype=torch.bfloat16).transpose(1, 2),
        make(4, 2, 8, dtype=torch.bfloat16),
    ):
        assert table.find(other, k, k) == -1
    assert table.find("no tensor", k, k) == -1


def test_the_stream_of_an_operator_is_the_current_one() -> None:
    with pytest.raises(ValueError, match=r"^stream: 5; accepted: None, inside torch.cuda.stream\(...\)"):
        tessera.torch.attention(HOST, HOST, HOST, stream=5)


def test_the_backward_pass_may_be_told_to_take_any_order() -> None:
    leaf = torch.randn(1, 9, 2, 8, requires_grad=True)
    gradients = [
        torch.autograd.grad(tessera.torch.attention(leaf, leaf, leaf, deterministic=value).sum(), leaf)[0]
        for value in (None, True, False)
    ]
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])
