"""Masks of torch.nn.attention.flex_attention as those of Tessera."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._tessera import BlockMask


def block_mask_of(flex: Any) -> BlockMask:
    """The same pairs as a BlockMask of torch.nn.attention.flex_attention, in its blocks.

    Its mask_mod is evaluated for every pair once, which takes a byte for each; keep the result. Block sizes must be
    multiples of 16.
    """
    if not hasattr(flex, "kv_num_blocks"):
        raise TypeError(f"flex: {flex!r}; accepted: a BlockMask of torch.nn.attention.flex_attention")
    queries, keys = flex.seq_lengths
    block_q, block_k = flex.BLOCK_SIZE
    partial = _kept(flex.kv_num_blocks, flex.kv_indices)
    full = torch.zeros_like(partial)
    if flex.full_kv_num_blocks is not None:
        full = _kept(flex.full_kv_num_blocks, flex.full_kv_indices)
    batch, heads = partial.shape[:2]
    positions = (torch.arange(n) for n in (batch, heads, queries, keys))
    attends = flex.mask_mod(*(x.view(-1, *(1,) * (3 - axis)) for axis, x in enumerate(positions)))

    def pairs(blocks: Tensor) -> Tensor:
        return blocks.repeat_interleave(block_q, 2).repeat_interleave(block_k, 3)[:, :, :queries, :keys]

    return BlockMask.from_boolean(pairs(full) | (pairs(partial) & attends), block_q, block_k)


def _kept(counts: Tensor, indices: Tensor) -> Tensor:
    """bool [batch, heads, rows, columns] of the first counts[...] of indices [batch, heads, rows, columns]."""
    listed = torch.arange(indices.shape[-1]) < counts[..., None]
    return torch.zeros(indices.shape, dtype=torch.bool).scatter(-1, indices.long(), listed)
