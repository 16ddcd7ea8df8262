"""flash_attn_with_kvcache: attention over a cache of keys and values that new ones are written into."""

from __future__ import annotations

import torch
from torch import Tensor

import tessera

from . import _ops
from ._attention import attention
from ._drop_in import refuse, shared_options

_MOST_DIM = 256
_DIM_MULTIPLE = 8


@torch.library.custom_op("tessera::append_keys", mutates_args=("k_cache", "v_cache"))
def append_keys(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, page_table: Tensor | None
) -> None:
    k, v = (_ops._readable(x) for x in (k, v))
    tessera.append_keys(k, v, k_cache.detach(), v_cache.detach(), lengths, page_table)


@append_keys.register_fake
def _(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, page_table: Tensor | None) -> None: ...


@torch.library.custom_op("tessera::attend_cache", mutates_args=())
def attend_cache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    page_table: Tensor | None,
    alibi_slopes: Tensor | None,
    causal: bool,
    window_left: int | None,
    window_right: int | None,
    scale: float | None,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Attention over a cache whose lengths are read on the device."""
    window = None if window_left is None and window_right is None else (window_left, window_right)
    return tessera.forward(
        _ops._readable(q),
        k_cache.detach(),
        v_cache.detach(),
        cache_lengths=lengths,
        page_table=page_table,
        alibi_slopes=None if alibi_slopes is None else alibi_slopes.detach(),
        causal=causal,
        window=window,
        scale=scale,
        softcap=softcap,
    )


@attend_cache.register_fake
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    page_table: Tensor | None,
    alibi_slopes: Tensor | None,
    causal: bool,
    window_left: int | None,
    window_right: int | None,
    scale: float | None,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    batch, seq_q, heads, _dim = q.shape
    return q.new_empty((batch, seq_q, heads, v_cache.shape[-1])), q.new_empty(
        (batch, heads, seq_q), dtype=torch.float32
    )


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
    block_table       int32 [batch, pages of a sequence]: the cache is paged, k_cache and v_cache [pages, page_size,
                      heads_kv, dim] with page sizes that are powers of two from 16; without cache_batch_idx and
                      cache_leftpad

    On a GPU, tensors of 16 bits and head dims that are multiples of 8 up to 256 are computed without waiting for
    cache_seqlens: a CUDA graph of the call replays with new ones, and what has no room is left out instead of refused.
    num_splits is the implementation's business. For the other arguments see flash_attn_func.
    """
    for name, given in (("cache_batch_idx", cache_batch_idx), ("cache_leftpad", cache_leftpad)):
        if block_table is not None and given is not None:
            refuse(name, "given with block_table", "None")
    if block_table is not None and block_table.ndim != 2:
        raise ValueError(f"block_table: shape {[*block_table.shape]}; accepted: [batch, pages of a sequence]")
    batch = q.shape[0]
    device = q.device
    rows = torch.arange(batch, device=device) if cache_batch_idx is None else cache_batch_idx.long()
    capacity = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    lengths = _cache_lengths(cache_seqlens, batch, capacity, device)
    plain_rows = cache_batch_idx is None and cache_leftpad is None
    on_device = block_table is not None or (plain_rows and _read_on_device(q, v_cache))
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
        _require_room(k, v, k_cache, v_cache, lengths, batch, capacity)
        if on_device:
            append_keys(k, v, k_cache, v_cache, lengths.int(), _int32(block_table))
            lengths = lengths + k.shape[1]
        else:
            lengths = _append(k_cache, v_cache, k, v, rows, lengths)
    if on_device:
        left, right = (None if side == -1 else side for side in window_size)
        out, lse = attend_cache(
            q,
            k_cache,
            v_cache,
            lengths.int(),
            _int32(block_table),
            alibi_slopes,
            causal,
            left,
            right,
            softmax_scale,
            softcap,
        )
        return (out, lse) if return_softmax_lse else out
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
    if not positions.is_cuda and (bool((positions < 0).any()) or bool((positions >= cos.shape[0]).any())):
        raise ValueError(f"rotary_cos: {cos.shape[0]} positions; accepted: {int(positions.max()) + 1} or more")
    c, s = (table[positions][:, :, None].float() for table in (cos, sin))
    turned, rest = x.float().split([2 * cos.shape[1], x.shape[-1] - 2 * cos.shape[1]], dim=-1)
    a, b = turned.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else turned.chunk(2, dim=-1)
    pair = (a * c - b * s, a * s + b * c)
    turned = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat((turned, rest), dim=-1).to(x.dtype)


def _read_on_device(q: Tensor, v_cache: Tensor) -> bool:
    """Whether the lengths can stay on the GPU."""
    dims = (q.shape[-1], v_cache.shape[-1])
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and all(dim % _DIM_MULTIPLE == 0 and dim <= _MOST_DIM for dim in dims)
    )


def _int32(table: Tensor | None) -> Tensor | None:
    return None if table is None else table.int()


def _cache_lengths(cache_seqlens: int | Tensor | None, batch: int, capacity: int, device: torch.device) -> Tensor:
    if isinstance(cache_seqlens, Tensor):
        if cache_seqlens.is_floating_point():
            raise ValueError(f"cache_seqlens: {cache_seqlens.dtype}; accepted: integers")
        return cache_seqlens.long()
    return torch.full((batch,), capacity if cache_seqlens is None else cache_seqlens, device=device)


def _require_room(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, batch: int, capacity: int
) -> None:
    """Of what the host knows: lengths on a GPU would have to be waited for."""
    seq_new = k.shape[1]
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        accepted = (batch, seq_new, *cache.shape[2:])
        if new.shape != accepted:
            raise ValueError(f"{name}: shape {[*new.shape]}; accepted: {[*accepted]}")
    if not lengths.is_cuda and (bool((lengths < 0).any()) or bool((lengths + seq_new > capacity).any())):
        raise ValueError(
            f"cache_seqlens: {lengths.tolist()} with {seq_new} new keys; accepted: 0 to {capacity - seq_new}"
        )


def _append(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
    """Writes the new keys and values behind `lengths`, by an index of rows, and returns the new lengths."""
    seq_new, seq_cache = k.shape[1], k_cache.shape[1]
    if bool((lengths < 0).any()) or bool((lengths + seq_new > seq_cache).any()):
        raise ValueError(
            f"cache_seqlens: {lengths.tolist()} with {seq_new} new keys; accepted: 0 to {seq_cache - seq_new}"
        )
    positions = lengths[:, None] + torch.arange(seq_new, device=lengths.device)
    k_cache[rows[:, None], positions] = k
    v_cache[rows[:, None], positions] = v
    return lengths + seq_new
