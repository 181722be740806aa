"""Comparing two results: which changes count, what is refused, and that many comparisons stay honest."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from test_differences import BLOCKS, CALLS, LAUNCHES, machine, simulated

from edgekd.device.comparison import Comparison, compare, parse_tolerance
from edgekd.errors import InputRefused, UsageError

MACHINE = {"cpu": "A", "cores": 4, "cores_allowed": 4, "quota": None, "governor": "performance", "container": None}


def result(
    *names: str,
    seed: int = 0,
    slower: float = 1.0,
    right: float = 0.9,
    size: int = 1000,
    memory: float = 50.0,
    against: str | None = None,
) -> dict[str, Any]:
    """A result as `benchmark` writes it, simulated; `slower` is about every candidate but the reference."""
    random = np.random.default_rng(seed)
    level = machine(random)
    rows, samples = [], {}
    for name in names:
        latency, _ = simulated(random, level, ns=1e5 * (1.0 if name == against else slower))
        correct = np.random.default_rng(7).permutation(1000) < 1000 * right
        cold = 100 * random.lognormal(0, 0.05, 12) * slower
        rows.append(
            {
                "candidate": name,
                "latency_ms": {
                    "p50": {"value": float(np.median(latency)) / 1e6},
                    "p90": {"value": float(np.quantile(latency, 0.9)) / 1e6},
                },
                "cold_start_ms": {"value": float(np.median(cold))},
                "memory_mb": {"load": memory - 5, "steady": memory},
                "size_bytes": size,
                "accuracy": {"value": float(correct.mean())},
                "speedup": None if against is None or name == against else {"value": 1 / slower, "against": against},
            }
        )
        samples[name] = {
            "latency_ns": latency.tolist(),
            "block": [CALLS] * BLOCKS,
            "launch": [BLOCKS // LAUNCHES] * LAUNCHES,
            "cold_ms": [[value / 2, value / 2] for value in cold],
            "contributions": [correct.astype(int).tolist()],
        }
    return {
        "machine": dict(MACHINE),
        "versions": {"numpy": "2"},
        "data": {"task": "classification", "n": 1000, "sha256": "0"},
        "candidates": [
            {"id": name, "runtime": "onnxruntime", "threads": 1, "batch": 1, "golden": "ok"} for name in names
        ],
        "rows": rows,
        "samples": samples,
        "verdict": {"value": "VALID", "reasons": [], "advice": []},
    }


def change(found: Comparison, metric: str, candidate: str = "a") -> Any:
    return next(item for item in found.changes if (item.candidate, item.metric) == (candidate, metric))


def test_a_result_against_itself_has_no_difference() -> None:
    same = result("a", "t", against="t")
    found = compare(same, same)
    assert {item.metric for item in found.changes} == {
        "latency", "latency_p90", "cold_start", "speedup", "memory", "size", "accuracy",
    }  # fmt: skip
    assert not any(item.real for item in found.changes)
    assert all(item.change == 0 for item in found.changes)
    assert found.regressions == found.notes == found.invalid == ()


def test_ten_comparisons_at_once_are_wrong_anywhere_in_at_most_five_per_cent_of_pairs() -> None:
    names = tuple("abcde")
    wrong = 0
    for seed in range(120):
        pair = [result(*names, seed=2 * seed + side) for side in (0, 1)]
        wrong += any(item.real for item in compare(*pair).changes if item.metric in ("latency", "cold_start"))
    assert wrong <= 6


def test_a_slow_down_is_a_regression_and_a_speed_up_is_not() -> None:
    found = compare(result("a"), result("a", seed=1, slower=1.2))
    assert change(found, "latency").regression
    assert change(found, "latency").low < 20 < change(found, "latency").high
    assert change(found, "cold_start").regression
    assert any(text.startswith("a: latency 0.1") and "tolerance 5)" in text for text in found.regressions)
    faster = compare(result("a", slower=1.2), result("a", seed=1))
    assert change(faster, "latency").real
    assert not change(faster, "latency").worse
    assert faster.regressions == ()


def test_a_real_change_within_the_tolerance_is_worse_but_no_regression() -> None:
    found = compare(result("a"), result("a", seed=1, slower=1.2), tolerance={"latency": 40.0, "latency_p90": 40.0})
    assert change(found, "latency").worse
    assert not change(found, "latency").regression


def test_a_slower_student_shows_in_its_speedup_and_the_teacher_stays() -> None:
    found = compare(result("a", "t", against="t"), result("a", "t", against="t", seed=1, slower=1.3))
    assert change(found, "speedup").regression
    assert change(found, "speedup").change == pytest.approx(100 * (1 / 1.3 - 1), abs=2)
    assert not change(found, "latency", "t").real
    other = result("a", "u", against="u")
    text = " ".join(compare(result("a", "t", against="t"), other).notes)
    assert "speedup is not compared: it was against t before and against u after" in text


def test_accuracy_is_paired_and_needs_the_same_samples() -> None:
    before, after = result("a", right=0.9), result("a", seed=1, right=0.87)
    found = change(compare(before, after), "accuracy")
    assert (found.before, found.after) == pytest.approx((90.0, 87.0))
    assert found.change == pytest.approx(-3.0)
    assert found.regression, "30 of 1000 samples lost and none won; unpaired intervals would overlap"
    assert found.low < -3 < found.high < 0
    after["data"]["sha256"] = "1"
    notes = compare(before, after).notes
    assert (
        "a: accuracy is not compared: the labelled samples are not the same; measure both with the same --data" in notes
    )


def test_memory_counts_beyond_two_megabytes_and_size_exactly() -> None:
    found = compare(result("a", memory=50.0, size=1000), result("a", memory=51.5, size=1005))
    assert not change(found, "memory").real
    assert change(found, "size").real
    assert not change(found, "size").regression, "0.5 % of 1 %"
    found = compare(result("a", memory=50.0, size=1000), result("a", memory=60.0, size=2000))
    assert change(found, "memory").regression
    assert change(found, "size").regression


def test_a_candidate_that_works_no_more_is_a_regression() -> None:
    before, after = result("a", "b"), result("a", "b")
    after["candidates"][0]["golden"] = "WRONG"
    after["candidates"][1]["error"] = "no kernel"
    assert compare(before, after).regressions == ("a: it does not give its golden outputs", "b: it failed: no kernel")
    healed = compare(after, before)
    assert healed.regressions == ()
    assert "b is not compared: before, it failed: no kernel" in healed.notes


def test_different_machines_are_refused_unless_told() -> None:
    before, after = result("a"), result("a")
    after["machine"]["cpu"] = "B"
    with pytest.raises(UsageError, match=r"different machines: cpu 'A' and 'B'\. .* or add --across-machines"):
        compare(before, after)
    assert "different machines: cpu 'A' and 'B'" in compare(before, after, across_machines=True).notes


def test_candidates_are_matched_by_id_and_a_single_pair_by_being_one() -> None:
    renamed = compare(result("a"), result("b"))
    assert {item.candidate for item in renamed.changes} == {"b"}
    some = compare(result("a", "b"), result("b", "c"))
    assert {item.candidate for item in some.changes} == {"b"}
    assert {"a is only in the result before", "c is only in the result after"} <= set(some.notes)
    with pytest.raises(UsageError, match="no candidate is in both results: before there are a, b, after c, d"):
        compare(result("a", "b"), result("c", "d"))
    threads = result("a")
    threads["candidates"][0]["threads"] = 2
    assert "a is not compared: threads 1 and 2" in compare(result("a"), threads).notes


def test_other_versions_and_invalid_results_are_told() -> None:
    after = result("a")
    after["versions"]["numpy"] = "3"
    after["verdict"] = {"value": "INVALID", "reasons": ["drift"], "advice": []}
    found = compare(result("a"), after)
    assert "different versions: numpy '2' and '3'" in found.notes
    assert found.invalid == ("after is INVALID: drift",)


def test_the_json_is_plain_and_names_the_schema() -> None:
    found = compare(result("a"), result("a", slower=1.5)).to_json()
    assert found["schema"] == "edgekd.comparison/1"
    assert found["regressions"]
    assert json.loads(json.dumps(found, allow_nan=False))["changes"][0]["metric"] == "latency"


@pytest.mark.parametrize("path", ["machine", "versions", "candidates", "rows", "samples", "verdict"])
@pytest.mark.parametrize("value", [None, 7, "text", [], {}, [1]])
def test_a_damaged_result_is_refused_in_words(path: str, value: object) -> None:
    broken = copy.deepcopy(result("a"))
    broken[path] = value
    if (path, value) in (("machine", {}), ("versions", {})):
        compare(result("a"), broken, across_machines=True)  # nothing is known about them; the rest stands
        return
    with pytest.raises(
        (InputRefused, UsageError), match=r"measure again with `edgekd benchmark --out`|compare results of"
    ):
        compare(result("a"), broken, across_machines=True)


@pytest.mark.parametrize("change", [{"block": [3]}, {"latency_ns": [math.nan] * 960}, {"latency_ns": "x"}])
def test_damaged_samples_are_refused(change: dict[str, Any]) -> None:
    broken = result("a")
    broken["samples"]["a"].update(change)
    with pytest.raises(InputRefused, match="a result lacks what a comparison needs"):
        compare(result("a"), broken)


def test_few_launches_leave_out_the_latency_only() -> None:
    short = result("a")
    short["samples"]["a"].update(latency_ns=[100.0] * 60, block=[20, 20, 20], launch=[1, 1, 1])
    found = compare(short, short)
    assert "a: latency is not compared: found 3 launches, expected at least 4; measure for longer" in found.notes
    assert change(found, "accuracy").p is not None


def test_tolerances_are_read_and_wrong_ones_refused() -> None:
    assert parse_tolerance("latency=3%, accuracy=0.2") == {"latency": 3.0, "accuracy": 0.2}
    assert parse_tolerance("") == {}
    with pytest.raises(UsageError, match=r"--tolerance latenzy=3: there is no such metric. Did you mean 'latency'\?"):
        parse_tolerance("latenzy=3")
    with pytest.raises(UsageError, match=r"accuracy is compared in percentage points; write accuracy=0\.5"):
        parse_tolerance("accuracy=1%")
    with pytest.raises(UsageError, match="--tolerance latency=fast: expected a number, as in latency=5%"):
        parse_tolerance("latency=fast")
    with pytest.raises(UsageError, match="--tolerance size=-1: expected a number from 0"):
        parse_tolerance("size=-1")
    with pytest.raises(UsageError, match="tolerance 'speed'"):
        compare(result("a"), result("a"), tolerance={"speed": 1})
