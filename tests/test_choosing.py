"""Which variant ships: limits are judged by intervals, the ranking is exact."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.spec import Interval, LimitVerdict
from edgekd.stages.choosing import explain, judge_exact, judge_interval, judge_latency, rank


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
