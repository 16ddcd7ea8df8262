"""The keyword options of every attention function, and their plain form, which the extension module takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from . import _tessera
from ._tensors import DLPackTensor, Integers, current_stream, integers, on_host, readable
from ._tessera import BlockMask, MaskFunction, ScoreFunction


@dataclass(frozen=True)
class Mask:
    """Which (query, key) pairs attend; a pair attends if every part admits it. Mask() admits all.

    causal      True: keys up to the query's own position
    window      (left, right): keys from `left` before to `right` after the query's position; None: no limit
    alignment   where query i stands among the keys: "bottom_right" (None: the last query at the last key), "top_left"
                (query i at key i), or an integer n (query i at key i + n); for causal, window and ALiBi
    segments    packed documents: (query_ids, key_ids), batch * seq_q and batch * seq_k integers that do not decrease
                within a sequence; or one list for both. A query sees the keys with its own number alone
    blocks      a BlockMask over the queries and keys of a sequence
    """

    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    alignment: Literal["bottom_right", "top_left"] | int | None = None
    segments: Integers | tuple[Integers, Integers] | None = None
    blocks: BlockMask | None = None


_MASK_FIELDS = ("causal", "window", "alignment", "segments", "blocks")


class Options(TypedDict, total=False):
    """The keyword options of attention, forward, backward and explain. All may be left out; None means left out.

    Which pairs attend:
      mask          a Mask, or a boolean tensor [batch or 1, heads_q or 1, seq_q or 1, seq_k or 1] with true where the
                    pair attends. A boolean tensor that is a band (causal, a window, any diagonal) within one range of
                    keys for each sequence, as padding leaves it, is recognised, and what it hides costs nothing;
                    of another one the blocks of 128 x 128 pairs that it hides cost nothing
      causal, window, alignment, segments, blocks
                    the fields of Mask by themselves, in place of mask
      mask_function a MaskFunction, which the pair has to satisfy as well
      key_lengths   keys in use of each sequence, batch integers
      cu_seqlens_q  ragged layout: batch + 1 cumulative lengths from 0; tensors are then [total_tokens, heads, dim]
      cu_seqlens_k  the same for keys; cu_seqlens_q when left out

    A cache of keys that grows (forward alone):
      cache_lengths int32 tensor [batch] where q is: keys in use of each sequence, in place of key_lengths. Read when it
                    is computed, so that a CUDA graph replays with new ones
      page_table    int32 tensor [batch, pages of a sequence] where q is: k and v are pools [pages, page_size, heads_kv,
                    dim] of which page i of sequence b is page_table[b, i]; page_size is a power of two from 16

    Scores, in the order of their application:
      scale         1 / sqrt(dim_qk) when left out
      softcap       s <- softcap * tanh(s / softcap); 0 is none
      score_function
                    s <- score(s, i, params) of a ScoreFunction
      bias          added; [batch or 1, heads_q or 1, seq_q or 1, seq_k or 1], float32 or q's dtype, any strides
      alibi_slopes  s <- s - slope * |query position - key position|; float32 [heads_q] or [batch, heads_q]
      sinks         one logit a head that only the softmax's denominator sees; float32 [heads_q]
      dropout_p     probability in [0, 1], rounded to n / 256
      dropout_seed  the same seed drops the same weights in every call, forward and backward
      dropout_start (batch, head, query, key) position of this problem in a larger one that it is a part of
      function_start (batch, head, query, key) position that functions see first, of a problem that is a part of a
                    larger one; when the queries are the last ones of the keys, (0, 0, seq_k - seq_q, 0)

    How:
      output_dtype  "float32" for float32 outputs and gradients of 16-bit tensors
      impl, isa     force an implementation or an instruction set by the names that info() gives
      threads       0 for all
      deterministic False lets the backward pass on a GPU add the terms of dq in any order; without, and on the CPU,
                    every run gives the same bits
      float32_products  "tf32" lets products of float32 tensors round their factors to 11 bits on a GPU; "exact" when
                    left out
      stream        a cudaStream_t as an integer, for tensors on a GPU; left out: the current stream of torch or CuPy,
                    where the tensors are theirs, else the default stream
    """

    mask: Mask | DLPackTensor | None
    causal: bool | None
    window: tuple[int | None, int | None] | None
    alignment: Literal["bottom_right", "top_left"] | int | None
    segments: Integers | tuple[Integers, Integers] | None
    blocks: BlockMask | None
    mask_function: MaskFunction | None
    key_lengths: Integers | None
    cu_seqlens_q: Integers | None
    cu_seqlens_k: Integers | None
    cache_lengths: DLPackTensor | None
    page_table: DLPackTensor | None
    scale: float | None
    softcap: float | None
    score_function: ScoreFunction | None
    bias: DLPackTensor | None
    alibi_slopes: DLPackTensor | None
    sinks: DLPackTensor | None
    dropout_p: float | None
    dropout_seed: int | None
    dropout_start: tuple[int, int, int, int] | None
    function_start: tuple[int, int, int, int] | None
    output_dtype: Any  # a name; tessera.torch takes a torch.dtype as well
    impl: str | None
    isa: str | None
    threads: int | None
    deterministic: bool | None
    float32_products: Literal["exact", "tf32"] | None
    stream: int | None


_NAMES = dict.fromkeys(Options.__annotations__)


def require_known(options: Mapping[str, Any], names: Mapping[str, Any] = _NAMES) -> None:
    unknown = [name for name in options if name not in names]
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}; accepted: {', '.join(names)}")


def with_mask_fields(options: Options) -> dict[str, Any]:
    """The options with a Mask replaced by its fields; a boolean mask stays."""
    require_known(options)
    fields: dict[str, Any] = dict(options)
    mask = fields.pop("mask", None)
    if mask is None:
        return fields
    beside = [name for name in _MASK_FIELDS if fields.get(name) is not None and fields[name] is not False]
    if isinstance(mask, Mask):
        if beside:
            raise ValueError(f"mask: {mask} beside {', '.join(beside)}; accepted: one of them")
        fields.update({name: getattr(mask, name) for name in _MASK_FIELDS})
    else:
        fields["mask"] = mask
    return fields


def plain(options: Options, q: Any, k: Any) -> dict[str, Any]:
    """The options as the extension module takes them: lists of integers, the parts of the mask, and the stream."""
    result = with_mask_fields(options)
    if result.get("stream") is None:
        result["stream"] = current_stream(q)
    for name in ("key_lengths", "cu_seqlens_q", "cu_seqlens_k"):
        if result.get(name) is not None:
            result[name] = integers(result[name], name)
    segments = result.get("segments")
    if segments is not None:
        pair = segments if isinstance(segments, tuple) and len(segments) == 2 else (segments, segments)
        result["segments"] = tuple(integers(ids, "segments") for ids in pair)
    for name in ("bias", "alibi_slopes", "sinks", "cache_lengths", "page_table"):
        if result.get(name) is not None:
            result[name] = readable(result[name], name)
    mask = result.pop("mask", None)
    if mask is not None:
        result.update(_options_of_boolean(on_host(readable(mask, "mask")), result, q, k))
    return result


def _options_of_boolean(mask: Any, beside: dict[str, Any], q: Any, k: Any) -> dict[str, Any]:
    # A band in place of the mask brings an alignment and key lengths of its own; nothing else may depend on any.
    others = ("window", "segments", "key_lengths", "alibi_slopes")
    alone = not beside.get("causal") and all(beside.get(name) is None for name in others)
    if not hasattr(mask, "__dlpack__"):
        raise TypeError(f"mask: {mask!r}; accepted: a boolean tensor or tessera.Mask")
    lowered = _tessera.options_of_mask(mask, q, k, alone)
    blocks = beside.get("blocks")
    if blocks is not None and "blocks" in lowered:
        lowered["blocks"] = blocks & lowered["blocks"]
    return lowered
