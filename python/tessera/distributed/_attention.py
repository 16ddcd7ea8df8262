"""Attention over the ranks of a communicator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, overload

from .. import Gradients
from .._options import Mask, Options, plain
from .._tensors import Tensor, allocator, readable
from ._communicator import Communicator
from ._layout import Layout

if TYPE_CHECKING:
    from typing_extensions import Unpack

Schedule = Literal["automatic", "ring", "burst", "double_ring"]


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    layout: Layout = "zigzag",
    schedule: Schedule = "automatic",
    ranks_per_node: int = 0,
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    layout: Layout = "zigzag",
    schedule: Schedule = "automatic",
    ranks_per_node: int = 0,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    layout: Layout = "zigzag",
    schedule: Schedule = "automatic",
    ranks_per_node: int = 0,
    return_lse: bool = False,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale Q K^T) V of whole sequences, for the queries of this rank: out, or (out, lse) with return_lse.

    Shapes and options are those of forward. Collective.
    """
    out, lse = forward(
        q,
        k,
        v,
        communicator=communicator,
        layout=layout,
        schedule=schedule,
        ranks_per_node=ranks_per_node,
        **options,
    )
    return (out, lse) if return_lse else out


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    layout: Layout = "zigzag",
    schedule: Schedule = "automatic",
    ranks_per_node: int = 0,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    """O = softmax(scale Q K^T) V of whole sequences, for the queries of this rank; returns (out, lse). Collective.

    q    [batch, tokens, heads_q, dim_qk]: this rank's queries, as the layout deals them
    k    [batch, tokens, heads_kv, dim_qk]: this rank's keys; heads_kv divides heads_q
    v    [batch, tokens, heads_kv, dim_v]
    out  [batch, tokens, heads_q, dim_v]
    lse  [batch, heads_q, tokens], float32

    layout          which tokens a rank owns (shard, positions): "zigzag" (parts r and 2 G - 1 - r of 2 G: even work
                    under a causal mask), "striped" (every G-th token, even too) or "contiguous"; of queries and keys
    schedule        what travels in a backward pass: "ring" (K, V, dK and dV), "burst" (Q, dO, dQ, LSE and D),
                    "double_ring" (rings in nodes and between them), or "automatic": what sends least
    ranks_per_node  ranks of one node, which are consecutive; 0: all of them

    Lengths of whole sequences are the sums of what the ranks have; parts that are not those of the layout are refused
    on every rank. All options are about the whole problem and the same on every rank: segments, key_lengths, bias,
    dropout (which drops what it would drop on one device). With cu_seqlens_q, the cumulative lengths of documents that
    are packed into the whole sequence, tensors are [tokens, heads, dim] and lse is [heads_q, tokens]; dropout then
    counts positions in the whole sequence. Block masks and functions are those of the whole problem. Not to be had over
    ranks: boolean masks (BlockMask.from_boolean makes blocks of them), float64, caches.
    """
    with telling_others(communicator):
        q_, k_, v_ = (readable(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v")))
        arguments = (allocator(q_, options.get("stream")), plain(distributable(options), q_, k_))
    result = communicator._group.forward(q_, k_, v_, out, lse, *arguments, ring(layout, schedule, ranks_per_node))
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
    layout: Layout = "zigzag",
    schedule: Schedule = "automatic",
    ranks_per_node: int = 0,
    dlse: Tensor | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    dbias: Tensor | bool = False,
    dsinks: Tensor | bool = False,
    **options: Unpack[Options],
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
        arguments = (wanted, allocator(q_, options.get("stream")), plain(distributable(options), q_, k_))
    how = ring(layout, schedule, ranks_per_node)
    return Gradients(*communicator._group.backward(dout_, q_, k_, v_, out_, lse_, dlse, *arguments, how))


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    communicator: Communicator,
    layout: Layout = "zigzag",
    schedule: Schedule = "automatic",
    ranks_per_node: int = 0,
    backward: bool = False,
    **options: Unpack[Options],
) -> str:
    """What each rank would do in forward (or backward), as a page of text: tokens, steps, tiles, FLOPs and bytes that
    it sends. Collective; nothing is computed."""
    with telling_others(communicator):
        q_, k_, v_ = (readable(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v")))
        plain_options = plain(distributable(options), q_, k_)
    rows = communicator._group.facts(q_, k_, v_, backward, plain_options, ring(layout, schedule, ranks_per_node))
    first = rows[0]
    travels = "Q, dO, dQ, LSE and D travel" if first["queries_travel"] else "K, V, dK and dV travel"
    lines = [
        f"{'backward' if backward else 'forward'} pass over {communicator.size} ranks ({communicator.transport}), "
        f"{layout}, {first['schedule']}: {travels if backward else 'K and V travel'}",
        f"{'rank':>4} {'queries':>9} {'keys':>9} {'steps':>6} {'tiles of 64 x 64':>17} {'GFLOP':>10} {'MiB sent':>9}",
    ]
    for rank, row in enumerate(rows):
        lines.append(
            f"{rank:>4} {row['queries']:>9} {row['keys']:>9} {row['steps_computed']:>6} {row['tiles']:>17} "
            f"{row['flops'] / 1e9:>10.3f} {row['bytes_sent'] / 2**20:>9.2f}"
        )
    return "\n".join(lines) + "\n"


def ring(layout: str, schedule: str, ranks_per_node: int, seed_of_rank_0: bool = False) -> dict[str, Any]:
    """How tokens are dealt and what travels, as the extension module takes it."""
    return {
        "layout": layout,
        "schedule": schedule,
        "ranks_per_node": ranks_per_node,
        "seed_of_rank_0": seed_of_rank_0,
    }


@contextmanager
def telling_others(communicator: Communicator) -> Iterator[None]:
    """What is wrong with this rank's arguments is an exception on the others too, who would wait for it."""
    try:
        yield
    except Exception as error:
        communicator._group.decline(str(error))
        raise


def distributable(options: Options) -> Options:
    mask = options.get("mask")
    if mask is not None and not isinstance(mask, Mask):
        raise NotImplementedError(
            "mask: a boolean tensor; accepted over ranks: a Mask, such as of BlockMask.from_boolean"
        )
    return options
