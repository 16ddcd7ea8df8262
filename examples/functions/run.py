"""Score and mask functions from Python: the five files beside this one, each against the same in NumPy.

    python run.py

The files are compiled when they are first used: on the CPU by the C++ compiler of the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tessera

HERE = Path(__file__).resolve().parent
TOKENS, HEADS, DIM = 300, 2, 32
FARTHEST = 128  # of relative_bias.h


def source(name: str) -> str:
    return (HERE / name).read_text()


def softmax_attention(q: Any, k: Any, v: Any, change: Any, attends: Any) -> Any:
    """softmax(change(scale Q K^T)) V, with -inf where a pair does not attend."""
    scores = change(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(DIM))
    scores = np.where(attends, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


def cases() -> dict[str, tuple[dict[str, Any], Any, Any]]:
    """For each example the options of tessera.attention, the change of the scores, and which pairs attend."""
    query, key = np.arange(TOKENS)[:, None], np.arange(TOKENS)[None, :]
    everything = np.ones((TOKENS, TOKENS), bool)

    table = np.random.default_rng(3).standard_normal((HEADS, 2 * FARTHEST + 1)).astype(np.float32)
    bias = table[:, np.clip(key - query, -FARTHEST, FARTHEST) + FARTHEST]
    document = np.array([np.arange(TOKENS) // 70, np.arange(TOKENS) // 110])
    packed = (document[:, None, :, None] == document[:, None, None, :]) & (key <= query)
    apart = query - key

    def score(name: str, params: Any) -> dict[str, Any]:
        return {"score_function": tessera.ScoreFunction(source(name), params, name=name)}

    def mask(name: str, params: Any) -> dict[str, Any]:
        return {"mask_function": tessera.MaskFunction(source(name), params, name=name)}

    def gated(s: Any) -> Any:
        return s - 0.5 * (1 + np.tanh(s)) / 2 * np.log1p(abs(apart))

    return {
        "soft cap by hand": (score("soft_cap.h", [2.0]), lambda s: 2 * np.tanh(s / 2), everything),
        "T5 relative bias": (score("relative_bias.h", table), lambda s: s + bias, everything),
        "tanh-gated distance": (score("gated_distance.h", [0.5]), gated, everything),
        "dilated window": (mask("dilated.h", [4, 128]), lambda s: s, (apart >= 0) & (apart < 128) & (apart % 4 == 0)),
        "causal documents": (mask("documents.h", [TOKENS, *document.ravel()]), lambda s: s, packed),
    }


def main() -> int:
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((2, TOKENS, HEADS, DIM), dtype=np.float32) for _ in range(3))
    worst = 0.0
    for name, (options, change, attends) in cases().items():
        ours = tessera.attention(q, k, v, **options)
        difference = float(abs(ours - softmax_attention(q, k, v, change, attends)).max())
        print(f"{name:20} largest difference to NumPy {difference:.1e}")
        worst = max(worst, difference)
    return 0 if worst < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
