"""python -m tessera: the table, the figures and the plot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tessera


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "tessera", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_info() -> None:
    text = run("info")
    assert text.startswith(f"tessera {tessera.__version__}, ")
    assert all(row["name"] in text for row in tessera.info()["impls"])


def test_bench(tmp_path: Path) -> None:
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    text = run(
        *("bench", "--seqs", "16,32", "--heads", "2", "--repeats", "1", "--causal"),
        *("--json", str(figures), "--plot", str(picture)),
    )
    rows = json.loads(figures.read_text())
    libraries = {row["library"] for row in rows}
    assert {"flash", "torch sdpa"} <= libraries
    assert "reference" not in libraries
    assert len(rows) == len(libraries) * 4
    for row in rows:
        flops = (10 if row["direction"] == "backward" else 4) * 64 * 2 * row["seq"] * (row["seq"] + 1) / 2
        assert abs(row["gflops"] * row["milliseconds"] * 1e6 / flops - 1) < 1e-6
    assert text.splitlines()[0] == "float32, batch 1, 2 heads of 64, causal"
    assert picture.read_bytes().startswith(b"\x89PNG")
