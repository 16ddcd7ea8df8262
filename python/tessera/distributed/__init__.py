"""One attention problem over ranks that each own some tokens of its sequences: ring attention on NumPy arrays, torch
tensors and other DLPack tensors, on CPUs and GPUs.

    ring = tessera.distributed.Communicator.from_environment()          # processes that torchrun started
    q, k, v = (tessera.distributed.shard(x, ring) for x in (q, k, v))    # or never have the whole
    out = tessera.distributed.attention(q, k, v, communicator=ring, causal=True)

Blocks of keys and values (in the backward pass whatever is less to send) travel from rank to rank while ranks compute
on what they have; results are those of one device. docs/distributed.md describes layouts, schedules and transports.

Every rank of the group has to make the same calls in the same order, with its own tokens and otherwise the same
arguments. What a rank cannot take is an exception on all ranks, which names it: on that rank itself the exception
that it would be on one device, on the others ConnectionError. A rank that is lost or silent is a ConnectionError on all
others within the communicator's timeout; the group is of no further use then.

With automatic differentiation: tessera.torch.distributed.
"""

from ._attention import attention, backward, explain, forward
from ._communicator import Communicator
from ._layout import positions, shard, unshard
from ._options import RingOptions

__all__ = [
    "Communicator",
    "RingOptions",
    "attention",
    "backward",
    "explain",
    "forward",
    "positions",
    "shard",
    "unshard",
]
