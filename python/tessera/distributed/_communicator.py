"""Groups of ranks, and how their ranks find each other."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

from .._tessera import RankGroup, rank_environment

Transport = Literal["copy", "nccl", "staged"]
_TRANSPORTS = ("copy", "nccl", "staged")
_LOOPBACK = "127.0.0.1"
_open: weakref.WeakSet[Communicator] = weakref.WeakSet()
# Of each process group of torch: its communicators by device.
_of_process_groups: weakref.WeakKeyDictionary[Any, dict[str, Communicator]] = weakref.WeakKeyDictionary()


class Communicator:
    """One rank's end of a group. The constructors are collective: every rank calls the same one.

    local               ranks are threads of this process
    from_environment    processes that torchrun started, or anything else that sets its variables
    from_file           processes that share a file system
    from_process_group  the ranks of a torch.distributed process group
    from_mpi4py         the ranks of an mpi4py communicator

    They take:

    timeout    seconds that a rank may be silent before the others give it up; longer than the longest step
    device     where this rank's tensors are: None or "cpu", "cuda" (the GPU of this rank: torch's current one or,
               without torch, that of LOCAL_RANK), "cuda:1", or a torch.device
    transport  between GPUs of processes: "copy" (from GPU to GPU by the copy engines, which leaves all multiprocessors
               to the kernels), "nccl", or "staged" (through host memory); None: the first that there is. Copies need
               ranks of one machine whose GPUs reach each other's memory, and a system that lets processes share it
               (CUDA IPC); every pair of ranks tries before the first one is chosen

    Ranks of processes talk over TCP, also about what copies and NCCL will do; on one machine over the loopback
    interface alone. Threads on GPUs of one process copy by the copy engines as well.
    """

    def __init__(self, group: RankGroup) -> None:
        self._group = group
        _open.add(self)

    @staticmethod
    def local(ranks: int | Sequence[Any], *, timeout: float = 60.0) -> list[Communicator]:
        """A group of threads of this process: element r belongs to rank r, which is one thread at a time.

        ranks  their number, for tensors on the CPU; or the GPU of each, as in ["cuda:0", "cuda:1"]
        """
        devices: list[int | None] = (
            [None] * ranks if isinstance(ranks, int) else [device_index(device) for device in ranks]
        )
        return [Communicator(group) for group in RankGroup.local(devices, timeout)]

    @staticmethod
    def from_environment(
        *, timeout: float = 60.0, device: Any = None, transport: Transport | None = None
    ) -> Communicator:
        """The ranks that RANK and WORLD_SIZE count. They meet at MASTER_ADDR, at the port after MASTER_PORT, at which
        torchrun's own store listens."""
        rank, ranks, address, port = rank_environment()
        return _meet(rank, ranks, address=address, port=port, timeout=timeout, device=device, transport=transport)

    @staticmethod
    def from_file(
        path: str | os.PathLike[str],
        rank: int,
        size: int,
        *,
        address: str = _LOOPBACK,
        timeout: float = 60.0,
        device: Any = None,
        transport: Transport | None = None,
    ) -> Communicator:
        """Rank 0 takes any free port and writes it to a file, which must not exist before and which it removes again.

        address  that rank 0 listens at and the others connect to
        """
        file = os.fspath(path)
        return _meet(rank, size, address=address, file=file, timeout=timeout, device=device, transport=transport)

    @staticmethod
    def from_process_group(
        group: Any = None,
        *,
        timeout: float = 60.0,
        device: Any = None,
        transport: Transport | None = None,
        address: str | None = None,
    ) -> Communicator:
        """The ranks of a torch.distributed process group, which stays as it is: it carries one message from rank to
        rank, in which they say where they are.

        group    a ProcessGroup, a one-dimensional DeviceMesh, or None for the default group
        device   left out: the CPU or, for a group that has GPUs alone (nccl), torch's current GPU
        address  of rank 0, for ranks of several machines; left out: that of its interface towards MASTER_ADDR

        The communicator of a group and device is kept: later calls return it as it is, as long as it is sound, until
        the process group is destroyed.
        """
        import torch  # noqa: PLC0415
        import torch.distributed as dist  # noqa: PLC0415

        if group is None:
            group = dist.group.WORLD
        if hasattr(group, "get_group"):  # a DeviceMesh
            group = group.get_group()
        if not dist.is_initialized() or group is None:
            raise ValueError("group: no process group; accepted: one after torch.distributed.init_process_group")
        if dist.get_rank(group) < 0:
            raise ValueError("group: one that this process is not a rank of; accepted: a group of its own")
        if device is None and dist.get_backend(group) == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
        index = device_index(device)
        kept = _of_process_groups.setdefault(group, {})
        name = "cpu" if index is None else f"cuda:{index}"
        found = kept.get(name)
        if found is not None and found.failure is None:
            return found
        size = dist.get_world_size(group)

        def all_gather(mine: Any) -> list[Any]:
            everyone: list[Any] = [None] * size
            dist.all_gather_object(everyone, mine, group=group)
            return everyone

        kept[name] = _meet_by(
            all_gather, dist.get_rank(group), size, address=address, timeout=timeout, device=device, transport=transport
        )
        return kept[name]

    @staticmethod
    def from_mpi4py(
        comm: Any,
        *,
        timeout: float = 60.0,
        device: Any = None,
        transport: Transport | None = None,
        address: str | None = None,
    ) -> Communicator:
        """The ranks of an mpi4py communicator. MPI carries one message from rank to rank, whichever MPI it is; the
        blocks go over TCP or from GPU to GPU.

        address  of rank 0, for ranks of several machines; left out: that of its host's name
        """
        return _meet_by(
            comm.allgather,
            comm.Get_rank(),
            comm.Get_size(),
            address=address,
            timeout=timeout,
            device=device,
            transport=transport,
        )

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def size(self) -> int:
        return self._group.size

    @property
    def transport(self) -> str:
        """For example "local", "tcp", "tcp, by the copy engines", "nccl" or "tcp, through host memory"."""
        return self._group.transport

    @property
    def device(self) -> str:
        """Where this rank's tensors have to be: "cpu" or "cuda:0"."""
        return self._group.device

    @property
    def failure(self) -> str | None:
        """Why the group is of no further use; None while it is sound."""
        return self._group.failure

    @property
    def bytes_sent(self) -> int:
        """By this rank, in blocks and gradients, and in a few hundred bytes of agreement before each pass."""
        return self._group.bytes_sent

    @property
    def memory_bytes(self) -> int:
        """Held for the plans of the last eight different passes, which share it."""
        return self._group.memory_bytes

    def free_plans(self) -> None:
        """Gives that memory back."""
        self._group.forget_plans()

    def abort(self, reason: str) -> None:
        """Tells the others that this rank has failed: theirs are ConnectionErrors with this reason."""
        self._group.abort(reason)

    def close(self) -> None:
        """Leaves the group, when the others leave it too or the timeout is over. Also at the end of the process."""
        self._group.close()

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None and self.failure is None:
            self.abort(f"{type(error).__name__}: {error}")
        self.close()

    def __del__(self) -> None:
        group = getattr(self, "_group", None)
        if group is not None and not sys.is_finalizing():
            group.close()

    def __repr__(self) -> str:
        state = "" if self.failure is None else f", failed: {self.failure}"
        where = f"rank {self.rank} of {self.size}, {self.transport}, {self.device}"
        return f"<tessera.distributed.Communicator: {where}{state}>"


@atexit.register
def _close_all() -> None:
    for communicator in list(_open):
        communicator.close()
    _of_process_groups.clear()


def device_index(device: Any) -> int | None:
    """The index of a GPU; None for the CPU."""
    name = "cpu" if device is None else str(device)
    kind, _, index = name.partition(":")
    if kind == "cpu":
        return None
    if kind != "cuda" or not (index.isdecimal() or not index):
        raise ValueError(f'device: {name}; accepted: "cpu", "cuda" or "cuda:0"')
    if index:
        return int(index)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.current_device())
    return int(os.environ.get("LOCAL_RANK", "0"))


def _meet(
    rank: int,
    size: int,
    *,
    address: str,
    timeout: float,
    device: Any,
    transport: Transport | None,
    port: int = 0,
    file: str = "",
    listener: int = -1,
) -> Communicator:
    index = device_index(device)
    if transport is not None and (transport not in _TRANSPORTS or index is None):
        where = "the CPU" if index is None else f"cuda:{index}"
        names = ", ".join(f'"{name}"' for name in _TRANSPORTS)
        raise ValueError(f"transport: {transport!r} on {where}; accepted: None or, on a GPU, {names}")
    return Communicator(RankGroup.meet(rank, size, address, port, file, listener, timeout, index, transport or ""))


def _meet_by(
    all_gather: Callable[[Any], list[Any]],
    rank: int,
    size: int,
    *,
    address: str | None,
    timeout: float,
    device: Any,
    transport: Transport | None,
) -> Communicator:
    """Rank 0 listens, and tells the others where by a collective of another library."""
    hosts = all_gather(socket.gethostname())
    with contextlib.ExitStack() as stack:
        listener = None
        if rank == 0:
            listener = stack.enter_context(socket.socket())
            listener.bind((address or (_LOOPBACK if len(set(hosts)) == 1 else _own_address()), 0))
            listener.listen(size)
        place = all_gather(listener.getsockname() if listener is not None else None)[0]
        return _meet(
            rank,
            size,
            address=place[0],
            port=place[1],
            listener=-1 if listener is None else listener.detach(),
            timeout=timeout,
            device=device,
            transport=transport,
        )


def _own_address() -> str:
    """Of this machine's interface towards the others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends nothing.
        probe.connect((os.environ.get("MASTER_ADDR", socket.gethostname()), 1))
        return str(probe.getsockname()[0])
