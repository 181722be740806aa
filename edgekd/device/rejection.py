"""The reject option: where no class is likely enough, the answer is the class for "none of these".

    z'_r = max(z_r, log sum_c exp(z_c) + log t)      r: that class; the logits of all others stay

so that z'_r is the largest exactly where it was before, or where the largest probability of another class is below t.
Axes: N samples, C classes.

Chow, "On optimum recognition error and reject tradeoff", 1970. Hendrycks and Gimpel, "A baseline for detecting
misclassified and out-of-distribution examples in neural networks", 2017, arXiv:1610.02136.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgekd.errors import DataError
from edgekd.spec import Array

# Of a model that is surer than this of nearly all samples, the rounding of float32 would decide.
HIGHEST = 0.999


@dataclass(frozen=True)
class Threshold:
    """The least probability with which a class is still answered.

    kept   share of the `n` samples of other classes, of those it was found on, whose largest probability among these
           classes reaches it
    """

    value: float
    kept: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def find_threshold(logits_NC: Array, y_N: Array, rejected: int, *, keep: float) -> Threshold:
    """The highest threshold that at least the share `keep` of the samples of other classes than `rejected` reaches.

    It lies in the middle between two samples, so that no rounding decides about one. Raises `DataError` for logits
    that are not finite, and without a sample of another class.
    """
    others_N = y_N != rejected
    if not np.isfinite(logits_NC).all():
        raise DataError("the reject option: found logits that are NaN or infinite, expected finite numbers")
    if not others_N.any():
        raise DataError("the reject option: found no sample of another class, expected some to find the threshold on")
    sorted_N = np.sort(log_confidence(logits_NC[others_N], rejected))
    lost = int(np.floor((1 - keep) * len(sorted_N) + 1e-9))
    lower_N = sorted_N[sorted_N < sorted_N[lost]]
    # Half of the least certain one where none may be lost.
    log_value = (lower_N[-1] + sorted_N[lost]) / 2 if len(lower_N) else sorted_N[0] - np.log(2)
    value = float(np.exp(np.clip(log_value, np.log(np.finfo(np.float32).tiny), np.log(HIGHEST))))
    return Threshold(value, float((sorted_N >= np.log(value)).mean()), len(sorted_N))


def log_confidence(logits_NC: Array, rejected: int) -> Array:
    """(N,) float64: the logarithm of the largest probability among the classes other than `rejected`."""
    z_NC = logits_NC.astype(np.float64)
    found: Array = np.delete(z_NC, rejected, axis=1).max(axis=1) - _log_sum(z_NC)
    return found


def reject(logits_NC: Array, rejected: int, threshold: float) -> Array:
    """The logits after the rule, as float64."""
    z_NC = logits_NC.astype(np.float64)
    z_NC[:, rejected] = np.maximum(z_NC[:, rejected], _log_sum(z_NC) + np.log(threshold))
    return z_NC


def _log_sum(z_NC: Array) -> Array:
    top_N = z_NC.max(axis=1)
    found: Array = top_N + np.log(np.exp(z_NC - top_N[:, np.newaxis]).sum(axis=1))
    return found
