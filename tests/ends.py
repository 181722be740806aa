"""Small whole runs through the command line, for the tests of the main job: real tables, short budgets."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from commands import edgekd

from edgekd.results import read_results

# Enough calls for a p50 and a p90; the figures themselves are not what these tests look at.
SUITE = """
min_calls = 64
min_blocks = 4
launches = 1
max_seconds = 0.4
block_ms = 2
cold_starts = 0
memory = false
"""


def short(folder: Path) -> tuple[str, ...]:
    """The options that make any recipe short: a tiny suite, one thread, no student alone, limits that hold."""
    suite = folder / "tiny.toml"
    suite.write_text(SUITE)
    settings = (f"benchmark.suite={suite}", "threads=1", "distill.baseline=false", "limits.accuracy_drop_points=200")
    return tuple(f"--set={setting}" for setting in settings)


def job(recipe: str | Path, out: Path, *settings: str, options: Sequence[str | Path] = ()) -> dict[str, Any]:
    """The results of a run of the main job that must succeed."""
    sets = [f"--set={setting}" for setting in settings]
    done = edgekd("distill-and-export", recipe, *options, *sets, "--out", out)
    assert done.returncode == 0, done.stderr
    return read_results(out)


def rows_of(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a result by their candidate."""
    return {row["candidate"]: row for row in results["rows"]}


def write_table(path: Path, x: np.ndarray, y: Sequence[object], *, names: Sequence[str], target: str) -> Path:
    """A CSV file as a spreadsheet writes it."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*names, target])
        table.writerows([*row, label] for row, label in zip(x, y, strict=True))
    return path


def write_iris(path: Path) -> Path:
    """Fisher's irises: 150 flowers, four lengths in cm, three species by name."""
    from sklearn.datasets import load_iris

    data = load_iris()
    species = [str(data.target_names[index]) for index in data.target]
    return write_table(path, data.data, species, names=data.feature_names, target="species")


IRIS = ("data.target=species", "teacher.train.epochs=20", "distill.epochs=30", "teacher.train.batch_size=16")
