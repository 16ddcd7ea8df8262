"""A CUDA device: what it is, and how long calls take on it."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import tessera
import torch

BATCH_SECONDS = 0.3e-3  # what one measurement takes at least, as calls one after the other
MOST_CALLS = 8
MOST_ROUNDS = 200
SPIN_HERTZ = 2e9  # of torch.cuda._sleep's cycles, about

Calls = Sequence[Callable[[], Any]]


class Timing(NamedTuple):
    seconds: float  # of one call, the median
    low: float  # quartiles
    high: float
    rounds: int


class CudaDevice:
    name = "cuda"

    def __init__(self, method: str):
        self.method = method
        # Capturing needs a stream of its own, and autograd runs a backward pass on the stream of its forward pass.
        self.stream = torch.cuda.Stream()
        self.properties = torch.cuda.get_device_properties(self.stream.device)

    def describe(self) -> dict[str, Any]:
        cudnn = torch.backends.cudnn.version() or 0
        return {
            "device": self.properties.name,
            "multiprocessors": self.properties.multi_processor_count,
            "driver": tessera.info()["cuda"]["driver"],
            "cuda": torch.version.cuda,
            "cudnn": f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}",
            "torch": torch.__version__,
            "tessera": tessera.__version__,
            "method": self.method,
            "variables": {name: value for name, value in os.environ.items() if name.startswith("TESSERA_")},
        }

    @property
    def l2_bytes(self) -> int:
        return int(self.properties.L2_cache_size)

    def bytes_in_use(self, release: bool = False) -> int:
        """By everyone, with all that torch ever had at once, unless it is told to release that first."""
        self.stream.synchronize()
        if release:
            torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free

    def active(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream)

    def repeatable(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """The call, or with the method `graph` a graph of it, which takes the host out of the time."""
        if self.method == "events":
            return call
        call()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            call()
        return graph.replay

    def enqueue(self, calls: Sequence[tuple[str, Calls]], ahead_seconds: float) -> dict[str, float]:
        """Runs the calls of each name one after the other; returns the seconds of each name's calls together."""
        events = {name: (_event(), _event()) for name, _ in calls}
        # The device waits until the host is ahead, so that no time of the host is measured.
        torch.cuda._sleep(int(ahead_seconds * SPIN_HERTZ))
        for name, batch in calls:
            events[name][0].record()
            for call in batch:
                call()
            events[name][1].record()
        self.stream.synchronize()
        return {name: start.elapsed_time(stop) * 1e-3 for name, (start, stop) in events.items()}

    def matrix_rate(self) -> float:
        """FLOP/s of an 8192^3 product of random bfloat16 numbers, warm."""
        size = 8192
        a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=self.name) for _ in range(2))
        product = torch.empty_like(a)

        def multiply() -> None:
            torch.mm(a, b, out=product)

        for seconds in (0.3, 0.3):  # the first to get warm
            timing = take_turns(self, {"product": [multiply]}, seconds, 10)["product"]
        return 2 * size**3 / timing.seconds

    def copy_rate(self) -> float:
        """Bytes a second, read and written, of a copy of 1 GiB: without a graph, whose copies are a third slower."""
        source, target = (torch.empty(2**30, dtype=torch.uint8, device=self.name) for _ in range(2))
        device = CudaDevice("events")
        with device.active():
            timing = take_turns(device, {"copy": [lambda: target.copy_(source)]}, 0.1, 10)["copy"]
        return 2 * source.numel() / timing.seconds


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def take_turns(
    device: CudaDevice, calls: Mapping[str, Calls], seconds: float, least_rounds: int, most_rounds: int = MOST_ROUNDS
) -> dict[str, Timing]:
    """Times the libraries in rounds of short batches, whose order turns; each library's calls are on several inputs."""
    turns = {name: itertools.cycle([device.repeatable(call) for call in some]) for name, some in calls.items()}

    def batches(names: Sequence[str], counts: Mapping[str, int]) -> list[tuple[str, Calls]]:
        return [(name, list(itertools.islice(turns[name], counts[name]))) for name in names]

    names = list(turns)
    once = dict.fromkeys(names, 1)
    device.enqueue(batches(names, once), 0)
    first = device.enqueue(batches(names, once), 1e-3)
    counts = {name: max(1, min(MOST_CALLS, round(BATCH_SECONDS / max(first[name], 1e-9)))) for name in names}
    start = time.perf_counter()
    device.enqueue(batches(names, counts), 0)
    whole = time.perf_counter() - start
    # Enqueueing takes about this long, or less where the device is the slower one of the two.
    ahead = min(whole, 60e-6 * sum(counts.values()) + 100e-6)
    rounds = max(least_rounds, min(most_rounds, int(seconds / (whole + ahead))))
    times: dict[str, list[float]] = {name: [] for name in names}
    for order in itertools.islice(_rotations(names), rounds):
        for name, elapsed in device.enqueue(batches(order, counts), ahead).items():
            times[name].append(elapsed / counts[name])
    return {name: _timing(values) for name, values in times.items()}


def _rotations(names: Sequence[str]) -> Iterator[list[str]]:
    for first in itertools.cycle(range(len(names))):
        yield [*names[first:], *names[:first]]


def _timing(values: Sequence[float]) -> Timing:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Timing(middle, low, high, len(values))
