"""Which differences between two results of two runs are real: estimates, intervals and p-values.

Two runs of `benchmark` lie apart in time, so their calls cannot be paired block by block. Each run is cut into a
dozen stretches, long enough to be nearly independent of each other; the spread of a percentile comes from drawing
whole stretches, and the test is Welch's on the logarithm. Accuracy is paired: both runs saw the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgekd.device.statistics import PLACEMENT, percentile, weighted_percentiles
from edgekd.errors import UsageError

# Stretches of a run. Fewer cost power (wide t intervals), more resemble their neighbours: in simulations with
# autocorrelated blocks, bursts and heavy tails twelve call a model different from itself in 1 % of pairs.
STRETCHES = 12
LEAST_STRETCHES = 4
RESAMPLES = 400


@dataclass(frozen=True)
class Series:
    """Timed calls in the order of time, each with the number of its block."""

    latency_ns: NDArray[np.float64]
    block: NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A figure of one run on the logarithmic scale, with its standard error and degrees of freedom."""

    value: float
    error: float
    freedom: float


@dataclass(frozen=True)
class Difference:
    """After against before: a value with its interval, and how likely so much is if nothing changed."""

    value: float
    low: float
    high: float
    p: float


def log_percentile(
    over: Series, *, below: Series | None = None, q: float = 0.5, seed: int = 0, stretches: int = STRETCHES
) -> Estimate:
    """The logarithm of a percentile, or of its ratio to that of `below`, which ran interleaved in the same run.

    Interleaved series share their stretches, so what slowed the machine cancels. The bootstrap's error is too small
    by sqrt((K - 1) / K) for K stretches, which is put right. Raises `UsageError` for fewer than four blocks.
    """
    series = [over] if below is None else [over, below]
    blocks = np.unique(over.block)
    for item in series[1:]:
        blocks = np.intersect1d(blocks, item.block)
    count = min(stretches, len(blocks))
    if count < LEAST_STRETCHES:
        raise UsageError(f"found {len(blocks)} blocks, expected at least {LEAST_STRETCHES}; measure for longer")
    counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    value, drawn = 0.0, np.zeros(RESAMPLES)
    for sign, item in zip((1, -1), series):
        kept = np.isin(item.block, blocks)
        calls = item.latency_ns[kept]
        stretch = np.searchsorted(blocks, item.block[kept]) * count // len(blocks)
        value += sign * math.log(percentile(calls, q))
        drawn += sign * np.log(weighted_percentiles(calls, stretch, np.arange(count), counts, q))
    return Estimate(value, float(drawn.std(ddof=1)) * math.sqrt(count / (count - 1)), count - 1)


def ratio_of(
    before: Estimate, after: Estimate, *, placement: float = PLACEMENT, confidence: float = 0.95
) -> Difference:
    """After over before as a ratio (1.1 is ten per cent more), by Welch's test on the logarithms.

    The interval is widened by `placement` on both sides, and only what goes beyond it counts as a difference.

    B. L. Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", 1947.
    """
    change = after.value - before.value
    error = math.hypot(before.error, after.error)
    margin = math.log1p(placement)
    beyond = max(0.0, abs(change) - margin)
    if error == 0.0:  # a clock that ticks coarsely: every stretch has the same percentile
        return Difference(math.exp(change), math.exp(change - margin), math.exp(change + margin), float(beyond == 0.0))
    freedom = error**4 / sum(item.error**4 / item.freedom for item in (before, after))
    half = t_quantile((1 + confidence) / 2, freedom) * error + margin
    return Difference(
        math.exp(change), math.exp(change - half), math.exp(change + half), t_test(beyond / error, freedom)
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


def t_test(t: float, freedom: float) -> float:
    """Two-sided p-value of Student's t, through Wallace's normal approximation (within 0.002 from 3 degrees on).

    D. L. Wallace, "Bounds on normal approximations to Student's and the chi-square distributions", 1959.
    """
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return 2 * NormalDist().cdf(-z)


def t_quantile(share: float, freedom: float) -> float:
    """The t that a `share` (above one half) of Student's distribution lies below: `t_test` turned round."""
    z = NormalDist().inv_cdf(share) * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(z * z / freedom))
