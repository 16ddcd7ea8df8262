"""Workspaces are kept from call to call, and threads do not share them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tessera

RNG = np.random.default_rng(9)


def idle_bytes() -> int:
    return tessera.info()["idle_workspace_bytes"]


def tensors(seq: int) -> list[np.ndarray]:
    return [RNG.standard_normal((1, seq, 2, 64), dtype=np.float32) for _ in range(3)]


def test_workspaces_are_kept_and_freed() -> None:
    tessera.free_workspaces()
    assert idle_bytes() == 0
    q, k, v = tensors(300)
    tessera.forward(q, k, v)
    kept = idle_bytes()
    assert kept > 0
    tessera.forward(q, k, v, causal=True)
    tessera.forward(*tensors(100))
    assert idle_bytes() == kept
    tessera.forward(*tensors(3000))
    assert idle_bytes() > kept
    tessera.free_workspaces()
    assert idle_bytes() == 0


def test_calls_from_many_threads() -> None:
    """Different problems at one time: each result is that of the call alone."""
    problems = [tensors(seq) for seq in (40, 150, 300, 77) * 8]
    expected = [tessera.attention(*problem, causal=True) for problem in problems]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda problem: tessera.attention(*problem, causal=True, threads=1), problems))
    for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_exception_gives_the_workspace_back() -> None:
    tessera.free_workspaces()
    q, k, v = tensors(300)
    tessera.forward(q, k, v)
    kept = idle_bytes()
    with pytest.raises(ValueError, match="out"):
        tessera.forward(q, k, v, out=np.empty((1, 300, 2, 63), np.float32))
    tessera.forward(q, k, v)
    assert idle_bytes() == kept
