"""The measurements behind `python -m tessera bench`."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tessera


@dataclass(frozen=True)
class Problem:
    batch: int
    heads: int
    dim: int
    causal: bool

    def __str__(self) -> str:
        mask = "causal" if self.causal else "dense"
        return f"float32, batch {self.batch}, {self.heads} heads of {self.dim}, {mask}"

    def flops(self, seq: int, backward: bool) -> float:
        pairs = seq * (seq + 1) / 2 if self.causal else seq**2
        return (10 if backward else 4) * self.dim * pairs * self.batch * self.heads


class Row(NamedTuple):
    library: str
    direction: str  # forward or backward
    seq: int
    milliseconds: float
    gflops: float  # a second


HEADER = f"{'':12} {'pass':8} {'tokens':>6} {'ms':>9} {'GFLOP/s':>8}"


def line(row: Row) -> str:
    return f"{row.library:12} {row.direction:8} {row.seq:>6} {row.milliseconds:>9.2f} {row.gflops:>8.1f}"


def measure(problem: Problem, seqs: Sequence[int], threads: int, repeats: int) -> Iterator[Row]:
    """One row for each length, library and pass, as it is measured."""
    for seq in seqs:
        for library, (forward, backward) in _libraries(problem, seq, threads).items():
            for name, call in (("forward", forward), ("backward", backward)):
                seconds = _median(call, repeats)
                gflops = problem.flops(seq, name == "backward") / seconds * 1e-9
                yield Row(library, name, seq, seconds * 1e3, gflops)


def _median(call: Callable[[], Any], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        # Each library has its own pool of threads, whose idle ones spin for some milliseconds: let those go to sleep.
        time.sleep(0.02)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


Calls = tuple[Callable[[], Any], Callable[[], Any]]


def _libraries(problem: Problem, seq: int, threads: int) -> dict[str, Calls]:
    """(forward, backward) of the implementations that are worth timing, and of torch, on the same numbers."""
    import numpy as np  # noqa: PLC0415  the package itself needs no NumPy

    random = np.random.default_rng(seq)
    shape = (problem.batch, seq, problem.heads, problem.dim)
    tensors = [random.standard_normal(shape, dtype=np.float32) for _ in range(4)]
    available = [row["name"] for row in tessera.info()["impls"] if row["available"] and row["name"] != "reference"]
    calls = {}
    for name in available:
        options: tessera.Options = {"causal": problem.causal, "impl": name, "threads": threads}
        with suppress(NotImplementedError):  # those of GPUs
            calls[name] = _tessera_calls(tensors, options)
    if importlib.util.find_spec("torch"):
        calls["torch sdpa"] = _torch_calls(tensors, problem.causal, threads)
    return calls


def _tessera_calls(tensors: list[Any], options: tessera.Options) -> Calls:
    q, k, v, dout = tensors
    out, lse = tessera.forward(q, k, v, **options)
    return lambda: tessera.forward(q, k, v, **options), lambda: tessera.backward(dout, q, k, v, out, lse, **options)


def _torch_calls(tensors: list[Any], causal: bool, threads: int) -> Calls:
    import torch  # noqa: PLC0415  only where it is installed

    torch.set_num_threads(threads or tessera.info()["threads"])
    q, k, v, dout = (torch.from_numpy(x).transpose(1, 2) for x in tensors)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    graph = sdpa(leaves[0], leaves[1], leaves[2], is_causal=causal)

    def forward() -> Any:
        with torch.no_grad():
            return sdpa(q, k, v, is_causal=causal)

    return forward, lambda: torch.autograd.grad(graph, leaves, dout, retain_graph=True)


def plot(problem: Problem, rows: Sequence[Row], path: Path) -> None:
    """Throughput over length, a panel for each pass and a line for each library."""
    import matplotlib.pyplot as plt  # noqa: PLC0415  only plots need it

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, direction in zip(panels, ("forward", "backward"), strict=True):
        for library in dict.fromkeys(row.library for row in rows):
            points = [row for row in rows if (row.library, row.direction) == (library, direction)]
            panel.plot([row.seq for row in points], [row.gflops for row in points], marker="o", label=library)
        panel.set(title=direction, xlabel="tokens", xscale="log")
        panel.set_xticks(list(dict.fromkeys(row.seq for row in rows)))
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("GFLOP/s")
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    figure.suptitle(str(problem))
    figure.savefig(path, dpi=120)
