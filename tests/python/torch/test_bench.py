"""python -m tessera: the table, the figures and the plot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seqs", "64,-5"], "--seqs: '-5'; accepted: an integer, 1 or more"),
        (["--heads", "two"], "--heads: 'two'; accepted: an integer, 1 or more"),
        (["--seqs", "16", "--dim", "600"], "dim_qk: 600; accepted: 1 to 512"),
        (["--json", "/absent/bench.json"], "--json: '/absent/bench.json'; accepted: a file in a folder that exists"),
    ],
)
def test_bad_arguments(arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tessera", "bench", *arguments], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
