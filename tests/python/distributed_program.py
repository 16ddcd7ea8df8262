"""One rank of test_distributed.py that is a process: file PATH RANK SIZE, environment, or mpi."""

from __future__ import annotations

import sys

import numpy as np
import tessera
from tessera import distributed as ring


def communicator() -> ring.Communicator:
    kind, *arguments = sys.argv[1:]
    if kind == "file":
        path, rank, size = arguments
        return ring.Communicator.from_file(path, int(rank), int(size))
    if kind == "environment":
        return ring.Communicator.from_environment()
    from mpi4py import MPI  # noqa: PLC0415

    return ring.Communicator.from_mpi4py(MPI.COMM_WORLD)


def main() -> None:
    random = np.random.default_rng(3)
    q, k, v = (random.standard_normal((1, 61, 2, 16), dtype=np.float32) for _ in range(3))
    right = tessera.attention(q, k, v, causal=True)
    with communicator() as ranks:
        parts = [ring.shard(x, ranks) for x in (q, k, v)]
        out = ring.unshard(ring.attention(*parts, communicator=ranks, causal=True), ranks)
        error = np.linalg.norm(out - right) / np.linalg.norm(right)
        print(f"{ranks.size} ranks, {ranks.transport}: {'equal' if error <= 2e-6 else f'differ by {error}'}")


if __name__ == "__main__":
    main()
