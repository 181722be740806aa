"""The report's lines about classes, further metrics and the worst samples."""

from __future__ import annotations

from report_results import interval, plain_results, run_results, with_hostile_texts

from edgekd.report import to_html, to_markdown
from edgekd.reporting.facts import fact_groups
from edgekd.reporting.quality import class_lines, metric_lines, quality_groups, sample_lines

ROW = {
    "metrics": {"top5": 0.998, "f1_macro": 0.9713, "calibration_error": 0.0251, "other": 3},
    "per_class": [
        {"label": "owl", "n": 40, "accuracy": 0.95, "reference": 1.0, "drop_points": interval(5.0, 7.0), "p": 0.4},
        {"label": "cat", "n": 50, "accuracy": 0.7, "reference": 1.0, "drop_points": interval(30.0, 12.0), "p": 0.001},
    ],
    "worst": [{"sample": 512, "label": "cat", "predicted": "owl", "probability": 0.0012, "reference": "cat"}],
}


def test_lines_by_hand() -> None:
    assert metric_lines(ROW) == [
        ("top-5 accuracy", "99.8 %"),
        ("macro F1", "97.1 %"),
        ("expected calibration error", "2.5 %"),
    ]
    assert class_lines(ROW) == [
        ("class cat", "70.0 %, drop +30.0 points (+18.0 to +42.0, more than chance)"),
        ("class owl", "95.0 %, drop +5.0 points (−2.0 to +12.0, within chance)"),
    ]
    assert sample_lines(ROW) == [
        ("worst: sample 512", "is cat, read as owl (0.1 % for cat), by the reference as cat"),
    ]


def test_without_a_reference_the_classes_with_the_lowest_accuracy_come_first() -> None:
    row = {"per_class": [{"label": "a", "n": 9, "accuracy": 0.9}, {"label": "b", "n": 20, "accuracy": 0.4}]}
    assert class_lines(row) == [("class b", "40.0 % of 20"), ("class a", "90.0 % of 9")]


def test_errors_and_targets() -> None:
    assert metric_lines({"metrics": {"mae": 3.0, "rmse": 3.21, "max_error": 12.5}}) == [
        ("mean absolute error", "3"),
        ("root mean squared error", "3.21"),
        ("largest error", "12.5"),
    ]
    assert sample_lines({"worst": [{"sample": 3, "target": [1.0], "predicted": [2.5]}]}) == [
        ("worst: sample 3", "is 1, read as 2.50")
    ]


def test_a_run_shows_the_chosen_one_and_a_benchmark_all() -> None:
    results = run_results()
    for row in results["rows"]:
        row |= ROW
    assert [heading for heading, _ in quality_groups(results)] == ["Accuracy in detail: Student, int8_u8s8"]
    plain = plain_results()
    for row in plain["rows"]:
        row |= ROW
    assert [heading for heading, _ in quality_groups(plain)] == [
        f"Accuracy in detail: {row['candidate']}" for row in plain["rows"]
    ]
    assert quality_groups(plain_results()) == []


def test_the_report_holds_them_in_every_form() -> None:
    results = run_results()
    for row in results["rows"]:
        row |= ROW
    assert fact_groups(results)[0][0] == "Accuracy in detail: Student, int8_u8s8"
    for page in (to_markdown(results), to_html(results)):
        assert "macro F1" in page
        assert "read as owl" in page


def test_damaged_and_hostile_parts_do_not_break_the_page() -> None:
    for broken in (None, 7, "text", [1], [{}], {"a": 1}, [{"label": None, "accuracy": "x", "sample": None}]):
        results = run_results()
        for row in results["rows"]:
            row |= {"metrics": broken, "per_class": broken, "worst": broken}
        to_markdown(results)
        to_html(results)
    hostile = run_results()
    for row in hostile["rows"]:
        row |= with_hostile_texts(ROW)
    assert "<script>alert" not in to_html(hostile)


def test_another_device_is_named() -> None:
    results = plain_results()
    assert "device" not in dict(dict(fact_groups(results))["Machine"])
    results["on"] = "ssh://pi@board"
    assert dict(dict(fact_groups(results))["Machine"])["device"] == "ssh://pi@board"
