"""Without torch there is nothing to test here: status 77, which ctest counts as skipped."""

from __future__ import annotations

import pytest

try:
    import torch
except ImportError:
    pytest.exit("torch is not installed; scripts/setup.sh test installs it into .venv-torch", returncode=77)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(7)
