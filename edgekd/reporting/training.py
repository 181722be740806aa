"""What happened during training as SVG: validation score and losses by term, one line each, over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgekd.reporting.numbers import mapping, number_of
from edgekd.reporting.svg import CHARACTER_PX, LINE_PX, Axis, frame, grid, label, line, marker, padded, polyline, spread
from edgekd.reporting.table import Metric

Look: TypeAlias = tuple[str, str, str]
# Shape, colour class and dash of a line.
TRAINED: Mapping[str, tuple[str, Look]] = {
    "teacher": ("Teacher", ("diamond", "c2", "dash")),
    "student": ("Student", ("circle", "c1", "")),
    "student_alone": ("Student alone", ("triangle", "c3", "dots")),
}
TOTAL_LOOK: Look = ("circle", "c0", "")
TERM_LOOKS: tuple[Look, ...] = (
    ("square", "c4", "dash"),
    ("wedge", "c5", "dots"),
    ("diamond", "c2", "dashdot"),
    ("triangle", "c3", "dash"),
    ("circle", "c1", "dots"),
)


@dataclass(frozen=True)
class Series:
    """One line: (epoch, value) pairs; `best` is the epoch that was kept."""

    name: str
    points: tuple[tuple[float, float], ...]
    look: Look
    best: float | None = None


def training_panels(training: Mapping[str, Any], metric: Metric) -> list[tuple[str, str]]:
    """(heading, SVG) of the validation score of all that was trained, then of each one's losses by term."""
    panels = []
    scores = [
        Series(title, score_points(part, metric), look, number_of(part.get("best_epoch")))
        for key, (title, look) in TRAINED.items()
        if (part := mapping(training.get(key)))
    ]
    scores = [series for series in scores if series.points]
    unit = f", {metric.unit}" if metric.unit else ""
    if scores:
        heading = f"Validation {metric.title if metric.title != 'Accuracy' else 'accuracy'} per epoch"
        panels.append((heading, curves(scores, axis=f"{metric.title}{unit}", what=heading)))
    for key in ("student", "student_alone", "teacher"):
        history = mapping(training.get(key)).get("history") or ()
        losses = loss_series(history)
        if losses:
            heading = f"{TRAINED[key][0]}: loss per epoch and term{stages_of(history)}"
            panels.append((heading, curves(losses, axis="Loss", what=heading)))
        norms = [] if key == "teacher" else term_series(history, "gradients")
        if len(norms) > 1:
            heading = f"{TRAINED[key][0]}: norm of each term's gradient, in one step of an epoch"
            panels.append((heading, curves(norms, axis="Gradient norm", what=heading)))
    return panels


def stages_of(history: Sequence[Mapping[str, Any]]) -> str:
    """` (hints: epochs 1 to 3; soft: 4 to 10)`, or nothing for a training without stages."""
    names = list(dict.fromkeys(item.get("stage") for item in history))
    if None in names or not names:
        return ""
    spans: list[str] = []
    for name in names:
        epochs = [item["epoch"] for item in history if item["stage"] == name]
        spans.append(f"{name}: {'epochs ' if not spans else ''}{min(epochs)} to {max(epochs)}")
    return f" ({'; '.join(spans)})"


def score_points(part: Mapping[str, Any], metric: Metric) -> tuple[tuple[float, float], ...]:
    """(epoch, validation score in the metric's unit) where both are known."""
    pairs = [(number_of(item.get("epoch")), number_of(item.get("val"))) for item in part.get("history") or ()]
    return tuple((epoch, score * metric.factor) for epoch, score in pairs if epoch is not None and score is not None)


def loss_series(history: Sequence[Mapping[str, Any]]) -> list[Series]:
    """The total and each term by name; the total is left out when there is one term and it is the total."""
    terms = term_series(history, "terms")
    total = [(number_of(item.get("epoch")), number_of(item.get("loss"))) for item in history]
    known = tuple((epoch, loss) for epoch, loss in total if epoch is not None and loss is not None)
    return terms if len(terms) == 1 or not known else [Series("total", known, TOTAL_LOOK), *terms]


def term_series(history: Sequence[Mapping[str, Any]], key: str) -> list[Series]:
    """One line for each term by name: its "terms" (parts of the loss) or "gradients" (norms, where measured)."""
    columns: dict[str, list[tuple[float, float]]] = {}
    for item in history:
        epoch = number_of(item.get("epoch"))
        for name, given in mapping(item.get(key)).items():
            value = number_of(given)
            if epoch is not None and value is not None:
                columns.setdefault(name, []).append((epoch, value))
    looks = {name: TERM_LOOKS[index % len(TERM_LOOKS)] for index, name in enumerate(columns)}
    return [Series(name, tuple(points), looks[name]) for name, points in columns.items()]


def curves(series: Sequence[Series], *, axis: str, what: str) -> str:
    """Lines over epochs, named at their right end; logarithmic when the values span more than a factor of 30."""
    width, height = 480.0, 280.0
    room = min(max(13, *(len(one.name) for one in series)), 18) * CHARACTER_PX + 22
    left, right, top, bottom = 46.0, width - room, 30.0, height - 40
    values = [value for one in series for _, value in one.points]
    log = min(values) > 0 and max(values) / min(values) > 30
    low, high = padded(values, log=log, share=0.05)
    epochs = [epoch for one in series for epoch, _ in one.points]
    first, last = min(epochs), max(epochs)
    x = Axis(first, last, left, right) if last > first else Axis(first - 1, first + 1, left, right)
    y = Axis(low, high, bottom, top, log=log)
    x_ticks = [tick for tick in x.ticks(6) if tick == int(tick) and first <= tick <= last]
    content = [grid(x, y, x_ticks=x_ticks, y_ticks=y.ticks(5))]
    content.append(label(f"↑ {axis}{' (log scale)' if log else ''}", 4, 16, style="axis"))
    content.append(label("epoch →", right, height - 4, anchor="end", style="axis"))
    ends = spread([y.at(one.points[-1][1]) for one in series], gap=LINE_PX, low=top, high=bottom)
    for one, end in zip(series, ends, strict=True):
        shape, colour, dash = one.look
        drawn = polyline([(x.at(epoch), y.at(value)) for epoch, value in one.points], f"curve {dash}".strip())
        last_epoch, last_value = one.points[-1]
        if one.best is not None:
            for epoch, value in one.points:
                if epoch == one.best:
                    tip = f"{one.name}: epoch {epoch:g} was kept"
                    drawn += marker("circle", x.at(epoch), y.at(value), radius=6.5, style="ring", tip=tip)
        drawn += marker(shape, x.at(last_epoch), y.at(last_value), radius=4, tip=f"{one.name}: {last_value:.4g}")
        if abs(end - y.at(last_value)) > 2 or x.at(last_epoch) < right - 2:
            drawn += line(x.at(last_epoch) + 5, y.at(last_value), right + 9, end, "leader")
        name = one.name if len(one.name) <= 18 else f"{one.name[:17]}…"
        content.append(f'<g class="{colour}">{drawn}{label(name, right + 12, end + 4, style="label tinted")}</g>')
    said = "; ".join(
        f"{one.name} from {one.points[0][1]:.3g} to {one.points[-1][1]:.3g} in {len(one.points)} epochs"
        for one in series
    )
    return frame(width, height, "".join(content), about=f"{what}. {said}.")
