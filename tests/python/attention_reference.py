"""Attention and its gradients in plain NumPy float64, from the definitions; the judge of the Python tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Scores:
    """What happens to the scores of one problem in the batch layout, as full arrays."""

    visible: np.ndarray  # bool [batch, heads_q, seq_q, seq_k]
    scale: float
    softcap: float = 0.0
    bias: np.ndarray | None = None
    slopes: np.ndarray | None = None  # [heads_q] or [batch, heads_q]
    diagonal: int = 0
    sinks: np.ndarray | None = None
    kept: np.ndarray | float = 1.0  # factor of each weight after the softmax: 0 or 1 / (1 - p)


@dataclass
class Result:
    out: np.ndarray
    lse: np.ndarray
    dq: np.ndarray | None = None
    dk: np.ndarray | None = None
    dv: np.ndarray | None = None
    dbias: np.ndarray | None = None
    dsinks: np.ndarray | None = None


def band(queries: int, keys: int, left: float, right: float, diagonal: int) -> np.ndarray:
    """bool [queries, keys]: keys from `left` before the position i + diagonal of query i to `right` after it."""
    offset = np.arange(keys)[None, :] - (np.arange(queries)[:, None] + diagonal)
    return (offset >= -left) & (offset <= right)


def attention(q: Any, k: Any, v: Any, scores: Scores, dout: Any = None, dlse: Any = None) -> Result:
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    keys, values = (np.repeat(x, group, axis=2) for x in (k, v))
    raw = scores.scale * np.einsum("bihd,bjhd->bhij", q, keys)
    capped = scores.softcap * np.tanh(raw / scores.softcap) if scores.softcap else raw
    s = capped.copy()
    if scores.bias is not None:
        s += scores.bias.astype(np.float64)
    if scores.slopes is not None:
        slopes = np.broadcast_to(scores.slopes.astype(np.float64), s.shape[:2])
        distance = np.abs(np.arange(s.shape[2])[:, None] + scores.diagonal - np.arange(s.shape[3])[None, :])
        s -= slopes[:, :, None, None] * distance
    s = np.where(scores.visible, s, -np.inf)

    sinks = np.full(s.shape[1], -np.inf) if scores.sinks is None else scores.sinks.astype(np.float64)
    with_sink = np.concatenate([s, np.broadcast_to(sinks[None, :, None, None], (*s.shape[:3], 1))], axis=-1)
    lse = np.logaddexp.reduce(with_sink, axis=-1)
    seen = np.where(np.isneginf(lse), 0.0, lse)[..., None]
    probabilities = np.exp(s - seen)
    weights = probabilities * scores.kept
    result = Result(np.einsum("bhij,bjhd->bihd", weights, values), lse)
    if dout is None:
        return result

    dout = np.asarray(dout, dtype=np.float64)
    dp = np.einsum("bihd,bjhd->bhij", dout, values) * scores.kept
    delta = (dp * probabilities).sum(axis=-1)
    centre = -delta if dlse is None else np.asarray(dlse, dtype=np.float64) - delta
    ds = probabilities * (dp + centre[..., None])
    result.dbias = ds
    result.dsinks = (np.exp(sinks[None, :, None] - seen[..., 0]) * centre).sum(axis=(0, 2))
    if scores.softcap:
        ds = ds * (1.0 - (capped / scores.softcap) ** 2)
    result.dq = scores.scale * np.einsum("bhij,bjhd->bihd", ds, keys)
    result.dk = _sum_groups(scores.scale * np.einsum("bhij,bihd->bjhd", ds, q), group)
    result.dv = _sum_groups(np.einsum("bhij,bihd->bjhd", weights, dout), group)
    return result


def _sum_groups(x: np.ndarray, group: int) -> np.ndarray:
    batch, seq, heads, dim = x.shape
    return x.reshape(batch, seq, heads // group, group, dim).sum(axis=3)


def relative_error(x: Any, reference: np.ndarray) -> float:
    """||x - ref|| / ||ref||, where both are finite; infinities must be in the same places."""
    x = np.asarray(x, dtype=np.float64)
    assert x.shape == reference.shape
    assert not np.isnan(x).any()
    np.testing.assert_array_equal(np.isneginf(x), np.isneginf(reference))
    finite = np.isfinite(reference)
    norm = np.linalg.norm(reference[finite])
    difference = np.linalg.norm(x[finite] - reference[finite])
    return float(difference / norm) if norm > 0 else float(difference)
