"""What all tests share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# Before anything else imports torchvision: see edgekd/distill/models/vision.py.
if importlib.util.find_spec("torchvision") is not None:
    from edgekd.distill.models.vision import import_torchvision

    import_torchvision()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets. Where EDGEKD_DATA is set, a set that is missing there is a failure."""
    root = os.environ.get("EDGEKD_DATA")
    if not root:
        pytest.skip("EDGEKD_DATA names no folder of real data")
    assert Path(root).is_dir(), f"EDGEKD_DATA names {root}, which is no folder"
    return Path(root)
