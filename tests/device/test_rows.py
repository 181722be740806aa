"""From raw samples to rows: values by hand, no process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.device.candidates import Candidate, Plan, Samples
from edgekd.device.postprocess import Denormalize, PostStep, Sigmoid, Threshold
from edgekd.device.rows import Measured, describe_candidate, judged, launch_of_calls, make_row, raw_samples, series
from edgekd.spec import Array


def _plan(name: str, *, batch: int = 1, postprocess: tuple[PostStep, ...] = (), error: str | None = None) -> Plan:
    return Plan(Candidate(name, Path("m.onnx"), batch=batch), postprocess=postprocess, size_bytes=1234, error=error)


def _measured(scale: float, *, outputs: Array | None = None, seed: int = 0) -> Measured:
    random = np.random.default_rng(seed)
    block: NDArray[np.int64] = np.repeat(np.arange(24), 40)
    latency = (scale * 1e6 * random.lognormal(0, 0.05, len(block))).astype(np.int64)
    return Measured(
        latency,
        block,
        block // 2,
        order=list(range(24)),
        calls=len(block),
        seconds=1.0,
        cpu_s=0.48,
        energy_mj=240.0,
        outputs=outputs,
    )


def test_latency_throughput_and_cpu_time() -> None:
    row = make_row(_plan("a", batch=4), _measured(2.0), reference=None, samples=None, seed=0)
    assert row["n"] == 960
    p50, p90, p99 = (row["latency_ms"][name] for name in ("p50", "p90", "p99"))
    assert p50["low"] <= p50["value"] <= p50["high"]
    assert p50["value"] == pytest.approx(2.0, rel=0.01)
    # The 90th percentile of a lognormal: exp(1.2816 * sigma).
    assert p90["value"] == pytest.approx(2.0 * np.exp(1.2816 * 0.05), rel=0.01)
    assert p99["value"] > p90["value"]
    assert row["throughput_per_s"] == pytest.approx(4 / 0.002, rel=0.01)
    assert row["cpu_ms"] == pytest.approx(0.5)
    assert row["energy_mj"] == pytest.approx(0.25)
    assert row["size_bytes"] == 1234
    assert row["speedup"] is row["accuracy"] is row["drop_points"] is row["cold_start_ms"] is None
    assert "memory_mb" not in row


def test_a_percentile_without_its_calls_is_null() -> None:
    few = _measured(1.0)
    few.latency_ns, few.block, few.launch = few.latency_ns[:100], few.block[:100], few.launch[:100]
    latency = make_row(_plan("a"), few, reference=None, samples=None, seed=0)["latency_ms"]
    assert latency["p50"] is not None
    assert latency["p99"] is None


@pytest.mark.parametrize(("batch", "scenario"), [(1, "single-stream"), (8, "multi-stream"), (3, "offline")])
def test_scenarios_have_mlperfs_names(batch: int, scenario: str) -> None:
    assert (
        make_row(_plan("a", batch=batch), _measured(1.0), reference=None, samples=None, seed=0)["scenario"] == scenario
    )


def test_speedup_is_the_reference_over_the_candidate() -> None:
    teacher = (_plan("teacher"), _measured(6.0, seed=1))
    speedup = make_row(_plan("a"), _measured(2.0), reference=teacher, samples=None, seed=0)["speedup"]
    assert speedup["against"] == "teacher"
    assert speedup["value"] == pytest.approx(3.0, rel=0.01)
    assert 2.9 < speedup["low"] < 3.0 < speedup["high"] < 3.1


def test_one_launch_tells_no_speedup() -> None:
    teacher, student = _measured(6.0, seed=1), _measured(2.0)
    student.launch = np.zeros_like(student.launch)
    row = make_row(_plan("a"), student, reference=(_plan("teacher"), teacher), samples=None, seed=0)
    assert row["speedup"] is None
    assert row["latency_ms"]["p50"] is not None


def test_speedup_is_per_sample() -> None:
    teacher = (_plan("teacher"), _measured(6.0, seed=1))
    speedup = make_row(_plan("a", batch=8), _measured(16.0), reference=teacher, samples=None, seed=0)["speedup"]
    assert speedup["value"] == pytest.approx(3.0, rel=0.01)


def test_the_reference_is_not_compared_with_itself() -> None:
    teacher = (_plan("teacher"), _measured(6.0))
    assert make_row(*teacher, reference=teacher, samples=None, seed=0)["speedup"] is None


def test_cold_starts_need_ten_processes() -> None:
    measured = _measured(1.0)
    measured.cold = [(100.0 + i, 10.0) for i in range(9)]
    assert make_row(_plan("a"), measured, reference=None, samples=None, seed=0)["cold_start_ms"] is None
    measured.cold.append((109.0, 10.0))
    row = make_row(_plan("a"), measured, reference=None, samples=None, seed=0)
    assert row["cold_start_ms"] == {"value": 115.0, "low": 111.0, "high": 118.0, "n": 10}
    assert row["load_ms"]["value"] == 105.0
    assert row["first_ms"] == {"value": 10.0, "low": 10.0, "high": 10.0, "n": 10}


def test_accuracy_drop_and_agreement_are_paired() -> None:
    y = np.arange(200) % 4
    right = np.eye(4, dtype=np.float32)[y]
    worse = right.copy()
    worse[:10] = np.eye(4, dtype=np.float32)[(y[:10] + 1) % 4]
    samples = Samples(np.zeros((200, 2), np.uint8), y, "classification")
    teacher = (_plan("teacher"), _measured(6.0, outputs=right))
    row = make_row(_plan("a"), _measured(2.0, outputs=worse), reference=teacher, samples=samples, seed=0)
    assert row["accuracy"]["value"] == 0.95
    assert row["accuracy"]["n"] == 200
    assert row["agreement"] == 0.95
    assert row["drop_points"]["value"] == pytest.approx(5.0)
    assert 1.0 < row["drop_points"]["low"] < 5.0 < row["drop_points"]["high"]
    own = make_row(*teacher, reference=teacher, samples=samples, seed=0)
    assert own["accuracy"]["value"] == 1.0
    assert own["drop_points"] is None


def test_regression_outputs_are_scored_in_the_units_of_the_targets() -> None:
    standard = np.random.default_rng(0).standard_normal((50, 1)).astype(np.float32)
    samples = Samples(np.zeros((50, 2), np.uint8), standard * 30 + 200, "regression")
    plan = _plan("a", postprocess=(Denormalize((200.0,), (30.0,)),))
    right = make_row(plan, _measured(1.0, outputs=standard), reference=None, samples=samples, seed=0)
    assert right["accuracy"]["value"] == pytest.approx(1.0, abs=1e-4)
    wrong = make_row(_plan("a"), _measured(1.0, outputs=standard), reference=None, samples=samples, seed=0)
    assert wrong["accuracy"]["value"] < -1


def test_labels_are_present_from_where_the_predictor_says_so() -> None:
    y = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.uint8)
    logits = (y.astype(np.float32) - 0.5) * 0.2
    samples = Samples(np.zeros((4, 2), np.uint8), y, "multilabel")
    teacher = (_plan("teacher"), _measured(1.0, outputs=logits))
    own = make_row(*teacher, reference=None, samples=samples, seed=0)
    assert own["accuracy"]["value"] == 1.0, "without steps: those of the task"
    strict = _plan("a", postprocess=(Sigmoid(), Threshold(0.6)))
    row = make_row(strict, _measured(1.0, outputs=logits), reference=teacher, samples=samples, seed=0)
    assert row["accuracy"]["value"] == 0.0, "probabilities are 0.475 and 0.525"
    assert row["agreement"] == 0.5
    low = _plan("a", postprocess=(Sigmoid(), Threshold(0.3)))
    assert make_row(low, _measured(1.0, outputs=logits - 0.5), reference=teacher, samples=samples, seed=0)["accuracy"][
        "value"
    ] == pytest.approx(2 / 3)


def test_intervals_are_as_sure_as_asked_for() -> None:
    y = np.arange(200) % 2
    outputs = np.eye(2, dtype=np.float32)[np.where(np.arange(200) < 20, 1 - y, y)]
    samples = Samples(np.zeros((200, 2), np.uint8), y, "classification")
    teacher = (_plan("teacher"), _measured(6.0, outputs=np.eye(2, dtype=np.float32)[y]))

    def widths(confidence: float) -> list[float]:
        row = make_row(
            _plan("a"),
            _measured(2.0, outputs=outputs),
            reference=teacher,
            samples=samples,
            seed=0,
            confidence=confidence,
        )
        return [item["high"] - item["low"] for item in (row["accuracy"], row["drop_points"], row["latency_ms"]["p90"])]

    assert all(narrow < wide for narrow, wide in zip(widths(0.8), widths(0.99)))


def test_a_failed_candidate_is_a_row_with_its_error() -> None:
    plan = _plan("a", error="no kernel for this board")
    row = make_row(plan, Measured(), reference=None, samples=None, seed=0)
    assert row["error"] == "no kernel for this board"
    assert row["latency_ms"] == {"p50": None, "p90": None, "p99": None}
    assert describe_candidate(plan, Measured())["error"] == "no kernel for this board"


def test_a_failed_reference_takes_only_the_comparison_with_it() -> None:
    teacher = (_plan("teacher", error="gone"), Measured())
    row = make_row(_plan("a"), _measured(2.0), reference=teacher, samples=None, seed=0)
    assert row["speedup"] is None
    assert row["latency_ms"]["p50"] is not None


def test_the_verdict_is_told_what_held_each_candidate_up() -> None:
    measured = replace(_measured(1.0), waited_s=0.2, interrupted=48.0)
    told = series(_plan("a"), measured, min_calls=7)
    assert (told.waited_share, told.interrupted_share, told.min_calls) == (0.2, 0.05, 7)
    described = describe_candidate(_plan("a"), measured)
    assert (described["waited_share"], described["interrupted_share"]) == (0.2, 0.05)
    two = replace(_plan("a"), candidate=Candidate("a", "m.onnx", threads=2))
    # Threads that wake each other wait for a core without one being taken from them.
    assert series(two, measured, min_calls=7).interrupted_share is None
    assert series(_plan("a"), replace(measured, waited_s=None, interrupted=None), min_calls=7).waited_share is None
    assert series(_plan("a"), Measured(), min_calls=7).waited_share is None


def test_raw_samples_hold_every_call_and_can_be_cut_into_blocks() -> None:
    measured = _measured(1.0)
    raw = raw_samples(measured)
    assert sum(raw["block"]) == len(raw["latency_ns"]) == 960
    assert len(raw["block"]) == len(raw["order"]) == sum(raw["launch"]) == 24
    assert raw["launch"] == [2] * 12
    assert launch_of_calls(raw).tolist() == measured.launch.tolist()
    assert not launch_of_calls({"block": [3, 2]}).any(), "a result from before launches were known"
    assert raw["latency_ns"] == measured.latency_ns.tolist()
    assert json.loads(json.dumps(raw, allow_nan=False)) == raw
    assert "contributions" not in raw


def test_raw_samples_hold_what_each_labelled_sample_adds() -> None:
    y = np.arange(8) % 4
    wrong = np.eye(4, dtype=np.float32)[y[::-1]]
    samples = Samples(np.zeros((8, 2), np.uint8), y, "classification")
    measured = _measured(1.0, outputs=wrong)
    measured.cold.append((3.0, 4.0))
    raw = raw_samples(measured, judged(_plan("a"), measured, samples))
    assert raw["contributions"] == [(y == y[::-1]).astype(int).tolist()]
    assert raw["cold_ms"] == [[3.0, 4.0]]
    assert json.loads(json.dumps(raw)) == raw
    targets = Samples(samples.x, y[:, None] / 3, "regression")
    errors = raw_samples(measured, judged(_plan("a"), _measured(1.0, outputs=wrong[:, :1]), targets))["contributions"]
    assert [len(column) for column in errors] == [8, 8, 8]
    assert isinstance(errors[0][0], float)
    assert judged(_plan("a", error="gone"), measured, samples) is None
    assert judged(_plan("a"), measured, None) is None


def test_the_data_are_told_apart_by_every_byte() -> None:
    x, y = np.zeros((4, 2), np.uint8), np.arange(4)
    plain = Samples(x, y, "classification").describe()
    assert plain == Samples(x.copy(), y.copy(), "classification").describe()
    assert (plain["n"], plain["task"]) == (4, "classification")
    others = [Samples(x + 1, y, "classification"), Samples(x, y[::-1], "classification")]
    others.append(Samples(x.reshape(4, 2, 1), y, "classification"))
    assert len({item.describe()["sha256"] for item in others} | {plain["sha256"]}) == 4


def test_further_metrics_classes_and_the_worst_samples_are_in_the_row() -> None:
    y = np.arange(200) % 4
    right = np.eye(4, dtype=np.float32)[y]
    worse = right.copy()
    worse[:10] = np.eye(4, dtype=np.float32)[(y[:10] + 1) % 4]
    samples = Samples(np.zeros((200, 2), np.uint8), y, "classification", ("a", "b", "c", "d"))
    teacher = (_plan("teacher"), _measured(6.0, outputs=right))
    row = make_row(_plan("x"), _measured(2.0, outputs=worse), reference=teacher, samples=samples, seed=0)
    assert set(row["metrics"]) == {"f1_macro", "calibration_error"}
    assert [item["label"] for item in row["per_class"]] == ["a", "b", "c", "d"]
    assert row["per_class"][0]["reference"] == 1.0
    assert sorted(item["sample"] for item in row["worst"]) == list(range(10))
    assert row["worst"][0]["reference"] == row["worst"][0]["label"]
    own = make_row(*teacher, reference=teacher, samples=samples, seed=0)
    assert "reference" not in own["per_class"][0]
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_labels_beyond_the_models_classes_leave_the_classes_out() -> None:
    outputs = np.eye(4, dtype=np.float32)
    samples = Samples(np.zeros((4, 2), np.uint8), np.array([0, 1, 2, 9]), "classification")
    row = make_row(_plan("a"), _measured(1.0, outputs=outputs), reference=None, samples=samples, seed=0)
    assert row["accuracy"]["value"] == 0.75
    assert "metrics" not in row
    assert "worst" not in row


def test_targets_have_errors_in_their_units() -> None:
    standard = np.random.default_rng(0).standard_normal((50, 1)).astype(np.float32)
    samples = Samples(np.zeros((50, 2), np.uint8), standard * 30 + 200, "regression")
    plan = _plan("a", postprocess=(Denormalize((203.0,), (30.0,)),))
    row = make_row(plan, _measured(1.0, outputs=standard), reference=None, samples=samples, seed=0)
    assert row["metrics"] == pytest.approx({"mae": 3.0, "rmse": 3.0, "max_error": 3.0}, abs=1e-3)
    assert "per_class" not in row
