"""Without JAX there is nothing to test here: status 77, which ctest counts as skipped."""

from __future__ import annotations

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
try:
    import jax  # noqa: F401
except ImportError:
    pytest.exit("jax is not installed; scripts/setup.sh test installs it into .venv-torch", returncode=77)
