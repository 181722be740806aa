"""Which variant ships: limits are judged by intervals, the ranking is exact."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.cli.tables import ADVICE, limit_lines
from edgekd.spec import Interval, Limits, LimitVerdict
from edgekd.stages.choosing import (
    UNITS,
    choose,
    explain,
    judge_exact,
    judge_interval,
    judge_latency,
    not_proven_faster,
    rank,
    speedup,
)
from edgekd.stages.mixing import is_needed


def verdict(kind: str, *, value: float = 1.0, limit: float = 2.0) -> LimitVerdict:
    return LimitVerdict("accuracy_drop_points", limit, Interval(value, value, value), kind)  # type: ignore[arg-type]


def test_an_interval_is_met_missed_or_unproven() -> None:
    limit = 1.0
    assert judge_interval("accuracy_drop_points", limit, Interval(0.2, -0.5, 1.0), needed=None).verdict == "met"
    assert judge_interval("accuracy_drop_points", limit, Interval(2.0, 1.01, 3.0), needed=None).verdict == "missed"
    unproven = judge_interval("accuracy_drop_points", limit, Interval(0.8, -0.5, 2.0), needed=900)
    assert (unproven.verdict, unproven.needed_n) == ("unproven", 900)


def test_exact_figures_have_no_middle() -> None:
    assert judge_exact("size_kb", 10.0, 10.0).verdict == "met"
    assert judge_exact("size_kb", 10.0, 10.001).verdict == "missed"


def test_latency_without_enough_calls_is_unproven_and_says_how_many() -> None:
    found = judge_latency(1.0, None, n=20)
    assert (found.verdict, found.needed_n) == ("unproven", 64)
    assert found.to_json()["value"] is None
    assert "at least 64 independent calls" in explain(found, 0.95)


def test_latency_says_how_many_calls_a_proof_takes() -> None:
    found = judge_latency(1.0, {"value": 0.9, "low": 0.8, "high": 1.1}, n=100)
    assert found.verdict == "unproven"
    assert found.needed_n in (400, 401), "twice as wide as the gap: four times as many calls"
    assert judge_latency(1.0, {"value": 1.05, "low": 0.8, "high": 1.1}, n=100).needed_n is None


def test_limits_come_before_speed_and_speed_before_size() -> None:
    met, missed = [verdict("met")], [verdict("missed", value=3.0)]
    assert rank({"fast": missed, "slow": met}, p50_ms={"fast": 1, "slow": 9}, size_bytes={"fast": 1, "slow": 9}) == [
        "slow",
        "fast",
    ]
    ranking = rank(
        {"a": met, "b": met, "c": met},
        p50_ms={"a": 1.0, "b": 1.09, "c": 1.2},
        size_bytes={"a": 900, "b": 300, "c": 100},
    )
    assert ranking == ["b", "a", "c"], "b is as fast as a and smaller; c is slower"


def test_an_unproven_limit_whose_figure_exceeds_it_ranks_behind() -> None:
    judged = {"over": [verdict("unproven", value=2.5)], "within": [verdict("unproven", value=1.5)]}
    assert rank(judged, p50_ms={"over": 1, "within": 5}, size_bytes={"over": 1, "within": 5})[0] == "within"


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(
            st.sampled_from(["met", "missed", "unproven"]),
            st.floats(0.001, 100),
            st.integers(1, 10**6),
        ),
        min_size=1,
    )
)
def test_ranking_is_a_permutation_and_never_prefers_a_missed_limit(items: dict[str, tuple[str, float, int]]) -> None:
    judged = {name: [verdict(item[0], value=3.0 if item[0] == "missed" else 1.0)] for name, item in items.items()}
    ranking = rank(
        judged,
        p50_ms={name: item[1] for name, item in items.items()},
        size_bytes={name: item[2] for name, item in items.items()},
    )
    assert sorted(ranking) == sorted(items)
    missed = [items[name][0] == "missed" for name in ranking]
    assert missed == sorted(missed)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (judge_exact("size_kb", 10.0, 12.5), "limit size_kb = 10 kB is missed: found 12.5, 2.5 kB too much"),
        (
            judge_interval("accuracy_drop_points", 1.0, Interval(0.5, -1.0, 2.0, 300), needed=4000),
            "n = 300 is too small, a proof takes about 4,000 samples",
        ),
    ],
)
def test_a_limit_is_told_in_a_sentence(item: LimitVerdict, text: str) -> None:
    assert text in explain(item, 0.95)


def row(value: float, low: float, high: float) -> dict[str, Interval | None]:
    return {"speedup": Interval(value, low, high)}


ROWS = {
    "float32": {"speedup": None},
    "faster": row(1.5, 1.01, 2.0),
    "perhaps": row(1.2, 0.99, 1.4),
    "slower": row(0.7, 0.6, 0.8),
    "untold": {"speedup": None},
}


def test_what_is_not_proven_faster_is_held_back_with_its_reason_unless_size_was_asked_for() -> None:
    held = not_proven_faster(ROWS, Limits())
    assert set(held) == {"perhaps", "slower", "untold"}
    assert held["perhaps"] == "not proven faster than float32 (1.20x [0.99, 1.40]), and no limit asks for a smaller one"
    assert "too few launches were timed" in held["untold"]
    assert set(not_proven_faster(ROWS, Limits(latency_p90_ms=1.0, accuracy_drop_points=1.0))) == set(held)
    assert not_proven_faster(ROWS, Limits(size_kb=10.0)) == {}
    assert not_proven_faster(ROWS, Limits(peak_memory_mb=10.0)) == {}


@given(st.lists(st.sampled_from(sorted(ROWS)), min_size=1, unique=True), st.randoms())
def test_never_is_an_int8_chosen_that_is_not_proven_faster(others: list[str], random: Random) -> None:
    names = {"float32", *others}
    judged = {name: [verdict(random.choice(["met", "missed", "unproven"]))] for name in names}
    held = not_proven_faster({name: ROWS[name] for name in names}, Limits())
    figures = {name: random.uniform(0.1, 1) for name in names}
    sizes = {name: random.randint(1, 9) for name in names}
    ranking = rank(judged, p50_ms=figures, size_bytes=sizes, held_back=held)
    assert ranking[0] not in held
    assert sorted(ranking) == sorted(names)
    assert choose(judged, p50_ms=figures, size_bytes=sizes, held_back=held) == ranking[0]


def test_the_speedup_is_that_of_launches_beside_each_other() -> None:
    rng = np.random.default_rng(0)
    blocks, launches = [8] * 24, [2] * 12
    slow = np.repeat(rng.uniform(900, 1300, 24), 8)
    samples = {
        "float32": {"latency_ns": slow.tolist(), "block": blocks, "launch": launches},
        "int8": {"latency_ns": (slow / 2).tolist(), "block": blocks, "launch": launches},
        "few": {"latency_ns": [1.0, 2.0], "block": [1, 1], "launch": [1, 1]},
    }
    found = speedup(samples, "int8", 0.95)
    assert found is not None
    assert found.value == pytest.approx(2.0)
    assert 1.9 < found.low <= 2.0 <= found.high < 2.1
    assert speedup(samples, "float32", 0.95) is None
    assert speedup(samples, "few", 0.95) is None


@pytest.mark.parametrize(
    ("student", "quantized", "needed"),
    [
        ((0.1, 0.5), (2.0, 3.0), True),
        ((0.1, 0.5), (0.4, 0.9), False),
        ((0.1, 0.5), (0.4, 1.1), True),  # float proves it, int8 does not
        ((0.1, 4.0), (0.4, 5.0), False),  # nobody can prove it: the figure holds
        ((0.1, 4.0), (1.5, 5.0), True),
        ((1.5, 4.0), (1.6, 5.0), False),  # the student itself misses it
    ],
)
def test_a_mixture_is_made_where_float_holds_the_limit_and_int8_does_not(student, quantized, needed) -> None:
    def interval(value: float, high: float) -> Interval:
        return Interval(value, value - 1, high)

    assert is_needed(1.0, interval(*student), interval(*quantized)) is needed


def test_what_each_variant_missed_is_a_table() -> None:
    missed = judge_exact("size_kb", 10.0, 12.5).to_json()
    unproven = judge_interval("accuracy_drop_points", 1.0, Interval(0.5, -1.0, 2.0, 300), needed=4000).to_json()
    described = {
        "all_limits": {"float32": [missed], "int8_u8s8": [judge_exact("size_kb", 10.0, 4.0).to_json(), unproven]},
        "held_back": {"int8_u8s8": "not proven faster"},
    }
    lines = limit_lines(described, fail_unproven=False)
    assert lines == [
        "float32    missed      size_kb <= 10: 12.5 kB, missed by 2.5 kB",
        "int8_u8s8  not chosen  not proven faster",
    ]
    assert "int8_u8s8  unproven" in limit_lines(described, fail_unproven=True)[1]
    assert set(ADVICE) == set(UNITS)
