"""Numbers of the report: no digit that the interval does not carry."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.reporting.numbers import decimals, format_exact, format_range, format_seconds, format_value, interval_of
from edgekd.spec import Interval


@pytest.mark.parametrize(
    ("interval", "value", "spread_text"),
    [
        (Interval(97.22, 95.1, 98.4), "97.2", "95.1 to 98.4"),
        (Interval(0.04123, 0.0408, 0.0419), "0.0412", "0.0408 to 0.0419"),
        (Interval(15.7, 15.386, 16.014), "15.7", "15.4 to 16.0"),
        (Interval(-0.04, -1.2, 1.1), "0.0", "−1.2 to 1.1"),
        (Interval(1234.56, 1200, 1300), "1,235", "1,200 to 1,300"),
        (Interval(2.5, 2.5, 2.5), "2.50", ""),
    ],
)
def test_a_number_shows_the_digits_that_its_interval_carries(interval: Interval, value: str, spread_text: str) -> None:
    assert format_value(interval) == value
    assert format_range(interval) == spread_text


def test_points_keep_one_decimal_however_wide_the_interval_is() -> None:
    wide = Interval(3.14, -6.0, 12.0)
    assert format_value(wide, sign=True, least=1) == "+3.1"
    assert format_range(wide, sign=True, least=1) == "−6.0 to +12.0"


@given(
    st.floats(min_value=1e-6, max_value=1e6),
    st.floats(min_value=1e-6, max_value=2.0),
)
def test_rounding_moves_no_bound_by_more_than_an_eighth_of_the_interval(value: float, share: float) -> None:
    low, high = value * (1 - share / 2), value * (1 + share / 2)
    digits = decimals(value, low, high)
    if digits < 3 - math.floor(math.log10(value)):
        assert 0.5 * 10**-digits <= (high - low) / 7.9 or digits == 0
    text = format_value(Interval(value, low, high)).replace(",", "").replace("−", "-")
    assert abs(float(text) - value) <= 0.5 * 10**-digits * (1 + 1e-6)


@pytest.mark.parametrize(
    ("value", "text"), [(2208.412, "2,208"), (50.0, "50"), (0.0123456, "0.0123"), (-3.0, "−3"), (0.0, "0")]
)
def test_figures_without_interval_have_three_digits(value: float, text: str) -> None:
    assert format_exact(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.414, "0.41 s"), (37.2, "37 s"), (725, "12 min 5 s"), (11040, "3 h 4 min")]
)
def test_seconds_are_told_in_the_unit_of_a_person(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("raw", [None, "12", True, float("nan"), {"value": None}, {"value": math.inf, "low": 0}])
def test_what_is_no_number_is_missing(raw: object) -> None:
    assert interval_of(raw) is None


def test_an_interval_with_an_infinite_bound_keeps_its_value() -> None:
    assert interval_of({"value": 2.0, "low": 1.0, "high": math.inf, "n": 7}) == Interval(2.0, 2.0, 2.0, 7)


def test_a_latency_of_an_endless_interval_never_reads_zero() -> None:
    assert format_value(Interval(0.052, 0.001, 3.0)) == "0.05"
    assert format_range(Interval(0.052, 0.001, 3.0)) == "0.00 to 3.00"
    assert format_value(Interval(-0.03, -2.0, 2.0)) == "0", "a drop that may be none may read so"
