"""flash_attn_with_kvcache: attention over a cache of keys and values that new ones are written into."""

from __future__ import annotations

import torch
from torch import Tensor

from ._attention import attention
from ._drop_in import refuse, shared_options


@torch.no_grad()
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """flash_attn.flash_attn_with_kvcache: attention of q [batch, seq_q, heads_q, dim] over a cache, without gradients.

    k_cache, v_cache  [batch_cache, seq_cache, heads_kv, dim]
    k, v              new keys and values [batch, seq_new, heads_kv, dim]: written into the cache, in place, after the
                      cache_seqlens ones that are there; needs cache_seqlens
    rotary_cos, rotary_sin  [positions, rotary_dim / 2]: rotate the first rotary_dim numbers of each head of k and q, by
                      the position in the cache after cache_leftpad; those of q too by cache_seqlens alone when there
                      is neither causal nor a window; only with k and v. rotary_interleaved: pairs (0, 1), (2, 3), ...;
                      else halves
    cache_seqlens     keys in use before the new ones, with the padding: a number, or [batch]; all of the cache when
                      left out
    cache_batch_idx   [batch]: the row of the cache of each sequence (its rows are copied to be read)
    cache_leftpad     [batch]: where the keys of each sequence begin

    A paged cache (block_table) raises NotImplementedError. num_splits is the implementation's business. For the other
    arguments see flash_attn_func.
    """
    if block_table is not None:
        refuse("block_table", "given", "None")
    batch = q.shape[0]
    device = q.device
    rows = torch.arange(batch, device=device) if cache_batch_idx is None else cache_batch_idx.long()
    lengths = _cache_lengths(cache_seqlens, batch, k_cache)
    if (k is None) != (v is None):
        raise ValueError("k, v: one of them; accepted: both or none")
    if (rotary_cos is None) != (rotary_sin is None) or (rotary_cos is not None and k is None):
        raise ValueError("rotary_cos, rotary_sin: one of them or without k; accepted: both, with k and v, or none")
    if k is not None and v is not None:
        if cache_seqlens is None:
            raise ValueError("cache_seqlens: None with k and v; accepted: where they go, a number or [batch]")
        if rotary_cos is not None and rotary_sin is not None:
            rotary = (rotary_cos, rotary_sin, rotary_interleaved)
            begin = lengths[:, None] if cache_leftpad is None else (lengths - cache_leftpad)[:, None]
            moves = causal or tuple(window_size) != (-1, -1)
            k = _rotated(k, begin + torch.arange(k.shape[1], device=device), *rotary)
            steps = torch.arange(q.shape[1], device=device)
            q = _rotated(q, begin + (steps if moves else torch.zeros_like(steps)), *rotary)
        lengths = _append(k_cache, v_cache, k, v, rows, lengths)
    keys, values = (k_cache, v_cache) if cache_batch_idx is None else (k_cache[rows], v_cache[rows])
    options = shared_options(softmax_scale, causal, window_size, softcap, alibi_slopes)
    options["key_lengths"] = lengths
    if cache_leftpad is not None:
        key_ids = torch.arange(keys.shape[1], device=device) >= cache_leftpad[:, None]
        options["segments"] = (torch.ones(batch * q.shape[1]).long(), key_ids.long().flatten())
    out, lse = attention(q, keys, values, return_lse=True, **options)
    return (out, lse) if return_softmax_lse else out


def _rotated(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding (Su et al. 2021) of [batch, seq, heads, dim] at positions [batch, seq]."""
    if bool((positions < 0).any()) or bool((positions >= cos.shape[0]).any()):
        raise ValueError(f"rotary_cos: {cos.shape[0]} positions; accepted: {int(positions.max()) + 1} or more")
    c, s = (table[positions][:, :, None].float() for table in (cos, sin))
    turned, rest = x.float().split([2 * cos.shape[1], x.shape[-1] - 2 * cos.shape[1]], dim=-1)
    a, b = turned.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else turned.chunk(2, dim=-1)
    pair = (a * c - b * s, a * s + b * c)
    turned = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat((turned, rest), dim=-1).to(x.dtype)


def _cache_lengths(cache_seqlens: int | Tensor | None, batch: int, k_cache: Tensor) -> Tensor:
    if isinstance(cache_seqlens, Tensor):
        return cache_seqlens.long()
    used = k_cache.shape[1] if cache_seqlens is None else cache_seqlens
    return torch.full((batch,), used, device=k_cache.device)


def _append(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
    """Writes the new keys and values behind `lengths`, or neither, and returns the new lengths."""
    seq_new, seq_cache = k.shape[1], k_cache.shape[1]
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        accepted = (len(rows), seq_new, *cache.shape[2:])
        if new.shape != accepted:
            raise ValueError(f"{name}: shape {[*new.shape]}; accepted: {[*accepted]}")
    if bool((lengths < 0).any()) or bool((lengths + seq_new > seq_cache).any()):
        raise ValueError(
            f"cache_seqlens: {lengths.tolist()} with {seq_new} new keys; accepted: 0 to {seq_cache - seq_new}"
        )
    positions = lengths[:, None] + torch.arange(seq_new, device=lengths.device)
    k_cache[rows[:, None], positions] = k
    v_cache[rows[:, None], positions] = v
    return lengths + seq_new
