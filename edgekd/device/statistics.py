"""Percentiles, their intervals and ratios of latencies, for samples that are neither normal nor independent.

Latencies have long tails and neighbours in time resemble each other. So: order statistics instead of means,
an effective number of samples instead of n, and ratios over processes that were started afresh instead of over calls.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekd.errors import UsageError
from edgekd.spec import Interval

# The bound that LoadGen asks for: a percentile is told only with 99 % confidence on one side.
LOADGEN_CONFIDENCE = 0.99
# Processes of one model differ by 2.5 % (standard deviation, calls of 10 microseconds: where each lies in memory),
# ten times as much as blocks of one process. Fewer of them than this say nothing about it.
LEAST_LAUNCHES = 4


@dataclass(frozen=True)
class Estimate:
    """A figure on the logarithmic scale, from so many launches, with its standard error and degrees of freedom."""

    value: float
    error: float
    freedom: float
    launches: int

    def half_width(self, confidence: float) -> float:
        """Of its two-sided interval."""
        return t_quantile((1 + confidence) / 2, self.freedom) * self.error


def percentile(samples_ns: ArrayLike, q: float) -> float:
    """The sample with a share `q` (0 < q < 1) of all samples before it, in their order: number floor(q * n) from 0.

    Always one of the samples, never an average of two: the one that MLPerf LoadGen takes (results.cc).
    Raises `UsageError` on no samples.
    """
    ordered = np.sort(_samples(samples_ns))
    return float(ordered[_rank(q, len(ordered))])


@functools.cache
def early_stopping_minimum(q: float) -> int:
    """The fewest independent calls after which the percentile `q` may be told.

        min n:  P(Binomial(n, 1 - q) <= 1) <= 1 - 0.99

    With fewer, even two calls beyond the percentile may well be missing from the sample.

    MLPerf LoadGen, early_stopping.cc (`MinPassingQueriesFinder`, one query over latency, confidence 0.99);
    gives p50 11, p90 64, p95 130, p97 219, p99 662, p99.9 6636.
    """
    _check_quantile(q)

    def is_enough(n: int) -> bool:
        none_over = n * math.log(q)
        one_over = math.log(n) + math.log1p(-q) + (n - 1) * math.log(q)
        return math.exp(none_over) + math.exp(one_over) <= 1 - LOADGEN_CONFIDENCE

    high = 2
    while not is_enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def early_stopping_met(n: int, over: int, q: float) -> bool:
    """Whether `n` independent calls of which `over` were above a bound prove the percentile `q` to be within it.

        P(Binomial(n, 1 - q) <= over) < 1 - 0.99

    MLPerf LoadGen, results.cc (`EarlyStopping`, server).
    """
    tail = _binomial_cdf(n, 1 - q)[over] if over <= n else 1.0
    return bool(tail < 1 - LOADGEN_CONFIDENCE)


def early_stopping_estimate(samples_ns: ArrayLike, q: float) -> float | None:
    """The least bound that the samples prove the percentile `q` to be within; None when they are too few for any.

    With t the most calls above it for which P(Binomial(n, 1 - q) <= t) < 1 - 0.99, at least one: the t-th sample from
    the end. MLPerf LoadGen, results.cc (`EarlyStopping`, single-stream and multi-stream).
    """
    ordered = np.sort(_samples(samples_ns))
    n = len(ordered)
    over = int(np.searchsorted(_binomial_cdf(n, 1 - q), 1 - LOADGEN_CONFIDENCE, side="left")) - 1
    return float(ordered[n - over]) if over >= 1 else None


def effective_n(samples: ArrayLike, q: float) -> float:
    """How many independent calls the `samples` (in order of time) are worth for the percentile `q`.

        n / (1 + 2 * sum of the autocorrelations of 1[sample > percentile])

    (of 1[sample = maximum] where none is above the percentile). The sum runs over pairs of neighbouring lags while
    they stay positive and do not grow (Geyer's initial monotone sequence: C. J. Geyer, "Practical Markov Chain Monte
    Carlo", 1992). Never above n, never below 1.
    """
    values = _samples(samples)
    n = len(values)
    over = values > percentile(values, q)
    if not over.any():  # many ties at the top: what is below tells how they alternate
        over = values == values.max()
    centred = over - over.mean()
    variance = float(centred @ centred) / n
    if n < 4 or variance == 0.0:
        return float(n)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum), size)[:n] / (n * variance)
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    stops = np.flatnonzero(pairs <= 0)
    kept = np.minimum.accumulate(pairs[: stops[0]] if len(stops) else pairs)
    autocorrelation_time = max(1.0, 2.0 * float(kept.sum()) - 1.0)
    return max(1.0, n / autocorrelation_time)


def quantile_interval(
    samples: ArrayLike, q: float, confidence: float = 0.95, *, independent: float | None = None
) -> tuple[float, float]:
    """Two-sided interval of the percentile `q` from order statistics; assumes no distribution.

    The ranks are the binomial ones for `independent` calls (the effective n; every call if not given), taken at
    the same share of the ordered samples. Where too few samples lie beyond the percentile the end of the interval
    is the smallest or largest sample, and the true confidence is lower: see `early_stopping_minimum`.
    Source: H. A. David and H. N. Nagaraja, "Order Statistics", 2003, section 7.1.
    """
    ordered = np.sort(_samples(samples))
    n = len(ordered)
    m = max(1, min(n, n if independent is None else math.floor(independent)))
    cumulative = _binomial_cdf(m, q)
    tail = (1 - confidence) / 2
    # P(Binomial <= low_rank - 1) <= tail and P(Binomial >= high_rank) <= tail, ranks counted from 1.
    low_rank = max(1, int(np.searchsorted(cumulative, tail, side="right")))
    high_rank = min(m, int(np.searchsorted(cumulative, 1 - tail, side="left")) + 1)
    low = ordered[max(0, math.floor((low_rank - 1) / m * n))]
    high = ordered[min(n - 1, math.ceil(high_rank / m * n) - 1)]
    value = percentile(ordered, q)
    return min(float(low), value), max(float(high), value)


def independent_calls(samples: ArrayLike, launch: ArrayLike, q: float) -> float:
    """The effective number of calls, counted within each launch and added up."""
    return sum(effective_n(part, q) for part in by_launch(samples, launch).values())


def latency_interval(
    samples_ns: ArrayLike, q: float, *, launch: ArrayLike, confidence: float = 0.95
) -> Interval | None:
    """Percentile `q` of latencies in ns, as milliseconds, or None when the effective n is too small to tell it.

    Each end of the interval is the farther one of two: order statistics at the effective number of calls, and
    Student's t over the launches, which differ by more than their calls tell.
    """
    independent = independent_calls(samples_ns, launch, q)
    if independent < early_stopping_minimum(q):
        return None
    low, high = quantile_interval(samples_ns, q, confidence, independent=independent)
    value = percentile(samples_ns, q)
    with contextlib.suppress(UsageError):  # fewer than four launches: their spread is not known
        found = across_launches(samples_ns, launch, q=q)
        half = found.half_width(confidence)
        low, high = min(low, math.exp(found.value - half)), max(high, math.exp(found.value + half))
    return Interval(value / 1e6, low / 1e6, high / 1e6, int(_samples(samples_ns).size))


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """Median of measurements from processes of their own, or None for fewer than 10 of them."""
    if len(values) < 10:
        return None
    low, high = quantile_interval(values, 0.5, confidence)
    return Interval(percentile(values, 0.5), low, high, len(values))


def across_launches(
    over_ns: ArrayLike,
    over_launch: ArrayLike,
    *,
    below: tuple[ArrayLike, ArrayLike] | None = None,
    q: float = 0.5,
) -> Estimate:
    """The logarithm of a percentile, or of its ratio to that of `below`, which ran beside it: one value per launch.

    Calls within a process resemble each other, and where it lies in memory is drawn only once, so launches count and
    not calls. The mean without the highest and the lowest sixth keeps its place when another program came during one
    of them. What happened to both in one launch cancels in a ratio. Raises `UsageError` for fewer than 4 launches.

    K. K. Yuen, "The two-sample trimmed t for unequal population variances", 1974; with n for its n - 1, which 100,000
    simulated runs of 6 to 30 normal launches call different from nothing as often as stated (without, in 5.7 %).
    """
    series = [(over_ns, over_launch), *([] if below is None else [below])]
    found = [_log_percentiles(samples, launch, q) for samples, launch in series]
    common = sorted(set.intersection(*(set(item) for item in found)))
    if len(common) < LEAST_LAUNCHES:
        raise UsageError(
            f"found {len(common)} launches{' in common' if below else ''}, expected at least {LEAST_LAUNCHES}; "
            "measure for longer"
        )
    values = np.sort([found[0][number] - (found[1][number] if below else 0.0) for number in common])
    n, cut = len(values), len(values) // 6
    kept = n - 2 * cut
    winsorized = np.clip(values, values[cut], values[n - 1 - cut])
    error = float(winsorized.std(ddof=1)) * math.sqrt(n / (kept * (kept - 1)))
    return Estimate(float(values[cut : n - cut].mean()), error, kept - 1, n)


def launch_ratio(
    a: tuple[ArrayLike, ArrayLike], b: tuple[ArrayLike, ArrayLike], *, confidence: float = 0.99
) -> Interval:
    """Median of `a` over median of `b`, each (latencies, launch of each), with its interval: Student's t over launches.

    99 % by default, so that a model against itself reads "no difference". Raises `UsageError` with fewer than 4
    common launches.
    """
    found = across_launches(*a, below=b)
    half = found.half_width(confidence)
    return Interval(math.exp(found.value), math.exp(found.value - half), math.exp(found.value + half), found.launches)


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


def _log_percentiles(samples: ArrayLike, launch: ArrayLike, q: float) -> dict[int, float]:
    """The logarithm of the percentile within each launch."""
    return {number: math.log(percentile(part, q)) for number, part in by_launch(samples, launch).items()}


def by_launch(samples: ArrayLike, launch: ArrayLike) -> dict[int, NDArray[np.float64]]:
    """The samples of each launch, in their order. Raises `UsageError` unless every sample has one."""
    values, numbers = _samples(samples), np.asarray(launch)
    if numbers.shape != values.shape:
        raise UsageError(f"found {values.size} samples with {numbers.size} launch numbers")
    return {int(number): values[numbers == number] for number in np.unique(numbers)}


def _binomial_cdf(n: int, q: float) -> NDArray[np.float64]:
    """P(Binomial(n, q) <= k) for k = 0..n, through logarithms so that large n neither under- nor overflows."""
    _check_quantile(q)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    log_mass = log_factorial[n] - log_factorial[k] - log_factorial[n - k] + k * math.log(q) + (n - k) * math.log1p(-q)
    return np.cumsum(np.exp(log_mass))


def _rank(q: float, n: int) -> int:
    _check_quantile(q)
    return min(n - 1, int(n * q))


def _check_quantile(q: float) -> None:
    if not 0.0 < q < 1.0:
        raise UsageError(f"found the quantile {q}, expected a share between 0 and 1 (0.9 for p90)")


def _samples(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UsageError(f"found samples of shape {array.shape}, expected at least one in a row")
    return array
