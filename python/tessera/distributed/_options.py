"""The keyword options of attention over ranks."""

from __future__ import annotations

from typing import Any, Literal

from .._options import Mask, Options, require_known
from ._layout import Layout

Schedule = Literal["automatic", "ring", "burst", "double_ring"]


class RingOptions(Options, total=False):
    """The keyword options of attention, forward, backward and explain over ranks: those of tessera.Options, and

    layout          which tokens a rank owns (shard, positions): "zigzag" (parts r and 2 G - 1 - r of 2 G: even work
                    under a causal mask; the default), "striped" (every G-th token, even too) or "contiguous"; of
                    queries and keys
    schedule        what travels in a backward pass: "ring" (K, V, dK and dV), "burst" (Q, dO, dQ, LSE and D),
                    "double_ring" (rings in nodes and between them), or "automatic": what sends least (the default)
    ranks_per_node  ranks of one node, which are consecutive; left out or 0: all of them

    All are about the whole problem and the same on every rank: segments, key_lengths, bias, block masks, functions,
    dropout (which drops what it would drop on one device). With cu_seqlens_q, the cumulative lengths of documents that
    are packed into the whole sequence, tensors are [tokens, heads, dim] and lse is [heads_q, tokens]; dropout then
    counts positions in the whole sequence. Not to be had over ranks: boolean masks (BlockMask.from_boolean makes blocks
    of them), float64, caches.
    """

    layout: Layout
    schedule: Schedule
    ranks_per_node: int


_RING = ("layout", "schedule", "ranks_per_node")


def parts(options: RingOptions) -> tuple[Options, dict[str, Any]]:
    """Those of the problem, and how its tokens are dealt and what travels, as the extension module takes it."""
    require_known(options, RingOptions.__annotations__)
    mask = options.get("mask")
    if mask is not None and not isinstance(mask, Mask):
        raise NotImplementedError(
            "mask: a boolean tensor; accepted over ranks: a Mask, such as of BlockMask.from_boolean"
        )
    how = {
        "layout": options.get("layout") or "zigzag",
        "schedule": options.get("schedule") or "automatic",
        "ranks_per_node": options.get("ranks_per_node") or 0,
        "seed_of_rank_0": False,
    }
    problem: Any = {name: value for name, value in options.items() if name not in _RING}
    return problem, how
