"""The reject option in a report: each model's threshold, and what it does to the test samples of both kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd.reporting.numbers import format_exact, mapping, number_of, text_of
from edgekd.reporting.table import figures_of


def reject_groups(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(name, value)]); nothing for a run that rejects nothing."""
    told = mapping(mapping(results.get("run")).get("reject"))
    label, keep = str(told.get("label")), number_of(told.get("keep"))
    if keep is None:
        return []
    lines = [
        (
            "rule",
            f"the answer is {label} where the largest probability of another class is below a threshold; it keeps "
            f"{100 * keep:g} % of the validation samples of other classes",
        )
    ]
    for name, found in mapping(told.get("models")).items():
        lines.append((name.replace("_", " "), _threshold(mapping(found), label)))
    rows = {str(row.get("candidate")): row for row in results["rows"]}
    for item in figures_of(results):
        text = _on_test(rows.get(item["candidate"], {}), label)
        if text:
            lines.append((f"{item['name']}, on test", text))
    return [("Reject option", lines)]


def _threshold(found: Mapping[str, Any], label: str) -> str:
    value, kept, n = (number_of(found.get(key)) for key in ("value", "kept", "n"))
    if value is None or kept is None or n is None:
        return "as it is: the rule is put into models of PyTorch only"
    return (
        f"below {value:.3g} the answer is {label}; {text_of(100 * kept, 1)} % of {format_exact(n)} validation samples "
        "kept"
    )


def _on_test(row: Mapping[str, Any], label: str) -> str:
    """Accuracy on the samples of other classes, and the recall of this one."""
    found = [(item.get("label"), number_of(item.get("n")), number_of(item.get("accuracy"))) for item in _classes(row)]
    known = [(name, n, accuracy) for name, n, accuracy in found if n is not None and accuracy is not None]
    others = [(n, accuracy) for name, n, accuracy in known if name != label]
    own = [(n, accuracy) for name, n, accuracy in known if name == label]
    count = sum(n for n, _ in others)
    parts = []
    if count:
        right = sum(n * accuracy for n, accuracy in others) / count
        parts.append(f"{text_of(100 * right, 1)} % of {format_exact(count)} of other classes right")
    parts += [f"{text_of(100 * accuracy, 1)} % of {format_exact(n)} of {label} recognized" for n, accuracy in own]
    return ", ".join(parts)


def _classes(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    classes = row.get("per_class")
    return [item for item in classes if isinstance(item, Mapping)] if isinstance(classes, list) else []
