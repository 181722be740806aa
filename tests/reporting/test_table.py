"""The table of the report, for the terminal and as CSV."""

from __future__ import annotations

import csv
import io

import pytest
from report_results import CANDIDATES, Page, plain_results, run_results

from edgekd.report import table_rows, to_csv, to_html, to_markdown
from edgekd.reporting.table import figures_of


def test_the_table_holds_each_candidate_with_its_figures() -> None:
    rows = table_rows(run_results())
    assert [row["Model"] for row in rows] == [
        "Teacher, PyTorch",
        "Teacher, ONNX",
        "Student alone",
        "float32",
        "int8_u8s8 (chosen)",
        "int8_s8s8",
        "int8_dynamic",
        "fp16",
    ]
    assert rows[4] == {
        "Model": "int8_u8s8 (chosen)",
        "Accuracy\n%": "97.5 [95.4, 98.3]",
        "Drop\npoints": "+1.1 [−0.2, +2.4]",
        "Size\nkB": "27.9",
        "p50\nms": "0.0388",
        "p90\nms": "0.0423",
        "Speed-up\n×": "15.7",
        "Peak\nMB": "26.1",
    }
    assert rows[1]["Drop\npoints"] == "reference"
    assert rows[1]["Speed-up\n×"] == "1"


def test_energy_has_a_column_where_a_machine_tells_it() -> None:
    results = plain_results()
    assert "Energy\nmJ" not in table_rows(results)[0]
    results["rows"][0]["energy_mj"] = 12.345
    shown = table_rows(results)
    assert [row["Energy\nmJ"] for row in shown][:2] == ["12.3", "–"]
    assert next(csv.DictReader(io.StringIO(to_csv(results))))["energy_mj"] == "12.345"


def test_a_percentile_without_enough_calls_reads_n_too_small() -> None:
    rows = {row["Model"]: row for row in table_rows(plain_results())}
    assert rows["b"]["p90\nms"] == "n too small"
    assert rows["a"]["p90\nms"] == "2.60"
    assert rows["d (failed)"]["p90\nms"] == "–"
    assert "n too small" in Page(to_html(plain_results())).text


def test_wrong_outputs_and_failures_stand_beside_the_name() -> None:
    assert {"c (WRONG)", "d (failed)"} < {row["Model"] for row in table_rows(plain_results())}
    for text in (Page(to_html(plain_results())).text, to_markdown(plain_results())):
        assert "WRONG: its outputs differ from the golden ones" in text
        assert "failed: the model needs opset 27; this onnxruntime reads up to 26" in text


def test_columns_that_say_nothing_are_left_out_and_different_settings_are_shown() -> None:
    results = plain_results()
    assert "Accuracy\n%" not in table_rows(results)[0]
    assert "Batch" not in table_rows(results)[0]
    results["candidates"][1]["batch"] = 8
    assert table_rows(results)[1]["Batch"] == "8"


def test_csv_has_the_unrounded_numbers() -> None:
    rows = {row["candidate"]: row for row in csv.DictReader(io.StringIO(to_csv(run_results())))}
    assert list(rows) == list(CANDIDATES)
    chosen = rows["int8_u8s8"]
    assert float(chosen["p50_ms"]) == CANDIDATES["int8_u8s8"][1]
    assert float(chosen["size_kb"]) == CANDIDATES["int8_u8s8"][3] / 1000
    assert float(chosen["accuracy_low"]) == pytest.approx(0.954)
    assert (chosen["chosen"], chosen["against"], chosen["p99_ms"]) == ("True", "teacher-onnx", "")


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@x", "\t=1"])
def test_csv_cells_are_no_formulas(name: str) -> None:
    results = plain_results()
    results["candidates"][0]["model"] = name
    assert next(csv.DictReader(io.StringIO(to_csv(results))))["model"] == f"'{name}"


def test_the_peak_is_the_highest_phase() -> None:
    assert figures_of(plain_results())[0]["memory_mb"] == 35.5
