"""What all tests share."""

from __future__ import annotations

import importlib.util
import os

# Before torch is loaded, as edgekd's command does: several test processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Before anything else imports torchvision: see edgekd/distill/models/vision.py.
if importlib.util.find_spec("torchvision") is not None:
    from edgekd.distill.models.vision import import_torchvision

    import_torchvision()
