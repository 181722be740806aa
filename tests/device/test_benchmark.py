"""The whole benchmark on small models: shape, order, accuracy, golden check, failures, and no orphans."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_models import linear_model, make_manifest, weights, write_bundle

from edgekd.device.benchmark import Candidate, Samples, benchmark
from edgekd.device.bundle import Bundle
from edgekd.device.machine import available_cores
from edgekd.device.runtimes import open_session
from edgekd.device.suites import Suite
from edgekd.device.worker import Prepares
from edgekd.errors import UsageError
from edgekd.files import write_json
from edgekd.spec import Layout, Scale

TINY = Suite("tiny", min_calls=40, max_seconds=5.0, block_ms=1.0, cold_starts=0, memory=False, min_blocks=6, launches=1)
STEPS = (Scale(1 / 16), Layout("flat"))

ROW_KEYS = {
    "candidate", "scenario", "n", "latency_ms", "throughput_per_s", "load_ms", "first_ms", "cold_start_ms", "cpu_ms",
    "size_bytes", "accuracy", "agreement", "drop_points", "speedup",
}  # fmt: skip


def _labelled(matrix: np.ndarray, *, wrong: int, num: int = 150) -> Samples:
    """Random bytes (N, 4, 4) whose labels are the answers of `matrix`, except for the first `wrong`."""
    x = np.random.default_rng(5).integers(0, 17, (num, 4, 4), dtype=np.uint8)
    y = (x.reshape(num, 16).astype(np.float32) / 16 @ matrix).argmax(axis=1)
    y[:wrong] = (y[:wrong] + 1) % 3
    return Samples(x, y, "classification")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ONNX models and one that is none."""
    place = tmp_path_factory.mktemp("models")
    (place / "right.onnx").write_bytes(linear_model(weights()))
    (place / "other.onnx").write_bytes(linear_model(weights(seed=9)))
    (place / "broken.onnx").write_bytes(b"no model")
    return place


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    """One run over three candidates, one of which cannot be loaded; memory and cold start too."""
    told: list[tuple[str, int, int]] = []
    found = benchmark(
        [
            Candidate("right", folder / "right.onnx", preprocess=STEPS),
            Candidate("broken", folder / "broken.onnx", preprocess=STEPS),
            Candidate("other", folder / "other.onnx", preprocess=STEPS, batch=8),
        ],
        suite=replace(TINY, name="small", cold_starts=10, memory=True, min_blocks=12, launches=4),
        against="right",
        samples=_labelled(weights(), wrong=30),
        progress=lambda text, done, total: told.append((text, done, total)),
    )
    found["told"] = told
    return found


def _row(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in results["rows"] if row["candidate"] == name)


def test_the_result_has_the_shape_of_results_json(results: dict[str, Any], tmp_path: Path) -> None:
    assert results["schema"] == "edgekd.results/1"
    assert {
        "command",
        "started",
        "versions",
        "machine",
        "suite",
        "seed",
        "candidates",
        "rows",
        "samples",
        "verdict",
    } <= (results.keys())
    assert [candidate["id"] for candidate in results["candidates"]] == ["right", "broken", "other"]
    for row in results["rows"]:
        assert row.keys() >= ROW_KEYS
    assert results["suite"]["name"] == "small"
    assert results["verdict"]["value"] in ("VALID", "INVALID")
    write_json(tmp_path / "results.json", results)
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == json.loads(json.dumps(results["rows"]))


def test_a_candidate_that_fails_is_a_row_with_error_and_the_others_go_on(results: dict[str, Any]) -> None:
    assert "cannot load" in _row(results, "broken")["error"]
    assert _row(results, "broken")["latency_ms"]["p50"] is None
    assert results["candidates"][1]["error"] == _row(results, "broken")["error"]
    for name in ("right", "other"):
        assert "error" not in _row(results, name)
        assert _row(results, name)["n"] >= 40


def test_blocks_alternate_there_and_back(results: dict[str, Any]) -> None:
    right, other = (results["samples"][name]["order"] for name in ("right", "other"))
    assert sorted(right + other) == list(range(len(right) + len(other)))
    assert len(right) == len(other) >= 6
    assert len(right) % 2 == 0
    sequence = "".join("R" if place in right else "O" for place in range(len(right) + len(other)))
    assert sequence == "ROOR" * (len(right) // 2)
    assert results["samples"]["right"]["launch"] == results["samples"]["other"]["launch"]
    assert len(results["samples"]["right"]["launch"]) == 4


def test_every_timed_call_is_in_the_result(results: dict[str, Any]) -> None:
    for name in ("right", "other"):
        raw, row = results["samples"][name], _row(results, name)
        assert len(raw["latency_ns"]) == sum(raw["block"]) == row["n"]
        assert len(raw["block"]) == len(raw["order"])
        assert min(raw["latency_ns"]) > 0
        assert min(raw["latency_ns"]) / 1e6 <= row["latency_ms"]["p50"]["value"] <= max(raw["latency_ns"]) / 1e6


def test_the_empty_loop_is_told_and_not_subtracted(results: dict[str, Any]) -> None:
    for name, candidate in zip(("right", "broken", "other"), results["candidates"]):
        assert (candidate["empty_call_ns"] is None) == (name == "broken")
        if name != "broken":
            assert 0 < candidate["empty_call_ns"] < min(results["samples"][name]["latency_ns"])


def test_accuracy_is_that_of_the_labels_and_drop_that_of_the_pairs(results: dict[str, Any]) -> None:
    right, other = _row(results, "right"), _row(results, "other")
    assert right["accuracy"]["value"] == 0.8
    assert right["drop_points"] is None
    samples = _labelled(weights(), wrong=30)
    x = samples.x.reshape(-1, 16).astype(np.float32) / 16
    answers = (x @ weights(seed=9)).argmax(axis=1)
    assert other["accuracy"]["value"] == pytest.approx(float((answers == samples.y).mean()))
    assert other["agreement"] == pytest.approx(float((answers == (x @ weights()).argmax(axis=1)).mean()))
    assert other["drop_points"]["value"] == pytest.approx(100 * (0.8 - other["accuracy"]["value"]))


def test_cold_start_is_load_and_first_call_over_ten_processes(results: dict[str, Any]) -> None:
    row = _row(results, "right")
    assert row["cold_start_ms"]["n"] == 10
    assert row["cold_start_ms"]["low"] <= row["cold_start_ms"]["value"] <= row["cold_start_ms"]["high"]
    assert row["load_ms"]["value"] <= row["cold_start_ms"]["value"]
    # A first call of a loaded model of 48 numbers takes far less than loading onnxruntime.
    assert row["first_ms"]["value"] < row["load_ms"]["value"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak that can be set back")
def test_memory_is_measured_per_phase_and_loading_a_runtime_shows(results: dict[str, Any]) -> None:
    memory = _row(results, "right")["memory_mb"]
    assert memory["load"] > memory["start"] + 5
    assert memory["steady"] < 300
    assert "memory_mb" not in _row(results, "broken")


def test_progress_tells_each_phase(results: dict[str, Any]) -> None:
    assert list(dict.fromkeys(text for text, _, _ in results["told"])) == [
        "loading and checking",
        "timing",
        "cold start",
    ]
    assert all(0 <= done < total or done == total for _, done, total in results["told"])
    # Four launches of two candidates, of which all but the first are cold starts; six more follow.
    assert [done for text, done, _ in results["told"] if text == "timing"] == [0, 1, 2, 3]
    assert [done for text, done, _ in results["told"] if text == "cold start"] == [3, 4, 5, 6, 7, 8, 9]


def test_each_launch_is_a_process_of_its_own_and_the_speedup_counts_them(folder: Path, tmp_path: Path) -> None:
    """A runtime that writes down its process each time it opens a model."""
    (tmp_path / "telling_runtime.py").write_text(TELLING)
    candidates = [
        Candidate(
            name, folder / "right.onnx", runtime="telling_runtime:open_model", options={"told": str(tmp_path / name)}
        )
        for name in "ab"
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        found = benchmark(candidates, suite=replace(TINY, launches=5, min_blocks=10), against="a")
    for name in "ab":
        processes = (tmp_path / name).read_text().split()
        assert len(processes) == len(set(processes)) == 5
        raw = found["samples"][name]
        assert raw["launch"] == [2] * 5
        assert len(raw["block"]) == len(raw["order"]) == 10
        # A call of the k-th process sleeps for k units: every sample is told with the launch that it belongs to.
        launches = np.repeat(np.repeat(np.arange(5), raw["launch"]), raw["block"])
        medians = [np.median(np.array(raw["latency_ns"])[launches == number]) for number in range(5)]
        assert medians == sorted(medians)
    assert _row(found, "b")["speedup"]["low"] <= 1 <= _row(found, "b")["speedup"]["high"]
    assert benchmark(candidates[:1], suite=TINY)["rows"][0]["speedup"] is None


def test_scenario_and_batch(results: dict[str, Any]) -> None:
    assert _row(results, "right")["scenario"] == "single-stream"
    assert _row(results, "other")["scenario"] == "multi-stream"


def test_a_bundle_brings_its_own_steps_size_and_golden_outputs(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a.edgekd", preprocess=[{"op": "scale", "factor": 0.0625}, {"op": "layout"}])
    x = np.random.default_rng(5).integers(0, 17, (40, 4, 4, 1), dtype=np.uint8)
    y = (x.reshape(40, 16).astype(np.float32) / 16 @ weights()).argmax(axis=1)
    found = benchmark([Candidate("a", bundle.path)], suite=TINY, samples=Samples(x, y, "classification"))
    assert found["candidates"][0]["variant"] == "float32"
    assert found["candidates"][0]["golden"] == "ok"
    assert found["rows"][0]["accuracy"]["value"] == 1.0
    assert found["rows"][0]["size_bytes"] == len(bundle.graph())


def test_golden_outputs_that_are_not_given_any_more_read_wrong(tmp_path: Path) -> None:
    good = write_bundle(tmp_path / "good.edgekd")
    manifest, golden = make_manifest(), good.golden()
    golden["output.float32.logits"] = golden["output.float32.logits"] + 1.0
    bad = Bundle.write(tmp_path / "bad.edgekd", manifest, {"float32": {"main": good.graph()}}, golden)
    found = benchmark([Candidate("bad", bad.path), Candidate("good", good.path)], suite=TINY)
    assert [candidate["golden"] for candidate in found["candidates"]] == ["WRONG", "ok"]
    assert "differs by up to 1.0e+00" in found["candidates"][0]["golden_problem"]
    assert "golden_problem" not in found["candidates"][1]
    assert [row["n"] > 0 for row in found["rows"]] == [False, True], "what is wrong is not timed"
    assert not any("bad" in reason for reason in found["verdict"]["reasons"])


def test_a_wrong_reference_is_none(tmp_path: Path) -> None:
    good = write_bundle(tmp_path / "good.edgekd")
    golden = good.golden()
    golden["output.float32.logits"] = golden["output.float32.logits"] + 1.0
    bad = Bundle.write(tmp_path / "bad.edgekd", make_manifest(), {"float32": {"main": good.graph()}}, golden)
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    data = Samples(x, np.zeros(20, np.int64), "classification")
    found = benchmark(
        [Candidate("bad", bad.path), Candidate("good", good.path)], suite=TINY, against="bad", samples=data
    )
    assert found["rows"][1]["speedup"] is None
    assert found["rows"][1]["drop_points"] is None
    assert found["rows"][1]["accuracy"] is not None


def test_outputs_that_are_no_numbers_cost_the_row(tmp_path: Path) -> None:
    broken = weights()
    broken[3, 1] = np.nan
    (tmp_path / "broken.onnx").write_bytes(linear_model(broken))
    (tmp_path / "right.onnx").write_bytes(linear_model(weights()))
    candidates = [Candidate(name, tmp_path / f"{name}.onnx", preprocess=STEPS) for name in ("broken", "right")]
    found = benchmark(candidates, suite=TINY, samples=_labelled(weights(), wrong=30))
    assert "gives NaN or infinite outputs for 150 of 150 samples" in found["rows"][0]["error"]
    assert "metrics" in found["rows"][1]
    assert found["rows"][1]["accuracy"]["value"] == 0.8


TELLING = """
import os
import time
from pathlib import Path
from edgekd.spec import TensorSpec

class Session:
    inputs = outputs = (TensorSpec("x", "float32", ("N", 16)),)

    def __init__(self, number):
        self.number = number

    def run(self, feeds):
        time.sleep(2e-3 * self.number)

    def close(self):
        pass

def open_model(model, *, threads, options):
    told = Path(options["told"])
    before = told.read_text() if told.exists() else ""
    told.write_text(before + f"{os.getpid()} ")
    return Session(len(before.split()) + 1)
"""


HANGING = """
import threading
from edgekd.spec import TensorSpec

class Session:
    inputs = outputs = (TensorSpec("x", "float32", ("N", 16)),)
    def run(self, feeds):
        threading.Event().wait()
    def close(self):
        pass

def open_model(model, *, threads, options):
    return Session()
"""


@pytest.mark.skipif(os.name != "posix", reason="pipes that can be waited for are POSIX")
def test_a_candidate_that_hangs_costs_its_own_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging_runtime.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = benchmark(
        [
            Candidate("hangs", folder / "right.onnx", runtime="hanging_runtime:open_model"),
            Candidate("right", folder / "right.onnx"),
        ],
        suite=replace(TINY, timeout_seconds=8.0),
    )
    assert found["rows"][0]["error"] == "it did not answer within 8 s and was stopped; does the model hang?"
    assert found["rows"][1]["n"] >= 40


def test_ctrl_c_keeps_what_was_measured(folder: Path) -> None:
    told: list[str] = []

    def stop(text: str, done: int, total: int) -> None:
        told.append(text)
        if told.count("timing") == 3:
            raise KeyboardInterrupt

    candidates = [Candidate("right", folder / "right.onnx"), Candidate("other", folder / "other.onnx")]
    suite = replace(TINY, launches=5, min_calls=10)
    found = benchmark(candidates, suite=suite, progress=stop, keep_partial=True)
    assert found["interrupted"] is True
    assert found["verdict"]["reasons"][0] == "interrupted: the measurement was ended early"
    assert [found["samples"][name]["launch"] for name in ("right", "other")] == [[2, 2], [2, 2]]
    assert found["rows"][0]["speedup"] is None
    assert all(row["n"] >= 8 for row in found["rows"])
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        benchmark(candidates, suite=suite, progress=stop)


def test_ctrl_c_during_cold_starts_keeps_the_timing(folder: Path) -> None:
    def stop(text: str, done: int, total: int) -> None:
        if text == "cold start" and done == 1:
            raise KeyboardInterrupt

    suite = replace(TINY, cold_starts=10)
    found = benchmark([Candidate("right", folder / "right.onnx")], suite=suite, progress=stop, keep_partial=True)
    assert found["interrupted"] is True
    assert found["rows"][0]["n"] >= 40
    assert len(found["samples"]["right"]["cold_ms"]) == 1
    assert found["rows"][0]["cold_start_ms"] is None


def test_an_unknown_variant_is_the_candidates_error(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a.edgekd")
    found = benchmark([Candidate("a", bundle.path, variant="float23")], suite=TINY)
    assert "has no variant 'float23'. Did you mean 'float32'?" in found["rows"][0]["error"]
    assert found["verdict"] == {
        "value": "INVALID",
        "reasons": ["no candidate could be measured"],
        "advice": ["see the error of each candidate"],
    }


def test_without_samples_random_inputs_are_timed(folder: Path) -> None:
    # On a busy machine neighbouring calls are alike: forty of them may be too few for a median.
    suite = dataclasses.replace(TINY, min_calls=600, min_blocks=24, launches=4)
    found = benchmark([Candidate("right", folder / "right.onnx", batch=3)], suite=suite)
    assert found["rows"][0]["latency_ms"]["p50"]["value"] > 0
    assert found["rows"][0]["accuracy"] is None
    assert found["candidates"][0]["golden"] is None


def test_given_golden_inputs_are_timed(folder: Path) -> None:
    golden = {"input.x": np.zeros((2, 16), np.float32)}
    assert benchmark([Candidate("right", folder / "right.onnx")], suite=TINY, golden=golden)["rows"][0]["n"] >= 40
    wrong = benchmark([Candidate("right", folder / "right.onnx")], suite=TINY, golden={"input.x": np.zeros((2, 5))})
    assert "input 'x'" in wrong["rows"][0]["error"]


def test_a_missing_model_is_the_candidates_error(tmp_path: Path) -> None:
    found = benchmark([Candidate("gone", tmp_path / "gone.onnx")], suite=TINY)
    assert "gone.onnx does not exist; expected a bundle" in found["rows"][0]["error"]


def test_requests_that_cannot_be_measured_are_refused(folder: Path) -> None:
    model = folder / "right.onnx"
    with pytest.raises(UsageError, match="found no candidate, expected at least one bundle or model file"):
        benchmark([], suite=TINY)
    with pytest.raises(UsageError, match="found the candidate id 'a' twice"):
        benchmark([Candidate("a", model), Candidate("a", model)], suite=TINY)
    with pytest.raises(UsageError, match=r"'teecher', the reference, is not among .* Did you mean 'teacher'\?"):
        benchmark([Candidate("teacher", model)], suite=TINY, against="teecher")
    cores = available_cores()
    with pytest.raises(UsageError, match=f"found threads={cores + 1}, but this process may use {cores} core"):
        benchmark([Candidate("a", model, threads=cores + 1)], suite=TINY)
    with pytest.raises(UsageError, match="candidate 'a': found batch=0, expected at least 1"):
        benchmark([Candidate("a", model, batch=0)], suite=TINY)
    few = Samples(np.zeros((3, 16), np.float32), np.zeros(2, np.int64), "classification")
    with pytest.raises(UsageError, match="found 3 samples and 2 labels, expected equally many"):
        benchmark([Candidate("a", model)], suite=TINY, samples=few)


def test_the_timed_call_is_the_runtimes_own_with_feeds_checked_before(folder: Path) -> None:
    session = open_session(folder / "right.onnx", threads=1)
    assert isinstance(session, Prepares)
    feeds = {"x": np.ones((2, 16), np.float32)}
    given = session.prepare(feeds)()
    assert isinstance(given, list)
    np.testing.assert_array_equal(given[0], session.run(feeds)["logits"])
    with pytest.raises(UsageError, match="input 'x' is float64, expected float32"):
        session.prepare({"x": np.ones((2, 16))})
    session.close()
    with pytest.raises(UsageError, match="this session is closed"):
        session.prepare(feeds)


RUN = """
import sys
from pathlib import Path
from edgekd.device.benchmark import Candidate, benchmark
from edgekd.device.suites import Suite
folder = Path(sys.argv[1])
benchmark(
    [Candidate("endless", folder / "model.json", runtime="endless_runtime:open_model", options={"fifo": sys.argv[2]})],
    suite=Suite("s", min_calls=1, max_seconds=1.0, block_ms=1.0, cold_starts=0, memory=False, launches=1),
)
"""


@pytest.mark.skipif(os.name != "posix", reason="fifos and process groups are POSIX")
def test_ctrl_c_ends_the_benchmark_and_all_of_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_isolation import ENDLESS, MODEL

    (tmp_path / "endless_runtime.py").write_text(ENDLESS)
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    fifo_path = tmp_path / "fifo"
    os.mkfifo(fifo_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-c", RUN, str(tmp_path), str(fifo_path)]
    with (
        subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as run,
        fifo_path.open("rb") as fifo,
    ):
        assert fifo.readline() == b"running\n"
        # The whole group, as a terminal does it.
        os.killpg(run.pid, signal.SIGINT)
        assert fifo.read() == b""
        _, said = run.communicate()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert not list(tmp_path.glob("edgekd-benchmark-*"))
