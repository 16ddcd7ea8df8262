"""Attention over the ranks of a communicator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, overload

from .. import Gradients
from .._options import plain
from .._tensors import Tensor, allocator, readable
from ._communicator import Communicator
from ._options import RingOptions, parts

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    return_lse: Literal[False] = False,
    **options: Unpack[RingOptions],
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    return_lse: Literal[True],
    **options: Unpack[RingOptions],
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    return_lse: bool = False,
    **options: Unpack[RingOptions],
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale Q K^T) V of whole sequences, for the queries of this rank: out, or (out, lse) with return_lse.

    Shapes and options are those of forward. Collective.
    """
    out, lse = forward(q, k, v, communicator=communicator, **options)
    return (out, lse) if return_lse else out


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    **options: Unpack[RingOptions],
) -> tuple[Tensor, Tensor]:
    """O = softmax(scale Q K^T) V of whole sequences, for the queries of this rank; returns (out, lse). Collective.

    q    [batch, tokens, heads_q, dim_qk]: this rank's queries, as the layout deals them
    k    [batch, tokens, heads_kv, dim_qk]: this rank's keys; heads_kv divides heads_q
    v    [batch, tokens, heads_kv, dim_v]
    out  [batch, tokens, heads_q, dim_v]
    lse  [batch, heads_q, tokens], float32

    Lengths of whole sequences are the sums of what the ranks have; parts that are not those of the layout are refused
    on every rank. Options are those of RingOptions.
    """
    with telling_others(communicator):
        q_, k_, v_ = (readable(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v")))
        problem, how = parts(options)
        arguments = (allocator(q_, options.get("stream")), plain(problem, q_, k_), how)
    result = communicator._group.forward(q_, k_, v_, out, lse, *arguments)
    return result[0], result[1]


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    communicator: Communicator,
    dlse: Tensor | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    dbias: Tensor | bool = False,
    dsinks: Tensor | bool = False,
    **options: Unpack[RingOptions],
) -> Gradients:
    """The gradients of a forward call with the same q, k, v and options, whose results were out and lse. Collective.

    dq, dk and dv are those of this rank's tokens, complete. dbias and dsinks are this rank's share: the
    gradient is the sum over the ranks, as for every parameter of a model. Arguments are those of tessera.backward
    otherwise.
    """
    with telling_others(communicator):
        named = {"q": q, "k": k, "v": v, "dout": dout, "out": out, "lse": lse}
        q_, k_, v_, dout_, out_, lse_ = (readable(x, name) for name, x in named.items())
        wanted = {"dq": dq, "dk": dk, "dv": dv, "dbias": dbias, "dsinks": dsinks}
        problem, how = parts(options)
        arguments = (wanted, allocator(q_, options.get("stream")), plain(problem, q_, k_), how)
    return Gradients(*communicator._group.backward(dout_, q_, k_, v_, out_, lse_, dlse, *arguments))


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    backward: bool = False,
    **options: Unpack[RingOptions],
) -> str:
    """What each rank would do in forward (or backward), as a page of text: tokens, steps, tiles, FLOPs and bytes that
    it sends. Collective; nothing is computed."""
    with telling_others(communicator):
        q_, k_, v_ = (readable(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v")))
        problem, how = parts(options)
        problem_options = plain(problem, q_, k_)
    rows = communicator._group.facts(q_, k_, v_, backward, problem_options, how)
    first = rows[0]
    travels = "Q, dO, dQ, LSE and D travel" if first["queries_travel"] else "K, V, dK and dV travel"
    lines = [
        f"{'backward' if backward else 'forward'} pass over {communicator.size} ranks ({communicator.transport}), "
        f"{how['layout']}, {first['schedule']}: {travels if backward else 'K and V travel'}",
        f"{'rank':>4} {'queries':>9} {'keys':>9} {'steps':>6} {'tiles of 64 x 64':>17} {'GFLOP':>10} {'MiB sent':>9}",
    ]
    for rank, row in enumerate(rows):
        lines.append(
            f"{rank:>4} {row['queries']:>9} {row['keys']:>9} {row['steps_computed']:>6} {row['tiles']:>17} "
            f"{row['flops'] / 1e9:>10.3f} {row['bytes_sent'] / 2**20:>9.2f}"
        )
    return "\n".join(lines) + "\n"


@contextmanager
def telling_others(communicator: Communicator) -> Iterator[None]:
    """What is wrong with this rank's arguments is an exception on the others too, who would wait for it."""
    try:
        yield
    except Exception as error:
        communicator._group.decline(str(error))
        raise
