"""Differences between runs: known values of the tests, and thousands of simulated pairs of runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.device.differences import (
    Estimate,
    Series,
    holm,
    log_percentile,
    p_of_interval,
    ratio_of,
    t_quantile,
    t_test,
)
from edgekd.device.metrics import drop_points
from edgekd.errors import UsageError

PAIRS = 1000
BLOCKS, CALLS = 48, 20


def machine(random: np.random.Generator, *, rho: float = 0.7, spread: float = 0.02) -> np.ndarray:
    """How slow the machine is in each block: it wanders, and now and then another program comes for a few blocks."""
    wander = np.empty(BLOCKS)
    wander[0] = random.standard_normal()
    for i in range(1, BLOCKS):
        wander[i] = rho * wander[i - 1] + math.sqrt(1 - rho**2) * random.standard_normal()
    level = np.exp(spread * wander)
    for start in np.flatnonzero(random.random(BLOCKS) < 0.01):
        level[start : start + random.geometric(1 / 3)] *= 1.5
    return level


def simulated(random: np.random.Generator, level: np.ndarray, *, ns: float = 100_000.0) -> Series:
    """Calls on that machine, 3 % of which have a tail so heavy that its variance is infinite."""
    calls = ns * level[:, None] * random.lognormal(0, 0.05, (BLOCKS, CALLS))
    hit = random.random(calls.shape) < 0.03
    calls = np.where(hit, calls * (1 + random.pareto(1.5, calls.shape)), calls)
    return Series(calls.ravel(), np.repeat(np.arange(BLOCKS), CALLS))


def p_of_pair(seed: int, *, slower: float = 1.0, q: float = 0.5) -> float:
    random = np.random.default_rng(seed)
    before = log_percentile(simulated(random, machine(random)), q=q, seed=seed)
    after = log_percentile(simulated(random, machine(random), ns=100_000.0 * slower), q=q, seed=seed)
    return ratio_of(before, after).p


def test_a_model_against_itself_is_different_in_at_most_five_per_cent_of_pairs() -> None:
    different = sum(p_of_pair(seed) < 0.05 for seed in range(PAIRS))
    assert different / PAIRS <= 0.05


def test_a_slow_down_of_ten_per_cent_is_found_in_at_least_ninety_five_per_cent_of_pairs() -> None:
    found = sum(p_of_pair(seed, slower=1.1) < 0.05 for seed in range(PAIRS))
    assert found / PAIRS >= 0.95


def test_a_speedup_is_untouched_by_what_happens_to_both() -> None:
    """Interleaved in one run, the machine's wandering cancels: even 5 % is found where the latencies show nothing."""
    found = different = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        estimates = []
        for slower in (1.0, 1.0, 1.05):
            level = machine(random, spread=0.1)
            teacher = simulated(random, level, ns=900_000.0)
            estimates.append(log_percentile(teacher, below=simulated(random, level, ns=100_000.0 * slower), seed=seed))
        different += ratio_of(estimates[0], estimates[1]).p < 0.05
        found += ratio_of(estimates[0], estimates[2]).p < 0.05
    assert different <= 10
    assert found >= 190


def test_the_interval_covers_the_true_ratio_at_its_rate() -> None:
    hits = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        before = log_percentile(simulated(random, machine(random)), seed=seed)
        after = log_percentile(simulated(random, machine(random), ns=130_000.0), seed=seed)
        found = ratio_of(before, after)
        assert found.low <= found.value <= found.high
        hits += found.low <= 1.3 <= found.high
    assert hits >= 285


def test_two_per_cent_are_the_place_in_memory_and_not_a_difference() -> None:
    exact = [Estimate(value, 1e-5, 11) for value in (0.0, math.log(1.015), math.log(1.03))]
    assert ratio_of(exact[0], exact[1]).p == 1.0
    assert ratio_of(exact[0], exact[2]).p < 1e-6
    assert ratio_of(exact[0], exact[2]).value == pytest.approx(1.03)
    assert ratio_of(exact[0], exact[1], placement=0.0).p < 1e-6


def test_without_any_spread_only_the_placement_is_left() -> None:
    a, b, c = (Estimate(math.log(value), 0.0, 11) for value in (100, 101, 110))
    assert ratio_of(a, b).p == 1.0
    assert ratio_of(a, c).p == 0.0
    assert ratio_of(a, c).low == pytest.approx(1.1 / 1.02)


def test_percentiles_of_other_ranks_and_too_few_blocks() -> None:
    random = np.random.default_rng(0)
    series = simulated(random, np.ones(BLOCKS))
    assert math.exp(log_percentile(series, q=0.9).value) == pytest.approx(np.quantile(series.latency_ns, 0.9), rel=0.01)
    short = Series(np.ones(30), np.repeat(np.arange(3), 10))
    with pytest.raises(UsageError, match="found 3 blocks, expected at least 4; measure for longer"):
        log_percentile(short)


# Student's t, from printed tables: (degrees of freedom, t, two-sided p).
@pytest.mark.parametrize(
    ("freedom", "t", "p"),
    [(5, 2.571, 0.05), (10, 2.228, 0.05), (10, 3.169, 0.01), (22, 2.074, 0.05), (30, 2.750, 0.01)],
)
def test_t_is_students(freedom: float, t: float, p: float) -> None:
    assert t_test(t, freedom) == pytest.approx(p, abs=0.002)
    assert t_quantile(1 - p / 2, freedom) == pytest.approx(t, rel=0.01)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_never_lowers_and_keeps_the_order(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(value <= after <= 1 for value, after in zip(values, adjusted, strict=True))
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_p_of_an_interval_is_that_of_its_test() -> None:
    # A normal estimate of 3 with error 1.
    from statistics import NormalDist

    def interval_at(confidence: float) -> tuple[float, float]:
        half = NormalDist().inv_cdf((1 + confidence) / 2)
        return 3 - half, 3 + half

    assert p_of_interval(interval_at) == pytest.approx(0.0026998, rel=1e-4)
    same = np.ones((100, 1))
    assert p_of_interval(lambda level: _drop(same, same, level)) == pytest.approx(1.0)
    worse = np.concatenate([np.zeros((40, 1)), np.ones((60, 1))])
    assert p_of_interval(lambda level: _drop(same, worse, level)) < 1e-9


def _drop(before: np.ndarray, after: np.ndarray, level: float) -> tuple[float, float]:
    found = drop_points("classification", before, after, confidence=level)
    return found.low, found.high


def test_a_difference_beyond_every_confidence_has_a_finite_p_value() -> None:
    """Of 36 samples one side has all right and the other none: no interval that a float can name holds 0."""
    right, wrong = np.ones((36, 1)), np.zeros((36, 1))

    def interval_at(confidence: float) -> tuple[float, float]:
        found = drop_points("classification", right, wrong, confidence=confidence)
        return found.low, found.high

    p_value = p_of_interval(interval_at)
    assert 0 < p_value < 1e-6
