"""Geometric means of ratios by name, over the rows of a table: of each pass, and of each head dim in it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def summarise(rows: Sequence[dict[str, Any]], ratios: str) -> list[dict[str, Any]]:
    """Of row[ratios], a number for each name."""
    groups: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row[ratios].items():
            groups.setdefault((row["pass"], name), []).append((row["dim"], value))
    return [
        {
            "pass": of_pass,
            "name": name,
            "cases": len(group),
            "geometric_mean": geometric_mean([value for _, value in group]),
            "worst": min(value for _, value in group),
            "dims": {
                dim: geometric_mean([value for of_dim, value in group if of_dim == dim])
                for dim in sorted({dim for dim, _ in group})
            },
        }
        for (of_pass, name), group in groups.items()
    ]


def print_summary(summary: Sequence[dict[str, Any]], dims: Sequence[int]) -> None:
    of_dims = "".join(f" {f'd{dim}':>6}" for dim in dims)
    print(f"\n{'pass':8} {'':19} {'cases':>5} {'geometric mean':>14}{of_dims} {'worst':>6}")
    for row in summary:
        of_dims = "".join(f" {row['dims'][dim]:>6.3f}" if dim in row["dims"] else f" {'-':>6}" for dim in dims)
        print(
            f"{row['pass']:8} {row['name']:19} {row['cases']:>5} {row['geometric_mean']:>13.3f}x{of_dims} "
            f"{row['worst']:>6.3f}"
        )
