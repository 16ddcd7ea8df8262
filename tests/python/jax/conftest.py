"""Without JAX there is nothing to test here: status 77, which ctest counts as skipped."""

from __future__ import annotations

import importlib.util
import os

import pytest


def pytest_configure() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    if importlib.util.find_spec("jax") is None:
        pytest.exit("jax is not installed; scripts/setup.sh test installs it into .venv-torch", returncode=77)
