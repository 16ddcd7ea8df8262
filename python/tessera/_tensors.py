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


def readable(x: Any, name: str) -> Any:
    """`x` as the extension module takes it."""
    if is_torch(x) and x.requires_grad:
        raise TypeError(
            f"{name}: a tensor that requires grad; accepted: a detached one, or use tessera.torch.attention"
        )
    if not hasattr(x, "__dlpack__") and hasattr(x, "__array_interface__"):
        import numpy  # noqa: PLC0415  only what is an array already needs it

        return numpy.asarray(x)
    return x


def allocator(like: Any) -> Callable[[Sequence[int], str], Any]:
    """A function (shape, dtype name) -> a new tensor of the framework that `like` comes from."""
    if is_numpy(like):
        return sys.modules["numpy"].empty  # type: ignore[no-any-return]
    if is_torch(like):
        torch = sys.modules["torch"]
        return lambda shape, dtype: torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)

    def refuse(shape: Sequence[int], dtype: str) -> Any:
        raise TypeError(
            f"cannot allocate {dtype}{list(shape)} like {type(like).__name__}; "
            "accepted: NumPy arrays, torch tensors, or every output given"
        )

    return refuse


def integers(values: Any) -> list[int]:
    return values.tolist() if hasattr(values, "tolist") else list(values)
