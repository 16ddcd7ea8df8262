"""Exact attention without the score matrix, on NumPy arrays, torch tensors and other DLPack tensors.

    out, lse = tessera.forward(q, k, v, causal=True)
    grads = tessera.backward(dout, q, k, v, out, lse, causal=True)
    out, lse = tessera.merge(out_a, lse_a, out_b, lse_b)

Tensors are read and written where they lie; nothing is copied or converted. Their last dimension must have stride 1,
the others are free. Outputs that are not given are allocated like q: as a NumPy array or as a torch tensor; with
tensors of other frameworks, give every output. The interpreter lock is released while the library computes.

A wrong argument raises ValueError, a right one that no implementation on this machine can compute raises
NotImplementedError; both name the argument, its value and what is accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict, TypeVar

from . import _tessera

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DLPackTensor", "Gradients", "Options", "backward", "explain", "forward", "info", "merge"]
__version__: str = _tessera.info()["version"]


class DLPackTensor(Protocol):
    """What every tensor argument must be: NumPy arrays, torch tensors and most others are."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


Tensor = TypeVar("Tensor", bound=DLPackTensor)
Integers = Sequence[int]  # or a one-dimensional integer array


class Options(TypedDict, total=False):
    """The keyword options of forward, backward and explain. All may be left out; None means left out.

    Which pairs attend (a pair attends if every part admits it):
      causal        True: keys up to the query's own position
      window        (left, right): keys from `left` before to `right` after the query's position; None: no limit
      alignment     where query i stands among the keys: "bottom_right" (the default: the last query at the last key),
                    "top_left" (query i at key i), or an integer n (query i at key i + n); for causal, window and ALiBi
      segments      packed documents: (query_ids, key_ids), batch * seq_q and batch * seq_k integers that do not
                    decrease within a sequence; or one list for both. A query sees the keys with its own number alone
      key_lengths   keys in use of each sequence, batch integers
      cu_seqlens_q  ragged layout: batch + 1 cumulative lengths from 0; tensors are then [total_tokens, heads, dim]
      cu_seqlens_k  the same for keys; cu_seqlens_q when left out

    Scores, in the order of their application:
      scale         1 / sqrt(dim_qk) when left out
      softcap       s <- softcap * tanh(s / softcap); 0 is none
      bias          added; [batch or 1, heads_q or 1, seq_q or 1, seq_k or 1], float32 or q's dtype, any strides
      alibi_slopes  s <- s - slope * |query position - key position|; float32 [heads_q] or [batch, heads_q]
      sinks         one logit a head that only the softmax's denominator sees; float32 [heads_q]
      dropout_p     probability in [0, 1], rounded to n / 256
      dropout_seed  the same seed drops the same weights in every call, forward and backward
      dropout_start (batch, head, query, key) position of this problem in a larger one that it is a part of

    How:
      output_dtype  "float32" for float32 outputs and gradients of 16-bit tensors
      impl, isa     force an implementation or an instruction set by the names that info() gives
      threads       0 for all
    """

    causal: bool
    window: tuple[int | None, int | None]
    alignment: Literal["bottom_right", "top_left"] | int
    segments: Integers | tuple[Integers, Integers]
    key_lengths: Integers
    cu_seqlens_q: Integers
    cu_seqlens_k: Integers
    scale: float
    softcap: float
    bias: DLPackTensor
    alibi_slopes: DLPackTensor
    sinks: DLPackTensor
    dropout_p: float
    dropout_seed: int
    dropout_start: tuple[int, int, int, int]
    output_dtype: str
    impl: str
    isa: str
    threads: int


class Gradients(NamedTuple):
    """Gradients with respect to the inputs of forward, each shaped as its input."""

    dq: Any
    dk: Any
    dv: Any
    dbias: Any | None
    dsinks: Any | None


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, out: Tensor | None = None, lse: Tensor | None = None, **options: Unpack[Options]
) -> tuple[Tensor, Tensor]:
    """O = softmax(scale Q K^T) V with the given options; returns (out, lse).

    q    [batch, seq_q, heads_q, dim_qk]
    k    [batch, seq_k, heads_kv, dim_qk]; heads_kv divides heads_q
    v    [batch, seq_k, heads_kv, dim_v]
    out  [batch, seq_q, heads_q, dim_v]
    lse  [batch, heads_q, seq_q], float32: the natural log of the softmax's denominator

    In the ragged layout (cu_seqlens_q given) batch and seq are one dimension: q [total_q, heads_q, dim_qk],
    lse [heads_q, total_q]. q, k and v share one dtype out of float32, bfloat16, float16 and float64.
    A query that sees no key has out 0 and lse -inf.
    """
    return _tessera.forward(q, k, v, out, lse, _allocator(q), _plain(options))


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    dlse: Tensor | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    dbias: Tensor | bool = False,
    dsinks: Tensor | bool = False,
    **options: Unpack[Options],
) -> Gradients:
    """The gradients of a forward call with the same q, k, v and options, whose results were out and lse.

    dout    gradient with respect to out, shaped as out
    dlse    gradient with respect to lse, shaped as lse; left out: zero
    dq, dk, dv  where to write the gradients; left out: new tensors
    dbias   True for a new tensor of bias's shape and dtype, or where to write it: [batch or 1, heads_q or 1,
            seq_q or 1, seq_k or 1], summed where the extent is 1
    dsinks  True, or where to write it: float32 [heads_q]
    """
    wanted = {"dq": dq, "dk": dk, "dv": dv, "dbias": dbias, "dsinks": dsinks}
    return Gradients(*_tessera.backward(dout, q, k, v, out, lse, dlse, wanted, _allocator(q), _plain(options)))


def merge(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    *,
    out: Tensor | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys, from the (out, lse) of each; returns (out, lse).

    Shapes are those of forward's results. out and lse may be out_a and lse_a themselves.
    """
    return _tessera.merge(out_a, lse_a, out_b, lse_b, out, lse, _allocator(out_a))


def explain(q: Tensor, k: Tensor, v: Tensor, *, backward: bool = False, **options: Unpack[Options]) -> str:
    """How forward (or backward) would compute this: implementation, tiles, FLOPs and memory, as a page of text."""
    return _tessera.explain(q, k, v, backward, _plain(options))


def info() -> dict[str, Any]:
    """Version, instruction sets (best first), the one in use, threads, and every implementation with its state."""
    return _tessera.info()


def _integers(values: Any) -> list[int]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _plain(options: Options) -> dict[str, Any]:
    """The options with every array of integers as a list, which is what the extension module takes."""
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        accepted = ", ".join(Options.__annotations__)
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}; accepted: {accepted}")
    plain: dict[str, Any] = dict(options)
    for name in ("key_lengths", "cu_seqlens_q", "cu_seqlens_k"):
        if plain.get(name) is not None:
            plain[name] = _integers(plain[name])
    segments = plain.get("segments")
    if segments is not None:
        pair = segments if isinstance(segments, tuple) and len(segments) == 2 else (segments, segments)
        plain["segments"] = tuple(_integers(ids) for ids in pair)
    return plain


def _allocator(like: Any) -> Any:
    """A function (shape, dtype name) -> a new tensor of the framework that `like` comes from."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(like, numpy.ndarray):
        return numpy.empty
    if torch is not None and isinstance(like, torch.Tensor):
        return lambda shape, dtype: torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)

    def refuse(shape: list[int], dtype: str) -> Any:
        raise TypeError(
            f"cannot allocate {dtype}{shape} like {type(like).__name__}; "
            "accepted: NumPy arrays, torch tensors, or every output given"
        )

    return refuse
