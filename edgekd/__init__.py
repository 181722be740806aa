"""edgekd: a teacher goes in; a small ONNX student, proven on the target device, comes out.

Importing edgekd imports nothing heavier than numpy; `edgekd.load` needs onnxruntime besides.

    import edgekd

    with edgekd.load("student.edgekd") as predictor:
        print(predictor.predict("photo.jpg", top_k=3).top)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.lazy import lazy_names
from edgekd.version import __version__

if TYPE_CHECKING:
    from edgekd.device.bundle import Bundle
    from edgekd.device.predictor import Prediction, Predictor, load
    from edgekd.device.runtimes import open_session

__all__ = ["Bundle", "Prediction", "Predictor", "__version__", "load", "open_session"]

__getattr__ = lazy_names(
    __name__,
    {
        "Bundle": "edgekd.device.bundle",
        "Prediction": "edgekd.device.predictor",
        "Predictor": "edgekd.device.predictor",
        "load": "edgekd.device.predictor",
        "open_session": "edgekd.device.runtimes",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
