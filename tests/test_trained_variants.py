"""Variants that are trained: from the recipe to the bundle, and what mistakes are told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import ok_json, refused
from ends import job, rows_of, short

from edgekd import recipe_checks
from edgekd.device.bundle import Bundle
from edgekd.errors import RecipeError
from edgekd.graph.quantization import TRAINED
from edgekd.recipe import load_recipe
from edgekd.stages import aware

SMALL = (
    "data.limit=400",
    "data.augment={}",
    "teacher.model=cnn_s",
    "teacher.args={}",
    "teacher.train.epochs=6",
    "student.model=dscnn_s",
    "distill.epochs=6",
    "quantize.variants=[\"int8_u8s8\", \"int8_qat\", \"int4_qat\"]",
    "quantize.qat.epochs=2",
    "quantize.qat.per_channel=false",
)  # fmt: skip


def test_trained_variants_are_made_proven_and_shipped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = job("digits", run, *SMALL, options=short(tmp_path))
    assert {"float32", "int8_u8s8", "int8_qat", "int4_qat"} <= rows_of(results).keys()
    assert ok_json("verify", run / "student.edgekd")["ok"]
    manifest = Bundle.open(run / "student.edgekd").manifest
    assert {name: manifest["variants"][name]["opset"] for name in ("int8_qat", "int4_qat")} == {
        "int8_qat": 18,
        "int4_qat": 21,
    }
    stages = {path.stem: json.loads(path.read_text()) for path in (run / "stages").glob("*.json")}
    for name in ("int8_qat", "int4_qat"):
        trained, parity = stages[name]["result"], stages["verify"]["result"]["parity"][name]
        assert trained["epochs"] == 2
        assert parity["ok"]
        assert parity["label_agreement"] >= 0.99
        assert (run / name / "weights.safetensors").is_file()
        graph, static = (np.load(run / "outputs" / f"{item}.npy") for item in (name, "int8_u8s8"))
        assert np.abs(graph - static).max() > 1e-3, "it has learned something"
    assert todo(run, tmp_path) == [], "unchanged"
    changed = todo(run, tmp_path, "quantize.qat.lr=3e-3")
    assert changed[:3] == ["int8_qat", "int4_qat", "quantize"], "another learning rate trains the variants alone"


def todo(run: Path, folder: Path, *more: str) -> list[str]:
    """The stages that the same command would run again."""
    sets = [f"--set={item}" for item in (*SMALL, *more)]
    rows = ok_json("distill-and-export", "digits", *short(folder), *sets, "--out", run, "--dry-run")["stages"]
    return [row["stage"] for row in rows if row["state"] == "to do"]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["quantize.qat.epochs=3"],
            "quantize.qat says how variants are trained, but quantize.variants names none of int8_qat, int4_qat",
        ),
        (
            ['quantize.variants=["int8_qat"]', "quantize.qat.warmup_epochs=5"],
            "quantize.qat.warmup_epochs = 5, expected less than quantize.qat.epochs = 5",
        ),
        (
            ['quantize.variants=["int4_qat"]', "quantize.qat.weight=uint8"],
            "quantize.qat.weight = 'uint8', but the 4-bit weights of int4_qat are signed; expected 'int8'",
        ),
        (["quantize.qat.weight_bits=4"], "unknown key 'quantize.qat.weight_bits'"),
    ],
)
def test_contradictions_are_told_before_anything_runs(overrides: list[str], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", overrides=overrides, environ={})
    assert text in str(caught.value)


def test_an_unknown_variant_is_told_the_nearest(tmp_path: Path) -> None:
    said = refused(
        2, "distill-and-export", "digits", "--set", 'quantize.variants=["int8_qta"]', "--out", tmp_path / "r"
    )
    assert "quantize.variants: unknown variant 'int8_qta'. Did you mean 'int8_qat'?" in said


def test_both_places_name_the_same_variants() -> None:
    assert tuple(TRAINED) == recipe_checks.TRAINED


def test_a_graph_learns_from_answers_not_from_features() -> None:
    class Space:
        """As much of a workspace as is looked at."""

        def __init__(self, *overrides: str) -> None:
            self.recipe = load_recipe("digits", overrides=overrides, environ={}).recipe

    assert [term.name for term in aware.terms(Space())] == ["kd", "cross_entropy"]  # type: ignore[arg-type]
    hint = 'distill.terms=[{loss="hint", student_tap="1", teacher_tap="2"}]'
    assert [term.name for term in aware.terms(Space(hint))] == ["kd", "cross_entropy"]  # type: ignore[arg-type]
    both = 'distill.terms=[{loss="hint", student_tap="1", teacher_tap="2"}, {loss="dkd"}]'
    assert [term.loss for term in aware.terms(Space(both))] == ["dkd"]  # type: ignore[arg-type]
