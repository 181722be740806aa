"""edgekd: a teacher goes in; a small ONNX student, proven on the target device, comes out.

Importing edgekd imports nothing heavier than numpy; `edgekd.load` needs onnxruntime besides.

    import edgekd

    with edgekd.load("student.edgekd") as predictor:
        print(predictor.predict("photo.jpg", top_k=3).top)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgekd.version import __version__

if TYPE_CHECKING:
    from edgekd.device.bundle import Bundle
    from edgekd.device.predictor import Prediction, Predictor, load
    from edgekd.device.runtimes import open_session

__all__ = ["Bundle", "Prediction", "Predictor", "__version__", "load", "open_session"]

_PLACES = {
    "Bundle": "edgekd.device.bundle",
    "Prediction": "edgekd.device.predictor",
    "Predictor": "edgekd.device.predictor",
    "load": "edgekd.device.predictor",
    "open_session": "edgekd.device.runtimes",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'edgekd' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
