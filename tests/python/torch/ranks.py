"""Ranks as processes for the tests of tessera.torch.distributed: a process group of torch each, over loopback."""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_context = multiprocessing.get_context("forkserver")
# Importing torch takes longer than all tests here: one process does it, and ranks are forks of that.
_context.set_forkserver_preload(["torch", "torch.distributed", "tessera.torch.distributed"])


def run(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    backend: str = "gloo",
    timeout: float = 60,
    lost: int | None = None,
) -> list[Any]:
    """What function(*arguments) returned on each rank of a group of `size`, or the exception that it raised; None for a
    process that ended without either, and for the one that is to be lost."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(size):
            ours, theirs = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_rank, args=(theirs, rank, size, backend, str(Path(folder) / "store"), function, arguments)
            )
            process.start()
            theirs.close()
            ranks.append((process, ours))
        try:
            return [None if rank == lost else _answer(pipe, timeout) for rank, (_, pipe) in enumerate(ranks)]
        finally:
            for process, _ in ranks:
                # Where one was lost, torch's own group may keep the others from ending.
                process.join(0 if lost is not None else 5)
                process.kill()
                process.join()


def _answer(pipe: Connection, timeout: float) -> Any:
    try:
        if not pipe.poll(timeout):
            raise TimeoutError(f"a rank did not answer within {timeout} s")
        return torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
    except EOFError:
        return None


def _rank(
    pipe: Connection, rank: int, size: int, backend: str, store: str, function: Callable[..., Any], arguments: Any
) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=30)
    )
    try:
        answer = function(*arguments)
    except Exception as error:
        answer = type(error)(*error.args) if not error.args or isinstance(error.args[0], str) else error
        answer.__notes__ = [traceback.format_exc()]
    # Tensors by value: torch's own way through pipes shares memory of a process that has ended by then.
    whole = io.BytesIO()
    torch.save(answer, whole)
    pipe.send_bytes(whole.getvalue())
    dist.destroy_process_group()


def values(answers: list[Any]) -> list[Any]:
    """The answers, of which none may be an exception."""
    for rank, answer in enumerate(answers):
        if isinstance(answer, BaseException):
            raise AssertionError(f"rank {rank}: {''.join(getattr(answer, '__notes__', []))}") from answer
    return answers
