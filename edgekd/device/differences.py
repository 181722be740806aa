"""Which differences between two results of two runs are real: intervals and p-values.

Two runs of `benchmark` lie apart in time, so nothing in them can be paired but the labelled samples, which both saw.
Each launch of a candidate is a fresh process: their percentiles are the independent values of a run, and the test is
Welch's on the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from edgekd.device.statistics import Estimate, t_quantile, t_test


@dataclass(frozen=True)
class Difference:
    """After against before: a value with its interval, and how likely so much is if nothing changed."""

    value: float
    low: float
    high: float
    p: float


def ratio_of(before: Estimate, after: Estimate, *, confidence: float = 0.95) -> Difference:
    """After over before as a ratio (1.1 is ten per cent more), by Welch's test on the logarithms.

    B. L. Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", 1947.
    """
    change = after.value - before.value
    error = math.hypot(before.error, after.error)
    if error == 0.0:  # a clock that ticks coarsely: every launch has the same percentile
        return Difference(math.exp(change), math.exp(change), math.exp(change), float(change == 0.0))
    freedom = error**4 / sum(item.error**4 / item.freedom for item in (before, after))
    half = t_quantile((1 + confidence) / 2, freedom) * error
    return Difference(
        math.exp(change), math.exp(change - half), math.exp(change + half), t_test(abs(change) / error, freedom)
    )


def p_of_interval(interval_at: Callable[[float], tuple[float, float]]) -> float:
    """The p-value that a family of intervals implies: 1 - the greatest confidence whose interval leaves 0 out."""
    low, high = 0.0, 40.0  # as normal quantiles, so that small p-values keep their digits
    for _ in range(40):
        middle = (low + high) / 2
        confidence = 1 - 2 * NormalDist().cdf(-middle)
        # Beyond about 8.2 the quantile that the interval needs rounds to 1.
        if not confidence > 0 or (1 + confidence) / 2 >= 1:
            high = middle
            continue
        bottom, top = interval_at(confidence)
        low, high = (middle, high) if bottom > 0 or top < 0 else (low, middle)
    return 2 * NormalDist().cdf(-low)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being many: with all below 0.05 called real, one of them is wrong in at most 5 %.

    S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted
