"""The answer at the head of a report, in words: what shipped, how much smaller and faster, and which limits hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgekd.reporting.numbers import (
    decimals,
    format_exact,
    format_limit,
    format_range,
    format_value,
    interval_of,
    mapping,
    number_of,
    text_of,
)
from edgekd.reporting.table import Metric, figures_of, metric_of, status
from edgekd.spec import Interval

LIMIT_NAMES = {
    "latency_p90_ms": ("Latency p90", "ms"),
    "size_kb": ("Size", "kB"),
    "peak_memory_mb": ("Peak memory", "MB"),
    "accuracy_drop_points": ("Accuracy drop", "points"),
}
LIMIT_SAMPLES = {"latency_p90_ms": "timed calls", "accuracy_drop_points": "validation samples"}


@dataclass(frozen=True)
class Figure:
    """One large number of the head: `21×` `smaller` `12.4 kB instead of 262 kB`."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class LimitLine:
    """One limit as the reader sees it; `comment` says what a missed or unproven one would take."""

    name: str
    limit: str
    found: str
    interval: str
    verdict: str
    comment: str


@dataclass(frozen=True)
class Answer:
    """The head of a report."""

    title: str
    headline: str
    figures: tuple[Figure, ...]
    limits: tuple[LimitLine, ...]
    limits_said: str
    gain: str
    gain_tone: Literal["good", "open", "bad", ""]
    valid: bool
    reasons: tuple[str, ...]
    advice: tuple[str, ...]


def answer(results: Mapping[str, Any]) -> Answer:
    """Everything that the head of the report says about `results`."""
    run, verdict = mapping(results.get("run")), mapping(results.get("verdict"))
    rows = figures_of(results)
    metric = metric_of(results)
    limits = tuple(limit_line(raw) for raw in run.get("limits") or ())
    gain, tone = gain_of_distillation(run, rows, metric)
    chosen = next((row for row in rows if row["chosen"]), None)
    teacher = next((row for row in rows if row["role"] == "teacher-onnx"), None)
    if run:
        headline, figures = student_answer(chosen, teacher, metric)
    else:
        headline, figures = benchmark_answer(rows, metric)
    return Answer(
        title=str(run.get("name") or "Benchmark"),
        headline=headline,
        figures=figures,
        limits=limits,
        limits_said=limits_said(limits),
        gain=gain,
        gain_tone=tone,
        valid=verdict.get("value") == "VALID",
        reasons=tuple(str(reason) for reason in verdict.get("reasons") or ()),
        advice=tuple(str(advice) for advice in verdict.get("advice") or ()),
    )


def student_answer(
    chosen: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None, metric: Metric
) -> tuple[str, tuple[Figure, ...]]:
    """Headline and figures of a run: the chosen variant beside the teacher's ONNX."""
    if chosen is None:
        return "No student variant was measured, so there is nothing to recommend.", ()
    name = chosen["candidate"]
    if problem := status(chosen):
        why = f"failed: {chosen['error']}" if problem == "failed" else "gave wrong outputs in its self-test"
        return f"The chosen variant {name} must not be used: it {why}.", ()
    figures, said = [], []
    same_speed = chosen["speedup"] is not None and no_difference(chosen["speedup"])
    if teacher is not None and chosen["size_kb"] and teacher["size_kb"]:
        words, value = ratio_words(teacher["size_kb"] / chosen["size_kb"], "smaller", "larger")
        said.append(f"{value} {words} than" if chosen["speedup"] is None or same_speed else f"{value} {words}")
        sizes = f"{format_exact(chosen['size_kb'])} kB instead of {format_exact(teacher['size_kb'])} kB"
        figures.append(Figure(value, words, sizes))
    if chosen["speedup"] is not None:
        figure = speed_figure(chosen, teacher)
        said.append("about as fast as" if figure.label == "as fast" else f"{figure.value} {figure.label} than")
        figures.append(figure)
    if chosen["drop_points"] is not None:
        figures.append(drop_figure(chosen, metric, samples="test samples"))
    if not said:
        return f"The student {name} was chosen.", tuple(figures)
    return f"The student {name} is {' and '.join(said)} its teacher.", tuple(figures)


def speed_figure(chosen: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> Figure:
    """The speed-up with its interval; an interval around 1 is no difference."""
    speedup: Interval = chosen["speedup"]
    note = latency_note(chosen, teacher)
    if no_difference(speedup):
        return Figure("≈ 1×", "as fast", f"{format_range(speedup)} times: no difference is measured. {note}".strip())
    words, value = ratio_words(speedup.value, "faster", "slower", like=speedup)
    inverse = speedup if speedup.value >= 1 else Interval(1 / speedup.value, 1 / speedup.high, 1 / speedup.low)
    spread = format_range(inverse)
    return Figure(value, words, f"{spread} times. {note}".strip() if spread else note)


def no_difference(ratio: Interval) -> bool:
    """Whether the interval of a ratio holds 1."""
    return ratio.low <= 1 <= ratio.high and ratio.low < ratio.high


def latency_note(chosen: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> str:
    """`p50 0.041 ms instead of 0.30 ms`."""
    if chosen["p50_ms"] is None or teacher is None or teacher["p50_ms"] is None:
        return ""
    return f"p50 {format_value(chosen['p50_ms'])} ms instead of {format_value(teacher['p50_ms'])} ms"


def drop_figure(row: Mapping[str, Any], metric: Metric, *, samples: str) -> Figure:
    """The drop against the reference in points; a negative drop is a rise."""
    drop: Interval = row["drop_points"]
    title = metric.title if metric.title[:2].isupper() or not metric.title.isascii() else metric.title.lower()
    spread = format_range(drop, sign=True, least=1)
    note = f"drop {spread} points" if spread else ""
    if row["accuracy"] is not None and row["accuracy"].n:
        note = f"{note}, on {row['accuracy'].n:,} {samples}".removeprefix(", ")
    amount = amount_of(drop)
    if not any(digit in amount for digit in "123456789"):
        return Figure(amount, f"points of {title} lost", note)
    return Figure(amount, f"points {'lower' if drop.value > 0 else 'higher'} {title}", note)


def amount_of(change: Interval) -> str:
    """The size of a change in points, without its sign."""
    return format_value(change, least=1).lstrip("−")


def ratio_words(ratio: float, more: str, less: str, *, like: Interval | None = None) -> tuple[str, str]:
    """`("smaller", "21×")`; a ratio below 1 is turned round and takes the other word."""
    if ratio < 1:
        return less, f"{text_of(1 / ratio, 0 if 1 / ratio >= 10 else 1)}×"
    if like is not None:
        return more, f"{format_value(like)}×"
    return more, f"{text_of(ratio, 0 if ratio >= 10 else 1)}×"


def benchmark_answer(rows: Sequence[Mapping[str, Any]], metric: Metric) -> tuple[str, tuple[Figure, ...]]:
    """Headline and figures of a plain benchmark: the fastest candidate that works."""
    usable = [row for row in rows if row["p50_ms"] is not None and not status(row)]
    if not usable:
        return "No candidate could be measured to the end.", ()
    best = min(usable, key=lambda row: row["p50_ms"].value)
    latency: Interval = best["p50_ms"]
    spread = format_range(latency)
    figures = [Figure(f"{format_value(latency)} ms", "latency p50", f"{spread} ms" if spread else "")]
    reference = next((row for row in rows if row["candidate"] == best["against"]), None)
    if best["speedup"] is not None and best["against"] != best["candidate"]:
        figure = speed_figure(best, reference)
        figures.append(Figure(figure.value, f"{figure.label} than {best['against']}", figure.note))
    if best["drop_points"] is not None:
        figures.append(drop_figure(best, metric, samples="labelled samples"))
    if best["size_kb"] is not None:
        figures.append(Figure(f"{format_exact(best['size_kb'])} kB", "size of the model file", ""))
    count = "the only candidate" if len(usable) == 1 else f"the fastest of {len(usable)} candidates"
    end = " that worked" if len(usable) < len(rows) else ""
    return f"{best['candidate']} is {count}{end}.", tuple(figures)


def limit_line(raw: Mapping[str, Any]) -> LimitLine:
    """One limit of the run (the JSON of a `LimitVerdict`) in words."""
    key, verdict = str(raw.get("name")), str(raw.get("verdict"))
    name, unit = LIMIT_NAMES.get(key, (key, ""))
    bounds = list(raw.get("interval") or ())
    low, high = (bounds[0], bounds[1]) if len(bounds) == 2 else (None, None)
    unbounded = len(bounds) == 2 and (number_of(low) is None or number_of(high) is None)
    value = interval_of({"value": raw.get("value"), "low": low, "high": high})
    limit = number_of(raw.get("limit"))
    least = 1 if unit == "points" else 0
    needed = raw.get("needed_n")
    comment = ""
    if verdict == "missed" and value is not None and limit is not None:
        comment = f"missed by {excess(value, limit)} {unit}"
    if verdict == "unproven":
        samples = LIMIT_SAMPLES.get(key, "samples")
        if needed:
            comment = f"n too small: about {needed:,} {samples} would prove it"
        elif value is not None and limit is not None and value.value > limit:
            comment = "the estimate itself lies above the limit: more samples would rather show a miss than prove it"
        else:
            comment = f"more {samples} are needed to prove it"
    return LimitLine(
        name=name,
        limit=f"≤ {format_limit(limit)} {unit}" if limit is not None else "–",
        found="n too small" if unbounded or value is None else f"{format_value(value, least=least)} {unit}",
        interval="" if unbounded or value is None else format_range(value, least=least),
        verdict=verdict,
        comment=comment,
    )


def excess(value: Interval, limit: float) -> str:
    """How far `value` lies above `limit`, with the decimals of the value unless that would read zero."""
    text = text_of(value.value - limit, decimals(value.value, value.low, value.high))
    return text if any(digit in text for digit in "123456789") else format_exact(value.value - limit)


def limits_said(limits: Sequence[LimitLine]) -> str:
    """One sentence for all limits."""
    if not limits:
        return "No limits were set."
    counts = {word: sum(line.verdict == word for line in limits) for word in ("met", "missed", "unproven")}
    if counts["met"] == len(limits):
        return "The one limit is met." if len(limits) == 1 else f"All {len(limits)} limits are met."
    parts = [f"{count} {word}" for word, count in counts.items() if count]
    return f"Of {len(limits)} limit{'s' if len(limits) > 1 else ''}: {', '.join(parts)}."


def gain_of_distillation(
    run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], metric: Metric
) -> tuple[str, Literal["good", "open", "bad", ""]]:
    """What the teacher's help was worth: the distilled float student against the same student trained alone.

    `run["gain_points"]` (a paired interval) is used when it is there. Else the interval comes from the two
    separate ones (Newcombe 1998, method 10), which treats them as independent and is wider than a paired one.
    """
    alone = next((row for row in rows if row["role"] == "student-alone"), None)
    student = next((row for row in rows if row["role"] == "variant" and row["candidate"] == "float32"), None)
    student = student or next((row for row in rows if row["chosen"]), None)
    if alone is None or student is None or alone["accuracy"] is None or student["accuracy"] is None:
        return "", ""
    own, other = student["accuracy"], alone["accuracy"]
    gain = interval_of(run.get("gain_points")) or difference_points(own, other)
    what = f"the distilled student ({student['candidate']})"
    amount = amount_of(gain)
    spread = format_range(gain, sign=True, least=1)
    title = metric.title if metric.title != "Accuracy" else "accuracy"
    if gain.low > 0:
        return (
            f"Distillation helped: {what} gained {amount} points of {title} over the same student trained alone on "
            f"the same budget (interval {spread} points).",
            "good",
        )
    if gain.high < 0:
        return (
            f"Distillation hurt here: {what} lies {amount} points of {title} below the same student trained alone "
            f"on the same budget (interval {spread} points). Ship the student alone, or change the terms.",
            "bad",
        )
    seen = "above" if gain.value > 0 else "below"
    differs = any(digit in amount for digit in "123456789")
    seen_words = f"{amount} points of {title} {seen}" if differs else "as good as"
    return (
        f"No gain is proven: {what} is {seen_words} the same student trained alone, but the interval "
        f"({spread} points) includes zero. More test samples or more seeds would tell.",
        "open",
    )


def difference_points(a: Interval, b: Interval) -> Interval:
    """100 * (a - b) with Newcombe's interval from the two intervals; wide when the samples are the same ones."""
    difference = a.value - b.value
    below = math.hypot(a.value - a.low, b.high - b.value)
    above = math.hypot(a.high - a.value, b.value - b.low)
    return Interval(100 * difference, 100 * (difference - below), 100 * (difference + above))
