"""Without torch there is nothing to test here: status 77, which ctest counts as skipped."""

from __future__ import annotations

import importlib.util

import pytest


def pytest_configure() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.exit("torch is not installed; scripts/setup.sh test installs it into .venv-torch", returncode=77)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    import torch  # noqa: PLC0415  after pytest_configure

    torch.manual_seed(7)
