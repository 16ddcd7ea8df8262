"""The training examples in small: what is compared starts from the same weights and stays together."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import ranks

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / name / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


train = example("gpt")


def ring_losses(distributed: bool, layout: str = "zigzag") -> list[float]:
    import torch  # noqa: PLC0415  after the check for it in conftest.py

    options = argparse.Namespace(steps=12, batch=4, seq=31, rate=3e-3, seed=1, layout=layout)
    return example("ring_torch").train(options, torch.device("cpu"), distributed)


def test_training_around_a_ring() -> None:
    alone = ring_losses(False)
    for layout in ("zigzag", "striped"):
        for losses in ranks.values(ranks.run(2, ring_losses, True, layout)):
            assert losses == pytest.approx(alone, abs=1e-4)


def test_training_with_tessera_and_with_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(steps=30, batch=4, context=32, width=32, layers=2, heads=2, rate=1e-2, seed=1)
    text, symbols = train.load_text()
    curves = {
        name: train.train(name, attend, text, symbols, options)
        for name, attend in (("Tessera", train.with_tessera), ("torch", train.with_torch))
    }
    train.plot(curves, tmp_path / "loss.png")
    ours, theirs = curves.values()
    assert ours[-1] < ours[0] - 0.5
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-3
    assert (tmp_path / "loss.png").stat().st_size > 0
    assert "step   29" in capsys.readouterr().out


def test_the_entropy_of_a_character_given_the_one_before() -> None:
    torch = pytest.importorskip("torch")
    assert train.pair_entropy(torch.tensor([0, 1] * 50), 2) == pytest.approx(0.0)
    random = torch.randint(4, (200_000,), generator=torch.Generator().manual_seed(1))
    assert train.pair_entropy(random, 4) == pytest.approx(1.386, abs=1e-3)
