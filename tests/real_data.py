"""Where tests find real data: only through the variable EDGEKD_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """The folder EDGEKD_DATA/`name`, for example "MNIST". Without it the test is skipped; under CI=true it fails."""
    root = os.environ.get("EDGEKD_DATA")
    folder = Path(root or ".") / name
    if root and folder.is_dir():
        return folder
    reason = (
        f"EDGEKD_DATA={root} has no folder {name}" if root else f"EDGEKD_DATA is not set: no real {name} to test on"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; under CI=true real data must be there")
    pytest.skip(reason)
