"""Exact attention without the score matrix, on NumPy arrays, torch tensors and other DLPack tensors, on the CPU and on
NVIDIA GPUs.

    out = tessera.attention(q, k, v, mask=tessera.Mask(causal=True))

    out, lse = tessera.forward(q, k, v, causal=True)
    grads = tessera.backward(dout, q, k, v, out, lse, causal=True)
    out, lse = tessera.merge(out_a, lse_a, out_b, lse_b)

Tensors are read and written where they lie; nothing is copied or converted. Their last dimension must have stride 1,
the others are free. Outputs that are not given are allocated like q, on its device: as a NumPy or CuPy array or as a
torch tensor; with tensors of other frameworks, give every output. The interpreter lock is released while the library
computes, and calls from several threads do not wait for each other.

Tensors on a GPU are computed there, in order on the framework's current stream: a call returns when the work is
enqueued. All tensors of a call are on one device.

A wrong argument raises ValueError or TypeError, a right one that no implementation on this machine can compute raises
NotImplementedError; all name the argument, its value and what is accepted.

With automatic differentiation: tessera.torch (also drop-ins for other libraries' functions), tessera.jax and
tessera.transformers. Importing tessera imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from . import _tessera
from ._options import Mask, Options, plain
from ._tensors import DLPackTensor, Tensor, allocator, current_stream, readable
from ._tessera import BlockMask, MaskFunction, ScoreFunction

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "BlockMask",
    "DLPackTensor",
    "Gradients",
    "Mask",
    "MaskFunction",
    "Options",
    "ScoreFunction",
    "append_keys",
    "attention",
    "backward",
    "explain",
    "forward",
    "free_workspaces",
    "info",
    "merge",
]
__version__: str = _tessera.version


class Gradients(NamedTuple):
    """Gradients with respect to the inputs of forward, each shaped as its input."""

    dq: Any
    dk: Any
    dv: Any
    dbias: Any | None
    dsinks: Any | None


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[False] = False, **options: Unpack[Options]
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **options: Unpack[Options]
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale Q K^T) V with the given options: out, or (out, lse) with return_lse.

    q    [batch, seq_q, heads_q, dim_qk]
    k    [batch, seq_k, heads_kv, dim_qk]; heads_kv divides heads_q
    v    [batch, seq_k, heads_kv, dim_v]
    out  [batch, seq_q, heads_q, dim_v]
    lse  [batch, heads_q, seq_q]

    Shapes, dtypes and options are those of forward, which also writes into tensors that are given.
    """
    out, lse = forward(q, k, v, **options)
    return (out, lse) if return_lse else out


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
    lse [heads_q, total_q]. q, k and v share one dtype out of float32, bfloat16, float16 and float64 (which the
    reference alone computes, with a float64 lse). A query that sees no key has out 0 and lse -inf.
    """
    q_, k_, v_ = _readable(q=q, k=k, v=v)
    allocate = allocator(q_, options.get("stream"))
    result: tuple[Tensor, Tensor] = _tessera.forward(q_, k_, v_, out, lse, allocate, plain(options, q_, k_))
    return result


def append_keys(
    k: Any,
    v: Any,
    k_cache: Any,
    v_cache: Any,
    lengths: DLPackTensor,
    page_table: DLPackTensor | None = None,
    *,
    stream: int | None = None,
) -> None:
    """Writes new keys and values behind those in use: token i of sequence b becomes key lengths[b] + i of its cache.

    k, v              [batch, tokens, heads_kv, dim]
    k_cache, v_cache  [batch, seq_k, heads_kv, dim] or, with page_table, [pages, page_size, heads_kv, dim]; written
    lengths           int32 [batch]: keys in use before, which stay as they are
    page_table        int32 [batch, pages of a sequence]
    stream            as in Options

    What has no room is refused on the CPU before anything is written, and left out on a GPU, where the lengths are read
    when the work is done. Then attention(q, k_cache, v_cache, cache_lengths=lengths + tokens, page_table=page_table).
    """
    k_, v_, lengths_ = _readable(k=k, v=v, lengths=lengths)
    k_cache_, v_cache_ = _readable(k_cache=k_cache, v_cache=v_cache)
    table = None if page_table is None else readable(page_table, "page_table")
    on = current_stream(k_) if stream is None else stream
    _tessera.append_keys(k_, v_, k_cache_, v_cache_, lengths_, table, on)


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
    q_, k_, v_ = _readable(q=q, k=k, v=v)
    dout_, out_, lse_ = _readable(dout=dout, out=out, lse=lse)
    wanted = {"dq": dq, "dk": dk, "dv": dv, "dbias": dbias, "dsinks": dsinks}
    allocate = allocator(q_, options.get("stream"))
    return Gradients(*_tessera.backward(dout_, q_, k_, v_, out_, lse_, dlse, wanted, allocate, plain(options, q_, k_)))


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
    o_a, l_a, o_b, l_b = _readable(out_a=out_a, lse_a=lse_a, out_b=out_b, lse_b=lse_b)
    result: tuple[Tensor, Tensor] = _tessera.merge(o_a, l_a, o_b, l_b, out, lse, allocator(out_a))
    return result


def explain(q: Tensor, k: Tensor, v: Tensor, *, backward: bool = False, **options: Unpack[Options]) -> str:
    """How forward (or backward) would compute this: implementation, tiles, FLOPs and memory, as a page of text."""
    q_, k_, v_ = _readable(q=q, k=k, v=v)
    return _tessera.explain(q_, k_, v_, backward, plain(options, q_, k_))


def info() -> dict[str, Any]:
    """Version, instruction sets (best first), the one in use, threads, every implementation with its state, the bytes
    of workspace that are kept for the next call on the CPU and, as "cuda", the driver's version and the devices, or why
    there are none."""
    return _tessera.info()


def free_workspaces() -> None:
    """Give back the memory that finished calls on the CPU left for the next ones; calls that are running keep theirs.
    Workspaces on a GPU are the framework's."""
    _tessera.free_workspaces()


def _readable(**tensors: Any) -> list[Any]:
    return [readable(tensor, name) for name, tensor in tensors.items()]
