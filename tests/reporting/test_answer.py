"""The head of the report: what shipped, how much smaller and faster, which limits hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from report_results import Page, plain_results, run_results

from edgekd.report import table_rows, to_html, to_markdown
from edgekd.reporting.answer import answer, difference_points
from edgekd.spec import Interval


def test_the_answer_comes_first_in_numbers() -> None:
    said = answer(run_results())
    assert said.headline == "The student int8_u8s8 is 79× smaller and 15.7× faster than its teacher."
    assert [(figure.value, figure.label) for figure in said.figures] == [
        ("79×", "smaller"),
        ("15.7×", "faster"),
        ("1.1", "points lower accuracy"),
    ]
    assert said.figures[0].note == "27.9 kB instead of 2,208 kB"
    assert said.figures[1].note == "15.4 to 16.0 times. p50 0.0388 ms instead of 0.610 ms"
    assert said.figures[2].note == "drop −0.2 to +2.4 points, on 360 test samples"
    page = Page(to_html(run_results())).text
    assert page.index(said.headline) < page.index("Limits") < page.index("All that was measured")
    assert "both on onnxruntime with 1 thread" in page


def test_a_slower_larger_or_better_student_is_called_so() -> None:
    results = run_results()
    row = next(row for row in results["rows"] if row["candidate"] == "int8_u8s8")
    row |= {"size_bytes": 4_416_824, "speedup": {"value": 0.5, "low": 0.4, "high": 0.625, "against": "teacher-onnx"}}
    row["drop_points"] = {"value": -0.8, "low": -1.9, "high": 0.3}
    said = answer(results)
    assert said.headline == "The student int8_u8s8 is 2.0× larger and 2.0× slower than its teacher."
    assert said.figures[1].note.startswith("1.60 to 2.50 times.") or said.figures[1].note.startswith(
        "1.6 to 2.5 times."
    )
    assert (said.figures[2].value, said.figures[2].label) == ("0.8", "points higher accuracy")


def test_a_speed_up_whose_interval_holds_one_is_no_difference() -> None:
    results = run_results()
    row = next(row for row in results["rows"] if row["candidate"] == "int8_u8s8")
    row["speedup"] = {"value": 1.02, "low": 0.97, "high": 1.07, "against": "teacher-onnx"}
    said = answer(results)
    assert said.headline == "The student int8_u8s8 is 79× smaller than and about as fast as its teacher."
    assert "no difference is measured" in said.figures[1].note


def test_a_chosen_variant_that_gives_wrong_outputs_is_not_recommended() -> None:
    results = run_results()
    next(entry for entry in results["candidates"] if entry["id"] == "int8_u8s8")["golden"] = "WRONG"
    said = answer(results)
    assert said.headline == "The chosen variant int8_u8s8 must not be used: it gave wrong outputs in its self-test."
    assert said.figures == ()


def test_a_plain_benchmark_names_the_fastest_that_works() -> None:
    said = answer(plain_results())
    assert said.headline == "b is the fastest of 2 candidates that worked."
    assert [(figure.value, figure.label) for figure in said.figures] == [
        ("0.930 ms", "latency p50"),
        ("2.59×", "faster than a"),
        ("1,402 kB", "size of the model file"),
    ]


def test_each_limit_says_what_it_would_take() -> None:
    lines = {line.name: line for line in answer(run_results()).limits}
    assert (lines["Size"].verdict, lines["Size"].found, lines["Size"].comment) == ("met", "27.9 kB", "")
    assert lines["Latency p90"].limit == "≤ 0.04 ms"
    assert lines["Latency p90"].comment == "missed by 0.0021 ms"
    assert lines["Accuracy drop"].comment == "n too small: about 1,240 validation samples would prove it"
    assert (lines["Accuracy drop"].found, lines["Accuracy drop"].interval) == ("0.3 points", "−0.6 to 1.3")
    assert answer(run_results()).limits_said == "Of 3 limits: 1 met, 1 missed, 1 unproven."
    page = Page(to_html(run_results())).text
    for text in ("missed by 0.0021 ms", "about 1,240 validation samples would prove it", "at 95 % confidence"):
        assert text in page


def test_an_unproven_limit_whose_estimate_is_above_it_promises_no_proof() -> None:
    results = run_results()
    results["run"]["limits"] = [
        {"name": "accuracy_drop_points", "limit": 1.0, "value": 1.4, "interval": [-0.1, 2.9], "verdict": "unproven"}
    ]
    (line,) = answer(results).limits
    assert line.comment.startswith("the estimate itself lies above the limit")


def test_a_limit_that_could_not_be_measured_reads_n_too_small() -> None:
    results = run_results()
    results["run"]["limits"] = [
        {
            "name": "latency_p90_ms",
            "limit": 1,
            "value": 0.0,
            "interval": [0.0, None],
            "verdict": "unproven",
            "needed_n": 64,
        }
    ]
    (line,) = answer(results).limits
    assert (line.found, line.comment) == ("n too small", "n too small: about 64 timed calls would prove it")


@pytest.mark.parametrize(
    ("alone", "tone", "words"),
    [
        (0.90, "good", "Distillation helped: the distilled student (float32) gained 7.5 points of accuracy"),
        (0.9639, "open", "No gain is proven: the distilled student (float32) is 1.1 points of accuracy above"),
        (0.975, "open", "No gain is proven: the distilled student (float32) is as good as the same student"),
        (0.985, "open", "is 1.0 points of accuracy below the same student trained alone, but the interval"),
    ],
)
def test_the_gain_of_distillation_is_told_honestly(alone: float, tone: str, words: str) -> None:
    results = run_results()
    row = next(row for row in results["rows"] if row["candidate"] == "student-alone")
    row["accuracy"] = {"value": alone, "low": alone - 0.021, "high": alone + 0.0085, "n": 360}
    said = answer(results)
    assert said.gain_tone == tone
    assert words in said.gain
    assert words in Page(to_html(results)).text


def test_a_loss_through_distillation_is_called_a_loss() -> None:
    results = run_results()
    results["run"]["gain_points"] = {"value": -1.3, "low": -2.2, "high": -0.4}
    said = answer(results)
    assert said.gain_tone == "bad"
    assert said.gain.startswith(
        "Distillation hurt here: the distilled student (float32) lies 1.3 points of accuracy below"
    )
    assert "(interval −2.2 to −0.4 points)" in said.gain


def test_the_interval_of_the_gain_is_newcombes() -> None:
    """56/70 against 48/80, method 10 of Newcombe 1998: 0.2, 0.0524 to 0.3339."""

    def wilson(hits: int, n: int) -> Interval:
        z = 1.959964
        middle, half = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
        return Interval(hits / n, (middle - half) / (n + z * z), (middle + half) / (n + z * z))

    gain = difference_points(wilson(56, 70), wilson(48, 80))
    assert (gain.value, gain.low, gain.high) == pytest.approx((20.0, 5.24, 33.39), abs=0.005)


@pytest.mark.parametrize("make", [to_html, to_markdown])
def test_an_invalid_measurement_says_so_with_its_reasons(make: Callable[[dict[str, Any]], str]) -> None:
    results = run_results()
    assert "INVALID" not in make(results)
    results["verdict"] = {"value": "INVALID", "reasons": ["drift: 12 % slower"], "advice": ["let it cool down"]}
    text = make(results)
    for part in ("INVALID", "drift: 12 % slower", "let it cool down"):
        assert part in text
    assert text.index("drift: 12 %") < text.index("All that was measured")


def test_regression_is_told_in_its_own_metric() -> None:
    results = run_results()
    results["run"]["metric"] = "r2"
    assert "R²" in table_rows(results)[0]
    assert table_rows(results)[4]["R²"].startswith("0.97")
    assert "points lower R²" in answer(results).figures[2].label


def test_the_fastest_of_a_benchmark_tells_what_it_costs() -> None:
    results = plain_results()
    results["rows"][1]["accuracy"] = {"value": 0.565, "low": 0.496, "high": 0.632, "n": 200}
    results["rows"][1]["drop_points"] = {"value": 27.5, "low": 19.1, "high": 35.4}
    figure = answer(results).figures[2]
    assert (figure.value, figure.label) == ("27.5", "points lower accuracy")
    assert figure.note == "drop +19.1 to +35.4 points, on 200 labelled samples"


def test_a_chosen_variant_that_failed_says_why() -> None:
    results = run_results()
    next(entry for entry in results["candidates"] if entry["id"] == "int8_u8s8")["error"] = "out of memory"
    said = answer(results)
    assert said.headline == "The chosen variant int8_u8s8 must not be used: it failed: out of memory."
