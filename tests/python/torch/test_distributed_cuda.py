"""tessera.torch.distributed over GPUs: copy engines and NCCL between processes, threads, one GPU that is shared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import oracle
import pytest
import ranks
import tessera
import tessera.distributed
import tessera.torch
import torch
from tessera.distributed import Communicator
from tessera.torch import distributed as ring
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPUS = torch.cuda.device_count()
two_gpus = pytest.mark.skipif(GPUS < 2, reason="fewer than two CUDA devices")
four_gpus = pytest.mark.skipif(GPUS < 4, reason="fewer than four CUDA devices")

CASES: dict[str, dict[str, Any]] = {
    "causal, ring": {"causal": True, "schedule": "ring"},
    "causal, burst": {"causal": True, "schedule": "burst"},
    "double ring": {"causal": True, "schedule": "double_ring", "ranks_per_node": 2},
    "striped": {"causal": True, "layout": "striped"},
    "contiguous": {"causal": True, "layout": "contiguous"},
    "no mask": {},
    "window": {"window": (150, 0)},
    "dropout": {"causal": True, "dropout_p": 0.25, "dropout_seed": 11},
    "documents": {"causal": True, "segments": torch.arange(2 * 601) % 601 // 170},
}
RING = ("schedule", "layout", "ranks_per_node")
BOUND = 2.5 * 2.0**-8 + 2e-3


def make(device: str = "cuda") -> list[Tensor]:
    """q, k, v, dout."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 601, heads, 64) for heads in (8, 2, 2, 8)]
    return [torch.randn(shape, generator=generator).bfloat16().to(device) for shape in shapes]


@cache
def expected(case: str) -> list[Tensor]:
    """out, dq, dk and dv in float32 on the CPU."""
    alone = {name: value for name, value in CASES[case].items() if name not in RING}
    *tensors, dout = (x.float() for x in make("cpu"))
    leaves = [x.requires_grad_() for x in tensors]
    out = tessera.torch.attention(*leaves, **alone)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def on_this_rank(group: Any, device: str, options: dict[str, Any]) -> list[Tensor]:
    where = {"group": group, "layout": options.get("layout", "zigzag")}
    *tensors, dout = (ring.shard(x, **where) for x in make(device))
    leaves = [x.requires_grad_() for x in tensors]
    out = ring.attention(*leaves, group=group, **options)
    found = [out.detach(), *torch.autograd.grad(out, leaves, dout)]
    return [ring.unshard(x, **where).cpu() for x in found]


def cases(size: int) -> dict[str, dict[str, Any]]:
    return {name: options for name, options in CASES.items() if options.get("ranks_per_node", 0) < size}


def check(found: dict[str, list[Tensor]], size: int) -> None:
    assert found.keys() == cases(size).keys()
    for name, values in found.items():
        for x, y in zip(values, expected(name), strict=True):
            assert oracle.relative_error(x, y) <= BOUND, name


def over_processes(transport: Any, device: str) -> tuple[str, dict[str, list[Tensor]], bool]:
    communicator = Communicator.from_process_group(device=device, transport=transport)
    found = {name: on_this_rank(communicator, device, options) for name, options in cases(communicator.size).items()}
    again = on_this_rank(communicator, device, CASES["causal, ring"])
    return communicator.transport, found, all(map(torch.equal, again, found["causal, ring"]))


BY_COPIES = "tcp, by the copy engines"


@pytest.mark.parametrize("size", [pytest.param(2, marks=two_gpus), pytest.param(4, marks=four_gpus)])
@pytest.mark.parametrize(("transport", "name"), [(None, BY_COPIES), ("nccl", "nccl")])
def test_processes(transport: str | None, name: str, size: int) -> None:
    answers = ranks.values(ranks.run(size, over_processes, transport, "cuda", backend="nccl"))
    for found_name, found, deterministic in answers:
        assert found_name == name
        assert deterministic
        check(found, size)


@pytest.mark.parametrize(("transport", "name"), [("copy", BY_COPIES), ("staged", "tcp, through host memory")])
def test_processes_that_share_a_gpu(transport: str, name: str) -> None:
    for found_name, found, deterministic in ranks.values(ranks.run(2, over_processes, transport, "cuda:0")):
        assert found_name == name
        assert deterministic
        check(found, 2)


def without_autograd(communicator: Communicator, device: str, options: dict[str, Any]) -> list[Tensor]:
    where: dict[str, Any] = {"communicator": communicator, "layout": options.get("layout", "zigzag")}
    q, k, v, dout = (tessera.distributed.shard(x, **where) for x in make(device))
    out, lse = tessera.distributed.forward(q, k, v, communicator=communicator, **options)
    grads = tessera.distributed.backward(dout, q, k, v, out, lse, communicator=communicator, **options)
    return [tessera.distributed.unshard(x, **where).cpu() for x in (out, *grads[:3])]


# Autograd has one thread for each GPU, in which two ranks that share it would wait for each other.
@pytest.mark.parametrize(
    ("devices", "run"),
    [
        (["cuda:0", "cuda:0"], without_autograd),
        pytest.param(["cuda:0", "cuda:1"], without_autograd, marks=two_gpus),
        pytest.param(["cuda:0", "cuda:1"], on_this_rank, marks=two_gpus),
        pytest.param([f"cuda:{n}" for n in range(4)], on_this_rank, marks=four_gpus),
    ],
)
def test_threads(devices: list[str], run: Callable[..., list[Tensor]]) -> None:
    found: dict[int, dict[str, list[Tensor]]] = {}

    def body(communicator: Communicator) -> None:
        found[communicator.rank] = {
            name: run(communicator, communicator.device, options) for name, options in cases(communicator.size).items()
        }

    threads = [threading.Thread(target=body, args=(one,)) for one in Communicator.local(devices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(len(devices)))
    for of_rank in found.values():
        check(of_rank, len(devices))


def test_the_stream() -> None:
    """Inputs that are written late on a stream, and results that are read on it."""
    q, k, v, _ = make()
    (communicator,) = Communicator.local(["cuda:0"])
    right = ring.attention(q, k, v, group=communicator, causal=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.zeros_like(q)
        torch.cuda._sleep(40_000_000)
        late.copy_(q)
        out = ring.attention(late, k, v, group=communicator, causal=True)
    assert torch.equal(out, right)


def test_tensors_elsewhere() -> None:
    q, k, v, _ = make()
    (communicator,) = Communicator.local(["cuda:0"])
    with pytest.raises(ValueError, match=r"^k device: cpu; accepted: cuda:0"):
        ring.attention(q, k.cpu(), v, group=communicator)
    with pytest.raises(ValueError, match=r"^q device: cpu; accepted: cuda:0"):
        ring.attention(q.cpu(), k, v, group=communicator)
    assert communicator.failure is None


def test_an_import_leaves_the_driver_alone() -> None:
    """Ranks may be forks of a process that has imported it, which the driver does not survive once it has started."""
    program = """
import ctypes, tessera, tessera.torch.distributed
context = ctypes.c_void_p()
print(ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context)))
"""
    ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    not_initialised = 3
    assert int(ran.stdout) == not_initialised


def lose_rank_1(how: str, transport: Any) -> tuple[str, float]:
    communicator = Communicator.from_process_group(timeout=3, transport=transport)
    q, k, v, _ = make()
    for _ in range(2):
        ring.attention(q, k, v, group=communicator)
    if communicator.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL if how == "dies" else signal.SIGSTOP)
    begin = time.monotonic()
    try:
        ring.attention(q, k, v, group=communicator)
    except ConnectionError as error:
        return str(error), time.monotonic() - begin
    return "", 0.0


@two_gpus
@pytest.mark.parametrize("transport", ["copy", "nccl"])
@pytest.mark.parametrize(("how", "words"), [("dies", "rank 1 left"), ("stops", "rank 1 was silent for 3 s")])
def test_a_lost_rank_is_named_within_the_timeout(how: str, words: str, transport: str) -> None:
    text, seconds = ranks.run(2, lose_rank_1, how, transport, backend="nccl", lost=1)[0]
    assert words in text
    assert seconds < 9
