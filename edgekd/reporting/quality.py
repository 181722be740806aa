"""Accuracy in detail: metrics beyond the one of the table, the classes that lose most, the worst samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.reporting.numbers import format_exact, format_range, format_value, interval_of, mapping, number_of, text_of
from edgekd.reporting.table import figures_of

SHARES = {"top5": "top-5 accuracy", "f1_macro": "macro F1", "calibration_error": "expected calibration error"}
ERRORS = {"mae": "mean absolute error", "rmse": "root mean squared error", "max_error": "largest error"}
CLASSES = 5
SAMPLES = 5
# Adjusted for the number of classes; above it a drop is what chance does.
REAL = 0.05


def quality_groups(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(name, value)]) of each candidate: of a run the chosen one, of a plain benchmark all."""
    groups = []
    rows = {str(row.get("candidate")): row for row in results["rows"]}
    shown = figures_of(results)
    chosen = [item for item in shown if item["chosen"]] if mapping(results.get("run")) else shown
    for item in chosen:
        row = rows.get(item["candidate"], {})
        lines = metric_lines(row) + class_lines(row) + sample_lines(row)
        if lines:
            groups.append((f"Accuracy in detail: {item['name']}", lines))
    return groups


def metric_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The further metrics, shares in per cent, errors in the units of the targets."""
    lines = []
    for key, value in mapping(row.get("metrics")).items():
        number = number_of(value)
        if number is not None and key in SHARES:
            lines.append((SHARES[key], f"{text_of(100 * number, 1)} %"))
        elif number is not None and key in ERRORS:
            lines.append((ERRORS[key], format_exact(number)))
    return lines


def class_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The classes with the largest drop and whether it is more than chance; without a reference the least accurate."""
    classes = [item for item in _list(row.get("per_class")) if number_of(item.get("accuracy")) is not None]
    paired = [item for item in classes if interval_of(item.get("drop_points")) is not None]
    if paired:
        paired.sort(key=lambda item: -(number_of(mapping(item["drop_points"]).get("value")) or 0.0))
        return [_class_line(item) for item in paired[:CLASSES]]
    classes.sort(key=lambda item: number_of(item.get("accuracy")) or 0.0)
    return [
        (f"class {item.get('label')}", f"{_percent(item['accuracy'])} of {format_exact(number_of(item.get('n')) or 0)}")
        for item in classes[:CLASSES]
    ]


def sample_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The worst samples by their place in the data."""
    lines = []
    for item in _list(row.get("worst"))[:SAMPLES]:
        place = number_of(item.get("sample"))
        if place is None:
            continue
        if "label" in item:
            text = f"is {item['label']}, read as {item.get('predicted')}"
            share = number_of(item.get("probability"))
            text += "" if share is None else f" ({_percent(share)} for {item['label']})"
            text += f", by the reference as {item['reference']}" if "reference" in item else ""
        else:
            text = f"is {_values(item.get('target'))}, read as {_values(item.get('predicted'))}"
        lines.append((f"worst: sample {place:.0f}", text))
    return lines


def _class_line(item: Mapping[str, Any]) -> tuple[str, str]:
    drop = interval_of(item.get("drop_points"))
    assert drop is not None
    p = number_of(item.get("p"))
    real = "" if p is None else (", more than chance" if p < REAL else ", within chance")
    text = f"{_percent(item['accuracy'])}, drop {format_value(drop, sign=True, least=1)} points"
    return f"class {item.get('label')}", f"{text} ({format_range(drop, sign=True, least=1)}{real})"


def _percent(share: object) -> str:
    number = number_of(share)
    return "–" if number is None else f"{text_of(100 * number, 1)} %"


def _values(raw: object) -> str:
    values = raw if isinstance(raw, Sequence) and not isinstance(raw, str) else [raw]
    numbers = [number_of(value) for value in values]
    return ", ".join("–" if number is None else format_exact(number) for number in numbers)


def _list(raw: object) -> list[Mapping[str, Any]]:
    return [item for item in raw if isinstance(item, Mapping)] if isinstance(raw, list) else []
