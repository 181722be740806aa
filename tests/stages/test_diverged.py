"""A run whose training diverged goes on with a lower learning rate, from the last good checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from spaces import write_project

from edgekd.errors import Diverged
from edgekd.pipeline import train

LOSS = """
from pathlib import Path

calls = 0


def own(student, teacher):
    global calls
    calls += 1
    value = (student - teacher).square().mean()
    return value * float("nan") if calls > 14 and Path(__file__).with_name("break").exists() else value
"""
SETTINGS = (
    "teacher.train.epochs=1",
    "distill.epochs=4",
    "distill.batch_size=16",
    "distill.schedule=constant",
    "distill.terms=[{loss='fragile_losses:own'}]",
)


def history(run: Path) -> list[float]:
    return [item["lr"] for item in json.loads((run / "student" / "history.json").read_text())["history"]]


def test_the_last_good_checkpoint_of_a_diverged_run_is_used(tmp_path: Path) -> None:
    (tmp_path / "fragile_losses.py").write_text(LOSS)
    (tmp_path / "break").touch()
    recipe, out = write_project(tmp_path, "classification"), tmp_path / "run"

    def distill(*more: str) -> list[str]:
        return train(recipe, out=out, overrides=(*SETTINGS, *more), student_only=True, threads=1)[2]

    with pytest.raises(Diverged, match=r"the checkpoint of epoch 2 .* is kept, and the next run goes on from there"):
        distill("distill.lr=0.01")
    (tmp_path / "break").unlink()
    assert distill("distill.lr=0.001") == ["student"]
    assert history(out) == [0.01, 0.01, 0.001, 0.001]
    assert distill("distill.lr=0.002") == ["student"]
    assert history(out) == [0.002] * 4, "a finished training is no half-finished one"


def test_nothing_is_salvaged_for_another_student(tmp_path: Path) -> None:
    (tmp_path / "fragile_losses.py").write_text(LOSS.replace("calls = 0\n", "calls = 0\n# another\n"))
    (tmp_path / "break").touch()
    recipe, out = write_project(tmp_path, "classification"), tmp_path / "run"
    with pytest.raises(Diverged):
        train(recipe, out=out, overrides=(*SETTINGS, "distill.lr=0.01"), student_only=True, threads=1)
    (tmp_path / "break").unlink()
    other = (*SETTINGS, "distill.lr=0.001", "student.model=mlp_m")
    train(recipe, out=out, overrides=other, student_only=True, threads=1)
    assert history(out) == [0.001] * 4
