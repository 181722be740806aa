"""Percentiles, intervals and ratios: known values, coverage on simulated latencies, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekd.device.statistics import (
    block_bootstrap_ratio,
    early_stopping_minimum,
    effective_n,
    latency_interval,
    median_interval,
    percentile,
    quantile_interval,
    weighted_percentiles,
)
from edgekd.errors import UsageError

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
    assert effective_n(halves, 0.5) < 11
    assert latency_interval(halves, 0.5) is None
    # The very same values in another order are a thousand calls.
    assert latency_interval(random.permutation(halves), 0.5) is not None


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.floats(0.05, 0.95))
def test_the_effective_number_lies_between_one_and_n(samples: list[int], q: float) -> None:
    assert 1.0 <= effective_n(samples, q) <= len(samples)


def test_a_percentile_needs_its_calls() -> None:
    shuffled = np.random.default_rng(3).permutation(np.arange(1, 662) * 1_000_000)
    assert latency_interval(shuffled[:10], 0.5) is None
    assert latency_interval(shuffled[:60], 0.9) is None
    assert latency_interval(shuffled, 0.99) is None
    p90 = latency_interval(shuffled, 0.9)
    assert p90 is not None
    assert p90.value == 595.0
    assert p90.low < 595.0 < p90.high
    assert p90.n == 661


def test_medians_of_processes_need_ten() -> None:
    assert median_interval([3.0] * 9) is None
    told = median_interval([10.0, 1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0])
    assert told is not None
    assert (told.value, told.low, told.high, told.n) == (6.0, 2.0, 9.0, 10)


def _blocks(random: np.random.Generator, level: float, wander: NDArray[np.float64]) -> tuple[list[float], list[int]]:
    samples: list[float] = []
    block: list[int] = []
    for number, factor in enumerate(wander):
        samples += list(level * factor * random.lognormal(0, 0.05, 30))
        block += [number] * 30
    return samples, block


def test_the_ratio_is_that_of_the_medians() -> None:
    ratio = block_bootstrap_ratio([20, 30, 40, 30], [0, 1, 2, 3], [10, 15, 20, 15], [0, 1, 2, 3], seed=0)
    assert ratio.value == 2.0
    assert ratio.low <= 2.0 <= ratio.high
    assert ratio.n == 4


def test_a_model_against_itself_reads_no_difference() -> None:
    different = 0
    for seed in range(150):
        random = np.random.default_rng(seed)
        # Both wander together (the machine) and each block a little on its own (caches).
        machine = np.exp(0.1 * _autoregressive(24, 0.7, random))
        a = _blocks(random, 100.0, machine * random.lognormal(0, 0.02, 24))
        b = _blocks(random, 100.0, machine * random.lognormal(0, 0.02, 24))
        ratio = block_bootstrap_ratio(*a, *b, seed=seed, resamples=400)
        different += not ratio.low <= 1.0 <= ratio.high
    # 99 % intervals over 24 blocks: a few of 150, where resampling single calls says "different" half of the time.
    assert different <= 7


def test_a_true_difference_is_seen_and_enclosed() -> None:
    hits = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        machine = np.exp(0.1 * _autoregressive(24, 0.7, random))
        a = _blocks(random, 150.0, machine * random.lognormal(0, 0.02, 24))
        b = _blocks(random, 100.0, machine * random.lognormal(0, 0.02, 24))
        ratio = block_bootstrap_ratio(*a, *b, seed=seed, resamples=400)
        assert ratio.low > 1.0
        hits += ratio.low <= 1.5 <= ratio.high
    assert hits >= 56


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_bootstrapped_percentiles_are_those_of_the_drawn_blocks(q: float) -> None:
    random = np.random.default_rng(2)
    samples = random.integers(100, 140, 300).astype(np.float64)
    block = np.sort(random.integers(0, 9, 300))
    common = np.arange(9)
    counts = random.multinomial(9, np.full(9, 1 / 9), size=50)
    by_hand = [
        percentile(np.concatenate([np.tile(samples[block == k], times) for k, times in enumerate(row)]), q)
        for row in counts
    ]
    np.testing.assert_array_equal(weighted_percentiles(samples, block, common, counts, q), by_hand)


def test_the_same_seed_gives_the_same_interval() -> None:
    random = np.random.default_rng(0)
    a, b = _blocks(random, 100.0, np.ones(12)), _blocks(random, 90.0, np.ones(12))
    assert block_bootstrap_ratio(*a, *b, seed=5) == block_bootstrap_ratio(*a, *b, seed=5)
    assert block_bootstrap_ratio(*a, *b, seed=5) != block_bootstrap_ratio(*a, *b, seed=6)


def test_refusals_say_what_was_found_and_expected() -> None:
    with pytest.raises(UsageError, match=r"found the quantile 90, expected a share between 0 and 1 \(0\.9 for p90\)"):
        percentile([1, 2], 90)
    with pytest.raises(UsageError, match=r"found samples of shape \(0,\), expected at least one"):
        percentile([], 0.5)
    with pytest.raises(UsageError, match="found 3 blocks in common, expected at least 4; measure for longer"):
        block_bootstrap_ratio([1, 2, 3], [0, 1, 2], [1, 2, 3], [0, 1, 2], seed=0)
    with pytest.raises(UsageError, match="found 2 and 1 samples with 1 and 1 block numbers"):
        block_bootstrap_ratio([1, 2], [0], [1], [0], seed=0)
