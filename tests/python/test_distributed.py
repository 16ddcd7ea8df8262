"""tessera.distributed on NumPy arrays: ranks that are threads, or processes that meet by file, environment or MPI."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tessera
from tessera import distributed as ring

PROGRAM = Path(__file__).with_name("distributed_program.py")


def make(seq: int = 75) -> list[np.ndarray]:
    """q, k, v, dout."""
    random = np.random.default_rng(3)
    return [random.standard_normal((2, seq, heads, 16), dtype=np.float32) for heads in (4, 2, 2, 4)]


def over_threads(size: int, body: Callable[[ring.Communicator], Any], timeout: float = 20.0) -> list[Any]:
    """What body returned on each rank, or the exception that it raised."""
    found: list[Any] = [None] * size

    def one(communicator: ring.Communicator) -> None:
        try:
            with communicator:
                found[communicator.rank] = body(communicator)
        except Exception as error:
            found[communicator.rank] = error

    threads = [threading.Thread(target=one, args=(end,)) for end in ring.Communicator.local(size, timeout=timeout)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def both_passes(communicator: ring.Communicator, layout: Any, schedule: Any, **options: Any) -> list[np.ndarray]:
    """out, lse, dq, dk and dv of the whole."""
    where: dict[str, Any] = {"communicator": communicator, "layout": layout}
    q, k, v, dout = (ring.shard(x, **where) for x in make())
    out, lse = ring.forward(q, k, v, schedule=schedule, **where, **options)
    assert np.array_equal(ring.attention(q, k, v, schedule=schedule, **where, **options), out)
    grads = ring.backward(dout, q, k, v, out, lse, schedule=schedule, **where, **options)
    whole = [ring.unshard(x, **where) for x in (out, *grads[:3])]
    return [whole[0], ring.unshard(lse, axis=2, **where), *whole[1:]]


def on_one_device(**options: Any) -> list[np.ndarray]:
    q, k, v, dout = make()
    out, lse = tessera.forward(q, k, v, **options)
    return [out, lse, *tessera.backward(dout, q, k, v, out, lse, **options)[:3]]


def relative_error(x: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(x.astype(np.float64) - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["automatic", "ring", "burst", "double_ring"])
@pytest.mark.parametrize("layout", ["zigzag", "striped", "contiguous"])
def test_threads_compute_what_one_device_does(size: int, schedule: str, layout: str) -> None:
    options: dict[str, Any] = {"causal": True, "dropout_p": 0.2, "dropout_seed": 4}
    right = on_one_device(**options)
    for found in over_threads(size, lambda end: both_passes(end, layout, schedule, **options)):
        if isinstance(found, Exception):
            raise found
        for x, y in zip(found, right, strict=True):
            assert relative_error(x, y) <= 2e-6


@pytest.mark.parametrize("layout", ["zigzag", "striped", "contiguous"])
def test_block_masks_and_functions_over_threads(layout: str) -> None:
    kept = np.random.default_rng(5).random((1, 1, 75, 75)) < 0.4
    function = (
        "template <class T> T score(T s, tessera::Index i, const float* p) { return s - p[0] * abs(i.distance()); }"
    )
    options: dict[str, Any] = {
        "mask": tessera.Mask(causal=True, blocks=tessera.BlockMask.from_boolean(kept, block_q=16, block_k=32)),
        "score_function": tessera.ScoreFunction(function, [0.01]),
    }
    right = on_one_device(**options)
    for found in over_threads(3, lambda end: both_passes(end, layout, "automatic", **options)):
        if isinstance(found, Exception):
            raise found
        for x, y in zip(found, right, strict=True):
            finite = np.isfinite(y)
            assert np.array_equal(np.isfinite(x), finite)
            assert relative_error(x[finite], y[finite]) <= 2e-6


def test_outputs_are_written_where_told() -> None:
    def body(communicator: ring.Communicator) -> bool:
        q, k, v, dout = (ring.shard(x, communicator) for x in make())
        out, lse, dk = np.full_like(q, 7), np.empty((2, 4, q.shape[1]), np.float32), np.full_like(k, 7)
        returned = ring.forward(q, k, v, communicator=communicator, out=out, lse=lse)
        grads = ring.backward(dout, q, k, v, out, lse, communicator=communicator, dk=dk)
        right = ring.forward(q, k, v, communicator=communicator)
        return returned[0] is out and grads.dk is dk and np.array_equal(out, right[0])

    assert over_threads(2, body) == [True, True]


def test_plans_share_their_memory() -> None:
    def body(communicator: ring.Communicator) -> list[int]:
        q, k, v, _ = (ring.shard(x, communicator) for x in make())
        held = []
        for seed in range(12):
            ring.attention(q, k, v, communicator=communicator, dropout_p=0.5, dropout_seed=seed)
            held.append(communicator.memory_bytes)
        communicator.free_plans()
        return [*held, communicator.memory_bytes]

    for held in over_threads(2, body):
        assert held[0] > 0
        assert held == [held[0]] * 12 + [0]


def test_bytes_are_those_that_explain_states() -> None:
    def body(communicator: ring.Communicator) -> tuple[str, int]:
        q, k, v, _ = (ring.shard(x, communicator) for x in make())
        ring.attention(q, k, v, communicator=communicator)
        text = ring.explain(q, k, v, communicator=communicator)
        before = communicator.bytes_sent
        ring.attention(q, k, v, communicator=communicator)
        return text, communicator.bytes_sent - before

    (text, sent), _ = over_threads(2, body)
    assert text.startswith("forward pass over 2 ranks (local), zigzag, ring: K and V travel")
    # Keys and values, float32 [2, 37, 2, 16] each, and 512 bytes of agreement.
    assert sent == 2 * (2 * 37 * 2 * 16) * 4 + 512
    assert text.splitlines()[2].split()[:3] == ["0", "37", "37"]


def test_positions() -> None:
    def body(communicator: ring.Communicator) -> tuple[list[int], list[int]]:
        return ring.positions(10, communicator), ring.positions(10, communicator, layout="striped")

    zigzag, striped = zip(*over_threads(2, body), strict=True)
    assert zigzag == ([0, 1, 7, 8, 9], [2, 3, 4, 5, 6])
    assert striped == ([0, 2, 4, 6, 8], [1, 3, 5, 7, 9])


def test_a_wrong_argument_of_one_rank_is_an_exception_on_all() -> None:
    def body(communicator: ring.Communicator) -> list[str]:
        q, k, v, _ = (ring.shard(x, communicator) for x in make())
        heard = []
        for options in ({"softcap": "tall"}, {"ranks_per_node": "two"}, {"mask": np.ones((1, 1, 75, 75), bool)}, {}):
            mine: Any = options if communicator.rank == 1 else {}
            try:
                ring.attention(q, k, v, communicator=communicator, **mine)
                heard.append("")
            except Exception as error:
                heard.append(f"{type(error).__name__}: {error}")
        return heard

    zero, one = over_threads(2, body)
    kinds = ("ValueError", "ValueError", "NotImplementedError")
    for theirs, own, kind in zip(zero[:3], one[:3], kinds, strict=True):
        assert own.startswith(f"{kind}: ")
        assert theirs == f"ConnectionError: rank 1 failed: {own.removeprefix(f'{kind}: ')}"
    assert zero[3] == one[3] == ""


def test_a_rank_that_raises_is_named() -> None:
    def body(communicator: ring.Communicator) -> None:
        if communicator.rank == 1:
            raise KeyError("enough")
        q, k, v, _ = (ring.shard(x, communicator) for x in make())
        ring.attention(q, k, v, communicator=communicator)

    found = over_threads(3, body)
    assert isinstance(found[1], KeyError)
    for error in (found[0], found[2]):
        assert isinstance(error, ConnectionError)
        assert str(error) == "rank 1 failed: KeyError: 'enough'"


def test_what_is_no_group() -> None:
    with pytest.raises(ValueError, match="ranks: 0"):
        ring.Communicator.local(0)
    with pytest.raises(ValueError, match="timeout: 0"):
        ring.Communicator.local(1, timeout=0)
    with pytest.raises(ValueError, match='device: tpu; accepted: "cpu"'):
        ring.Communicator.local(["tpu"])
    with pytest.raises(ValueError, match="transport: 'nccl' on the CPU"):
        ring.Communicator.from_file("nowhere", 0, 1, transport="nccl")
    with pytest.raises(ValueError, match="rank: 2; accepted: 0 to 1"):
        ring.Communicator.from_file("nowhere", 2, 2)
    (alone,) = ring.Communicator.local(1)
    alone.close()
    assert alone.failure == "it was closed"
    q, k, v, _ = make()
    with pytest.raises(ValueError, match="communicator: closed"):
        ring.attention(q, k, v, communicator=alone)


def start(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outputs(processes: list[subprocess.Popen[str]]) -> list[str]:
    texts = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), texts
    return texts


def test_processes_that_meet_by_a_file(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    for text in outputs([start(["file", str(meeting), str(rank), "3"]) for rank in range(3)]):
        assert "3 ranks, tcp: equal" in text
    assert not meeting.exists()


def test_processes_that_meet_by_the_environment() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1] - 1)  # ranks meet at the port after MASTER_PORT
    places = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for text in outputs([start(["environment"], RANK=str(rank), **places) for rank in range(2)]):
        assert "2 ranks, tcp: equal" in text


def test_processes_of_mpi() -> None:
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("there is no mpirun")
    command = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, str(PROGRAM), "mpi"]
    text = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert text.count("2 ranks, tcp: equal") == 2
