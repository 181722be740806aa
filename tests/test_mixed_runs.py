"""The variant `mixed` in a whole run: named by the recipe, made by itself when int8 misses the limit, reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import edgekd, ok_json
from ends import IRIS, job, rows_of, short, write_iris

from edgekd.results import read_results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the irises with the variants int8 and mixed, calibrated by least squared error."""
    folder = tmp_path_factory.mktemp("mixed")
    settings = ('quantize.variants=["int8_u8u8", "mixed"]', "quantize.calibration=mse")
    table = write_iris(folder / "iris.csv")
    job("arrays", folder / "run", f"data.root={table}", *IRIS, *settings, options=short(folder))
    return folder / "run"


def test_the_recipe_names_a_mixture_and_the_report_counts_its_evaluations(run: Path) -> None:
    results = read_results(run)
    assert {"float32", "int8_u8u8", "mixed"} <= set(rows_of(results))
    search = results["run"]["mixtures"]["mixed"]
    assert 2 <= search["evaluations"] <= search["most_evaluations"]
    page = (run / "report.html").read_text()
    assert "Layers of mixed" in page
    assert f"{search['evaluations']} of at most {search['most_evaluations']}" in page
    assert ok_json("verify", run / "student.edgekd")["ok"]
    calibrations = ok_json("inspect", run / "student.edgekd")["variants"]
    assert "mixed" in calibrations


def test_what_is_not_proven_faster_is_not_chosen_and_says_why(run: Path) -> None:
    described = read_results(run)["run"]
    assert described["chosen"] not in described["held_back"]
    if described["held_back"]:
        assert "Variants that were not chosen" in (run / "report.html").read_text()


def test_no_variant_fits_ends_with_1_a_line_for_each_and_what_to_try(run: Path) -> None:
    folder = run.parent
    table = folder / "iris.csv"
    settings = ['quantize.variants=["int8_u8u8", "mixed"]', "quantize.calibration=mse", f"data.root={table}", *IRIS]
    command = ["distill-and-export", "arrays", *short(folder), *(f"--set={item}" for item in settings)]
    done = edgekd(*command, "--set=limits.size_kb=0.1", "--out", run)
    assert done.returncode == 1
    assert "no variant meets every limit" in done.stderr
    lines = done.stderr.splitlines()
    for name in ("float32", "int8_u8u8", "mixed"):
        said = [line for line in lines if line.strip().startswith(name)]
        # On a busy machine a variant may be impossible to time: then it is left out, and that is its line.
        assert any("missed" in line or "could not be timed" in line for line in said), done.stderr
    assert "to try: size_kb: quantize.variants with int8 or int4_weight_only, or a smaller student" in done.stderr
