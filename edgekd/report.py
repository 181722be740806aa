"""Results as a page to look at (HTML), to paste (Markdown) and to compute with (CSV).

The input is the dict of results.json: that of `edgekd benchmark`, or of a run, which adds the key "run" (training,
limits, licences, budget, recipe). Equal input gives equal bytes, and the page asks nothing of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from edgekd import assets
from edgekd.device.benchmark import SCHEMA
from edgekd.errors import InputRefused, MissingExtra
from edgekd.files import write_text
from edgekd.reporting.answer import answer
from edgekd.reporting.facts import command_of, compared, fact_groups, machine_line, table_said
from edgekd.reporting.numbers import mapping, number_of
from edgekd.reporting.plots import latencies, pareto, tradeoff, tradeoff_points
from edgekd.reporting.table import (
    SHORT_NAMES,
    columns,
    csv_text,
    figures_of,
    markdown_safe,
    markdown_table,
    metric_of,
    problems,
    status,
)
from edgekd.reporting.training import training_panels

__all__ = ["check", "table_rows", "to_csv", "to_html", "to_markdown", "write_report"]

TERMINAL_TITLES = {"p50": "p50", "p90": "p90", "memory": "Peak"}
VERDICT_MARKS = {"met": "✓", "missed": "✗", "unproven": "?"}
FINE_PRINT = (
    "Percentiles need enough timed calls (MLPerf LoadGen’s early-stopping rule); with fewer the cell reads “n too "
    "small”. Speed-ups are ratios of interleaved runs, their intervals Student’s t over launches. 1 kB = 1000 "
    "bytes, 1 MB = 1000 kB; drops are percentage points. Raw samples are in results.json. Written by edgekd; this "
    "page loads nothing from elsewhere."
)


def table_rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """The comparison table for a terminal of 110 columns: {heading: cell} per row, the same headings in every row.

    A heading may hold a line break, its unit follows it. Intervals stand behind accuracy and drop; those of the
    other figures, and why a candidate failed, are in the other forms.
    """
    check(results)
    shown = columns(results)
    table = []
    for row in figures_of(results):
        texts = {}
        for column in shown:
            text, interval = row["cells"][column.key]
            if column.key == "name":
                text = short_name(row)
            elif interval and column.key in ("accuracy", "drop"):
                text = f"{text} [{interval.replace(' to ', ', ')}]"
            texts[f"{TERMINAL_TITLES.get(column.key, column.title)}\n{column.unit}".strip()] = text
        table.append(texts)
    return table


def short_name(row: Mapping[str, Any]) -> str:
    """A name that leaves room for the figures, with what must be known about it."""
    name = SHORT_NAMES.get(str(row["role"]), str(row["candidate"]))
    if status(row):
        return f"{name} ({status(row)})"
    return f"{name} (chosen)" if row["chosen"] else name


def check(results: object, *, where: str = "results") -> None:
    """Raise `InputRefused` unless `results` has the schema and the parts that a report needs."""
    if not isinstance(results, Mapping):
        raise InputRefused(f"{where}: found {type(results).__name__}, expected the JSON object of `edgekd benchmark`")
    schema = results.get("schema")
    if schema != SCHEMA:
        raise InputRefused(
            f"{where}: schema is {schema!r}, expected {SCHEMA!r}; measure again with `edgekd benchmark`, or use the "
            "edgekd version that wrote the file"
        )
    for key in ("candidates", "rows"):
        entries = results.get(key)
        if not isinstance(entries, Sequence) or not all(isinstance(entry, Mapping) for entry in entries):
            raise InputRefused(f"{where}: '{key}' is missing or not a list of objects; the file is damaged")


def to_csv(results: Mapping[str, Any]) -> str:
    """The table with unrounded numbers."""
    check(results)
    return _storable(csv_text(results))


def to_markdown(results: Mapping[str, Any]) -> str:
    """The whole report but for the figures."""
    check(results)
    run, head = mapping(results.get("run")), answer(results)
    lines = [f"# {markdown_safe(head.title)}", "", f"**{markdown_safe(head.headline)}**", ""]
    for figure in head.figures:
        note = f" ({markdown_safe(figure.note)})" if figure.note else ""
        lines.append(f"* {markdown_safe(f'{figure.value} {figure.label}')}{note}")
    lines += ["", f"Measurement: **{'VALID' if head.valid else 'INVALID'}**"]
    lines += [f"* {markdown_safe(text)}" for text in (*head.reasons, *head.advice)]
    if run:
        lines += ["", "## Limits", "", head.limits_said, ""]
        for item in head.limits:
            found = f"{item.found} ({item.interval})" if item.interval else item.found
            comment = f": {item.comment}" if item.comment else ""
            lines.append(f"* {markdown_safe(f'{item.name} {item.limit}: found {found}')}, **{item.verdict}**{comment}")
    lines += ["", "## All that was measured", "", table_said(results), "", markdown_table(results), ""]
    lines += [f"* {markdown_safe(name)}: {markdown_safe(problem)}" for name, problem in problems(results)]
    if head.gain:
        lines += ["", "## What distillation brought", "", markdown_safe(head.gain)]
    for heading, facts in fact_groups(results):
        lines += ["", f"## {heading}", ""]
        lines += [f"* {markdown_safe(name)}: {markdown_safe(value)}" for name, value in facts]
    for heading, text in (("Command", command_of(results)), ("Recipe", str(run.get("recipe_toml") or ""))):
        if text:
            lines += ["", f"## {heading}", "", fenced(text)]
    return _storable("\n".join(lines) + "\n")


def to_html(results: Mapping[str, Any]) -> str:
    """The page: self-contained, no script, readable on a phone, in the dark and printed.

    Raises `MissingExtra` without jinja2.
    """
    check(results)
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingExtra("jinja2", "report", purpose="the HTML report") from error
    import markupsafe

    run, head, metric = mapping(results.get("run")), answer(results), metric_of(results)
    rows = figures_of(results)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(assets.find("export", "templates", "report.html", ".j2").read_text("utf-8"))
    page = template.render(
        answer=head,
        is_run=bool(run),
        started=str(results.get("started") or ""),
        machine_line=machine_line(results),
        compared=compared(results),
        confidence=f"{(number_of(run.get('confidence')) or 0.95) * 100:g} %",
        verdict_marks=VERDICT_MARKS,
        columns=columns(results),
        rows=[{**row, "status": status(row)} for row in rows],
        problems=problems(results),
        table_said=table_said(results),
        panels=[
            (heading, markupsafe.Markup(svg)) for heading, svg in training_panels(mapping(run.get("training")), metric)
        ],
        fact_groups=fact_groups(results),
        command=command_of(results),
        recipe=str(run.get("recipe_toml") or ""),
        fine_print=FINE_PRINT,
        **{
            key: [markupsafe.Markup(svg) for svg in value] if key == "plots" else value
            for key, value in main_plot(results).items()
        },
    )
    return _storable(page)


def write_report(results: Mapping[str, Any], folder: str | PathLike[str]) -> list[Path]:
    """Write report.html and report.md into `folder`; returns their paths."""
    place = Path(folder)
    texts = {"report.html": to_html(results), "report.md": to_markdown(results)}
    return [write_text(place / name, text) for name, text in texts.items()]


def main_plot(results: Mapping[str, Any]) -> dict[str, Any]:
    """The large figure, wide and narrow, with its words: accuracy against latency, or latency alone."""
    rows, metric = figures_of(results), metric_of(results)
    points = tradeoff_points(rows, metric)
    missing = [row["name"] for row in rows if row["p50_ms"] is None or row["error"]]
    left_out = f" Not drawn, because it was not timed: {', '.join(missing)}." if missing else ""
    if points:
        wide = tradeoff(points, metric)
        narrow = tradeoff(points, metric, compact=True)
        front = ", ".join(point.name for point in pareto(points))
        title = f"{metric.title} against latency"
        ring = ", the ring is the chosen variant" if any(point.chosen for point in points) else ""
        lead = "Up and to the left is better. Filled marks lie on the Pareto front: nothing is both faster and better."
        caption = f"On the Pareto front: {front}. Bars are intervals, kB are file sizes{ring}.{left_out}"
        return {"plots": [wide, narrow], "plot_title": title, "plot_lead": lead, "plot_caption": caption}
    plots = [latencies(rows, width=960, style="wide"), latencies(rows, width=360, style="narrow")]
    return {
        "plots": [plot for plot in plots if plot],
        "plot_title": "Latency",
        "plot_lead": "Further left is faster. Accuracy was not measured: give labelled samples to see both.",
        "plot_caption": f"Latency of one call.{left_out}",
    }


def fenced(text: str) -> str:
    """A Markdown code block that `text` cannot close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.strip()}\n{fence}"


def _storable(text: str) -> str:
    """Text that UTF-8 can hold: half surrogate pairs, which JSON may bring, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
