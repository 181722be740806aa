"""Percentiles, their intervals and ratios of latencies, for samples that are neither normal nor independent.

Latencies have long tails and neighbours in time resemble each other. So: order statistics instead of means,
an effective number of samples instead of n, and bootstraps that draw whole blocks instead of calls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekd.errors import UsageError
from edgekd.spec import Interval

# The bound that LoadGen asks for: a percentile is told only with 99 % confidence on one side.
LOADGEN_CONFIDENCE = 0.99
# Different latencies that a bootstrapped median is searched among; timers tick, so there are seldom more.
GRID = 4096
# Two processes with the same model differ by up to 1.5 % (calls of 5 microseconds: where each lies in memory),
# and no number of blocks shows it. Without this on both sides a model against itself would read "faster".
PLACEMENT = 0.02


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


def latency_interval(samples_ns: ArrayLike, q: float, *, confidence: float = 0.95) -> Interval | None:
    """Percentile `q` of latencies in ns, as milliseconds, or None when the effective n is too small to tell it."""
    independent = effective_n(samples_ns, q)
    if independent < early_stopping_minimum(q):
        return None
    low, high = quantile_interval(samples_ns, q, confidence, independent=independent)
    return Interval(percentile(samples_ns, q) / 1e6, low / 1e6, high / 1e6, int(_samples(samples_ns).size))


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """Median of measurements from processes of their own, or None for fewer than 10 of them."""
    if len(values) < 10:
        return None
    low, high = quantile_interval(values, 0.5, confidence)
    return Interval(percentile(values, 0.5), low, high, len(values))


def block_bootstrap_ratio(
    a_ns: ArrayLike,
    a_block: ArrayLike,
    b_ns: ArrayLike,
    b_block: ArrayLike,
    *,
    seed: int,
    confidence: float = 0.99,
    resamples: int = 1000,
) -> Interval:
    """Median of `a` over median of `b`, with an interval from drawing whole blocks with replacement.

    Calls within a block resemble each other, so blocks are drawn, not calls. Block k of a ran beside block k
    of b, so both are drawn together: what slowed the machine then slowed both. 99 % by default, so that a model
    against itself reads "no difference". Raises `UsageError` with fewer than 4 common blocks.
    """
    a, b = _samples(a_ns), _samples(b_ns)
    a_id, b_id = np.asarray(a_block), np.asarray(b_block)
    if a_id.shape != a.shape or b_id.shape != b.shape:
        raise UsageError(f"found {a.size} and {b.size} samples with {a_id.size} and {b_id.size} block numbers")
    common = np.intersect1d(a_id, b_id)
    if len(common) < 4:
        raise UsageError(f"found {len(common)} blocks in common, expected at least 4; measure for longer")
    counts = np.random.default_rng(seed).multinomial(len(common), np.full(len(common), 1 / len(common)), size=resamples)
    medians_a = weighted_percentiles(a, a_id, common, counts)
    medians_b = weighted_percentiles(b, b_id, common, counts)
    value = percentile(a[np.isin(a_id, common)], 0.5) / percentile(b[np.isin(b_id, common)], 0.5)
    ratios = medians_a / medians_b
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value), len(common))


def weighted_percentiles(
    samples: NDArray[np.float64],
    block: NDArray[np.int64],
    common: NDArray[np.int64],
    counts: NDArray[np.int64],
    q: float = 0.5,
) -> NDArray[np.float64]:
    """One percentile `q` per row of `counts`, which says how often each block in `common` was drawn.

    A percentile of whole blocks lies between the smallest and the largest percentile of a block, so only values
    there are counted: all of them, or `GRID` at equal ranks where there are more (then off by at most 1 / GRID in
    rank).
    """
    parts = [np.sort(samples[block == number]) for number in common]
    inner = [percentile(part, q) for part in parts]
    values = np.unique(np.concatenate(parts))
    values = values[(values >= min(inner)) & (values <= max(inner))]
    if len(values) > GRID:
        values = values[np.linspace(0, len(values) - 1, GRID).round().astype(np.intp)]
    below = np.array([np.searchsorted(part, values, side="right") for part in parts])
    reached = counts @ below
    totals = counts @ np.array([len(part) for part in parts])
    needed = np.minimum(totals, np.floor(totals * q) + 1)  # as `percentile` ranks
    found: NDArray[np.float64] = values[(reached >= needed[:, np.newaxis]).argmax(axis=1)]
    return found


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
