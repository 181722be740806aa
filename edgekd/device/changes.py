"""How each metric of one candidate changed between two results; `comparison.py` says which changes count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.device.differences import Difference, p_of_interval, ratio_of
from edgekd.device.metrics import drop_points
from edgekd.device.rows import launch_of_calls
from edgekd.device.statistics import across_launches

# How much worse each metric may become: per cent of the value before, but accuracy in percentage points.
TOLERANCES: dict[str, float] = {
    "latency": 5.0,
    "latency_p90": 10.0,
    "cold_start": 10.0,
    "speedup": 5.0,
    "memory": 5.0,
    "size": 1.0,
    "accuracy": 0.5,
}
UNITS = {
    "latency": "ms", "latency_p90": "ms", "cold_start": "ms", "speedup": "x", "memory": "MB", "size": "kB",
    "accuracy": "%",
}  # fmt: skip
MORE_IS_BETTER = ("speedup", "accuracy")
# The peak memory of one process is read once; so much it differs by from start to start.
MEMORY_MB = 2.0


@dataclass(frozen=True)
class Change:
    """One metric of one candidate, before and after.

    change, low, high  per cent of the value before; percentage points for accuracy
    p                  adjusted for the number of comparisons; None for what is exact (size) or read once (memory)
    real               the change is more than noise; regression: it is real, for the worse, and beyond the tolerance
    """

    before: float
    after: float
    change: float
    low: float
    high: float
    p: float | None
    candidate: str = ""
    metric: str = ""
    unit: str = ""
    real: bool = False
    worse: bool = False
    regression: bool = False


class Side:
    """One candidate of one result: its row and its raw samples."""

    def __init__(self, results: Mapping[str, Any], name: str) -> None:
        self.results = results
        self.row: Mapping[str, Any] = next(row for row in results["rows"] if row["candidate"] == name)
        self.raw: Mapping[str, Any] = results["samples"][name]

    def series(self) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """The timed calls, and the launch of each."""
        latency = np.asarray(self.raw["latency_ns"], np.float64)
        launch = launch_of_calls(self.raw)
        if latency.ndim != 1 or latency.shape != launch.shape or not (np.isfinite(latency) & (latency > 0)).all():
            raise ValueError(f"{latency.size} latencies for {launch.size} calls in blocks")
        return latency, launch

    def reference(self) -> Side | None:
        speedup = self.row.get("speedup")
        return None if speedup is None else Side(self.results, speedup["against"])


Measure = Callable[[Side, Side, float, int], "Change | str | None"]


def _latency(percentile: str, q: float) -> Measure:
    def measure(a: Side, b: Side, confidence: float, seed: int) -> Change | str | None:
        told = [side.row["latency_ms"][percentile] for side in (a, b)]
        if None in told:
            return "too few calls in one of them" if percentile == "p50" else None
        estimates = [across_launches(*side.series(), q=q) for side in (a, b)]
        return _ratio(ratio_of(*estimates, confidence=confidence), *(item["value"] for item in told))

    return measure


def _cold_start(a: Side, b: Side, confidence: float, seed: int) -> Change | str | None:
    if a.row["cold_start_ms"] is None or b.row["cold_start_ms"] is None:
        return None
    estimates = []
    for side in (a, b):
        total = np.asarray(side.raw["cold_ms"], np.float64).sum(axis=1)
        estimates.append(across_launches(total, np.arange(len(total))))  # each start is a process of its own
    values = (side.row["cold_start_ms"]["value"] for side in (a, b))
    return _ratio(ratio_of(*estimates, confidence=confidence), *values)


def _speedup(a: Side, b: Side, confidence: float, seed: int) -> Change | str | None:
    references = (a.reference(), b.reference())
    if references[0] is None or references[1] is None:
        return None
    names = [side.row["candidate"] for side in references if side is not None]
    if names[0] != names[1]:
        return f"it was against {names[0]} before and against {names[1]} after"
    estimates = [
        across_launches(*reference.series(), below=side.series())
        for reference, side in zip(references, (a, b))
        if reference is not None
    ]
    return _ratio(ratio_of(*estimates, confidence=confidence), *(side.row["speedup"]["value"] for side in (a, b)))


def _memory(a: Side, b: Side, confidence: float, seed: int) -> Change | str | None:
    phases = [side.row.get("memory_mb") for side in (a, b)]
    if None in phases:
        return None
    before, after = (max(phase.values()) for phase in phases if phase is not None)
    share = 100 / before
    change, margin = (after - before) * share, MEMORY_MB * share
    return Change(before, after, change, change - margin, change + margin, None)


def _size(a: Side, b: Side, confidence: float, seed: int) -> Change | str | None:
    before, after = (side.row["size_bytes"] for side in (a, b))
    if before is None or after is None:
        return None
    change = 100 * (after / before - 1)
    return Change(before / 1000, after / 1000, change, change, change, None)


def _accuracy(a: Side, b: Side, confidence: float, seed: int) -> Change | str | None:
    if a.row["accuracy"] is None or b.row["accuracy"] is None:
        return None
    data = [side.results.get("data") for side in (a, b)]
    if data[0] is None or data[0] != data[1]:
        return "the labelled samples are not the same; measure both with the same --data"
    before, after = (np.asarray(side.raw["contributions"], np.float64).T for side in (a, b))
    task = data[0]["task"]
    drop = drop_points(task, before, after, confidence=confidence, seed=seed)

    def interval_at(level: float) -> tuple[float, float]:
        found = drop_points(task, before, after, confidence=level, seed=seed)
        return found.low, found.high

    old, new = (100 * float(side.row["accuracy"]["value"]) for side in (a, b))
    return Change(old, new, -drop.value, -drop.high, -drop.low, p_of_interval(interval_at))


MEASURES: dict[str, Measure] = {
    "latency": _latency("p50", 0.5),
    "latency_p90": _latency("p90", 0.9),
    "speedup": _speedup,
    "cold_start": _cold_start,
    "memory": _memory,
    "size": _size,
    "accuracy": _accuracy,
}


def _ratio(found: Difference, before: float, after: float) -> Change:
    change, low, high = (100 * (value - 1) for value in (found.value, found.low, found.high))
    return Change(before, after, change, low, high, found.p)
