"""The signatures of other libraries. An argument that cannot be honoured raises NotImplementedError."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._options import Options
from ._attention import attention


def refuse(name: str, value: Any, accepted: str) -> None:
    raise NotImplementedError(f"{name}: {value}; accepted: {accepted}")


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention.

    query      [..., heads_q, seq_q, dim_qk]
    key        [..., heads_kv, seq_k, dim_qk]; heads_kv is heads_q, or with enable_gqa divides it
    value      [..., heads_kv, seq_k, dim_v]
    attn_mask  broadcasts to [..., heads_q, seq_q, seq_k]: boolean (true: attends) or added to the scores, float32 or
               query's dtype
    is_causal  aligned top-left, as torch does: query i sees the keys up to i
    returns    [..., heads_q, seq_q, dim_v]

    A query that sees no key has output 0. Gradients flow to query, key, value and a floating attn_mask.
    """
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask: given with is_causal=True; accepted: one of them")
    leading = torch.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))
    q, k, v = (_rows(x, leading) for x in (query, key, value))
    if q.shape[2] != k.shape[2] and not enable_gqa:
        raise ValueError(f"key: {k.shape[2]} heads; accepted: those of query, {q.shape[2]}, or enable_gqa=True")
    if attn_mask is not None and len(leading) > 1:
        whole = attn_mask.expand(*leading, *torch.broadcast_shapes(attn_mask.shape[-3:], (1, 1, 1)))
        attn_mask = whole.reshape(-1, *whole.shape[-3:])
    boolean = attn_mask is not None and attn_mask.dtype == torch.bool
    out = attention(
        q,
        k,
        v,
        mask=attn_mask if boolean else None,
        bias=None if boolean else attn_mask,
        causal=is_causal,
        alignment="top_left",
        dropout_p=dropout_p,
        scale=scale,
    ).transpose(1, 2)
    return out.reshape(*query.shape[:-3], *out.shape[-3:]) if query.ndim <= 4 else out.reshape(*leading, *out.shape[1:])


def _rows(x: Tensor, leading: torch.Size) -> Tensor:
    """[batch, seq, heads, dim] of [..., heads, seq, dim], without a copy where there is one leading dimension."""
    if x.ndim < 3:
        raise ValueError(f"query, key, value: {x.ndim} dimensions; accepted: [..., heads, seq, dim]")
    whole = x.expand(*leading, *x.shape[-3:])
    return whole.reshape(math.prod(leading), *x.shape[-3:]).transpose(1, 2)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """flash_attn.flash_attn_func: q [batch, seq_q, heads_q, dim], k and v [batch, seq_k, heads_kv, dim].

    -1 in window_size is no limit. causal and window_size are aligned bottom-right. The backward pass is always
    deterministic. With return_attn_probs: (out, softmax_lse, None), which raises with dropout, since there the third
    result would be the dropped weights.
    """
    options = shared_options(softmax_scale, causal, window_size, softcap, alibi_slopes, dropout_p)
    out, lse = attention(q, k, v, return_lse=True, **options)
    return _with_probabilities(out, lse, return_attn_probs, dropout_p)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """flash_attn.flash_attn_varlen_func: q [total_q, heads_q, dim], k and v [total_k, heads_kv, dim].

    max_seqlen_q and max_seqlen_k are not needed: the lengths come from cu_seqlens_q and cu_seqlens_k. softmax_lse is
    [heads_q, total_q]. For the other arguments see flash_attn_func.
    """
    if block_table is not None:
        refuse("block_table", "given", "None, with k and v that are not paged")
    options = shared_options(softmax_scale, causal, window_size, softcap, alibi_slopes, dropout_p)
    options["cu_seqlens_q"], options["cu_seqlens_k"] = cu_seqlens_q, cu_seqlens_k
    out, lse = attention(q, k, v, return_lse=True, **options)
    return _with_probabilities(out, lse, return_attn_probs, dropout_p)


def shared_options(
    scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
    dropout_p: float = 0.0,
) -> Options:
    """The arguments that all functions of flash-attn have."""
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise ValueError(f"window_size: {window_size!r}; accepted: a pair of integers, where -1 is no limit")
    left, right = (None if side == -1 else side for side in window_size)
    return {
        "scale": scale,
        "causal": causal,
        "window": None if left is None and right is None else (left, right),
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "dropout_p": dropout_p,
    }


def _with_probabilities(
    out: Tensor, lse: Tensor, wanted: bool, dropout_p: float
) -> Tensor | tuple[Tensor, Tensor, None]:
    if wanted and dropout_p > 0:
        refuse("return_attn_probs", f"True with dropout_p {dropout_p}", "True without dropout")
    return (out, lse, None) if wanted else out
