"""Tensors on a GPU, as far as a machine without one can tell."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import tessera
from dlpack_bfloat16 import pointer_of

_DEVICE_OFFSET = 8  # in DLTensor, after the data pointer: type and index, both int32
_CUDA = 2


class OnGpu:
    """A NumPy array whose DLPack capsule says that it is on a GPU. Its memory must not be touched."""

    def __init__(self, shape: tuple[int, ...], index: int = 0, dtype: type = np.float16):
        self.array = np.zeros(shape, dtype)
        self.index = index

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.array.__dlpack__()
        device = (ctypes.c_int32 * 2).from_address(pointer_of(capsule, b"dltensor") + _DEVICE_OFFSET)
        device[0], device[1] = _CUDA, self.index
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.index


SHAPE = (1, 4, 2, 8)
HOST = np.zeros(SHAPE, np.float16)
GPU = OnGpu(SHAPE)


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ((HOST, GPU, HOST), {}, "k device: cuda:0; accepted: cpu, where q is"),
        ((GPU, GPU, HOST), {}, "v device: cpu; accepted: cuda:0, where q is"),
        ((GPU, OnGpu(SHAPE, 1), GPU), {}, "k device: cuda:1; accepted: cuda:0, where q is"),
        ((HOST, HOST, HOST), {"sinks": OnGpu((2,), dtype=np.float32)}, "sinks device: cuda:0; accepted: cpu"),
        ((GPU, GPU, GPU), {"bias": np.zeros((1, 1, 4, 4), np.float32)}, "bias device: cpu; accepted: cuda:0"),
        ((HOST, HOST, HOST), {"out": GPU}, "out device: cuda:0; accepted: cpu"),
        ((HOST, HOST, HOST), {"stream": 7}, "stream: 7 with tensors on the CPU; accepted: None"),
        ((GPU, GPU, GPU), {"stream": "mine"}, "stream: 'mine'; accepted: a cudaStream_t as an integer"),
        ((GPU, GPU, GPU), {"deterministic": "no"}, "deterministic: 'no'; accepted: True or False"),
    ],
)
def test_devices_that_differ(tensors: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        tessera.forward(*tensors, **options)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["dout", "out", "lse", "dlse"])
def test_a_gradient_on_another_device(name: str) -> None:
    out, lse = tessera.forward(HOST, HOST, HOST)
    tensors = {"dout": HOST, "q": HOST, "k": HOST, "v": HOST, "out": out, "lse": lse, "dlse": lse}
    with pytest.raises(ValueError, match=f"^{name} device: cuda:0; accepted: cpu, where q is"):
        tessera.backward(**{**tensors, name: OnGpu(tensors[name].shape, dtype=tensors[name].dtype)})


@pytest.mark.skipif(bool(tessera.info()["cuda"]["devices"]), reason="there is a CUDA device")
def test_without_a_device_the_reason_is_said() -> None:
    reason = tessera.info()["cuda"]["unavailable"]
    assert reason
    with pytest.raises(NotImplementedError) as raised:
        tessera.forward(GPU, GPU, GPU)
    assert reason in str(raised.value)


def test_deterministic_is_taken_on_the_cpu() -> None:
    x = np.random.default_rng(3).standard_normal((1, 9, 2, 8), dtype=np.float32)
    out, lse = tessera.forward(x, x, x, deterministic=False)
    grads = [tessera.backward(x, x, x, x, out, lse, deterministic=value) for value in (True, False, None)]
    for other in grads[1:]:
        np.testing.assert_array_equal(grads[0].dq, other.dq)
