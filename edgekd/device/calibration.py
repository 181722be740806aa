"""Probabilities that mean what they say: one temperature for all classes, fitted on labelled samples.

Axes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgekd.device.postprocess import PostStep, Softmax, apply_post
from edgekd.device.quality import calibration_error
from edgekd.errors import DataError
from edgekd.spec import Array

# A model that is right about every sample would have none but 0.
COLDEST, HOTTEST = 0.05, 20.0
_HALVINGS = 60


@dataclass(frozen=True)
class Calibration:
    """A temperature with what it changed on the `n` samples that it was fitted on.

    nll   mean negative log-likelihood of the true class, before (temperature 1) and after
    ece   expected calibration error (`edgekd.device.quality`), before and after
    """

    temperature: float
    nll: tuple[float, float]
    ece: tuple[float, float]
    n: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "temperature": self.temperature,
            "nll_before": self.nll[0],
            "nll_after": self.nll[1],
            "ece_before": self.ece[0],
            "ece_after": self.ece[1],
            "n": self.n,
        }


def calibrate(logits_NC: Array, y_N: Array) -> Calibration:
    """The temperature with the least negative log-likelihood of the true classes, between 0.05 and 20.

    With beta = 1 / T its derivative is mean(sum_c p_c z_c - z_y), which grows with beta: halving finds the one zero.
    Raises `DataError` for logits or classes that are none.

    Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599, section 4.2.
    """
    z_NC, y_N = logits_NC.astype(np.float64), y_N.astype(np.int64)
    if z_NC.ndim != 2 or len(z_NC) != len(y_N) or not len(y_N) or not np.isfinite(z_NC).all():
        raise DataError(
            f"calibration: found logits {logits_NC.shape} for {y_N.shape} classes; expected (N, C) finite numbers for "
            "(N,) classes, N from 1"
        )
    if y_N.min() < 0 or y_N.max() >= z_NC.shape[1]:
        raise DataError(f"calibration: found classes {y_N.min()} to {y_N.max()}, expected 0 to {z_NC.shape[1] - 1}")
    true_N = z_NC[np.arange(len(y_N)), y_N]
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(_HALVINGS):
        beta = (low + high) / 2
        slope = float(((_softmax(z_NC * beta) * z_NC).sum(axis=1) - true_N).mean())
        low, high = (low, beta) if slope > 0 else (beta, high)
    temperature = float(2 / (low + high))
    nll, ece = [], []
    for value in (1.0, temperature):
        probabilities_NC = apply_post((Softmax(value),), logits_NC)
        scaled_NC = z_NC / value
        log_sum_N = np.log(np.exp(scaled_NC - scaled_NC.max(axis=1, keepdims=True)).sum(axis=1)) + scaled_NC.max(axis=1)
        nll.append(float((log_sum_N - true_N / value).mean()))
        ece.append(calibration_error(probabilities_NC, y_N))
    return Calibration(temperature, (nll[0], nll[1]), (ece[0], ece[1]), len(y_N))


def wants_calibration(steps: Iterable[PostStep]) -> bool:
    """Whether a softmax says "calibrated" where its temperature should be."""
    return any(isinstance(step, Softmax) and step.temperature == "calibrated" for step in steps)


def with_temperature(steps: Iterable[PostStep], temperature: float) -> tuple[PostStep, ...]:
    """The steps with `temperature` where "calibrated" stood."""
    return tuple(
        replace(step, temperature=temperature)
        if isinstance(step, Softmax) and step.temperature == "calibrated"
        else step
        for step in steps
    )


def _softmax(scaled_NC: Array) -> Array:
    powers_NC = np.exp(scaled_NC - scaled_NC.max(axis=1, keepdims=True))
    shares_NC: Array = powers_NC / powers_NC.sum(axis=1, keepdims=True)
    return shares_NC
