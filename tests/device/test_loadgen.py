"""MLPerf LoadGen asks, and its figures are ours."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from device_models import write_bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import edgekd, ok_json, refused

from edgekd.device.loadgen import JUDGED_BY, LoadGen, drive, read_log, read_trace, why_missing
from edgekd.device.running import folder_name
from edgekd.device.statistics import early_stopping_estimate, early_stopping_met, early_stopping_minimum, percentile
from edgekd.errors import StageFailed, UsageError

needs_loadgen = pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))


def uneven() -> None:
    """A call that takes longer every now and then."""
    time.sleep(0.0003 if np.random.default_rng().random() < 0.9 else 0.001)


@needs_loadgen
@pytest.mark.parametrize(("scenario", "batch"), [("single-stream", 1), ("multi-stream", 8)])
def test_its_percentiles_and_its_early_stopping_are_ours(tmp_path: Path, scenario: str, batch: int) -> None:
    found = drive(uneven, scenario, batch=batch, expected_ns=4e5, seconds=0.8, folder=tmp_path / "log")
    assert found["queries"] > early_stopping_minimum(JUDGED_BY[scenario]), "too few to compare"
    assert set(found["percentiles_ns"]) == {"50", "90", "95", "97", "99", "99.9"}
    assert found["edgekd"]["percentiles_ns"] == found["percentiles_ns"]
    assert found["early_stopping_ns"] is not None
    assert found["edgekd"]["early_stopping_ns"] == found["early_stopping_ns"]
    assert found["valid"], found["reasons"]
    log = read_log(tmp_path / "log" / "mlperf_log_detail.txt")
    assert log["result_query_count"] == found["queries"]
    assert log["effective_samples_per_query"] == batch
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"mlperf_log_summary.txt", "mlperf_log_detail.txt"}


@needs_loadgen
@pytest.mark.parametrize("bound_ms", [200.0, 0.01])
def test_a_server_is_judged_alike(tmp_path: Path, bound_ms: float) -> None:
    found = drive(
        uneven, "server", batch=1, expected_ns=4e5, seconds=1.2, folder=tmp_path, qps=600.0, bound_ms=bound_ms
    )
    assert found["queries"] > early_stopping_minimum(0.99)
    assert found["edgekd"]["percentiles_ns"] == found["percentiles_ns"]
    assert found["edgekd"]["early_stopping_met"] == found["early_stopping_met"] == (bound_ms > 1)
    assert found["valid"] == (bound_ms > 1)
    assert bool(found["reasons"]) == (bound_ms < 1)


@needs_loadgen
def test_offline_answers_every_sample_in_batches(tmp_path: Path) -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.0002)

    found = drive(call, "offline", batch=16, expected_ns=2e5, seconds=0.3, folder=tmp_path)
    assert found["samples_per_s"] > 0
    log = read_log(tmp_path / "mlperf_log_detail.txt")
    assert calls == -(-int(log["effective_min_sample_count"]) // 16)


@needs_loadgen
def test_a_model_that_fails_ends_the_test_with_its_error(tmp_path: Path) -> None:
    def call() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(StageFailed, match="the model failed while LoadGen asked it: out of memory"):
        drive(call, "single-stream", batch=1, expected_ns=1e6, seconds=0.05, folder=tmp_path)


def test_early_stopping_by_the_binomial_distribution() -> None:
    for q, least in {0.5: 11, 0.9: 64, 0.95: 130, 0.99: 662}.items():
        assert early_stopping_estimate(np.arange(least - 1), q) is None
        assert early_stopping_estimate(np.arange(least), q) == least - 1, "one call above it"
        assert early_stopping_minimum(q) == least
        assert early_stopping_met(least, 1, q)
        assert not early_stopping_met(least - 1, 1, q)
    assert early_stopping_met(459, 0, 0.99)
    assert not early_stopping_met(458, 0, 0.99)
    assert not early_stopping_met(5, 9, 0.5)


def test_an_estimate_bounds_the_percentile_in_99_of_100_runs() -> None:
    rng = np.random.default_rng(0)
    truth = -np.log(0.1)  # p90 of the exponential distribution
    bounds = [early_stopping_estimate(rng.exponential(size=300), 0.9) for _ in range(2000)]
    assert sum(bound is not None and bound >= truth for bound in bounds) >= 0.985 * len(bounds)


@pytest.mark.parametrize(("q", "n", "place"), [(0.9, 10, 9), (0.9, 1000, 900), (0.5, 4, 2), (0.99, 50, 49)])
def test_percentiles_are_the_samples_that_it_takes(q: float, n: int, place: int) -> None:
    assert percentile(np.arange(n)[::-1], q) == place


def test_what_is_no_log_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mlperf_log_detail.txt"
    with pytest.raises(StageFailed, match="is no log of LoadGen"):
        read_log(path)
    path.write_text(":::MLLOG {")
    with pytest.raises(StageFailed, match="is no log of LoadGen"):
        read_log(path)
    path.write_text(':::MLLOG {"key": "a", "value": 1}\n')
    with pytest.raises(StageFailed, match="holds no result"):
        read_log(path)


def test_a_query_takes_as_long_as_its_slowest_sample(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    line = '{"args":{"sample_seq":%d,"query_seq":%d,"sample_idx":5,"issue_start_ns":0,"complete_ns":%d}},\n'
    path.write_text(line % (0, 0, 30) + line % (1, 0, 20) + '{"name":"IssueQuery"}\n' + line % (2, 1, 7))
    assert read_trace(path).tolist() == [30, 7]


def test_which_scenarios_a_batch_size_has(tmp_path: Path) -> None:
    assert LoadGen(tmp_path).scenarios(1) == ("single-stream",)
    server = LoadGen(tmp_path, qps=5.0, bound_ms=2.0)
    assert server.scenarios(1) == ("single-stream", "server")
    assert server.scenarios(8) == ("multi-stream",)
    assert server.scenarios(64) == ("offline",)
    with pytest.raises(UsageError, match="a server needs both"):
        LoadGen(tmp_path, qps=5.0)
    with pytest.raises(UsageError, match="found qps = -1"):
        LoadGen(tmp_path, qps=-1, bound_ms=1.0)


@pytest.mark.parametrize(
    ("name", "expected"), [("a.edgekd:float32 b8", "a.edgekd-float32-b8"), ("../../x", "x"), ("..", "candidate")]
)
def test_folders_of_candidates_stay_where_they_belong(name: str, expected: str) -> None:
    assert folder_name(name) == expected


TINY = (
    "launches = 1\nmin_calls = 64\nmin_blocks = 4\nmax_seconds = 0.4\nblock_ms = 2\ncold_starts = 0\nmemory = false\n"
)


@needs_loadgen
def test_through_the_command_line(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.edgekd")
    (tmp_path / "tiny.toml").write_text(TINY)
    command = ("benchmark", tmp_path / "a.edgekd:float32", "--suite", tmp_path / "tiny.toml", "--batch", "1,8,16")
    results = ok_json(*command, "--loadgen", tmp_path / "logs", "--server", "300:50")
    rows = {row["candidate"]: row["loadgen"] for row in results["rows"]}
    assert {name: [item["scenario"] for item in found] for name, found in rows.items()} == {
        "a.edgekd:float32 b1": ["single-stream", "server"],
        "a.edgekd:float32 b8": ["multi-stream"],
        "a.edgekd:float32 b16": ["offline"],
    }
    for found in rows.values():
        for item in found:
            assert item["percentiles_ns"] == item["edgekd"].get("percentiles_ns", {})
    logs = sorted(path.relative_to(tmp_path / "logs").parts[:2] for path in (tmp_path / "logs").rglob("*_summary.txt"))
    assert logs == [
        ("a.edgekd-float32-b1", "server"),
        ("a.edgekd-float32-b1", "single-stream"),
        ("a.edgekd-float32-b16", "offline"),
        ("a.edgekd-float32-b8", "multi-stream"),
    ]
    done = edgekd(*command, "--loadgen", tmp_path / "more", "--out", tmp_path / "kept.json")
    assert "LoadGen single-stream VALID, p90" in done.stdout, done.stdout + done.stderr
    assert json.loads((tmp_path / "kept.json").read_text())["rows"][0]["loadgen"][0]["queries"] > 100


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--server", "200:5"), "--server is a scenario of LoadGen; give --loadgen FOLDER too"),
        (("--loadgen", "logs", "--server", "fast"), "--server fast: expected QPS:MS, for example 200:10"),
        (("--loadgen", "logs", "--server", "0:5"), "found qps = 0.0, expected a number above 0"),
        (("--loadgen", "logs", "--on", "ssh://pi@device"), "leave one out"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    assert told in refused(2, "benchmark", write_bundle(tmp_path / "a.edgekd").path, *options)


def test_without_loadgen_it_says_what_to_install(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.edgekd")
    blocked = tmp_path / "site"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text("import sys\nsys.modules['mlperf_loadgen'] = None\n")
    done = edgekd("benchmark", tmp_path / "a.edgekd", "--loadgen", tmp_path / "logs", env={"PYTHONPATH": str(blocked)})
    assert done.returncode == 4
    assert "LoadGen is not installed; pip install 'edgekd[mlperf]'" in done.stderr
