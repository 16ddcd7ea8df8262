"""bench/compare_torch.py: what it prints, writes and returns, without a GPU also for the part that needs one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tessera
import torch
from torch.nn.attention import SDPBackend

BENCH = Path(__file__).resolve().parents[3] / "bench"
sys.path.insert(0, str(BENCH))

import compare_torch  # noqa: E402
from compare import cases, cuda, gpu, libraries, long_sequence, programs, ratios, sm80  # noqa: E402


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


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What the program says when it refuses these arguments: in this process, which has torch already."""

    def refused(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["compare_torch.py", *arguments])
        assert compare_torch.main() == 2
        return capsys.readouterr().err

    return refused


def test_names_that_no_case_has(refusal: Callable[..., str]) -> None:
    assert "no case has a name like int4-*" in refusal("--cases", "int4-*")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("options", [[], ["--block-sparse"], ["--long"], ["--programs"], ["--sm80"]])
def test_cuda_without_a_device(options: list[str], refusal: Callable[..., str]) -> None:
    assert "no CUDA device" in refusal("--device", "cuda", *options)


@pytest.mark.parametrize("option", ["--block-sparse", "--functions", "--long", "--programs", "--sm80"])
def test_what_needs_a_gpu(option: str, refusal: Callable[..., str]) -> None:
    assert f"{option} needs --device cuda" in refusal(option)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sm80", "--decode"), "--sm80, --decode; accepted: one of them"),
        (("--groups", "0"), "--groups: '0'; accepted: integers of 1 or more"),
        (("--lengths", "4K"), "--lengths: '4K'; accepted: integers of 1 or more"),
        (("--json", "/absent/x.json"), "--json: /absent/x.json; accepted: a file in a folder that exists"),
    ],
)
def test_bad_flags(
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_torch.py", *arguments])
    with pytest.raises(SystemExit) as left:
        compare_torch.main()
    assert left.value.code == 2
    assert words in capsys.readouterr().err


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
    cases=["*-d64-n64-causal*", "*-d64-n96-dense"],
    tokens=192,
    heads=2,
    groups=[1, 2],
    lengths=None,
    passes=["forward", "backward"],
    deterministic="both",
    seconds=0.0,
    rounds=3,
    quick=False,
)


def test_the_comparison_of_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cuda, "LENGTHS", (64, 96))
    found = cuda.make_cases(OPTIONS)
    names = ["bfloat16-d64-n96-dense", "bfloat16-d64-n64-causal", "bfloat16-d64-n64-causal-g2"]
    assert [case.name for case in found] == names
    assert [case.shape for case in found] == [(2, 96, 2, 64), (3, 64, 2, 64), (3, 64, 2, 64)]
    assert [case.shape_kv for case in found] == [(2, 96, 2, 64), (3, 64, 2, 64), (3, 64, 1, 64)]
    device = HostAsDevice()
    record = cuda.compare(device, found, OPTIONS)
    json.dumps(record)
    assert len(record["rows"]) == 6
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
    for ungrouped, grouped in zip(record["rows"][2:4], record["rows"][4:], strict=True):
        assert ungrouped["over_ungrouped"] is None
        assert grouped["over_ungrouped"] == grouped["tflops"]["Tessera"] / ungrouped["tflops"]["Tessera"]
    ratios = {(row["pass"], row["ratio"]) for row in record["summary"]}
    assert ratios == {
        ("forward", "over_best"),
        ("backward", "over_best"),
        ("backward", "deterministic_over_any_order"),
        ("forward", "over_ungrouped"),
        ("backward", "over_ungrouped"),
    }
    assert "any order" in capsys.readouterr().out


def test_groups_divide_the_heads() -> None:
    options = argparse.Namespace(**{**vars(OPTIONS), "groups": [1, 4]})
    with pytest.raises(ValueError, match="--groups: 4; accepted: divisors of 2, the heads of d64"):
        cuda.make_cases(options)


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


HOST_FAMILY = (
    sm80.Inputs("bfloat16", (64,), 1.0, ("FlashAttention-2", SDPBackend.FLASH_ATTENTION), {"bfloat16": {}}),
    sm80.Inputs(
        "float32",
        (96,),
        0.5,
        ("math", SDPBackend.MATH),
        {"float32": {}, "TF32": {"float32_products": "tf32"}},
    ),
)


def test_the_family_of_ampere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sm80, "IMPL", "flash")
    monkeypatch.setattr(sm80, "INPUTS", HOST_FAMILY)
    options = argparse.Namespace(**{**vars(OPTIONS), "cases": ["*-d64-*"]})
    rows = sm80.compare(HostAsDevice(), options)
    assert [(row["dtype"], row["seq"], row["batch"], row["causal"], row["pass"]) for row in rows] == [
        (dtype, seq, batch, causal, name)
        for dtype, seq, batch in (("bfloat16", 64, 3), ("float32", 96, 1))
        for causal in (False, True)
        for name in ("forward", "backward")
    ]
    for row in rows:
        assert row["agree"], row
        names = ["float32", "TF32"] if row["dtype"] == "float32" else ["bfloat16"]
        if row["pass"] == "backward":
            names = [x for name in names for x in (name, f"{name}, any order")]
        assert list(row["over_peer"]) == list(row["kernels"]) == names
        for name in names:
            ratio = row["timing"][row["peer"]]["seconds"] / row["timing"][name]["seconds"]
            assert row["over_peer"][name] == pytest.approx(ratio)
    summary = ratios.summarise(rows, "over_peer")
    forward = next(row for row in summary if (row["pass"], row["name"]) == ("forward", "TF32"))
    values = [row["over_peer"]["TF32"] for row in rows if row["dtype"] == "float32" and row["pass"] == "forward"]
    assert forward["geometric_mean"] == pytest.approx((values[0] * values[1]) ** 0.5)
    assert forward["worst"] == min(values)
    assert forward["dims"] == {64: forward["geometric_mean"]}
    ratios.print_summary(summary, sm80.DIMS)
    assert "TF32, any order" in capsys.readouterr().out


def test_an_impl_that_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm80, "IMPL", "flash")
    monkeypatch.setattr(tessera, "explain", lambda *arguments, **options: "impl       reference (1 thread)\n")
    case = cases.Case("bfloat16", 64, 32, True, 1, 2)
    row = sm80.run_pass(HostAsDevice(), HOST_FAMILY[0], case, False, OPTIONS)
    assert not row["agree"]
    assert row["refused"] == {"bfloat16": "reference computed what flash was asked for"}
    assert "DISAGREES" in sm80.line(row)


def test_programs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(programs, "IMPL", "flash")
    monkeypatch.setattr(programs, "LENGTHS", (80,))
    monkeypatch.setattr(programs, "CHECKED_QUERIES", 48)
    options = argparse.Namespace(**{**vars(OPTIONS), "cases": ["*-d128-*"], "tokens": 160})
    found = programs.all_cases(options)
    assert list(found) == [programs.Case(128, 80, False), programs.Case(128, 80, True)]
    record = programs.compare(HostAsDevice(), found, options)
    json.dumps(record)
    assert len(record["compiled"]) == 4 * len(programs.PROGRAMS)
    assert all(row["seconds"] > 0 for row in record["compiled"])
    assert len(record["rows"]) == 4
    for row in record["rows"]:
        assert row["agree"], row
        assert list(row["of_plain"]) == list(programs.PROGRAMS)
        ratio = row["milliseconds"]["plain"] / row["milliseconds"]["dropout"]
        assert row["of_plain"]["dropout"] == pytest.approx(ratio)
    assert "tanh" in capsys.readouterr().out


@pytest.mark.parametrize("program", list(programs.PROGRAMS))
def test_a_program_that_is_left_out_disagrees(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "IMPL", "flash")
    monkeypatch.setattr(programs, "CHECKED_QUERIES", 48)
    case = programs.Case(128, 80, True)
    torch.manual_seed(1)
    tensors = tuple(torch.randn(1, 80, 16, 128, dtype=torch.bfloat16) for _ in range(4))
    for backward in (False, True):
        right = programs.make_call(case, program, tensors, backward)()
        plain = programs.make_call(case, programs.PLAIN, tensors, backward)()
        assert programs.error(case, program, tensors, right, backward) < 2 * cases.ROUNDING["bfloat16"]
        assert programs.error(case, program, tensors, plain, backward) > 2 * cases.ROUNDING["bfloat16"]


def test_the_cache_is_empty_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE_DIR", "before")
    with programs.empty_cache():
        assert list(Path(os.environ["TESSERA_CACHE_DIR"]).iterdir()) == []
    assert os.environ["TESSERA_CACHE_DIR"] == "before"
