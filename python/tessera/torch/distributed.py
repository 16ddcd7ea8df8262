"""Differentiable attention over the ranks of a torch.distributed process group, each with some tokens of its sequences.

    from tessera.torch import distributed as ring

    ids, labels = (ring.shard(x, layout="zigzag") for x in (ids, labels))     # [batch, tokens of this rank]
    places = ring.positions(seq, layout="zigzag")                             # for rotary embeddings
    out = ring.attention(q, k, v, causal=True, layout="zigzag")               # in every layer

`group` is a ProcessGroup, a one-dimensional DeviceMesh, a tessera.distributed.Communicator, or None for the default
group. A process group carries one message from rank to rank, on the first call; what a rank cannot take, and ranks that
are lost, are exceptions as in tessera.distributed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .. import distributed as _arrays
from .._options import plain, with_mask_fields
from ..distributed import Communicator, RingOptions
from ..distributed._attention import telling_others
from ..distributed._layout import Layout
from ..distributed._options import parts
from ._attention import _autocast, _four_dimensions
from ._ops import _readable

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["attention", "positions", "shard", "unshard"]

_Group = Any  # ProcessGroup, DeviceMesh, Communicator or None
_DIFFERENTIABLE = ("bias", "sinks")


def _communicator(group: _Group, device: torch.device | None = None) -> Communicator:
    return group if isinstance(group, Communicator) else Communicator.from_process_group(group, device=device)


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: _Group = None,
    return_lse: Literal[False] = False,
    **options: Unpack[RingOptions],
) -> Tensor: ...
@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: _Group = None,
    return_lse: Literal[True],
    **options: Unpack[RingOptions],
) -> tuple[Tensor, Tensor]: ...
@torch.compiler.disable
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: _Group = None,
    return_lse: bool = False,
    **options: Unpack[RingOptions],
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale Q K^T) V of whole sequences, for this rank's queries, differentiable: out, or (out, lse) with
    return_lse. Collective, and so is its backward pass.

    q    [batch, tokens, heads_q, dim_qk]: this rank's, as the layout deals them; [tokens, heads_q, dim_qk] with
         cu_seqlens_q
    k    [batch, tokens, heads_kv, dim_qk]; heads_kv divides heads_q
    v    [batch, tokens, heads_kv, dim_v]
    out  [batch, tokens, heads_q, dim_v]
    lse  [batch, heads_q, tokens], float32

    Options are those of tessera.distributed.RingOptions (layout, schedule, ranks_per_node and those of the problem),
    with these differences:
      - gradients flow to q, k, v, bias and sinks, from out and lse alike. Those of q, k and v are complete; those of
        bias and sinks are this rank's share, to be summed over the ranks as the gradients of all parameters are;
      - any strides are taken; a last dimension without stride 1 is copied;
      - cu_seqlens_q, key_lengths and segments may be integer tensors;
      - dropout_seed, when left out, is drawn from rank 0's generator of torch, for all ranks;
      - output_dtype may be a torch.dtype; threads 0 stands for torch.get_num_threads().

    Under autocast q, k and v of float32 are computed in autocast's dtype. On a GPU all is computed on torch's current
    stream, which the call waits for. torch.compile breaks its graph here. Ranks that are threads need a GPU each:
    autograd has one thread for each GPU, in which two ranks would wait for each other.
    """
    with _settings(group, q) as communicator:
        q, k, v = (_autocast(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v")))
        call = _Call(communicator, options, q, k)
    out, lse = _Attention.apply(q, k, v, call.tensors["bias"], call.tensors["sinks"], call)
    return (out, lse) if return_lse else out


class _settings:  # noqa: N801  a context manager
    """The communicator of a call, to whose other ranks errors in the block are told."""

    def __init__(self, group: _Group, q: Tensor) -> None:
        if not isinstance(q, Tensor) and not isinstance(group, Communicator):
            raise TypeError(f"q: {type(q).__name__}; accepted: a torch tensor")
        self.communicator = _communicator(group, getattr(q, "device", None))
        self.telling = telling_others(self.communicator)

    def __enter__(self) -> Communicator:
        self.telling.__enter__()
        return self.communicator

    def __exit__(self, *error: Any) -> bool | None:
        return self.telling.__exit__(*error)


class _Call:
    """What both passes of one call have in common."""

    def __init__(self, communicator: Communicator, options: RingOptions, q: Tensor, k: Tensor) -> None:
        self.communicator = communicator
        problem, self.ring = parts(options)
        given = with_mask_fields(problem)
        if given.get("stream") is not None:
            raise ValueError(f"stream: {given['stream']}; accepted: None, inside torch.cuda.stream(...)")
        slopes, sinks = given.get("alibi_slopes"), given.get("sinks")
        if slopes is not None and slopes.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError("alibi_slopes: a tensor that requires grad; accepted: slopes without a gradient")
        self.tensors: dict[str, Tensor | None] = {
            "bias": _four_dimensions(given.pop("bias", None)),
            "sinks": None if sinks is None else sinks.float(),
        }
        given.pop("sinks", None)
        if slopes is not None:
            given["alibi_slopes"] = slopes.detach()
        if given.get("output_dtype") is not None:
            given["output_dtype"] = str(given["output_dtype"]).removeprefix("torch.")
        given["threads"] = given.get("threads") or torch.get_num_threads()
        self.draws_seed = bool(given.get("dropout_p")) and given.get("dropout_seed") is None
        if self.draws_seed:
            given["dropout_seed"] = int(torch.randint(0, 2**63 - 1, (1,)))
        self.options = plain(given, q, k)  # type: ignore[arg-type]
        del self.options["stream"]

    def with_tensors(self, q: Tensor, bias: Tensor | None, sinks: Tensor | None) -> dict[str, Any]:
        stream = torch._C._cuda_getCurrentRawStream(q.get_device()) if q.is_cuda else None
        return {**self.options, "bias": bias, "sinks": sinks, "stream": stream}


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sinks: Tensor | None, call: _Call
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (_readable(x) for x in (q, k, v))
        bias, sinks = (None if x is None else x.detach() for x in (bias, sinks))
        group = call.communicator._group
        out, lse, seed = group.forward(
            q,
            k,
            v,
            None,
            None,
            _allocator(q),
            call.with_tensors(q, bias, sinks),
            {**call.ring, "seed_of_rank_0": call.draws_seed},
        )
        if call.draws_seed:
            call.options["dropout_seed"] = seed
        ctx.save_for_backward(q, k, v, out, lse, bias, sinks)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, bias, sinks = ctx.saved_tensors
        call: _Call = ctx.call
        dout = torch.zeros_like(out) if dout is None else _readable(dout)
        _, _, _, wants_bias, wants_sinks, _ = ctx.needs_input_grad
        wanted = {"dq": None, "dk": None, "dv": None, "dbias": wants_bias, "dsinks": wants_sinks}
        options = call.with_tensors(q, bias, sinks)
        dq, dk, dv, dbias, dsinks = call.communicator._group.backward(
            dout, q, k, v, out, lse, dlse, wanted, _allocator(q), options, call.ring
        )
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dbias, dsinks, None


def _allocator(q: Tensor) -> Any:
    return lambda shape, dtype: q.new_empty(shape, dtype=getattr(torch, dtype))


def positions(
    length: int, *, group: _Group = None, layout: Layout = "zigzag", device: torch.device | str | None = None
) -> Tensor:
    """int64 [tokens]: the positions in a whole sequence of `length` tokens that this rank owns, in the order of its
    tensors: what rotary embeddings and position ids need."""
    own = _arrays.positions(length, _communicator(group), layout=layout)
    return torch.tensor(own, dtype=torch.int64, device=device)


def shard(x: Tensor, *, group: _Group = None, layout: Layout = "zigzag", axis: int = 1) -> Tensor:
    """This rank's tokens of a whole tensor along `axis`; differentiable. Any length will do."""
    return _arrays.shard(x, _communicator(group), layout=layout, axis=axis)


def unshard(x: Tensor, *, group: _Group = None, layout: Layout = "zigzag", axis: int = 1) -> Tensor:
    """The whole tensor, on every rank, of which each has the part x along `axis`. Collective, through host memory, and
    without gradients: for outputs and checks."""
    return _arrays.unshard(x, _communicator(group), layout=layout, axis=axis)
