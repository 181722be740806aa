"""The large figure of a report as SVG: accuracy against latency, or latency alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.reporting.numbers import format_exact, format_range, format_value, scaled
from edgekd.reporting.svg import (
    CHARACTER_PX,
    LINE_PX,
    Axis,
    Box,
    frame,
    grid,
    label,
    line,
    marker,
    padded,
    place_label,
    polyline,
)
from edgekd.reporting.table import SHORT_NAMES, Metric, status
from edgekd.spec import Interval

# What a name in the plot costs when it covers something, by the pixel.
LINE_WEIGHT, MARK_WEIGHT, TEXT_WEIGHT = 0.6, 4.0, 8.0
KEY_PX = 20.0
# Shape and colour class per role: the shape alone tells them apart.
LOOKS = {"teacher-pytorch": ("square", "c2"), "teacher-onnx": ("diamond", "c2"), "student-alone": ("triangle", "c3")}


@dataclass(frozen=True)
class Point:
    """One candidate in the plot of accuracy (in the metric's unit) against p50 latency (ms)."""

    name: str
    size: str
    shape: str
    colour: str
    latency: Interval
    accuracy: Interval
    chosen: bool
    wrong: bool


def tradeoff_points(rows: Sequence[Mapping[str, Any]], metric: Metric) -> list[Point]:
    """The rows that have both a p50 and an accuracy."""
    points = []
    for row in rows:
        if row["p50_ms"] is None or row["accuracy"] is None or row["error"] or row["p50_ms"].value <= 0:
            continue
        shape, colour = LOOKS.get(str(row["role"]), ("circle", "c1"))
        points.append(
            Point(
                name=SHORT_NAMES.get(str(row["role"]), row["candidate"]),
                size="" if row["size_kb"] is None else f"{format_exact(row['size_kb'])} kB",
                shape=shape,
                colour=colour,
                latency=row["p50_ms"],
                accuracy=scaled(row["accuracy"], metric.factor),
                chosen=row["chosen"],
                wrong=bool(status(row)),
            )
        )
    return points


def pareto(points: Sequence[Point]) -> list[Point]:
    """Those that nobody beats in both latency and accuracy, fastest first; wrong ones do not count."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.latency.value, -point.accuracy.value)):
        if not point.wrong and (not front or point.accuracy.value > front[-1].accuracy.value):
            front.append(point)
    return front


def tradeoff(points: Sequence[Point], metric: Metric, *, compact: bool = False) -> str:
    """Accuracy over the logarithm of p50, intervals as bars, the Pareto front as a stair; "" without points.

    The compact one fits a phone: the marks carry numbers, in the order of latency, and a key follows below.
    """
    if not points:
        return ""
    points = sorted(points, key=lambda point: (point.latency.value, -point.accuracy.value, point.name))
    front = pareto(points)
    width, height = (360.0, 350.0) if compact else (960.0, 470.0)
    x, y = _axes(points, metric, width=width, height=height)
    content = [grid(x, y, x_ticks=x.ticks(int(width / 85)), y_ticks=y.ticks(5))]
    unit = f", {metric.unit}" if metric.unit else ""
    content.append(label(f"↑ {metric.title}{unit}", 4, 16, style="axis"))
    content.append(label("← faster · p50 latency, ms (log scale)", x.end, height - 6, anchor="end", style="axis"))
    stair = _stair(front, x, y)
    content.append(polyline(stair, "front") if stair else "")
    content += [_bars(point, x, y) for point in points]
    content += [_mark(point, x, y, on_front=point in front) for point in points]
    texts = [(str(number),) if compact else _caption(point) for number, point in enumerate(points, start=1)]
    content += _captions(points, texts, x, y, stair)
    if compact:
        content.append(_key(points, front, top=height + 22, width=width))
        height += 22 + KEY_PX * len(points)
    said = "; ".join(
        f"{p.name} {format_value(p.accuracy)}{metric.unit} at {format_value(p.latency)} ms" for p in points
    )
    about = f"{metric.title} against p50 latency. {said}. On the Pareto front: {', '.join(p.name for p in front)}."
    return frame(width, height, "".join(content), about=about, style="narrow" if compact else "wide")


def _axes(points: Sequence[Point], metric: Metric, *, width: float, height: float) -> tuple[Axis, Axis]:
    """Both axes around all intervals; no score lies above 1, so the upper end stays near it."""
    across = [bound for p in points for bound in (p.latency.low, p.latency.value, p.latency.high) if bound > 0]
    upright = [bound for p in points for bound in (p.accuracy.low, p.accuracy.value, p.accuracy.high)]
    x_low, x_high = padded(across, share=0.12, log=True)
    y_low, y_high = padded(upright, share=0.12, least=0.005 * metric.factor)
    y_high = min(y_high, metric.factor + 0.03 * (y_high - y_low))
    return Axis(x_low, x_high, 52.0, width - 18, log=True), Axis(y_low, y_high, height - 46, 30.0)


def _caption(point: Point) -> tuple[str, ...]:
    name = f"{point.name} (WRONG)" if point.wrong else point.name
    name = name if len(name) <= 28 else f"{name[:27]}…"
    return (name, point.size) if point.size else (name,)


def _captions(
    points: Sequence[Point], texts: Sequence[tuple[str, ...]], x: Axis, y: Axis, stair: Sequence[tuple[float, float]]
) -> list[str]:
    """The texts beside their marks, the chosen one placed first, where they cover least."""
    places = [(x.at(point.latency.value), y.at(point.accuracy.value)) for point in points]
    lines: list[tuple[Box, float]] = [
        ((min(ax, bx) - 2, min(ay, by) - 2, max(ax, bx) + 2, max(ay, by) + 2), LINE_WEIGHT)
        for (ax, ay), (bx, by) in itertools.pairwise(stair)
    ]
    for (at_x, _), point in zip(places, points, strict=True):
        lines.append(((at_x - 4, y.at(point.accuracy.high), at_x + 4, y.at(point.accuracy.low)), LINE_WEIGHT))
    area = (x.start + 2, y.end - 10, x.end + 14, y.start - 2)
    drawn: list[str] = []
    taken: list[tuple[Box, float]] = []
    for index in sorted(range(len(points)), key=lambda index: (not points[index].chosen, index)):
        # A text close to another's mark would read as its name.
        marks = [(_around(place, 8 if other == index else 13), MARK_WEIGHT) for other, place in enumerate(places)]
        text, box = _text_beside(places[index], texts[index], [*lines, *marks, *taken], area, points[index].chosen)
        drawn.append(text)
        taken.append((box, TEXT_WEIGHT))
    return drawn


def _around(place: tuple[float, float], reach: float) -> Box:
    return place[0] - reach, place[1] - reach, place[0] + reach, place[1] + reach


def _text_beside(
    place: tuple[float, float],
    text: Sequence[str],
    obstacles: Sequence[tuple[Box, float]],
    area: Box,
    chosen: bool,
) -> tuple[str, Box]:
    """One or two lines of text near `place`, with a leader when they ended up far from it."""
    at_x, at_y = place
    reach = 5 if chosen else 0
    size = (max(len(part) for part in text) * CHARACTER_PX + reach, LINE_PX * len(text))
    box = place_label(at_x, at_y, size, obstacles, area)
    middle = (box[0] + box[2]) / 2
    if middle > at_x + size[0] * 0.4:
        anchor, text_x = "start", box[0] + reach
    elif middle < at_x - size[0] * 0.4:
        anchor, text_x = "end", box[2] - reach
    else:
        anchor, text_x = "middle", middle
    drawn = label(text[0], text_x, box[1] + 11, anchor=anchor, style="label strong" if chosen else "label")
    if len(text) > 1:
        drawn += label(text[1], text_x, box[1] + 25, anchor=anchor, style="tick")
    near_x, near_y = min(max(at_x, box[0]), box[2]), min(max(at_y, box[1]), box[3])
    if math.hypot(near_x - at_x, near_y - at_y) > 18:
        drawn = line(at_x, at_y, near_x, near_y, "leader") + drawn
    return drawn, box


def _key(points: Sequence[Point], front: Sequence[Point], *, top: float, width: float) -> str:
    """One line per point: number, mark, name and size."""
    lines = []
    for index, point in enumerate(points):
        base = top + KEY_PX * index
        mark = marker(point.shape, 30, base - 4, radius=4.5, style="mark" if point in front else "mark open")
        name, *_ = _caption(point)
        style = "label strong" if point.chosen else "label"
        lines.append(label(str(index + 1), 14, base, anchor="end", style=style))
        lines.append(f'<g class="{point.colour}">{mark}</g>{label(name, 44, base, style=style)}')
        lines.append(label(point.size, width - 18, base, anchor="end", style="tick"))
    return "".join(lines)


def _stair(front: Sequence[Point], x: Axis, y: Axis) -> list[tuple[float, float]]:
    """Corners of the line below which nothing is better than the front."""
    corners: list[tuple[float, float]] = []
    for point in front:
        at_x, at_y = x.at(point.latency.value), y.at(point.accuracy.value)
        corners += [(at_x, corners[-1][1] if corners else at_y), (at_x, at_y)]
    return [*corners, (x.end, corners[-1][1])] if corners else []


def _bars(point: Point, x: Axis, y: Axis) -> str:
    at_x, at_y = x.at(point.latency.value), y.at(point.accuracy.value)
    across = line(x.at(point.latency.low), at_y, x.at(point.latency.high), at_y, "bar")
    upright = line(at_x, y.at(point.accuracy.low), at_x, y.at(point.accuracy.high), "bar")
    return f'<g class="{point.colour}">{across}{upright}</g>'


def _mark(point: Point, x: Axis, y: Axis, *, on_front: bool) -> str:
    at_x, at_y = x.at(point.latency.value), y.at(point.accuracy.value)
    tip = f"{point.name}: {format_value(point.accuracy)} ({format_range(point.accuracy)})"
    tip += f", p50 {format_value(point.latency)} ms"
    tip += f", {point.size}" if point.size else ""
    ring = marker("circle", at_x, at_y, radius=10.5, style="ring") if point.chosen else ""
    style = "mark" if on_front else "mark open"
    drawn = marker(point.shape, at_x, at_y, radius=5.5, style=style, tip=tip + (", WRONG" if point.wrong else ""))
    return f'<g class="{point.colour}">{ring}{drawn}</g>'


def latencies(rows: Sequence[Mapping[str, Any]], *, width: float, style: str) -> str:
    """One line per candidate: p50 as a dot with its interval, p90 as a tick; "" when nothing was timed."""
    timed = [row for row in rows if row["p50_ms"] is not None and row["p50_ms"].value > 0]
    if not timed:
        return ""
    row_height, top = 46.0, 12.0
    height = top + row_height * len(timed) + 44
    bounds = [
        b for r in timed for key in ("p50_ms", "p90_ms") if (i := r[key]) for b in (i.low, i.value, i.high) if b > 0
    ]
    low, high = padded(bounds, share=0.06, log=True)
    x = Axis(low, high, 6.0, width - 6, log=True)
    y = Axis(0, 1, height - 40, top)
    content = [grid(x, y, x_ticks=x.ticks(int(width / 85)), y_ticks=[])]
    content.append(
        label("latency, ms (log scale): ● p50 with interval, | p90", x.end, height - 4, anchor="end", style="axis")
    )
    for index, row in enumerate(timed):
        base = top + row_height * index + 32
        content.append(label(f"{row['name']}{' (WRONG)' if row['golden'] == 'WRONG' else ''}", 4, base - 12))
        content.append(label(f"{format_value(row['p50_ms'])} ms", x.end, base - 12, anchor="end", style="tick"))
        content.append(line(x.start, base, x.end, base, "hair"))
        p50, p90 = row["p50_ms"], row["p90_ms"]
        drawn = line(x.at(p50.low), base, x.at(p50.high), base, "bar")
        if p90 is not None:
            drawn += line(x.at(p50.value), base, x.at(p90.value), base, "bar faint")
            drawn += line(x.at(p90.value), base - 6, x.at(p90.value), base + 6, "bar")
        tip = f"{row['name']}: p50 {format_value(p50)} ms"
        content.append(f'<g class="c1">{drawn}{marker("circle", x.at(p50.value), base, tip=tip)}</g>')
    said = "; ".join(f"{row['name']} {format_value(row['p50_ms'])} ms" for row in timed)
    return frame(width, height, "".join(content), about=f"p50 latency per candidate. {said}.", style=style)
