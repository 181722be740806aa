"""Runs on the target: numpy at import time, an inference runtime only inside its own adapter.

The function that measures is `edgekd.device.benchmark.benchmark`: here that name is its module's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.lazy import lazy_names

if TYPE_CHECKING:
    from edgekd.device.bundle import Bundle
    from edgekd.device.candidates import Candidate, Samples
    from edgekd.device.predictor import Prediction, Predictor, load
    from edgekd.device.runtimes import RUNTIMES, Session, open_session
    from edgekd.device.selftest import self_test
    from edgekd.device.suites import Suite, load_suite

__all__ = [
    "RUNTIMES",
    "Bundle",
    "Candidate",
    "Prediction",
    "Predictor",
    "Samples",
    "Session",
    "Suite",
    "load",
    "load_suite",
    "open_session",
    "self_test",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Bundle": "edgekd.device.bundle",
        "Candidate": "edgekd.device.candidates",
        "Prediction": "edgekd.device.predictor",
        "Predictor": "edgekd.device.predictor",
        "RUNTIMES": "edgekd.device.runtimes",
        "Samples": "edgekd.device.candidates",
        "Session": "edgekd.device.runtimes",
        "Suite": "edgekd.device.suites",
        "load": "edgekd.device.predictor",
        "load_suite": "edgekd.device.suites",
        "open_session": "edgekd.device.runtimes",
        "self_test": "edgekd.device.selftest",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
