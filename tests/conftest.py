"""What all tests share."""

from __future__ import annotations

import importlib.util

# Before anything else imports torchvision: see edgekd/distill/models/vision.py.
if importlib.util.find_spec("torchvision") is not None:
    from edgekd.distill.models.vision import import_torchvision

    import_torchvision()
