"""Which tokens of a sequence a rank owns."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Literal

from .._tensors import Tensor, is_cupy, is_torch, on_host
from .._tessera import layout_pieces
from ._communicator import Communicator

Layout = Literal["zigzag", "striped", "contiguous"]


def slices(length: int, ranks: int, rank: int, layout: str) -> list[slice]:
    """Those of a whole sequence that together are a rank's part of it."""
    pieces = layout_pieces(layout, length, ranks, rank)
    return [slice(begin, begin + (count - 1) * stride + 1, stride) for begin, count, stride in pieces]


def positions(length: int, communicator: Communicator, *, layout: Layout = "zigzag") -> list[int]:
    """The positions in a whole sequence of `length` tokens that this rank owns, in the order of its tensors: what
    rotary embeddings, labels and position ids need."""
    parts = slices(length, communicator.size, communicator.rank, layout)
    return [position for part in parts for position in range(length)[part]]


def shard(x: Tensor, communicator: Communicator, *, layout: Layout = "zigzag", axis: int = 1) -> Tensor:
    """This rank's tokens of a whole tensor along `axis`, in a tensor of their own; differentiable where x's framework
    is.

    Any length will do: parts differ by one token at most. Of lse [batch, heads, seq] the axis is 2.
    """
    whole: Any = x
    parts = slices(whole.shape[axis], communicator.size, communicator.rank, layout)
    at = (slice(None),) * (axis % whole.ndim)
    part: Tensor = _joined([whole[(*at, piece)] for piece in parts] or [whole[(*at, slice(0, 0))]], axis)
    return part


def unshard(x: Tensor, communicator: Communicator, *, layout: Layout = "zigzag", axis: int = 1) -> Tensor:
    """The whole tensor, on every rank, of which each has the part x along `axis`: the inverse of shard. Collective,
    through host memory, and without gradients: for outputs and checks. A NumPy array, or a torch tensor where x is."""
    axis %= x.ndim  # type: ignore[attr-defined]
    part: Any = x.detach() if is_torch(x) else x  # type: ignore[attr-defined]
    mine = _to_bytes(part)
    gather = communicator._group.gather
    counts = [int.from_bytes(theirs, "little") for theirs in gather(part.shape[axis].to_bytes(8, "little"))]
    bytes_of_token = math.prod(part.shape[:axis]) * math.prod(part.shape[axis:][1:]) * part.dtype.itemsize
    everyone = gather(mine + bytes(max(counts) * bytes_of_token - len(mine)))
    parts = []
    for count, theirs in zip(counts, everyone, strict=True):
        shape = list(part.shape)
        shape[axis] = count
        parts.append(_from_bytes(theirs[: count * bytes_of_token], shape, part))
    length = sum(counts)
    shape = list(part.shape)
    shape[axis] = length
    whole = _empty(shape, part)
    at = (slice(None),) * axis
    for rank, other in enumerate(parts):
        begin = 0
        for piece in slices(length, communicator.size, rank, layout):
            count = len(range(length)[piece])
            whole[(*at, piece)] = other[(*at, slice(begin, begin + count))]
            begin += count
    return whole  # type: ignore[no-any-return]


def _joined(parts: list[Any], axis: int) -> Any:
    first = parts[0]
    if is_torch(first):
        join: Callable[..., Any] = sys.modules["torch"].cat
    elif is_cupy(first):
        join = sys.modules["cupy"].concatenate
    elif "jax" in sys.modules and isinstance(first, sys.modules["jax"].Array):
        join = sys.modules["jax"].numpy.concatenate
    else:
        import numpy  # noqa: PLC0415

        join = numpy.concatenate
    return join(parts, axis)


def _empty(shape: list[int], like: Any) -> Any:
    if is_torch(like):
        return like.new_empty(shape)
    import numpy  # noqa: PLC0415

    return numpy.empty(shape, like.dtype)


def _to_bytes(part: Any) -> bytes:
    if is_torch(part):
        uint8 = sys.modules["torch"].uint8
        return bytes(part.cpu().contiguous().flatten().view(uint8).numpy())
    return bytes(on_host(part).tobytes())


def _from_bytes(data: bytes, shape: list[int], like: Any) -> Any:
    if not is_torch(like):
        import numpy  # noqa: PLC0415

        return numpy.frombuffer(data, like.dtype).reshape(shape)
    if not data:
        return like.new_empty(shape)
    return sys.modules["torch"].frombuffer(bytearray(data), dtype=like.dtype).reshape(shape).to(like.device)
