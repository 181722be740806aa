"""The answers of several teachers and of assistants, kept: each in a cache of its own, for every student to come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import ok, ok_json, refused
from ends import short

from edgekd.results import read_results

pytestmark = pytest.mark.slow

RECIPE = """
[data]
kind = "digits"
limit = 800
augment = {shift = 1}
views = 2

[preprocess]
steps = [{op = "scale"}, {op = "layout", to = "CHW"}]

[teacher]
model = "cnn_m"
train = {epochs = 2, batch_size = 32, lr = 5e-3}
MORE
[student]
model = "cnn_s"

[distill]
epochs = 3
batch_size = 64
lr = 0.01
baseline = false
"""
SECOND = """
[[teachers]]
model = "cnn_s"
labels = ["3", "5", "8"]
weight = 2.0
train = {epochs = 2, batch_size = 32, lr = 5e-3}
"""
CHAIN = """
[[assistant]]
model = "cnn_s"

[[assistant]]
model = "dscnn_s"
"""
ANSWERS = 2 * 800  # views, training samples
KEPT = "--set=distill.cache=true"


def write(folder: Path, more: str) -> Path:
    path = folder / "kept.toml"
    path.write_text(RECIPE.replace("MORE", more))
    return path


def distilled(recipe: Path, out: Path, *options: str | Path) -> dict[str, Any]:
    """What the training stages left."""
    arguments = ("distill", recipe, "--student-only", "--set=threads=1", *options, "--out", out)
    stages: dict[str, Any] = ok_json(*arguments)["stages"]
    return stages


def weights(run: Path, name: str = "student") -> bytes:
    return (run / name / "weights.safetensors").read_bytes()


def test_two_students_cost_each_of_two_teachers_once(tmp_path: Path) -> None:
    """The second one asks nobody; the first learned what the live teachers teach over the same views, to the bit."""
    recipe, kept = write(tmp_path, SECOND), (KEPT, "--cache", tmp_path / "answers")
    live = distilled(recipe, tmp_path / "live")
    assert live["student"]["teacher_passes"] == 2 * 3 * 800
    options = (*short(tmp_path), "--set=quantize.variants=['int8_dynamic']", *kept)
    budgets = []
    for student in ("cnn_s", "dscnn_s"):
        run = tmp_path / student
        ok("distill-and-export", recipe, *options, f"--set=student.model={student}", "--out", run)
        budgets.append(read_results(run)["run"]["budget"])
    assert [budget["teacher_passes"] for budget in budgets] == [2 * ANSWERS, 0]
    assert weights(tmp_path / "cnn_s") == weights(tmp_path / "live")
    assert len(list((tmp_path / "answers").iterdir())) == 2
    # Nor does another mean, or another share of one of them.
    other = ("--set=distill.ensemble=probabilities", "--set=teachers.0.weight=1")
    told = distilled(recipe, tmp_path / "other", *kept, *other)
    assert [told[name]["teacher_passes"] for name in ("cache", "cache_teacher_2", "student")] == [0, 0, 0]
    distilled(recipe, tmp_path / "other_live", *other)
    assert weights(tmp_path / "other") == weights(tmp_path / "other_live")
    assert weights(tmp_path / "other") != weights(tmp_path / "live")
    assert len(list((tmp_path / "answers").iterdir())) == 2
    # One of them alone, as another recipe has it, is known too.
    alone = write(tmp_path, "")
    asked = (f"--set=teacher={{model='cnn_s', weights='{tmp_path / 'live' / 'teacher_2' / 'weights.safetensors'}'}}",)
    arguments = ("--recipe", alone, *asked, "--set=threads=1", "--out", tmp_path / "alone")
    assert ok_json("cache", "build", *arguments, "--cache", tmp_path / "answers")["asked"] == 0


def test_a_chain_of_assistants_is_asked_once_as_well(tmp_path: Path) -> None:
    recipe, kept = write(tmp_path, CHAIN), (KEPT, "--cache", tmp_path / "answers")
    live = distilled(recipe, tmp_path / "live")
    told = distilled(recipe, tmp_path / "run", *kept)
    for name in ("assistant_1", "assistant_2", "student"):
        assert weights(tmp_path / "run", name) == weights(tmp_path / "live", name)
        assert (live[name]["teacher_passes"], told[name]["teacher_passes"]) == (3 * 800, 0)
    caches = ("cache", "cache_assistant_1", "cache_assistant_2")
    assert [told[name]["teacher_passes"] for name in caches] == [ANSWERS] * 3
    again = distilled(recipe, tmp_path / "again", *kept, "--set=student.model=dscnn_s")
    assert [again[name]["teacher_passes"] for name in caches] == [0] * 3
    assert len(list((tmp_path / "answers").iterdir())) == 3
    # Another last assistant asks the first anew for nothing.
    other = distilled(recipe, tmp_path / "other", *kept, "--set=assistant.1.model=cnn_s")
    assert [other[name]["teacher_passes"] for name in caches] == [0, 0, ANSWERS]


def test_features_of_one_of_several_are_kept_with_its_answers(tmp_path: Path) -> None:
    """And an adapter reads the weights of the one that it looks at, which is only remembered."""
    feature = "{loss='logit_mse', name='feature', student_tap='2', teacher_tap='0/2', adapter='auto'}"
    margin = "{loss='overhaul_partial_l2', student_tap='2.1', teacher_tap='1/2.1'}"
    recipe, terms = write(tmp_path, SECOND), f"--set=distill.terms=[{{loss='kd'}}, {feature}, {margin}]"
    live = distilled(recipe, tmp_path / "live", terms)["student"]
    told = distilled(recipe, tmp_path / "run", terms, KEPT, "--cache", tmp_path / "answers")["student"]
    assert (live["teacher_passes"], told["teacher_passes"]) == (2 * 3 * 800, 0)
    for one, other in zip(live["history"], told["history"], strict=True):
        assert other["terms"] == pytest.approx(one["terms"], rel=1e-2)
        assert min(other["terms"].values()) > 0
    rows = ok_json("cache", "info", "--cache", tmp_path / "answers")["caches"]
    assert sorted(sorted(row["tensors"]) for row in rows) == [["2", "logits", "pixels"], ["2.1", "logits", "pixels"]]
    planned = ok_json("distill-and-export", recipe, terms, KEPT, "--dry-run", "--out", tmp_path / "plan")
    assert {"cache", "cache_teacher_2"} <= {row["stage"] for row in planned["stages"]}
    assert planned["cache_mb"] == pytest.approx(sum(row["size_bytes"] for row in rows) / 1e6, rel=0.05)


def test_the_verb_builds_and_verifies_the_answers_of_all_teachers(tmp_path: Path) -> None:
    recipe = write(tmp_path, SECOND + CHAIN)
    where = ("--recipe", recipe, "--set=threads=1", "--out", tmp_path / "run", "--cache", tmp_path / "answers")
    told = ok_json("cache", "build", *where)
    [more] = told["more"]
    assert (told["asked"], more["asked"]) == (ANSWERS, ANSWERS)
    assert told["key"] != more["key"]
    assert not (tmp_path / "run" / "assistant_1").exists(), "assistants learn by a student's recipe"
    assert ok("cache", "build", *where).count("it was there: nothing was asked") == 2
    assert ok("cache", "verify", *where).count("hashes hold; 64 answers asked for again") == 2
    ok("cache", "prune", more["key"], "--cache", tmp_path / "answers")
    told = refused(3, "cache", "verify", *where)
    assert "holds no answers of teacher_2 to this data; the nearest cache" in told
    assert "teacher.weights" in told
