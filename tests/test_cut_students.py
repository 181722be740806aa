"""Students that lose channels and ranks: from the recipe to the smaller file, and what mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import ok, ok_json

from edgekd.errors import RecipeError
from edgekd.recipe import load_recipe

SMALL = (
    "threads=1",
    "data.limit=300",
    "data.augment={}",
    "teacher.model=mlp_s",
    "teacher.args={}",
    "teacher.train.epochs=2",
    "student.model=mlp_l",
    "distill.epochs=2",
)


def test_a_student_is_trained_whole_cut_and_trained_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    cuts = ("student.prune=0.5", "student.prune_by=taylor", "student.low_rank.energy=0.9")
    ok("distill", "digits", *(f"--set={item}" for item in (*SMALL, *cuts)), "--out", run)
    found: dict[str, Any] = {
        name: json.loads((run / "stages" / f"{name}.json").read_text())["result"]
        for name in ("student_whole", "student", "student_alone")
    }
    whole, student, alone = (found[name] for name in ("student_whole", "student", "student_alone"))
    assert whole["parameters"] == 64 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert student["parameters"] < 0.4 * whole["parameters"]
    assert student["macs"] < 0.4 * whole["macs"]
    assert (alone["parameters"], alone["macs"]) == (student["parameters"], student["macs"]), "a fair comparison"
    exported = ok_json("export", run, tmp_path / "student.onnx")
    assert exported["size_bytes"] < 4.5 * student["parameters"] + 4000, "dense and small"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["student.prune_by=taylor"],
            "student.prune_by = 'taylor' says which channels go, but none do; add student.prune",
        ),
        (["student.low_rank={}"], "student.low_rank: expected either rank (how many) or energy"),
        (["student.low_rank={rank=4, energy=0.5}"], "student.low_rank: expected either rank (how many) or energy"),
        (["student.prune=1.0"], "student.prune"),
        (["student.prune=0.5", "student.prune_by=l2"], "student.prune_by"),
    ],
)
def test_contradictions_are_told(overrides: list[str], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", overrides=overrides, environ={})
    assert text in str(caught.value)
