"""What the package knows of tensors: how to read them, and how to make new ones of the caller's framework."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar


class DLPackTensor(Protocol):
    """What every tensor argument must be: NumPy arrays, torch tensors, CuPy and JAX arrays are."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


class IntegerArray(Protocol):
    """A one-dimensional integer array of NumPy, torch, JAX or others."""

    def tolist(self) -> Any: ...


Tensor = TypeVar("Tensor", bound=DLPackTensor)
Integers = Sequence[int] | IntegerArray


def is_numpy(x: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(x, numpy.ndarray)


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_cupy(x: Any) -> bool:
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def readable(x: Any, name: str) -> Any:
    """`x` as the extension module takes it."""
    if x is None:
        raise TypeError(f"{name}: None; accepted: a DLPack tensor")
    if is_torch(x):
        if x.requires_grad:
            raise TypeError(
                f"{name}: a tensor that requires grad; accepted: a detached one, or use tessera.torch.attention"
            )
        return x
    if not hasattr(x, "__dlpack__") and hasattr(x, "__array_interface__"):
        import numpy  # noqa: PLC0415  only what is an array already needs it

        return numpy.asarray(x)
    return x


def on_host(x: Any) -> Any:
    """`x`, or a copy of it where it is on a GPU."""
    if is_torch(x):
        return x.cpu()
    return x.get() if is_cupy(x) else x


def current_stream(like: Any) -> int | None:
    """The cudaStream_t on which the framework of `like` works now; None where it has none that is known here."""
    if is_torch(like):
        # Without the Stream object that torch.cuda.current_stream makes, which takes longer than all else here.
        return sys.modules["torch"]._C._cuda_getCurrentRawStream(like.get_device()) if like.is_cuda else None
    if is_cupy(like):
        return sys.modules["cupy"].cuda.get_current_stream(like.device.id).ptr  # type: ignore[no-any-return]
    return None


Allocate = Callable[[Sequence[int], str], Any]


def allocator(like: Any, stream: int | None = None) -> Allocate | None:
    """A function (shape, dtype name) -> a new tensor of the framework and on the device that `like` comes from, or None
    for other frameworks. The memory is for `stream`, where it is not the framework's current one."""
    if is_numpy(like):
        return sys.modules["numpy"].empty  # type: ignore[no-any-return]
    if is_torch(like):
        return _torch_allocator(like, stream)
    if is_cupy(like):
        return _cupy_allocator(like, stream)
    return None


def _torch_allocator(like: Any, stream: int | None) -> Allocate:
    torch = sys.modules["torch"]
    empty, device = torch.empty, like.device
    if stream is None or stream == current_stream(like):
        return lambda shape, dtype: empty(shape, dtype=getattr(torch, dtype), device=device)

    def allocate(shape: Sequence[int], dtype: str) -> Any:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream, device=device)):
            return empty(shape, dtype=getattr(torch, dtype), device=device)

    return allocate


def _cupy_allocator(like: Any, stream: int | None) -> Allocate:
    cupy = sys.modules["cupy"]

    def allocate(shape: Sequence[int], dtype: str) -> Any:
        with like.device:
            if stream is None:
                return cupy.empty(shape, dtype)
            with cupy.cuda.ExternalStream(stream, like.device.id):
                return cupy.empty(shape, dtype)

    return allocate


def integers(values: Any, name: str) -> list[int]:
    try:
        return values.tolist() if hasattr(values, "tolist") else list(values)
    except TypeError:
        raise TypeError(f"{name}: {values!r}; accepted: a sequence of integers") from None
