"""What is accepted as a tensor, and what is written where."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
import tessera
from attention_reference import Scores, attention, relative_error
from dlpack_bfloat16 import Bfloat16

RNG = np.random.default_rng(4)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def dense(q: np.ndarray, k: np.ndarray, v: np.ndarray, dout: np.ndarray | None = None):
    visible = np.ones((q.shape[0], q.shape[2], q.shape[1], k.shape[1]), bool)
    return attention(q, k, v, Scores(visible, q.shape[-1] ** -0.5), dout)


def test_strided_inputs_are_read_where_they_lie() -> None:
    stored = normal(2, 3, 40, 16)  # [batch, heads, seq, dim]
    q = stored.transpose(0, 2, 1, 3)
    k = normal(2, 90, 3, 16)[:, ::2]
    v = normal(2, 45, 3, 40)[..., 3:19]
    out, _lse = tessera.forward(q, k, v)
    assert relative_error(out, dense(q, k, v).out) <= 2e-6
    copied, _ = tessera.forward(*(np.ascontiguousarray(x) for x in (q, k, v)))
    np.testing.assert_array_equal(out, copied)


def test_strided_outputs_are_written_where_they_lie() -> None:
    q, k, v = normal(2, 40, 3, 16), normal(2, 45, 3, 16), normal(2, 45, 3, 16)
    whole = np.full((2, 3, 40, 20), 7.0, np.float32)
    out = whole.transpose(0, 2, 1, 3)[..., 2:18]
    lse = np.empty((40, 3, 2), np.float32).T
    returned = tessera.forward(q, k, v, out=out, lse=lse)
    assert returned[0] is out
    assert returned[1] is lse
    expected = tessera.forward(q, k, v)
    np.testing.assert_array_equal(out, expected[0])
    np.testing.assert_array_equal(lse, expected[1])
    assert (whole[..., :2] == 7.0).all()
    assert (whole[..., 18:] == 7.0).all()


def test_gradients_are_written_where_told() -> None:
    q, k, v, dout = (normal(1, 20, 2, 8) for _ in range(4))
    out, lse = tessera.forward(q, k, v)
    dk = np.empty((1, 20, 2, 8), np.float32)
    grads = tessera.backward(dout, q, k, v, out, lse, dk=dk)
    assert grads.dk is dk
    assert relative_error(dk, dense(q, k, v, dout).dk) <= 2e-6


def test_bias_with_strides_of_zero() -> None:
    q, k, v = normal(2, 12, 3, 8), normal(2, 15, 3, 8), normal(2, 15, 3, 8)
    row = normal(1, 1, 1, 15)
    expected, _ = tessera.forward(q, k, v, bias=row)
    out, _ = tessera.forward(q, k, v, bias=np.broadcast_to(row, (2, 3, 12, 15)))
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


def test_read_only_inputs() -> None:
    q, k, v = (normal(1, 9, 2, 8) for _ in range(3))
    expected, _ = tessera.forward(q, k, v)
    for x in (q, k, v):
        x.flags.writeable = False
    out, lse = tessera.forward(q, k, v)
    np.testing.assert_array_equal(out, expected)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out: ndarray; accepted: a DLPack tensor that can be written"):
        tessera.forward(q, k, v, out=out, lse=lse)


@pytest.mark.parametrize(("dtype", "rounding"), [(np.float16, 2.0**-11), (np.float64, 2.0**-52)])
def test_other_dtypes(dtype: type, rounding: float) -> None:
    q, k, v, dout = (normal(2, 33, 2, 16).astype(dtype) for _ in range(4))
    out, lse = tessera.forward(q, k, v)
    grads = tessera.backward(dout, q, k, v, out, lse)
    expected = dense(q, k, v, dout)
    assert out.dtype == grads.dq.dtype == dtype
    assert lse.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert relative_error(out, expected.out) <= 4 * rounding
    assert relative_error(grads.dq, expected.dq) <= 8 * rounding
    assert relative_error(grads.dk, expected.dk) <= 8 * rounding
    assert relative_error(grads.dv, expected.dv) <= 8 * rounding


def test_float32_outputs_of_float16() -> None:
    q, k, v = (normal(2, 33, 2, 16).astype(np.float16) for _ in range(3))
    out, _lse = tessera.forward(q, k, v, output_dtype="float32")
    assert out.dtype == np.float32
    assert relative_error(out, dense(q, k, v).out) <= 2.0**-11
    rounded, _ = tessera.forward(q, k, v)
    np.testing.assert_array_equal(out.astype(np.float16), rounded)


def test_bfloat16_through_dlpack() -> None:
    q, k, v, dout = (Bfloat16.from_float32(normal(2, 33, 2, 16)) for _ in range(4))
    out, lse = Bfloat16.empty((2, 33, 2, 16)), np.empty((2, 2, 33), np.float32)
    grads = [Bfloat16.empty((2, 33, 2, 16)) for _ in range(3)]
    returned = tessera.forward(q, k, v, out=out, lse=lse)
    assert returned[0] is out
    tessera.backward(dout, q, k, v, out, lse, dq=grads[0], dk=grads[1], dv=grads[2])
    expected = dense(*(x.to_float32() for x in (q, k, v, dout)))
    assert relative_error(out.to_float32(), expected.out) <= 4 * 2.0**-8
    for ours, theirs in zip(grads, (expected.dq, expected.dk, expected.dv), strict=True):
        assert relative_error(ours.to_float32(), theirs) <= 8 * 2.0**-8


def test_outputs_of_unknown_frameworks_must_be_given() -> None:
    q = Bfloat16.from_float32(normal(1, 4, 1, 8))
    with pytest.raises(
        TypeError, match=r"cannot allocate bfloat16\[1, 4, 1, 8\] like Bfloat16; accepted: NumPy arrays"
    ):
        tessera.forward(q, q, q)


class ArrayInterface:
    """An array that speaks NumPy's protocol alone."""

    def __init__(self, x: np.ndarray):
        self.__array_interface__ = x.__array_interface__
        self.owner = x


def test_array_interface() -> None:
    q, k, v, bias = normal(2, 9, 3, 8), normal(2, 9, 3, 8), normal(2, 9, 3, 8), normal(1, 3, 9, 9)
    out = tessera.attention(*(ArrayInterface(x) for x in (q, k, v)), bias=ArrayInterface(bias))
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, tessera.attention(q, k, v, bias=bias))


def test_buffers_without_any_framework() -> None:
    q, k, v = normal(2, 9, 3, 8), normal(2, 9, 3, 8), normal(2, 9, 3, 8)
    out, lse = (memoryview(bytearray(4 * np.prod(shape))).cast("f", shape) for shape in ((2, 9, 3, 8), (2, 3, 9)))
    tessera.forward(*(memoryview(x) for x in (q, k, v)), out=out, lse=lse)
    np.testing.assert_array_equal(out, tessera.attention(q, k, v))


def test_other_python_threads_run_meanwhile() -> None:
    """The interpreter lock is free while the library computes: a thread that counts must get on."""
    q, k, v = (normal(1, 1500, 4, 64) for _ in range(3))
    counts = []
    finished = threading.Event()

    def compute() -> None:
        tessera.forward(q, k, v, impl="reference", threads=1)
        finished.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)  # nothing but a released lock lets another thread in
    try:
        worker = threading.Thread(target=compute)
        worker.start()
        while not finished.wait(0.001):
            counts.append(1)
        worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(counts) > 10
