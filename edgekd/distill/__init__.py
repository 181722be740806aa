"""Trains: models, losses, teachers, the engine, and the way out to ONNX. The only floor that imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.lazy import lazy_names

if TYPE_CHECKING:
    from edgekd.distill.cached_teacher import CachedTeacher
    from edgekd.distill.engine import TrainResult, distill, evaluate
    from edgekd.distill.file_teacher import LogitsFile
    from edgekd.distill.http_teacher import HttpTeacher
    from edgekd.distill.losses import LOSSES
    from edgekd.distill.models import MODELS, build_model
    from edgekd.distill.objective import Objective, Schedule, Term
    from edgekd.distill.programme import Stage
    from edgekd.distill.qat import FakeQuantized, fake_quantize, write_quantized
    from edgekd.distill.taps import Taps, list_taps
    from edgekd.distill.teachers import EnsembleTeacher, ModuleTeacher, OnnxTeacher, Teacher
    from edgekd.distill.to_onnx import ExportResult, export

__all__ = [
    "LOSSES",
    "MODELS",
    "CachedTeacher",
    "EnsembleTeacher",
    "ExportResult",
    "FakeQuantized",
    "HttpTeacher",
    "LogitsFile",
    "ModuleTeacher",
    "Objective",
    "OnnxTeacher",
    "Schedule",
    "Stage",
    "Taps",
    "Teacher",
    "Term",
    "TrainResult",
    "build_model",
    "distill",
    "evaluate",
    "export",
    "fake_quantize",
    "list_taps",
    "write_quantized",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CachedTeacher": "edgekd.distill.cached_teacher",
        "EnsembleTeacher": "edgekd.distill.teachers",
        "ExportResult": "edgekd.distill.to_onnx",
        "FakeQuantized": "edgekd.distill.qat",
        "HttpTeacher": "edgekd.distill.http_teacher",
        "LOSSES": "edgekd.distill.losses",
        "LogitsFile": "edgekd.distill.file_teacher",
        "MODELS": "edgekd.distill.models",
        "ModuleTeacher": "edgekd.distill.teachers",
        "Objective": "edgekd.distill.objective",
        "OnnxTeacher": "edgekd.distill.teachers",
        "Schedule": "edgekd.distill.objective",
        "Stage": "edgekd.distill.programme",
        "Taps": "edgekd.distill.taps",
        "Teacher": "edgekd.distill.teachers",
        "Term": "edgekd.distill.objective",
        "TrainResult": "edgekd.distill.engine",
        "build_model": "edgekd.distill.models",
        "distill": "edgekd.distill.engine",
        "evaluate": "edgekd.distill.engine",
        "export": "edgekd.distill.to_onnx",
        "fake_quantize": "edgekd.distill.qat",
        "list_taps": "edgekd.distill.taps",
        "write_quantized": "edgekd.distill.qat",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
