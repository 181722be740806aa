"""The figures of the report: places that mean something, marks for all that was measured, names that can be read."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_results import CANDIDATES, Page, charts, plain_results, run_results

from edgekd.report import to_html
from edgekd.reporting.plots import Point, pareto, tradeoff
from edgekd.reporting.svg import Axis, linear_ticks, log_ticks, overlap, padded, place_label, spread, tick_text
from edgekd.reporting.table import METRICS
from edgekd.reporting.training import stages_of
from edgekd.spec import Interval


def point(name: str, latency: float, accuracy: float, *, wrong: bool = False) -> Point:
    """A point without intervals."""
    exact = [Interval(value, value, value) for value in (latency, accuracy)]
    return Point(name, "1 kB", "circle", "c1", exact[0], exact[1], chosen=False, wrong=wrong)


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 100), st.booleans()), min_size=1, max_size=12))
def test_the_front_is_what_nobody_beats(raw: list[tuple[float, float, bool]]) -> None:
    points = [point(str(index), *values[:2], wrong=values[2]) for index, values in enumerate(raw)]
    front, right = pareto(points), [p for p in points if not p.wrong]
    for candidate in right:
        beaten = any(
            other.latency.value <= candidate.latency.value
            and other.accuracy.value >= candidate.accuracy.value
            and (other.latency.value, other.accuracy.value) != (candidate.latency.value, candidate.accuracy.value)
            for other in right
        )
        twin = any(p.latency == candidate.latency and p.accuracy == candidate.accuracy for p in front)
        assert (not beaten) == twin
    assert all(p in right for p in front)


def test_faster_is_left_and_better_is_up() -> None:
    points = [point("a", 1.0, 90.0), point("b", 10.0, 95.0), point("c", 100.0, 80.0)]
    (svg,) = charts(tradeoff(points, METRICS["accuracy"]))
    marks = [circle for circle in svg.iter("circle") if "mark" in circle.attrib["class"]]
    places = [(float(mark.attrib["cx"]), float(mark.attrib["cy"])) for mark in marks]
    (ax, ay), (bx, by), (cx, cy) = places
    assert bx - ax == pytest.approx(cx - bx, abs=0.2)  # a decade is a decade
    assert ax < bx < cx
    assert by < ay < cy  # the y of SVG grows downwards
    assert (cy - by) / (ay - by) == pytest.approx(3.0, rel=0.01)
    assert ["open" in mark.attrib["class"] for mark in marks] == [False, False, True]


def test_each_timed_candidate_is_in_the_figure_with_its_interval() -> None:
    wide, narrow, *panels = charts(to_html(run_results()))
    for chart in (wide, narrow):
        tips = [title.text for title in chart.iter("title")]
        assert len(tips) == len(CANDIDATES)
        assert "int8_u8s8: 97.5 (95.4 to 98.3), p50 0.0388 ms, 27.9 kB" in tips
        assert sum(line.attrib.get("class") == "bar" for line in chart.iter("line")) == 2 * len(CANDIDATES)
    assert len(panels) == 4
    assert "Validation accuracy per epoch" in panels[0].attrib["aria-label"]
    assert "kd from" in panels[1].attrib["aria-label"]
    assert "cross_entropy from" in panels[1].attrib["aria-label"]


def test_the_epoch_that_was_kept_wears_a_ring() -> None:
    panel = charts(to_html(run_results()))[2]
    rings = [title.text for circle in panel.iter("circle") for title in circle if circle.attrib["class"] == "ring"]
    assert rings == ["Teacher: epoch 17 was kept", "Student: epoch 28 was kept", "Student alone: epoch 24 was kept"]


@pytest.mark.parametrize("epochs", [1, 2])
def test_short_and_broken_histories_are_drawn(epochs: int) -> None:
    results = run_results()
    for part in results["run"]["training"].values():
        part["history"] = part["history"][:epochs]
        part["history"][-1]["val"] = float("nan")
        part["history"][-1]["terms"] = {"cross_entropy": 0.0}
    assert len(charts(to_html(results))) == (5 if epochs == 1 else 6)
    results["run"]["training"] = {}
    assert len(charts(to_html(results))) == 2


def test_candidates_without_accuracy_are_drawn_by_latency() -> None:
    html = to_html(plain_results())
    assert "Accuracy was not measured" in Page(html).text
    assert "Not drawn, because it was not timed: d." in Page(html).text
    wide, narrow = charts(html)
    assert "a 2.41 ms; b 0.930 ms; c 0.310 ms" in wide.attrib["aria-label"]
    assert narrow.attrib["class"] == "chart narrow"


def test_numbers_stay_inside_the_figure() -> None:
    for svg in charts(to_html(run_results())):
        _, _, width, height = (float(part) for part in svg.attrib["viewBox"].split())
        for element in svg.iter():
            for key, most in (("x", width), ("x1", width), ("x2", width), ("cx", width), ("y", height), ("cy", height)):
                if key in element.attrib:
                    assert -0.5 <= float(element.attrib[key]) <= most + 0.5, (element.attrib, svg.attrib["aria-label"])


@given(st.floats(1e-4, 1e4), st.floats(1.2, 1e5), st.integers(3, 10))
def test_ticks_lie_inside_and_are_distinct(low: float, factor: float, count: int) -> None:
    high = low * factor
    for ticks, log in ((linear_ticks(low, high, count), False), (log_ticks(low, high, count), True)):
        assert all(low * 0.998 <= tick <= high * 1.002 for tick in ticks)
        assert ticks == sorted(set(ticks))
        assert 1 <= len(ticks) <= 2 * count + 1
        assert len({tick_text(tick, ticks, log=log) for tick in ticks}) == len(ticks)


def test_a_logarithmic_axis_halves_at_the_geometric_mean() -> None:
    axis = Axis(1.0, 100.0, 0.0, 200.0, log=True)
    assert axis.at(10.0) == pytest.approx(100.0)
    assert axis.at(0.0) == 0.0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_names_at_line_ends_do_not_cover_each_other(positions: list[float]) -> None:
    moved = spread(positions, gap=14, low=0, high=100)
    assert all(b - a >= 14 - 1e-6 for a, b in itertools.pairwise(sorted(moved)))
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    assert [moved[index] for index in order] == sorted(moved)


def test_a_label_avoids_what_is_taken() -> None:
    area = (0.0, 0.0, 400.0, 400.0)
    free = place_label(200, 200, (60, 14), [], area)
    taken = [(free, 8.0)]
    other = place_label(200, 200, (60, 14), taken, area)
    assert overlap(free, other) == 0
    assert overlap(other, area) == pytest.approx(60 * 14)


def test_an_axis_around_one_value_has_round_ticks() -> None:
    low, high = padded([2.325618])
    ticks = linear_ticks(low, high, 5)
    assert max(len(tick_text(tick, ticks)) for tick in ticks) <= 4


def test_stages_are_told_with_their_epochs() -> None:
    def item(epoch: int, stage: str | None) -> dict[str, object]:
        return {"epoch": epoch, "stage": stage}

    assert stages_of([]) == stages_of([item(1, None), item(2, None)]) == stages_of([{"epoch": 1}]) == ""
    staged = [item(1, "hints"), item(2, "hints"), item(3, "soft"), item(4, "soft")]
    assert stages_of(staged) == " (hints: epochs 1 to 2; soft: 3 to 4)"
