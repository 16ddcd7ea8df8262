"""A bfloat16 DLPack tensor without a framework that has the type: a uint16 array whose capsule says bfloat16."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

_DTYPE_CODE_OFFSET = 20  # in DLTensor: data pointer 8, device 8, ndim 4
_BFLOAT = 4

pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype = ctypes.c_void_p
pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Bfloat16:
    def __init__(self, bits: np.ndarray):
        self.bits = bits

    @classmethod
    def from_float32(cls, x: np.ndarray) -> Bfloat16:
        """Rounded to nearest, ties to even."""
        bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
        return cls(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Bfloat16:
        return cls(np.empty(shape, np.uint16))

    def to_float32(self) -> np.ndarray:
        return (self.bits.astype(np.uint32) << 16).view(np.float32)

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self.bits.__dlpack__()
        ctypes.c_uint8.from_address(pointer_of(capsule, b"dltensor") + _DTYPE_CODE_OFFSET).value = _BFLOAT
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.bits.__dlpack_device__()
