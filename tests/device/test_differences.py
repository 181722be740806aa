"""Differences between runs: known values of the tests, and thousands of simulated pairs of runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.device.differences import holm, p_of_interval, ratio_of
from edgekd.device.metrics import drop_points
from edgekd.device.statistics import Estimate, across_launches

PAIRS = 1000
LAUNCHES, BLOCKS, CALLS = 12, 48, 20
Series = tuple[np.ndarray, np.ndarray]


def machine(random: np.random.Generator, *, rho: float = 0.7, spread: float = 0.02) -> np.ndarray:
    """How slow the machine is in each block: it wanders, and now and then another program comes for a few blocks.

    Between two launches lies the start of the next processes, which takes twice as long as a launch is timed (measured
    with the suite quick).
    """
    blocks = 3 * BLOCKS
    wander = np.empty(blocks)
    wander[0] = random.standard_normal()
    for i in range(1, blocks):
        wander[i] = rho * wander[i - 1] + math.sqrt(1 - rho**2) * random.standard_normal()
    level = np.exp(spread * wander)
    for start in np.flatnonzero(random.random(blocks) < 0.01):
        level[start : start + random.geometric(1 / 3)] *= 1.5
    each = BLOCKS // LAUNCHES
    return level.reshape(LAUNCHES, 3 * each)[:, 2 * each :].ravel()


def simulated(random: np.random.Generator, level: np.ndarray, *, ns: float = 100_000.0) -> Series:
    """Calls on that machine, 3 % of which have a tail so heavy that its variance is infinite, and their launches.

    Processes of one model differ by 2.5 %, as measured of calls of 10 microseconds.
    """
    launch = np.arange(BLOCKS) * LAUNCHES // BLOCKS
    level = level * random.lognormal(0, 0.025, LAUNCHES)[launch]
    calls = ns * level[:, None] * random.lognormal(0, 0.05, (BLOCKS, CALLS))
    hit = random.random(calls.shape) < 0.03
    calls = np.where(hit, calls * (1 + random.pareto(1.5, calls.shape)), calls)
    return calls.ravel(), np.repeat(launch, CALLS)


def p_of_pair(seed: int, *, slower: float = 1.0, q: float = 0.5) -> float:
    random = np.random.default_rng(seed)
    before = across_launches(*simulated(random, machine(random)), q=q)
    after = across_launches(*simulated(random, machine(random), ns=100_000.0 * slower), q=q)
    return ratio_of(before, after).p


def test_a_model_against_itself_is_different_in_at_most_five_per_cent_of_pairs() -> None:
    different = sum(p_of_pair(seed) < 0.05 for seed in range(PAIRS))
    assert different / PAIRS <= 0.05


def test_a_slow_down_of_ten_per_cent_is_found_in_at_least_ninety_five_per_cent_of_pairs() -> None:
    found = sum(p_of_pair(seed, slower=1.1) < 0.05 for seed in range(PAIRS))
    assert found / PAIRS >= 0.95


def test_a_speedup_is_untouched_by_what_happens_to_both() -> None:
    """Interleaved in one run, the machine's wandering cancels: even 7 % is found where the latencies show nothing."""
    found = different = 0
    for seed in range(500):
        random = np.random.default_rng(seed)
        estimates = []
        for slower in (1.0, 1.0, 1.07):
            level = machine(random, spread=0.1)
            teacher = simulated(random, level, ns=900_000.0)
            estimates.append(across_launches(*teacher, below=simulated(random, level, ns=100_000.0 * slower)))
        different += ratio_of(estimates[0], estimates[1]).p < 0.05
        found += ratio_of(estimates[0], estimates[2]).p < 0.05
    assert different / 500 <= 0.05
    assert found / 500 >= 0.95


def test_the_interval_covers_the_true_ratio_at_its_rate() -> None:
    hits = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        before = across_launches(*simulated(random, machine(random)))
        after = across_launches(*simulated(random, machine(random), ns=130_000.0))
        found = ratio_of(before, after)
        assert found.low <= found.value <= found.high
        hits += found.low <= 1.3 <= found.high
    assert hits >= 285


def test_without_any_spread_every_change_is_one() -> None:
    a, b = (Estimate(math.log(value), 0.0, 11, 12) for value in (100, 101))
    assert ratio_of(a, a).p == 1.0
    assert ratio_of(a, b).p == 0.0
    assert ratio_of(a, b).low == ratio_of(a, b).high == pytest.approx(1.01)


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
