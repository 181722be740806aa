"""Stage `select`: which variant ships, decided on validation by the recipe's limits.

Test is not touched here: it is read once, by the benchmark stage, for the report.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edgekd.device.benchmark import Candidate, benchmark
from edgekd.device.metrics import drop_points, needed_n
from edgekd.device.rows import launch_of_calls
from edgekd.device.statistics import early_stopping_minimum, launch_ratio
from edgekd.device.suites import Suite
from edgekd.errors import StageFailed, UsageError
from edgekd.spec import Interval, Limits, LimitVerdict
from edgekd.stages.graphs import FLOAT, load_outputs, variant_path
from edgekd.stages.inside import wrap
from edgekd.stages.workspace import Workspace

# Variants whose p50 lies within this share of the fastest count as equally fast; the smaller file wins then.
TIE = 0.10


def work_on_select(space: Workspace) -> tuple[dict[str, Any], str]:
    """Measure every variant that held, judge each limit, choose."""
    parity = space.result("verify")["parity"]
    rows = measure(space, [name for name, item in parity.items() if item["ok"]])
    names = [name for name, row in rows.items() if row["latency_ms"]["p50"] is not None]
    if not names:
        raise StageFailed(
            "no variant could be timed here: too few independent calls in the time given; close other programs and run "
            "the same command again: finished stages are kept"
        )
    limits = space.recipe.limits.to_limits()
    judged = {name: judge(space, name, rows[name], limits) for name in names}
    p50 = {name: rows[name]["latency_ms"]["p50"]["value"] for name in names}
    sizes = {name: shipped_size(space, name) for name in names}
    untimed = {name: "it could not be timed here: too few independent calls" for name in rows if name not in names}
    held_back = not_proven_faster(rows, limits) | untimed
    chosen = choose(judged, p50_ms=p50, size_bytes=sizes, held_back=held_back)
    for verdict in judged[chosen]:
        if verdict.verdict != "met":
            space.listener.warn(explain(verdict, limits.confidence))
    result = {
        "chosen": chosen,
        "ranking": rank(judged, p50_ms=p50, size_bytes=sizes, held_back=held_back),
        "held_back": held_back,
        "limits": {name: [verdict.to_json() for verdict in verdicts] for name, verdicts in judged.items()},
        "latency_ms": {name: rows[name]["latency_ms"] for name in names},
    }
    said = ", ".join(f"{verdict.name} {verdict.verdict}" for verdict in judged[chosen]) or "no limits were set"
    return result, f"{chosen} ({said})"


def measure(space: Workspace, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """One interleaved run over the variants on this machine, on validation samples, one row per variant."""
    prepared = space.prepared
    candidates = [
        Candidate(
            name,
            str(variant_path(space, name)),
            threads=space.recipe.benchmark.threads,
            preprocess=prepared.arithmetic,
            postprocess=space.post,
        )
        for name in names
    ]
    suite = Suite(
        name="select",
        min_calls=256,
        max_seconds=3.0,
        block_ms=20.0,
        cold_starts=0,
        memory=space.recipe.limits.peak_memory_mb is not None,
        min_blocks=16,
        launches=8,
    )
    results = benchmark(
        candidates,
        suite=suite,
        against=FLOAT if FLOAT in names else None,
        samples=prepared.labelled(prepared.dataset.val),
        seed=space.recipe.seed,
        progress=lambda text, done, total: space.listener.step(text, done, total, {}),
    )
    for item in results["candidates"]:
        if item.get("error"):
            space.listener.warn(f"variant {item['id']} is out: {item['error']}")
    rows = {row["candidate"]: row for row in results["rows"] if not row.get("error")}
    confidence = space.recipe.limits.confidence
    return {name: {**row, "speedup": speedup(results["samples"], name, confidence)} for name, row in rows.items()}


def speedup(samples: Mapping[str, Any], name: str, confidence: float) -> Interval | None:
    """Median of the float student over this variant's, over launches that ran beside each other; None for the float
    student itself, and where too few launches were measured."""
    if name == FLOAT or FLOAT not in samples:
        return None
    base, own = ((item["latency_ns"], launch_of_calls(item)) for item in (samples[FLOAT], samples[name]))
    try:
        return launch_ratio(base, own, confidence=confidence)
    except UsageError:
        return None


def not_proven_faster(rows: Mapping[str, Mapping[str, Any]], limits: Limits) -> dict[str, str]:
    """Variants that are not chosen: what is neither faster than the float student, beyond doubt, nor asked for
    because it is smaller. Name -> reason."""
    if FLOAT not in rows or limits.size_kb is not None or limits.peak_memory_mb is not None:
        return {}
    found: dict[str, str] = {}
    for name, row in rows.items():
        ratio = row["speedup"]
        if name == FLOAT or (ratio is not None and ratio.low > 1.0):
            continue
        told = "too few launches were timed"
        measured = told if ratio is None else f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
        found[name] = f"not proven faster than {FLOAT} ({measured}), and no limit asks for a smaller one"
    return found


def shipped_size(space: Workspace, name: str) -> int:
    """Bytes of the file that ships: the network, with its steps where the recipe puts them inside."""
    path, export = variant_path(space, name), space.recipe.export
    if not (export.preprocess_in_graph or export.postprocess_in_graph):
        return path.stat().st_size
    prepared = space.prepared
    whole, _ = wrap(
        path,
        (prepared.steps, prepared.sample_spec) if export.preprocess_in_graph else None,
        space.post if export.postprocess_in_graph else None,
        task=space.recipe.task,
        labels=prepared.dataset.labels,
    )
    return len(whole)


def judge(space: Workspace, name: str, row: Mapping[str, Any], limits: Limits) -> list[LimitVerdict]:
    """A verdict for each limit that was set."""
    verdicts: list[LimitVerdict] = []
    if limits.size_kb is not None:
        verdicts.append(judge_exact("size_kb", limits.size_kb, shipped_size(space, name) / 1000))
    if limits.latency_p90_ms is not None:
        verdicts.append(judge_latency(limits.latency_p90_ms, row["latency_ms"]["p90"], n=int(row["n"])))
    if limits.peak_memory_mb is not None:
        memory = row.get("memory_mb")
        verdicts.append(
            LimitVerdict("peak_memory_mb", limits.peak_memory_mb, None, "unproven")
            if memory is None
            else judge_exact("peak_memory_mb", limits.peak_memory_mb, max(memory.values()))
        )
    if limits.accuracy_drop_points is not None:
        task, prepared = space.recipe.task, space.prepared
        teacher = prepared.judge(load_outputs(space, "teacher"), prepared.dataset.val, space.teacher_post)
        own = prepared.judge(load_outputs(space, name), prepared.dataset.val)
        drop = drop_points(task, teacher, own, confidence=limits.confidence)
        needed = needed_n(task, teacher, own, limits.accuracy_drop_points, confidence=limits.confidence)
        verdicts.append(judge_interval("accuracy_drop_points", limits.accuracy_drop_points, drop, needed=needed))
    return verdicts


def judge_exact(name: str, limit: float, value: float) -> LimitVerdict:
    """A figure without sampling error."""
    return LimitVerdict(name, limit, Interval(value, value, value), "met" if value <= limit else "missed")


def judge_interval(name: str, limit: float, value: Interval, *, needed: int | None) -> LimitVerdict:
    """Met when the whole interval lies within the limit, missed when none of it does, unproven between."""
    if value.high <= limit:
        return LimitVerdict(name, limit, value, "met")
    if value.low > limit:
        return LimitVerdict(name, limit, value, "missed")
    return LimitVerdict(name, limit, value, "unproven", needed_n=needed)


def judge_latency(limit_ms: float, p90: Mapping[str, float] | None, *, n: int) -> LimitVerdict:
    """The 90th percentile; with too few calls nothing is proven."""
    name = "latency_p90_ms"
    if p90 is None:
        return LimitVerdict(name, limit_ms, None, "unproven", needed_n=early_stopping_minimum(0.90))
    value = Interval(p90["value"], p90["low"], p90["high"], n)
    # An interval of order statistics shrinks with the root of the number of calls.
    gap = abs(limit_ms - value.value)
    half = max(value.high - value.value, value.value - value.low)
    needed = max(n + 1, math.ceil(n * (half / gap) ** 2)) if gap > 0 and value.value <= limit_ms else None
    return judge_interval(name, limit_ms, value, needed=needed)


def rank(
    judged: Mapping[str, Sequence[LimitVerdict]],
    *,
    p50_ms: Mapping[str, float],
    size_bytes: Mapping[str, int],
    held_back: Collection[str] = (),
) -> list[str]:
    """Variants from the best to the worst; those in `held_back` after all others.

    First who misses fewest limits, then whose figures themselves exceed fewest (an unproven limit may be
    exceeded or not), then the fastest; within `TIE` of the fastest of its group, the smallest.
    """

    def key(name: str) -> tuple[bool, int, int]:
        verdicts = judged[name]
        missed = sum(verdict.verdict == "missed" for verdict in verdicts)
        exceeded = sum(v.value is not None and v.value.value > v.limit for v in verdicts)
        return name in held_back, missed, exceeded

    ranking: list[str] = []
    for group in sorted({key(name) for name in judged}):
        rest = [name for name in judged if key(name) == group]
        while rest:
            fastest = min(p50_ms[name] for name in rest)
            ties = [name for name in rest if p50_ms[name] <= fastest * (1 + TIE)]
            best = min(ties, key=lambda name: (size_bytes[name], p50_ms[name], name))
            ranking.append(best)
            rest.remove(best)
    return ranking


def choose(
    judged: Mapping[str, Sequence[LimitVerdict]],
    *,
    p50_ms: Mapping[str, float],
    size_bytes: Mapping[str, int],
    held_back: Collection[str] = (),
) -> str:
    """The first of `rank`."""
    return rank(judged, p50_ms=p50_ms, size_bytes=size_bytes, held_back=held_back)[0]


# Limits whose figures are the same on every machine.
PORTABLE = ("size_kb", "accuracy_drop_points")


def equally_good_elsewhere(limits: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Of the judged variants (name -> its verdicts as JSON) those that no machine rules out: fewest portable limits
    missed, then fewest exceeded."""

    def key(name: str) -> tuple[int, int]:
        verdicts = [item for item in limits[name] if item["name"] in PORTABLE]
        missed = sum(item["verdict"] == "missed" for item in verdicts)
        return missed, sum(item["value"] is not None and item["value"] > item["limit"] for item in verdicts)

    best = min(map(key, limits))
    return [name for name in limits if key(name) == best]


UNITS = {
    "size_kb": "kB",
    "latency_p90_ms": "ms",
    "peak_memory_mb": "MB",
    "accuracy_drop_points": "points",
}


def explain(verdict: LimitVerdict, confidence: float) -> str:
    """One sentence: what the limit was, what was found, and what would settle it."""
    unit, value = UNITS[verdict.name], verdict.value
    if value is None:
        needed = "" if verdict.needed_n is None else f", a proof takes at least {verdict.needed_n} independent calls"
        return f"limit {verdict.name} = {verdict.limit:g} {unit} is unproven: it could not be measured{needed}"
    found = f"limit {verdict.name} = {verdict.limit:g} {unit} is {verdict.verdict}: found {value.value:.3g}"
    if value.low != value.high:
        found += f" ({confidence:.0%} interval {value.low:.3g} to {value.high:.3g})"
    if verdict.verdict == "missed":
        return f"{found}, {value.value - verdict.limit:.3g} {unit} too much"
    if verdict.verdict == "unproven" and verdict.needed_n is not None:
        n = "" if value.n is None else f"; n = {value.n} is too small"
        what = "timed calls" if verdict.name == "latency_p90_ms" else "samples"
        return f"{found}{n}, a proof takes about {verdict.needed_n:,} {what}"
    return found
