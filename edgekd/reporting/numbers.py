"""How the report writes numbers: one rule, so that a figure never shows digits that its interval does not carry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgekd.spec import Interval

EXACT_DIGITS = 3
MOST_DIGITS = 4


def number_of(raw: object) -> float | None:
    """A finite float, or None for what is missing, not a number or infinite."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        return None
    return float(raw) if math.isfinite(raw) else None


def interval_of(raw: object) -> Interval | None:
    """`{value, low, high, n?}` or a plain number as an `Interval`; None when the value is missing.

    A bound that is missing or infinite becomes the value itself: it is then shown without an interval.
    """
    if not isinstance(raw, Mapping):
        value = number_of(raw)
        return None if value is None else Interval(value, value, value)
    value = number_of(raw.get("value"))
    if value is None:
        return None
    low, high = number_of(raw.get("low")), number_of(raw.get("high"))
    if low is None or high is None:
        low = high = value
    n = number_of(raw.get("n"))
    return Interval(value, low, high, None if n is None else int(n))


def scaled(interval: Interval, factor: float) -> Interval:
    """The interval in another unit; `factor` is positive."""
    return Interval(interval.value * factor, interval.low * factor, interval.high * factor, interval.n)


def decimals(value: float, low: float | None = None, high: float | None = None) -> int:
    """How many decimals to show.

    With an interval: so many that its width is 4 to 40 units of the last digit, and at most `MOST_DIGITS` digits of
    the value. Without one: `EXACT_DIGITS` digits of the value.
    """
    size = abs(value)
    magnitude = math.floor(math.log10(size)) if size > 0 else 0
    width = 0.0 if low is None or high is None else high - low
    if width <= 0:
        return max(0, EXACT_DIGITS - 1 - magnitude)
    by_width = math.ceil(math.log10(4 / width))
    by_value = MOST_DIGITS - 1 - magnitude
    # What is above 0 for sure never reads 0, however far its interval reaches up.
    least = -magnitude if low is not None and low > 0 else 0
    return max(0, least, min(by_width, by_value))


def text_of(value: float, places: int, *, sign: bool = False) -> str:
    """`value` with that many decimals, thousands separated, a true minus, and never "-0.0"."""
    rounded = round(value, places) + 0.0
    text = f"{abs(rounded):,.{places}f}"
    if rounded < 0:
        return f"−{text}"
    return f"+{text}" if sign and rounded > 0 else text


def format_value(interval: Interval, *, sign: bool = False, least: int = 0) -> str:
    """The value alone, with the digits that its interval carries, but never fewer than `least` decimals."""
    return text_of(interval.value, max(least, decimals(interval.value, interval.low, interval.high)), sign=sign)


def format_range(interval: Interval, *, sign: bool = False, least: int = 0) -> str:
    """The interval alone, `96.1 to 98.0`, with the decimals of the value; empty when it has no width."""
    if interval.high <= interval.low:
        return ""
    places = max(least, decimals(interval.value, interval.low, interval.high))
    return f"{text_of(interval.low, places, sign=sign)} to {text_of(interval.high, places, sign=sign)}"


def format_exact(value: float) -> str:
    """A figure without an interval: three digits, whole numbers in full."""
    if value == int(value) and abs(value) < 1e15:
        return text_of(value, 0)
    return text_of(value, decimals(value))


def format_limit(value: float) -> str:
    """A figure that a person wrote: as it was written."""
    return f"{value:,.10g}".replace("-", "−")


def format_seconds(seconds: float) -> str:
    """`0.42 s`, `37 s`, `12 min 5 s`, `3 h 4 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def mapping(raw: Any) -> Mapping[str, Any]:
    """`raw` if it is a mapping, else an empty one: optional parts of a result read as absent."""
    return raw if isinstance(raw, Mapping) else {}
