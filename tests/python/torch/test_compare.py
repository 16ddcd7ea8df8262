"""bench/compare_torch.py: what it prints, writes and returns, without a GPU also for the part that needs one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parents[3] / "bench"
sys.path.insert(0, str(BENCH))

from compare import cases, cuda, gpu, libraries, long_sequence  # noqa: E402


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "compare_torch.py"), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ})


def test_cpu(tmp_path: Path) -> None:
    figures = tmp_path / "compare.json"
    result = run(
        *("--cases", "float32-d64-n512-*", "--tokens", "512", "--heads", "1", "--seconds", "0.01", "--rounds", "1"),
        *("--json", str(figures)),
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(figures.read_text())["rows"]
    assert [(row["causal"], row["pass"]) for row in rows] == [
        (causal, name) for causal in (False, True) for name in ("forward", "backward")
    ]
    assert all(row["agree"] for row in rows)
    assert "geometric mean" in result.stdout


def test_names_that_no_case_has() -> None:
    result = run("--cases", "int4-*")
    assert result.returncode == 2
    assert "no case has a name like int4-*" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("options", [[], ["--block-sparse"], ["--long"]])
def test_cuda_without_a_device(options: list[str]) -> None:
    result = run("--device", "cuda", *options)
    assert result.returncode == 2
    assert "no CUDA device" in result.stderr


@pytest.mark.parametrize("option", ["--block-sparse", "--functions", "--long"])
def test_what_needs_a_gpu(option: str) -> None:
    result = run(option)
    assert result.returncode == 2
    assert f"{option} needs --device cuda" in result.stderr


class HostAsDevice(gpu.CudaDevice):
    """The clock of the host, to run what compares libraries on a GPU without one."""

    name = "cpu"
    l2_bytes = 0

    def __init__(self) -> None:
        self.enqueued: list[str] = []

    def describe(self) -> dict[str, Any]:
        return {"device": "host"}

    def bytes_in_use(self, release: bool = False) -> int:
        return 0

    def active(self) -> Any:
        return nullcontext()

    def repeatable(self, call: Any) -> Any:
        return call

    def matrix_rate(self) -> float:
        return 1e12

    copy_rate = matrix_rate

    def enqueue(self, calls: Any, ahead_seconds: float) -> dict[str, float]:
        seconds = {}
        for name, batch in calls:
            start = time.perf_counter()
            for call in batch:
                call()
            seconds[name] = time.perf_counter() - start
            self.enqueued.append(name)
        return seconds


OPTIONS = argparse.Namespace(
    dtypes=["bfloat16"],
    cases=["*-d64-n64-causal", "*-d64-n96-dense"],
    tokens=192,
    heads=2,
    passes=["forward", "backward"],
    deterministic="both",
    seconds=0.0,
    rounds=3,
    quick=False,
)


def test_the_comparison_of_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cuda, "LENGTHS", (64, 96))
    found = cuda.make_cases(OPTIONS)
    assert [case.name for case in found] == ["bfloat16-d64-n96-dense", "bfloat16-d64-n64-causal"]
    assert [case.shape for case in found] == [(2, 96, 2, 64), (3, 64, 2, 64)]
    device = HostAsDevice()
    record = cuda.compare(device, found, OPTIONS)
    json.dumps(record)
    assert len(record["rows"]) == 4
    for row in record["rows"]:
        assert row["agree"]
        assert row["refused"].keys() == {"cuDNN"}  # which has nothing for the CPU
        assert {"Tessera", "FlashAttention-2", "math"} <= row["tflops"].keys()
        assert row["over_cudnn"] is None
        assert row["over_best"] > 0
        assert (row["deterministic_over_any_order"] is None) == (row["pass"] == "forward")
        assert all(timing["rounds"] >= 3 for timing in row["timing"].values())
        flops = 4 * 2 * row["batch"] * row["seq"] ** 2 * 64 / (2 if row["causal"] else 1)
        flops *= 2.5 if row["pass"] == "backward" else 1
        rate = flops / row["timing"]["math"]["seconds"] / 1e12
        assert row["tflops"]["math"] == pytest.approx(rate)
        assert row["share_of_matrix_rate"] == pytest.approx(row["tflops"]["Tessera"])
    ratios = {(row["pass"], row["ratio"]) for row in record["summary"]}
    assert ratios == {
        ("forward", "over_best"),
        ("backward", "over_best"),
        ("backward", "deterministic_over_any_order"),
    }
    assert "any order" in capsys.readouterr().out


def test_a_wrong_result_and_a_missing_one_disagree() -> None:
    case = cases.Case("bfloat16", 16, 32, True, 1, 2)
    inputs = cuda.make_inputs(case, 0, "cpu")

    class Wrong(libraries.Tessera):
        def call(self, *arguments: Any) -> Any:
            right = super().call(*arguments)
            return lambda: tuple(x * float("nan") for x in right())

    class Missing(libraries.Tessera):
        def call(self, *arguments: Any) -> Any:
            raise NotImplementedError("nothing here")

    for kind, agrees in ((libraries.Tessera, True), (Wrong, False), (Missing, False)):
        one = cuda.Pass(case, inputs, False)
        one.measure(HostAsDevice(), [kind()], libraries.peers(), OPTIONS)
        row = one.row(["Tessera"], 1e12)
        assert row["agree"] is agrees
        text = cuda.line(row, ["Tessera", "math"])
        assert ("DISAGREES" in text) is not agrees
        assert ("nothing here" in text) is (kind is Missing)


def test_inputs_that_fit_into_the_cache_are_several() -> None:
    case = cases.Case("bfloat16", 16, 32, True, 1, 2)  # 6 KiB of q, k and v
    assert len(cuda.make_inputs(case, 6143, "cpu")) == 1
    assert len(cuda.make_inputs(case, 6144, "cpu")) == 3
    assert len(cuda.make_inputs(case, 2**30, "cpu")) == cuda.MOST_INPUTS


def test_turns() -> None:
    device = HostAsDevice()
    called: list[int] = []
    times = gpu.take_turns(device, {"a": [lambda: called.append(0), lambda: called.append(1)], "b": [int]}, 0, 4)
    assert {timing.rounds for timing in times.values()} == {4}
    rounds = device.enqueued[-8:]
    assert rounds == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert called[:4] == [0, 1, 0, 1]


def test_a_long_sequence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(long_sequence, "DIMS", (64,))
    rows = long_sequence.compare(HostAsDevice(), OPTIONS, seq=512)
    assert [row["attention"] for row in rows] == ["butterfly", "dense", "standard"]
    assert rows[0]["density"] == 0.75
    assert all(row[name] > 0 for row in rows[:2] for name in ("forward", "backward"))
    assert rows[2]["bytes"] == 2 * 16 * 512**2 * 2
    assert rows[2]["error"] == ""
    printed = capsys.readouterr().out
    assert "butterfly    75.00%" in printed
    assert "standard" in printed
