"""MLPerf LoadGen as the driver: it decides when a query comes and measures how long its answer takes.

    single-stream  one sample after the other                  90th percentile of the latency
    multi-stream   eight samples at a time                     99th percentile of the latency of a query
    offline        all samples at once, answered in batches    samples per second
    server         samples come at random (Poisson)            the most that keeps 99 % within a bound

LoadGen (github.com/mlcommons/inference, the package mlcommons-loadgen) runs candidates one after the other, for
seconds: what it tells here shows that our figures are its figures, and how a server would do; it is no MLPerf result,
which takes ten minutes and the data set of the benchmark. The prepared inputs are the same for every query.
"""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.device.statistics import early_stopping_estimate, early_stopping_met, percentile
from edgekd.errors import MissingHere, StageFailed, UsageError

# Which percentile of the latency a scenario is judged by (MLPerf inference rules, section 3); offline has none.
JUDGED_BY = {"single-stream": 0.90, "multi-stream": 0.99, "server": 0.99}
MULTI_STREAM_SAMPLES = 8
TOLD = (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)
# Enough to tell p99.9; the trace of more would fill the disk, at 700 bytes a query.
MOST_QUERIES = 20_000
_SAMPLES = 1024
_EXPECTED = 0.5
_KEPT = ("mlperf_log_summary.txt", "mlperf_log_detail.txt")


@dataclass(frozen=True)
class LoadGen:
    """What LoadGen is asked for, of every candidate.

    folder    the logs go to folder/CANDIDATE/SCENARIO
    seconds   that each scenario takes, about
    qps       queries per second of the server scenario, for candidates of batch size 1; None: no server
    bound_ms  within which 99 % of the server's answers must come
    """

    folder: Path
    seconds: float = 2.0
    qps: float | None = None
    bound_ms: float | None = None

    def __post_init__(self) -> None:
        """Raise `UsageError` for a server without a bound and numbers that are none."""
        for name in ("seconds", "qps", "bound_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"LoadGen: found {name} = {value}, expected a number above 0")
        if (self.qps is None) != (self.bound_ms is None):
            raise UsageError("LoadGen: a server needs both, queries per second and the bound of their latency")

    def scenarios(self, batch: int) -> tuple[str, ...]:
        """Those that a candidate of this batch size can answer."""
        if batch == 1:
            return ("single-stream", "server") if self.qps is not None else ("single-stream",)
        return ("multi-stream",) if batch == MULTI_STREAM_SAMPLES else ("offline",)


def why_missing() -> str | None:
    """What to install; None where LoadGen is there."""
    from importlib.util import find_spec

    if find_spec("mlperf_loadgen") is not None:
        return None
    return "LoadGen is not installed; pip install 'edgekd[mlperf]'"


def drive(
    call: Callable[[], object],
    scenario: str,
    *,
    batch: int,
    expected_ns: float,
    seconds: float,
    folder: Path,
    qps: float | None = None,
    bound_ms: float | None = None,
) -> dict[str, Any]:
    """Let LoadGen call, and give what it says beside what we say of the same latencies.

    call         answers `batch` samples
    expected_ns  about what a call takes
    folder       gets mlperf_log_summary.txt and mlperf_log_detail.txt

    The result: scenario, valid and reasons, queries, samples_per_s (offline, server), percentiles_ns and
    early_stopping_ns (judged percentile, None where too few queries ran), and `edgekd`: the same from our statistics.
    Raises `MissingHere` without LoadGen, `StageFailed` when it gives no result.
    """
    missing = why_missing()
    if missing is not None:
        raise MissingHere(missing)
    import mlperf_loadgen

    folder.mkdir(parents=True, exist_ok=True)
    settings = _settings(mlperf_loadgen, scenario, batch, expected_ns, seconds, qps, bound_ms)
    output = mlperf_loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs = mlperf_loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = scenario != "offline"
    with _Answering(mlperf_loadgen, call, batch, is_server=scenario == "server") as answering:
        system = mlperf_loadgen.ConstructSUT(answering.issue, _nothing)
        library = mlperf_loadgen.ConstructQSL(_SAMPLES, _SAMPLES, _nothing_loaded, _nothing_loaded)
        try:
            mlperf_loadgen.StartTestWithLogSettings(system, library, settings, logs, "")
        finally:
            mlperf_loadgen.DestroyQSL(library)
            mlperf_loadgen.DestroySUT(system)
    if answering.error is not None:
        raise StageFailed(f"the model failed while LoadGen asked it: {answering.error}") from answering.error
    said = read_log(folder / _KEPT[1])
    latencies = np.zeros(0, np.int64) if scenario == "offline" else read_trace(folder / "mlperf_log_trace.json")
    for path in folder.iterdir():
        if path.name not in _KEPT:
            path.unlink()
    return {**_told(scenario, said, latencies), "edgekd": _own(scenario, latencies, bound_ms)}


def read_log(path: Path) -> dict[str, Any]:
    """The keys of a LoadGen detail log; of a key that comes twice the last. Raises `StageFailed` for another file."""
    found: dict[str, Any] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(":::MLLOG "):
                entry = json.loads(line.removeprefix(":::MLLOG "))
                found[entry["key"]] = entry["value"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageFailed(f"{path} is no log of LoadGen: {error}; did its process end early?") from error
    if "result_validity" not in found:
        raise StageFailed(f"{path} holds no result; did its process end early?")
    return found


def read_trace(path: Path) -> NDArray[np.int64]:
    """What each query took in ns, by the trace of LoadGen: the last of its samples counts."""
    pattern = re.compile(r'"query_seq":(\d+),"sample_idx":\d+,"issue_start_ns":(-?\d+),"complete_ns":(-?\d+)')
    slowest: dict[int, int] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            if found := pattern.search(line):
                place, _, done = map(int, found.groups())
                slowest[place] = max(slowest.get(place, 0), done)
    return np.array(list(slowest.values()), dtype=np.int64)


def _settings(
    loadgen: Any,
    scenario: str,
    batch: int,
    expected_ns: float,
    seconds: float,
    qps: float | None,
    bound_ms: float | None,
) -> Any:
    settings = loadgen.TestSettings()
    settings.mode = loadgen.TestMode.PerformanceOnly
    # LoadGen lays all queries out before it begins, as many as the expected duration takes, and may run out of them.
    expected_ns *= _EXPECTED
    settings.min_duration_ms = max(1, round(min(seconds, _EXPECTED * MOST_QUERIES * expected_ns / 1e9) * 1000))
    settings.min_query_count = 1
    settings.max_query_count = MOST_QUERIES
    if scenario == "single-stream":
        settings.scenario = loadgen.TestScenario.SingleStream
        settings.single_stream_expected_latency_ns = max(1, round(expected_ns))
    elif scenario == "multi-stream":
        settings.scenario = loadgen.TestScenario.MultiStream
        settings.multi_stream_expected_latency_ns = max(1, round(expected_ns))
        settings.multi_stream_samples_per_query = batch
    elif scenario == "offline":
        settings.scenario = loadgen.TestScenario.Offline
        settings.offline_expected_qps = batch * 1e9 / expected_ns
        settings.max_query_count = 0
        settings.min_duration_ms = round(seconds * 1000)
    elif scenario == "server" and qps is not None and bound_ms is not None:
        settings.scenario = loadgen.TestScenario.Server
        settings.server_target_qps = qps
        settings.min_duration_ms = round(min(seconds, MOST_QUERIES / qps) * 1000)
        settings.server_target_latency_ns = round(bound_ms * 1e6)
        settings.server_target_latency_percentile = JUDGED_BY["server"]
    else:
        raise UsageError(f"LoadGen: found the scenario '{scenario}' with qps={qps} and bound_ms={bound_ms}")
    return settings


class _Answering:
    """Takes LoadGen's queries in its thread. A server's are answered in another one: they come while it is busy."""

    def __init__(self, loadgen: Any, call: Callable[[], object], batch: int, *, is_server: bool) -> None:
        self._loadgen = loadgen
        self._call = call
        self._batch = batch
        self._waiting: queue.SimpleQueue[Sequence[int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="edgekd-loadgen") if is_server else None
        self.error: Exception | None = None

    def __enter__(self) -> _Answering:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def issue(self, samples: Sequence[Any]) -> None:
        take = self._answer if self._thread is None else self._waiting.put
        for start in range(0, len(samples), self._batch):
            take([sample.id for sample in samples[start : start + self._batch]])

    def _serve(self) -> None:
        while (ids := self._waiting.get()) is not None:
            self._answer(ids)

    def _answer(self, ids: Sequence[int]) -> None:
        if self.error is None:
            try:
                self._call()
            except Exception as error:  # noqa: BLE001  of whatever kind: LoadGen waits for an answer for ever
                self.error = error
        respond = self._loadgen.QuerySampleResponse
        self._loadgen.QuerySamplesComplete([respond(number, 0, 0) for number in ids])


def _nothing() -> None:
    """LoadGen has no more queries; all are on their way already."""


def _nothing_loaded(_: object) -> None:
    """The inputs are prepared."""


def _told(scenario: str, said: dict[str, Any], latencies: NDArray[np.int64]) -> dict[str, Any]:
    rate = {"offline": "result_samples_per_second", "server": "result_completed_samples_per_sec"}
    early = {"single-stream": "early_stopping_latency_ss", "multi-stream": "early_stopping_latency_ms"}
    kind = "per_query_latency" if scenario == "multi-stream" else "latency"
    found = {q: said.get(f"result_{100 * q:.2f}_percentile_{kind}_ns") for q in TOLD}
    return {
        "scenario": scenario,
        "valid": said["result_validity"] == "VALID",
        "reasons": [] if said["result_validity"] == "VALID" else [str(said.get("result_invalid_reason", ""))],
        "queries": said.get("result_query_count"),
        "samples_per_s": said.get(rate.get(scenario, "")),
        "percentiles_ns": {} if scenario == "offline" else {f"{100 * q:g}": value for q, value in found.items()},
        # LoadGen says 0 for "too few".
        "early_stopping_ns": said.get(early.get(scenario, "")) or None,
        "early_stopping_met": bool(said.get("early_stopping_met")),
    }


def _own(scenario: str, latencies: NDArray[np.int64], bound_ms: float | None) -> dict[str, Any]:
    if scenario == "offline" or not len(latencies):
        return {}
    own: dict[str, Any] = {"percentiles_ns": {f"{100 * q:g}": round(percentile(latencies, q)) for q in TOLD}}
    if scenario != "server":
        estimate = early_stopping_estimate(latencies, JUDGED_BY[scenario])
        return {**own, "early_stopping_ns": None if estimate is None else round(estimate)}
    assert bound_ms is not None
    over = int((latencies > round(bound_ms * 1e6)).sum())
    return {**own, "early_stopping_met": early_stopping_met(len(latencies), over, JUDGED_BY[scenario])}
