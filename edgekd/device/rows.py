"""From raw samples to the rows of results.json. Nothing is measured here, and nothing is dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.device.candidates import Plan, Samples
from edgekd.device.metrics import Contributions, agreement, contributions, drop_points, score_interval
from edgekd.device.postprocess import as_judged
from edgekd.device.quality import class_numbers, further_metrics, per_class, worst_samples
from edgekd.device.statistics import latency_interval, launch_ratio, median_interval
from edgekd.device.verdict import Series
from edgekd.errors import UsageError
from edgekd.spec import Array, Interval

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
# MLPerf's names: one sample at a time, eight at a time, as many as one likes.
SCENARIOS = {1: "single-stream", 8: "multi-stream"}


@dataclass
class Measured:
    """What the processes of one candidate gave: every timed call with the numbers of its block and of its launch.

    `order[k]` is the place of its block k among all blocks that ran.
    """

    latency_ns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    block: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    launch: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    order: list[int] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0
    cpu_s: float | None = 0.0
    energy_mj: float | None = 0.0
    waited_s: float | None = 0.0
    interrupted: float | None = 0.0
    empty_ns: float | None = None
    warm_up: dict[str, Any] | None = None
    golden: str | None = None
    golden_problem: str | None = None
    timed_on: str | None = None
    memory_mb: dict[str, float] | None = None
    device_memory_mb: float | None = None
    cold: list[tuple[float, float]] = field(default_factory=list)
    outputs: Array | None = None
    profile: dict[str, Any] | None = None
    loadgen: list[dict[str, Any]] = field(default_factory=list)

    def add_block(self, answer: Mapping[str, Any], *, place: int) -> None:
        """What a block took, by the process that ran it; its calls come with the others of its launch."""
        self.order.append(place)
        self.calls += answer["n"]
        self.seconds += answer["seconds"]
        self.cpu_s = _added(self.cpu_s, answer["cpu_s"])
        self.waited_s = _added(self.waited_s, answer["waited_s"])
        self.energy_mj = _added(self.energy_mj, answer["energy_mj"])
        self.interrupted = _added(self.interrupted, answer["interrupted"])

    def add_calls(self, latency_ns: NDArray[np.int64], block: NDArray[np.int64], *, launch: int) -> None:
        """Every timed call of a launch."""
        self.latency_ns = np.concatenate([self.latency_ns, latency_ns])
        self.block = np.concatenate([self.block, block])
        self.launch = np.concatenate([self.launch, np.full(len(block), launch)])


def _added(sum_so_far: float | None, more: float | None) -> float | None:
    """The sum, or None once something is not known."""
    return None if sum_so_far is None or more is None else sum_so_far + more


def make_row(
    plan: Plan,
    measured: Measured,
    *,
    reference: tuple[Plan, Measured] | None,
    samples: Samples | None,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """One row of results.json. Speed-up and drop are told against `reference`, and not for the reference itself."""
    candidate = plan.candidate
    row: dict[str, Any] = {
        "candidate": candidate.id,
        "scenario": SCENARIOS.get(candidate.batch, "offline"),
        "n": len(measured.latency_ns),
        "latency_ms": dict.fromkeys(PERCENTILES),
        "throughput_per_s": None,
        "load_ms": _json(median_interval([load for load, _ in measured.cold])),
        "first_ms": _json(median_interval([first for _, first in measured.cold])),
        "cold_start_ms": _json(median_interval([load + first for load, first in measured.cold])),
        "cpu_ms": None,
        "size_bytes": plan.size_bytes,
        "accuracy": None,
        "agreement": None,
        "drop_points": None,
        "speedup": None,
    }
    if measured.memory_mb is not None:
        row["memory_mb"] = measured.memory_mb
    if measured.device_memory_mb is not None:
        row["device_memory_mb"] = measured.device_memory_mb
    if measured.profile is not None:
        row["profile"] = measured.profile
    if measured.loadgen:
        row["loadgen"] = measured.loadgen
    if plan.error is not None:
        return {**row, "error": plan.error}
    if len(measured.latency_ns):
        row["latency_ms"] = {
            name: _json(latency_interval(measured.latency_ns, q, launch=measured.launch, confidence=confidence))
            for name, q in PERCENTILES.items()
        }
        row["throughput_per_s"] = candidate.batch * 1e9 / float(np.mean(measured.latency_ns))
        row["cpu_ms"] = None if measured.cpu_s is None else measured.cpu_s / measured.calls * 1e3
        if measured.energy_mj is not None:
            row["energy_mj"] = measured.energy_mj / measured.calls
    usable = reference
    if reference is not None and (reference[0].error is not None or reference[1].golden == "WRONG"):
        usable = None
    if usable is not None and usable[0] is not plan:
        row["speedup"] = _speedup(plan, measured, usable)
    if samples is not None and measured.outputs is not None:
        row |= _accuracy(plan, measured.outputs, usable, samples, seed=seed, confidence=confidence)
    return row


def _speedup(plan: Plan, measured: Measured, reference: tuple[Plan, Measured]) -> dict[str, Any] | None:
    """Median per sample of the reference over this candidate's: 2 means twice as fast."""
    base_plan, base = reference
    try:
        ratio = launch_ratio((base.latency_ns, base.launch), (measured.latency_ns, measured.launch))
    except UsageError:
        return None  # too few launches: the suite asked for no more, or the verdict says so
    # Per sample, so that a batch of 8 is not eight times slower.
    per_sample = plan.candidate.batch / base_plan.candidate.batch
    return {
        "value": ratio.value * per_sample,
        "low": ratio.low * per_sample,
        "high": ratio.high * per_sample,
        "against": base_plan.candidate.id,
    }


def _accuracy(
    plan: Plan,
    outputs: Array,
    reference: tuple[Plan, Measured] | None,
    samples: Samples,
    *,
    seed: int,
    confidence: float,
) -> dict[str, Any]:
    task, y = samples.task, samples.y
    scores, threshold = as_judged(task, plan.postprocess, outputs)
    own = contributions(task, scores, y, threshold=threshold)
    told: dict[str, Any] = {"accuracy": score_interval(task, own, confidence=confidence, seed=seed).to_json()}
    if reference is None or reference[1].outputs is None or reference[0] is plan:
        return told | _closely(plan, outputs, samples, own, None, None, confidence)
    others, limit = as_judged(task, reference[0].postprocess, reference[1].outputs)
    theirs = contributions(task, others, y, threshold=limit)
    told["drop_points"] = drop_points(task, theirs, own, confidence=confidence, seed=seed).to_json()
    # Both relative to their own threshold: a label agrees when both call it present, or neither does.
    told["agreement"] = agreement(task, others - limit, scores - threshold)
    return told | _closely(plan, outputs, samples, own, others, theirs, confidence)


def _closely(
    plan: Plan,
    outputs: Array,
    samples: Samples,
    own: Contributions,
    others: Array | None,
    theirs: Contributions | None,
    confidence: float,
) -> dict[str, Any]:
    """Further metrics, each class, and the worst samples."""
    task, y, steps = samples.task, samples.y, plan.postprocess
    if task != "classification":
        return {
            "metrics": further_metrics(task, outputs, y, steps),
            "worst": worst_samples(task, outputs, y, steps, samples.labels),
        }
    numbers = class_numbers(y, outputs)
    if numbers is None:
        return {}
    return {
        "metrics": further_metrics(task, outputs, numbers, steps),
        "per_class": per_class(numbers, own, theirs, samples.labels, confidence=confidence),
        "worst": worst_samples(task, outputs, numbers, steps, samples.labels, others),
    }


def judged(plan: Plan, measured: Measured, samples: Samples | None) -> Contributions | None:
    """What each sample adds to the metric, by `metrics.contributions`; None where nothing was evaluated."""
    if samples is None or measured.outputs is None or plan.error is not None:
        return None
    scores, threshold = as_judged(samples.task, plan.postprocess, measured.outputs)
    return contributions(samples.task, scores, samples.y, threshold=threshold)


def raw_samples(measured: Measured, own: Contributions | None = None) -> dict[str, Sequence[Any]]:
    """The raw part of a candidate for the result, nothing dropped.

    latency_ns     every timed call in the order of time
    block          how many of these calls each of its blocks holds (a number per call would double the file)
    launch         how many of these blocks ran in each of its processes
    order          the place of each of its blocks among all blocks that ran
    cold_ms        load and first call of each fresh process
    contributions  of each labelled sample to the metric, by columns (`metrics.contributions`), so that two results
                   on the same samples can be compared in pairs
    """
    raw: dict[str, Sequence[Any]] = {
        "latency_ns": measured.latency_ns.tolist(),
        "block": np.bincount(measured.block).tolist(),
        "launch": np.bincount(measured.launch[np.unique(measured.block, return_index=True)[1]]).tolist(),
        "order": measured.order,
        "cold_ms": [list(start) for start in measured.cold],
    }
    if own is None:
        return raw
    whole = bool((own == own.round()).all())
    return {**raw, "contributions": (own.astype(np.int64) if whole else own).T.tolist()}


def launch_of_calls(raw: Mapping[str, Any]) -> NDArray[np.intp]:
    """The launch of each call in `raw_samples`; a result of an edgekd that knew no launches was one."""
    launches = np.asarray(raw.get("launch", [len(raw["block"])]), np.int64)
    return np.repeat(np.repeat(np.arange(len(launches)), launches), np.asarray(raw["block"], np.int64))


def series(plan: Plan, measured: Measured, *, min_calls: int) -> Series:
    """What the verdict judges of one candidate."""
    waited, interrupted = measured.waited_s, measured.interrupted if plan.candidate.threads == 1 else None
    return Series(
        measured.latency_ns,
        measured.block,
        measured.launch,
        min_calls,
        None if waited is None or not measured.seconds else waited / measured.seconds,
        None if interrupted is None or not measured.calls else interrupted / measured.calls,
    )


def describe_candidate(plan: Plan, measured: Measured) -> dict[str, Any]:
    """The candidate as results.json lists it."""
    candidate, told = plan.candidate, series(plan, measured, min_calls=0)
    plain: dict[str, Any] = {
        "id": candidate.id,
        "model": str(candidate.model),
        "variant": plan.variant,
        "runtime": candidate.runtime,
        "threads": candidate.threads,
        "batch": candidate.batch,
        "options": dict(candidate.options),
        "golden": measured.golden,
        "warm_up": measured.warm_up,
        "empty_call_ns": measured.empty_ns,
        "waited_share": told.waited_share,
        "interrupted_share": told.interrupted_share,
    }
    if measured.golden_problem is not None:
        plain["golden_problem"] = measured.golden_problem
    if measured.timed_on is not None:
        plain["timed_on"] = measured.timed_on
    return plain if plan.error is None else {**plain, "error": plan.error}


def _json(interval: Interval | None) -> Mapping[str, float | int] | None:
    return None if interval is None else interval.to_json()
