"""Percentiles, intervals and ratios: known values, coverage on simulated latencies, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekd.device.statistics import (
    across_launches,
    early_stopping_minimum,
    effective_n,
    independent_calls,
    latency_interval,
    launch_ratio,
    median_interval,
    percentile,
    quantile_interval,
    t_quantile,
    t_test,
)
from edgekd.errors import UsageError
from edgekd.spec import Array

SAMPLES = st.lists(st.integers(1, 10**9), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("q", "expected"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.97, 219), (0.99, 662), (0.999, 6636)]
)
def test_the_minimum_is_loadgens(q: float, expected: int) -> None:
    assert early_stopping_minimum(q) == expected


@pytest.mark.parametrize("q", [0.5, 0.8, 0.9, 0.99])
def test_the_minimum_is_the_smallest_n_that_keeps_the_bound(q: float) -> None:
    def risk(n: int) -> float:
        return sum(math.comb(n, k) * (1 - q) ** k * q ** (n - k) for k in (0, 1))

    n = early_stopping_minimum(q)
    assert risk(n) <= 0.01 < risk(n - 1)


def test_percentile_is_the_sample_that_loadgen_takes() -> None:
    samples = [50, 10, 40, 20, 30, 60, 70, 80, 90, 100]
    assert [percentile(samples, q) for q in (0.05, 0.1, 0.5, 0.9, 0.91, 0.99)] == [10, 20, 60, 100, 100, 100]


@given(SAMPLES, st.floats(0.01, 0.99))
def test_percentile_is_a_sample_that_the_share_does_not_exceed(samples: list[int], q: float) -> None:
    value = percentile(samples, q)
    assert value in samples
    assert sum(s <= value for s in samples) >= q * len(samples) - 1e-6
    assert sum(s < value for s in samples) < q * len(samples) + 1e-6


@given(SAMPLES, st.floats(0.01, 0.99), st.floats(1.0, 500.0))
def test_the_interval_contains_the_percentile(samples: list[int], q: float, independent: float) -> None:
    low, high = quantile_interval(samples, q, independent=independent)
    assert min(samples) <= low <= percentile(samples, q) <= high <= max(samples)


@pytest.mark.parametrize(("q", "n"), [(0.5, 25), (0.5, 200), (0.9, 100), (0.99, 1000)])
def test_the_interval_covers_the_true_percentile_as_often_as_it_says(q: float, n: int) -> None:
    random = np.random.default_rng(7)
    true = -math.log(1 - q)
    hits = 0
    for draw in random.exponential(size=(600, n)):
        low, high = quantile_interval(draw, q, 0.95)
        hits += low <= true <= high
    # 600 trials at 95 %: below 92.5 % would be 2.8 standard errors off.
    assert hits / 600 >= 0.925
    assert hits / 600 < 1.0


def test_order_statistics_of_a_textbook() -> None:
    # n = 10, median: the 2nd and the 9th observation enclose it with 97.9 % (the 3rd and 8th with only 89.1 %).
    assert quantile_interval(range(1, 11), 0.5, 0.95) == (2.0, 9.0)


def _autoregressive(n: int, rho: float, random: np.random.Generator) -> NDArray[np.float64]:
    noise = random.standard_normal(n)
    series = np.empty(n)
    series[0] = noise[0]
    for i in range(1, n):
        series[i] = rho * series[i - 1] + math.sqrt(1 - rho**2) * noise[i]
    return series


def test_independent_calls_keep_their_number() -> None:
    random = np.random.default_rng(1)
    shares = [effective_n(random.lognormal(size=1000), 0.5) / 1000 for _ in range(50)]
    assert np.median(shares) > 0.9
    assert max(shares) <= 1.0


def test_calls_that_resemble_their_neighbours_count_less() -> None:
    # The indicator of the median of a normal AR(1) has autocorrelations 2/pi asin(rho^k).
    rho, n = 0.9, 20_000
    expected = n / (1 + 2 * sum(2 / math.pi * math.asin(rho**k) for k in range(1, 200)))
    found = [effective_n(_autoregressive(n, rho, np.random.default_rng(seed)), 0.5) for seed in range(8)]
    assert np.mean(found) == pytest.approx(expected, rel=0.15)


def test_a_slow_and_a_fast_half_are_hardly_two_calls() -> None:
    random = np.random.default_rng(0)
    halves = np.concatenate([random.normal(100, 1, 500), random.normal(200, 1, 500)])
    one = np.zeros(1000, np.int64)
    assert effective_n(halves, 0.5) < 11
    assert latency_interval(halves, 0.5, launch=one) is None
    # The very same values in another order are a thousand calls, and so are two processes with a level each.
    assert latency_interval(random.permutation(halves), 0.5, launch=one) is not None
    assert independent_calls(halves, np.repeat([0, 1], 500), 0.5) > 800


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.floats(0.05, 0.95))
def test_the_effective_number_lies_between_one_and_n(samples: list[int], q: float) -> None:
    assert 1.0 <= effective_n(samples, q) <= len(samples)


def test_a_percentile_needs_its_calls() -> None:
    shuffled = np.random.default_rng(3).permutation(np.arange(1, 662) * 1_000_000)
    one = np.zeros(661, np.int64)
    assert latency_interval(shuffled[:10], 0.5, launch=one[:10]) is None
    assert latency_interval(shuffled[:60], 0.9, launch=one[:60]) is None
    assert latency_interval(shuffled, 0.99, launch=one) is None
    p90 = latency_interval(shuffled, 0.9, launch=one)
    assert p90 is not None
    assert p90.value == 595.0
    assert p90.low < 595.0 < p90.high
    assert p90.n == 661


def test_medians_of_processes_need_ten() -> None:
    assert median_interval([3.0] * 9) is None
    told = median_interval([10.0, 1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0])
    assert told is not None
    assert (told.value, told.low, told.high, told.n) == (6.0, 2.0, 9.0, 10)


LAUNCHES, BLOCKS, CALLS = 12, 2, 30
# As measured of calls of ten microseconds: processes of one model differ by this much, blocks of a process hardly.
BETWEEN, WITHIN = 0.026, 0.003


def _pair(seed: int, *, ratio: float = 1.0, between: float = BETWEEN) -> list[tuple[NDArray[np.float64], Array]]:
    """Two candidates, each (latencies, launch of each). The machine wanders under both, launches are each one's own."""
    random = np.random.default_rng(seed)
    machine = np.exp(0.1 * _autoregressive(LAUNCHES * BLOCKS, 0.7, random))
    told = []
    for level in (100.0 * ratio, 100.0):
        launch = np.repeat(random.lognormal(0, between, LAUNCHES), BLOCKS)
        blocks = level * machine * launch * random.lognormal(0, WITHIN, LAUNCHES * BLOCKS)
        calls = blocks[:, np.newaxis] * random.lognormal(0, 0.1, (LAUNCHES * BLOCKS, CALLS))
        told.append((calls.ravel(), np.repeat(np.arange(LAUNCHES), BLOCKS * CALLS)))
    return told


def test_a_model_against_itself_reads_no_difference_although_its_processes_differ() -> None:
    different = sum(not found.low <= 1 <= found.high for found in (launch_ratio(*_pair(seed)) for seed in range(1000)))
    # 99 % intervals: about ten of a thousand. Drawing blocks or calls instead of launches is wrong in most.
    assert different <= 20


def test_a_slow_down_of_ten_per_cent_is_seen_and_enclosed_at_the_stated_rate() -> None:
    found = [launch_ratio(*_pair(seed, ratio=1.1)) for seed in range(500)]
    assert sum(item.low > 1 for item in found) >= 0.95 * 500
    assert sum(item.low <= 1.1 <= item.high for item in found) >= 0.98 * 500
    assert all(item.n == LAUNCHES for item in found)


def test_the_interval_grows_with_the_spread_between_launches_and_not_with_the_number_of_calls() -> None:
    def width(between: float, calls: slice) -> float:
        a, b = _pair(0, between=between)
        found = launch_ratio((a[0][calls], a[1][calls]), (b[0][calls], b[1][calls]))
        return math.log(found.high / found.low)

    every = slice(None)
    assert width(0.1, every) > 2.5 * width(0.026, every) > 2.5 * width(0.0, every)
    # A third of the calls, in every launch: what a process is cannot be learnt by asking it more often.
    assert width(0.1, slice(None, None, 3)) < 1.3 * width(0.1, every)


def test_what_happens_to_both_in_one_launch_cancels() -> None:
    (a, launch), (b, _) = _pair(1, between=0.0)
    slow = np.where(launch == 5, 3.0, 1.0)
    same, told = launch_ratio((a, launch), (b, launch)), launch_ratio((a * slow, launch), (b * slow, launch))
    assert (told.value, told.low, told.high) == pytest.approx((same.value, same.low, same.high))


def test_one_launch_that_was_disturbed_hardly_moves_the_ratio() -> None:
    (a, launch), b = _pair(2)
    told = launch_ratio((a * np.where(launch == 5, 1.5, 1.0), launch), b)
    assert told.value == pytest.approx(launch_ratio((a, launch), b).value, rel=0.01)
    assert told.high / told.low < 1.15, "without trimming it would be 1.2"


def test_yuens_trimmed_mean_by_hand() -> None:
    # Eight launches of one call: 1..8 on the logarithmic scale, of which 1 and 8 are left out.
    calls = np.exp(np.arange(1.0, 9.0))
    found = across_launches(calls, np.arange(8))
    winsorized = np.array([2, 2, 3, 4, 5, 6, 7, 7])
    assert found.value == pytest.approx(4.5)
    assert found.error == pytest.approx(math.sqrt(8 * winsorized.var(ddof=1) / (6 * 5)))
    assert (found.freedom, found.launches) == (5, 8)
    few = across_launches(calls[:4], np.arange(4))
    assert few.error == pytest.approx(np.arange(1, 5).std(ddof=1) / math.sqrt(3))
    assert few.half_width(0.95) == pytest.approx(t_quantile(0.975, 3) * few.error)


def test_a_percentile_is_as_uncertain_as_its_launches_differ() -> None:
    launch = np.repeat(np.arange(LAUNCHES), 60)
    hits = as_if_one = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        launches = np.repeat(random.lognormal(0, 0.05, LAUNCHES), 60)
        calls = 1e6 * launches * random.lognormal(0, 0.01, len(launches))
        told = latency_interval(calls, 0.5, launch=launch)
        assert told is not None
        hits += told.low <= 1.0 <= told.high
        low, high = quantile_interval(calls / 1e6, 0.5, 0.95)
        as_if_one += low <= 1.0 <= high
    assert hits >= 186
    assert as_if_one < 120, "order statistics of the calls alone are far too sure"


# Student's t, from printed tables: (degrees of freedom, t, two-sided p).
@pytest.mark.parametrize(
    ("freedom", "t", "p"),
    [(5, 2.571, 0.05), (10, 2.228, 0.05), (10, 3.169, 0.01), (22, 2.074, 0.05), (30, 2.750, 0.01)],
)
def test_t_is_students(freedom: float, t: float, p: float) -> None:
    assert t_test(t, freedom) == pytest.approx(p, abs=0.002)
    assert t_quantile(1 - p / 2, freedom) == pytest.approx(t, rel=0.01)


def test_refusals_say_what_was_found_and_expected() -> None:
    with pytest.raises(UsageError, match=r"found the quantile 90, expected a share between 0 and 1 \(0\.9 for p90\)"):
        percentile([1, 2], 90)
    with pytest.raises(UsageError, match=r"found samples of shape \(0,\), expected at least one"):
        percentile([], 0.5)
    with pytest.raises(UsageError, match="found 3 launches in common, expected at least 4; measure for longer"):
        launch_ratio(([1, 2, 3, 4], [0, 1, 2, 3]), ([1, 2, 3], [0, 1, 2]))
    with pytest.raises(UsageError, match="found 1 launches, expected at least 4"):
        across_launches([1, 2], [0, 0])
    with pytest.raises(UsageError, match="found 2 samples with 1 launch numbers"):
        launch_ratio(([1, 2], [0]), ([1], [0]))
