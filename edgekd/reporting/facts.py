"""The plain facts of a report: machine, versions, licences, budget, files, and how the figures came about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgekd.reporting.numbers import format_exact, format_seconds, mapping, number_of
from edgekd.reporting.quality import quality_groups
from edgekd.reporting.rejection import reject_groups
from edgekd.reporting.table import figures_of

# The flags that decide how fast a model runs; all of them are in results.json.
FLAGS = ("avx", "sse4", "fma", "f16c", "amx", "neon", "asimd", "sve", "dotprod", "i8mm", "bf16", "fphp")
UNITS = re.compile(r"_(ms|mb|s)$")


def compared(results: Mapping[str, Any]) -> str:
    """What the figures of the head are measured against."""
    rows = figures_of(results)
    teacher = next((row for row in rows if row["role"] == "teacher-onnx"), None)
    chosen = next((row for row in rows if row["chosen"]), None)
    if teacher is None or chosen is None:
        return ""
    threads = f"{chosen['threads']} thread{'' if chosen['threads'] == 1 else 's'}"
    same = teacher["runtime"] == chosen["runtime"] and teacher["threads"] == chosen["threads"]
    on = (
        f"both on {chosen['runtime']} with {threads}, in one interleaved run"
        if same
        else "see the table for the settings"
    )
    return f"Against the teacher as float ONNX, {on}."


def table_said(results: Mapping[str, Any]) -> str:
    """One sentence about where the figures of the table come from."""
    run, rows = mapping(results.get("run")), figures_of(results)
    against = sorted({str(row["against"]) for row in rows if row["against"]})
    names = [
        "the teacher as float ONNX" if row["role"] == "teacher-onnx" else row["name"]
        for row in rows
        if row["candidate"] in against
    ]
    what = "Drop and speed-up are" if any(row["drop_points"] for row in rows) else "Speed-up is"
    small = f"{what} against {', '.join(names)}. " if names else ""
    small += "Small figures are intervals."
    counts = {row["accuracy"].n for row in rows if row["accuracy"] is not None and row["accuracy"].n}
    n = f"{max(counts):,} " if counts else ""
    if run:
        return f"Accuracy is on the {n}test samples, which were read once, for this table. {small}"
    if n:
        return f"Accuracy is on {n}labelled samples. {small}"
    return small


def machine_line(results: Mapping[str, Any]) -> str:
    """The machine in a few words."""
    machine = mapping(results.get("machine"))
    cores = number_of(machine.get("cores_allowed"))
    return ", ".join(
        part for part in (str(machine.get("cpu") or ""), f"{format_exact(cores)} cores" if cores else "") if part
    )


def command_of(results: Mapping[str, Any]) -> str:
    """The command line that made the results."""
    command = results.get("command")
    if isinstance(command, (list, tuple)):
        return " ".join(str(part) for part in command)
    return str(command or "")


def fact_groups(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Accuracy in detail, machine, versions, licences, budget, files as (heading, [(name, value)]); none is empty."""
    run = mapping(results.get("run"))
    machine = dict(mapping(results.get("machine")))
    if flags := machine.get("flags"):
        machine["flags"] = [flag for flag in flags if str(flag).startswith(FLAGS)]
    suite = dict(mapping(results.get("suite")) or {"name": results.get("suite")})
    parts = results.get("parts") or []
    in_parts = {"measured_in_parts": parts} if len(parts) > 1 else {}
    measured = {"suite": suite.pop("name", None), "seed": results.get("seed"), **suite, **in_parts}
    budget = dict(mapping(run.get("budget")))
    seconds = {name: number_of(value) for name, value in mapping(budget.pop("seconds", None)).items()}
    spent = [
        (f"time for {name.replace('_', ' ')}", format_seconds(value))
        for name, value in seconds.items()
        if value is not None
    ]
    total = sum(value for value in seconds.values() if value is not None)
    models = [
        (name.replace("_", " "), f"{format_exact(parameters)} parameters, {format_exact(macs)} multiply-adds")
        for name, part in mapping(run.get("training")).items()
        if (parameters := number_of(mapping(part).get("parameters"))) is not None
        and (macs := number_of(mapping(part).get("macs"))) is not None
    ]
    groups = [
        *quality_groups(results),
        *reject_groups(results),
        *profile_groups(results),
        ("Machine", facts({"device": results["on"], **machine} if results.get("on") else machine)),
        ("Measurement", facts({key: value for key, value in measured.items() if value is not None})),
        ("Conditions while timing", facts(mapping(results.get("conditions")))),
        ("Models", models),
        ("Versions", facts(mapping(results.get("versions")))),
        ("Licences", facts(mapping(run.get("licences")))),
        ("Budget", facts(budget) + ([("time in all", format_seconds(total))] if spent else []) + spent),
        ("Calibration of the student on validation", facts(mapping(run.get("calibration")))),
        ("Samples", facts(mapping(run.get("counts")))),
        ("Variants that were refused", facts(mapping(run.get("refused_variants")))),
        ("Variants that were not chosen", facts(mapping(run.get("held_back")))),
        *mixtures(run),
        ("Files", facts(mapping(run.get("files")))),
    ]
    return [(heading, lines) for heading, lines in groups if lines]


def mixtures(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What each mixture of int8 and float left in float, what its layers cost and save, and how often it was tried."""
    groups = []
    for name, value in mapping(run.get("mixtures")).items():
        search = mapping(value)
        back = [str(item) for item in search.get("put_back") or ()]
        lines = [
            ("left in float", ", ".join(back) or "nothing"),
            ("evaluations", f"{search.get('evaluations')} of at most {search.get('most_evaluations')}"),
        ]
        for layer in map(mapping, search.get("layers") or ()):
            error = number_of(layer.get("error"))
            before, after = number_of(layer.get("float_ms")), number_of(layer.get("quantized_ms"))
            if error is None:
                continue
            saved = "" if before is None or after is None else f", {format_exact(before - after)} ms saved by int8"
            lines.append((str(layer.get("name")), f"error {error:.2g} of the outputs' variance{saved}"))
        groups.append((f"Layers of {name}", lines))
    return groups


def profile_groups(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The costliest operators of each candidate that was profiled."""
    groups = []
    for row in figures_of(results):
        lines = []
        for item in row["operators"]:
            ms, share = number_of(item.get("ms")), number_of(item.get("share"))
            if ms is not None and share is not None:
                text = f"{format_exact(ms)} ms, {100 * share:.1f} %"
                lines.append((f"{item.get('kind')} {item.get('name')}", text))
        groups.append((f"Costliest operators: {row['name']}", lines))
    return groups


def facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names with their units set apart, values as text; a share reads as a percentage."""
    lines = []
    for key, value in values.items():
        share = number_of(value) if str(key).endswith("_share") else None
        text = plain(value) if share is None else f"{share * 100:.1f} %"
        lines.append((UNITS.sub(r", \1", str(key)).replace(", mb", ", MB").replace("_", " "), text))
    return lines


def plain(value: object) -> str:
    """Any JSON value in a line of text."""
    if value is None or value == "" or value == []:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return format_exact(value) if number_of(value) is not None else "not known"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    return str(value)
