"""The training example in small: both attentions start from the same weights and stay together."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "examples" / "gpt"))

import train


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
