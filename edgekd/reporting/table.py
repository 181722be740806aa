"""The table of a report: one row per measured candidate, as numbers (CSV) and as text (terminal, Markdown, HTML)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.reporting.numbers import (
    format_exact,
    format_range,
    format_value,
    interval_of,
    mapping,
    number_of,
    scaled,
)
from edgekd.spec import Interval

TOO_SMALL = "n too small"
ABSENT = "–"
ROLE_NAMES = {
    "teacher-pytorch": "Teacher, PyTorch",
    "teacher-onnx": "Teacher, float ONNX",
    "student-alone": "Student alone, float ONNX",
}
SHORT_NAMES = {"teacher-pytorch": "Teacher, PyTorch", "teacher-onnx": "Teacher, ONNX", "student-alone": "Student alone"}


@dataclass(frozen=True)
class Metric:
    """How a metric is written: its name, its unit, and the factor from the 0..1 scale to that unit."""

    title: str
    unit: str
    factor: float


METRICS = {
    "accuracy": Metric("Accuracy", "%", 100.0),
    "f1_micro": Metric("F1 (micro)", "%", 100.0),
    "r2": Metric("R²", "", 1.0),
}


@dataclass(frozen=True)
class Column:
    """One column: its key in `cells`, its heading and the unit below the heading."""

    key: str
    title: str
    unit: str


def metric_of(results: Mapping[str, Any]) -> Metric:
    """The metric of the run; accuracy where a plain benchmark does not say."""
    name = mapping(results.get("run")).get("metric") or results.get("metric") or "accuracy"
    return METRICS.get(str(name), Metric(str(name), "", 1.0))


def figures_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict per measured row, in the order of the benchmark.

    Keys: candidate, name, role, chosen, reference (speed-up and drop are against it), model, variant, runtime,
    threads, batch, scenario, golden, error, n;
    `Interval` or None: accuracy (0..1), drop_points, p50_ms, p90_ms, p99_ms, speedup, cold_start_ms; float or None:
    size_kb, memory_mb, throughput_per_s, load_ms, first_ms, cpu_ms, energy_mj, agreement; against; operators (of a
    profile); and `cells`: {column key: (text, interval text)} for those who only print. `columns(results)` gives the
    headings.
    """
    metric = metric_of(results)
    references = {mapping(row.get("speedup")).get("against") for row in results["rows"]}
    rows: list[dict[str, Any]] = []
    for candidate in results["candidates"]:
        measured = [row for row in results["rows"] if row.get("candidate") == candidate.get("id")]
        for row in measured or [{}]:
            plain = figures_of_row(results, candidate, row)
            plain["reference"] = plain["role"] == "teacher-onnx" or plain["candidate"] in references
            rows.append({**plain, "cells": cells(plain, metric)})
    return rows


def figures_of_row(results: Mapping[str, Any], candidate: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one candidate; `row` is empty when it failed before it was measured."""
    run = mapping(results.get("run"))
    name = str(candidate.get("id", "?"))
    role = mapping(run.get("roles")).get(name)
    latency, speedup = mapping(row.get("latency_ms")), mapping(row.get("speedup"))
    size = number_of(row.get("size_bytes"))
    phases = mapping(row.get("memory_mb"))
    peaks = [figure.value for phase in phases.values() if (figure := interval_of(phase)) is not None]
    return {
        "candidate": name,
        "name": ROLE_NAMES.get(str(role), f"Student, {name}" if role == "variant" else name),
        "role": role,
        "chosen": role == "variant" and run.get("chosen") in (name, candidate.get("variant")),
        "model": candidate.get("model"),
        "variant": candidate.get("variant"),
        "runtime": candidate.get("runtime"),
        "threads": candidate.get("threads"),
        "batch": candidate.get("batch"),
        "scenario": row.get("scenario"),
        "golden": candidate.get("golden"),
        "error": candidate.get("error") or row.get("error"),
        "n": row.get("n"),
        "accuracy": interval_of(row.get("accuracy")),
        "drop_points": interval_of(row.get("drop_points")),
        "size_kb": None if size is None else size / 1000,
        "p50_ms": interval_of(latency.get("p50")),
        "p90_ms": interval_of(latency.get("p90")),
        "p99_ms": interval_of(latency.get("p99")),
        "speedup": interval_of(speedup),
        "against": speedup.get("against"),
        "memory_mb": max(peaks, default=None),
        "throughput_per_s": _value(row.get("throughput_per_s")),
        "load_ms": _value(row.get("load_ms")),
        "first_ms": _value(row.get("first_ms")),
        "cold_start_ms": interval_of(row.get("cold_start_ms")),
        "cpu_ms": _value(row.get("cpu_ms")),
        "energy_mj": _value(row.get("energy_mj")),
        "agreement": _value(row.get("agreement")),
        "operators": [
            item for item in _list(mapping(row.get("profile")).get("operators")) if isinstance(item, Mapping)
        ],
    }


def cells(row: Mapping[str, Any], metric: Metric) -> dict[str, tuple[str, str]]:
    """Text and interval text of each column; a failed candidate has nothing but its name."""
    failed = bool(row["error"])
    accuracy = row["accuracy"]
    return {
        "name": (row["name"], ""),
        "runtime": (str(row["runtime"] or ABSENT), ""),
        "threads": (str(row["threads"] or ABSENT), ""),
        "batch": (str(row["batch"] or ABSENT), ""),
        "accuracy": _cell(None if accuracy is None else scaled(accuracy, metric.factor), least=1),
        "drop": ("reference", "") if row["reference"] and not failed else _cell(row["drop_points"], sign=True, least=1),
        "size": (ABSENT if row["size_kb"] is None else format_exact(row["size_kb"]), ""),
        "p50": _cell(row["p50_ms"], absent=ABSENT if failed else TOO_SMALL),
        "p90": _cell(row["p90_ms"], absent=ABSENT if failed else TOO_SMALL),
        "speedup": ("1", "") if row["reference"] and row["p50_ms"] is not None else _cell(row["speedup"]),
        "memory": (ABSENT if row["memory_mb"] is None else format_exact(round(row["memory_mb"], 1)), ""),
        "energy": (ABSENT if row["energy_mj"] is None else f"{row['energy_mj']:.3g}", ""),
    }


def columns(results: Mapping[str, Any]) -> list[Column]:
    """The columns that have something to say: runtime, threads and batch only where the candidates differ."""
    rows = figures_of(results)
    metric = metric_of(results)
    shown = [Column("name", "Model", "")]
    for key in ("runtime", "threads", "batch"):
        if len({row[key] for row in rows if row["role"] != "teacher-pytorch"}) > 1:
            shown.append(Column(key, key.capitalize(), ""))
    if any(row["accuracy"] for row in rows):
        shown.append(Column("accuracy", metric.title, metric.unit))
    if any(row["drop_points"] for row in rows):
        shown.append(Column("drop", "Drop", "points"))
    shown += [Column("size", "Size", "kB"), Column("p50", "Latency p50", "ms"), Column("p90", "Latency p90", "ms")]
    if any(row["speedup"] for row in rows):
        shown.append(Column("speedup", "Speed-up", "×"))
    if any(row["memory_mb"] for row in rows):
        shown.append(Column("memory", "Peak memory", "MB"))
    if any(row["energy_mj"] for row in rows):
        shown.append(Column("energy", "Energy", "mJ"))
    return shown


def status(row: Mapping[str, Any]) -> str:
    """`WRONG`, `failed` or nothing: what the reader must see beside the name."""
    if row["error"]:
        return "failed"
    return "WRONG" if row["golden"] == "WRONG" else ""


def problems(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, what is the matter) of every candidate that failed or gives wrong outputs."""
    found = []
    for row in figures_of(results):
        if row["error"]:
            found.append((row["name"], f"failed: {row['error']}"))
        elif status(row):
            found.append((row["name"], "WRONG: its outputs differ from the golden ones, so its figures do not count"))
    return found


def csv_text(results: Mapping[str, Any]) -> str:
    """The rows as CSV with unrounded numbers; three columns (value, low, high) where there is an interval."""
    rows = figures_of(results)
    plain = ("candidate", "role", "chosen", "model", "variant", "runtime", "threads", "batch", "scenario", "n")
    intervals = ("accuracy", "drop_points", "p50_ms", "p90_ms", "p99_ms", "speedup", "cold_start_ms")
    exact = ("size_kb", "memory_mb", "throughput_per_s", "load_ms", "first_ms", "cpu_ms", "energy_mj", "agreement")
    heading = [*plain, *exact]
    for key in intervals:
        heading += [key, f"{key}_low", f"{key}_high"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*heading, "against", "golden", "error"])
    for row in rows:
        values: list[object] = [_csv_safe(row[key]) for key in (*plain, *exact)]
        for key in intervals:
            interval: Interval | None = row[key]
            values += ["", "", ""] if interval is None else [interval.value, interval.low, interval.high]
        writer.writerow([*values, *(_csv_safe(row[key]) for key in ("against", "golden", "error"))])
    return out.getvalue()


def markdown_table(results: Mapping[str, Any]) -> str:
    """The table in Markdown, the chosen variant in bold, intervals in brackets."""
    shown = columns(results)
    headings = [f"{column.title} ({column.unit})" if column.unit else column.title for column in shown]
    lines = [_line(headings), _line(["---", *("---:" for _ in shown[1:])])]
    for row in figures_of(results):
        texts = []
        for column in shown:
            text, interval = row["cells"][column.key]
            if column.key == "name":
                text = f"**{markdown_safe(text)}** (chosen)" if row["chosen"] else markdown_safe(text)
                text += f" **{markdown_safe(status(row))}**" if status(row) else ""
            else:
                text = markdown_safe(f"{text} ({interval})" if interval else text)
            texts.append(text)
        lines.append(_line(texts))
    return "\n".join(lines)


def markdown_safe(text: str) -> str:
    """One line of text that Markdown shows as it is: no markup, no HTML, no broken table row."""
    text = " ".join(text.split())
    for character in "\\`*[]<|":
        text = text.replace(character, f"\\{character}")
    return text


def _list(raw: object) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _cell(interval: Interval | None, *, absent: str = ABSENT, sign: bool = False, least: int = 0) -> tuple[str, str]:
    if interval is None:
        return absent, ""
    return format_value(interval, sign=sign, least=least), format_range(interval, sign=sign, least=least)


def _csv_safe(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets a quote in front."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _value(raw: object) -> float | None:
    interval = interval_of(raw)
    return None if interval is None else interval.value
