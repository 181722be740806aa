"""Drawing by hand: axes, ticks, markers and labels as SVG text.

No plotting library: the page's own CSS gives the colours (light, dark, print) and the fonts, the bytes are equal for
equal input, and a board without matplotlib can write a report. Everything that is text is escaped here.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
CHARACTER_PX = 6.7
LINE_PX = 14.0


@dataclass(frozen=True)
class Axis:
    """Maps `low..high` onto the pixels `start..end`, linearly or by the logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of `value`; on a logarithmic axis what is not positive sits at the lower end."""
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the axis."""
        if not self.log:
            return linear_ticks(self.low, self.high, count)
        return log_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within `low..high`, about `count` of them."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """1, 2, 5 times the powers of ten within `low..high`; only the powers when that is too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in decades for factor in factors]
        inside = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(inside) <= count + 1:
            break
    return inside if len(inside) >= 2 else [tick for tick in linear_ticks(low, high, count) if tick > 0]


def padded(
    values: Iterable[float], *, share: float = 0.08, least: float = 1e-9, log: bool = False
) -> tuple[float, float]:
    """`(low, high)` around `values` with a margin on both sides; never of zero width."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    if log:
        factor = max((high / low) ** share, 1.15)
        return low / factor, high * factor
    # A single value stands in the middle of round neighbours, not of its own last digits.
    margin = max((high - low) * share, least, abs(high) * 1e-3 if high > low else abs(high) * 0.2)
    return low - margin, high + margin


def tick_text(value: float, ticks: Sequence[float], *, log: bool = False) -> str:
    """A tick with as many decimals as the step between the ticks needs."""
    if log:
        return f"{value:.10g}" if 1e-4 <= value < 1e6 else f"{value:.0e}"
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=abs(value) or 1.0)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:.{places}f}".replace("-", "−")


def tag(name: str, content: str | None = None, /, **attributes: object) -> str:
    """One element. Attribute names lose a trailing underscore and turn `_` into `-`; values are escaped.

    `content` is inserted as it is: escape text with `escape` first.
    """
    parts = []
    for key, value in attributes.items():
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"')
    opening = f"<{name}{''.join(parts)}"
    return f"{opening}/>" if content is None else f"{opening}>{content}</{name}>"


def escape(text: object) -> str:
    """Text for HTML and SVG, in elements and in quoted attributes."""
    return html.escape(str(text), quote=True)


def label(text: str, x: float, y: float, *, anchor: str = "start", style: str = "label") -> str:
    """A line of text; `anchor` is start, middle or end."""
    return tag("text", escape(text), x=x, y=y, text_anchor=anchor, class_=style)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def polyline(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through `points`."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=style)


def _polygon(x: float, y: float, radius: float, corners: Sequence[tuple[float, float]]) -> str:
    points = " ".join(f"{x + radius * dx:.1f},{y + radius * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}"'


def _circle(x: float, y: float, radius: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'


def _square(x: float, y: float, radius: float) -> str:
    return _polygon(x, y, radius * 0.9, ((-1, -1), (1, -1), (1, 1), (-1, 1)))


def _diamond(x: float, y: float, radius: float) -> str:
    return _polygon(x, y, radius * 1.25, ((0, -1), (1, 0), (0, 1), (-1, 0)))


def _triangle(x: float, y: float, radius: float) -> str:
    return _polygon(x, y, radius * 1.2, ((0, -1), (0.95, 0.8), (-0.95, 0.8)))


def _wedge(x: float, y: float, radius: float) -> str:
    return _polygon(x, y, radius * 1.2, ((0, 1), (0.95, -0.8), (-0.95, -0.8)))


SHAPES: Mapping[str, Callable[[float, float, float], str]] = {
    "circle": _circle,
    "square": _square,
    "diamond": _diamond,
    "triangle": _triangle,
    "wedge": _wedge,
}


def marker(shape: str, x: float, y: float, *, radius: float = 5.0, style: str = "mark", tip: str = "") -> str:
    """A marker of `SHAPES`; `tip` shows when the pointer rests on it."""
    start = f'{SHAPES[shape](x, y, radius)} class="{escape(style)}"'
    return f"{start}><title>{escape(tip)}</title>{_closing(shape)}" if tip else f"{start}/>"


def _closing(shape: str) -> str:
    return "</circle>" if shape == "circle" else "</polygon>"


def frame(width: float, height: float, content: str, *, about: str, style: str = "") -> str:
    """The `<svg>` around `content`; `about` is what a screen reader says."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" class="{escape(("chart " + style).strip())}" role="img" '
        f'aria-label="{escape(about)}">{content}</svg>'
    )


def grid(x: Axis, y: Axis, *, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    """Hairlines at the y ticks, tick texts on both axes, and the baseline."""
    parts = []
    for value in y_ticks:
        parts.append(line(x.start, y.at(value), x.end, y.at(value), "hair"))
        text = tick_text(value, y_ticks, log=y.log)
        parts.append(label(text, x.start - 8, y.at(value) + 4, anchor="end", style="tick"))
    parts.append(line(x.start, y.start, x.end, y.start, "base"))
    for value in x_ticks:
        parts.append(line(x.at(value), y.start, x.at(value), y.start + 4, "base"))
        text = tick_text(value, x_ticks, log=x.log)
        parts.append(label(text, x.at(value), y.start + 18, anchor="middle", style="tick"))
    return "".join(parts)


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes (x0, y0, x1, y1) share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def place_label(
    x: float, y: float, size: tuple[float, float], obstacles: Sequence[tuple[Box, float]], area: Box
) -> Box:
    """A box of `size` near (x, y) that stays in `area` and covers least of the weighted `obstacles`; near beats far."""
    width, height = size
    best, best_cost = (x, y, x + width, y + height), math.inf
    for distance in (9.0, 22.0, 38.0, 56.0, 80.0, 110.0):
        for step in range(16):
            angle = step * math.pi / 8
            dx, dy = math.cos(angle), math.sin(angle)
            left = x + dx * (distance + width / 2) - width / 2
            top = y + dy * (distance + height / 2) - height / 2
            box = (left, top, left + width, top + height)
            outside = width * height - overlap(box, area)
            cost = (
                outside * 20
                + sum(overlap(box, other) * weight for other, weight in obstacles)
                + distance * 1.5
                + abs(dy) * 4
            )
            if cost < best_cost - 1e-9:
                best, best_cost = box, cost
    return best


def spread(positions: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions moved apart by at least `gap`, in the same order, inside `low..high` where they fit."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = [positions[index] for index in order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    if moved and moved[-1] > high:
        moved[-1] = high
        for index in range(len(moved) - 2, -1, -1):
            moved[index] = min(moved[index], moved[index + 1] - gap)
    result = [0.0] * len(positions)
    for index, value in zip(order, moved, strict=True):
        result[index] = max(value, low)
    return result
