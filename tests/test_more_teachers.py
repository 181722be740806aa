"""Several teachers and assistants, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgekd, ok, ok_json, refused
from ends import short

pytestmark = pytest.mark.slow

RECIPE = """
version = 1
name = "more"

[data]
kind = "digits"
limit = 800

[preprocess]
steps = [{op = "scale"}, {op = "layout", to = "flat"}]

[teacher]
model = "mlp"
args = {hidden = [128]}
train = {epochs = 8, batch_size = 32, lr = 5e-3}
LABELS
[student]
model = "mlp_s"

[distill]
epochs = 6
lr = 0.01
baseline = false
"""
SECOND = """
[[teachers]]
model = "mlp"
args = {hidden = [96]}
weight = 3.0
train = {epochs = 8, batch_size = 32, lr = 5e-3}
"""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options that keep a run to seconds."""
    return short(tmp_path_factory.mktemp("suite"))


def write(folder: Path, more: str = "", labels: str = "") -> Path:
    """The recipe with further tables, and labels of the first teacher."""
    path = folder / "more.toml"
    path.write_text(RECIPE.replace("LABELS", labels) + more)
    return path


def stage(run: Path, name: str) -> dict[str, Any]:
    """What an ended stage left."""
    found: dict[str, Any] = json.loads((run / "stages" / f"{name}.json").read_text())
    return found


def weights(run: Path, name: str) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    loaded: dict[str, np.ndarray] = load_file(run / name / "weights.safetensors")
    return loaded


def test_two_teachers_of_other_weight(quick: tuple[str, ...], tmp_path: Path) -> None:
    recipe, run = write(tmp_path, SECOND), tmp_path / "run"
    ok("distill-and-export", recipe, *quick, "--out", run)
    student = stage(run, "student")["result"]
    assert student["teacher_passes"] == 2 * student["images_seen"]
    assert stage(run, "teacher_2")["result"]["parameters"] == 64 * 96 + 96 + 96 * 10 + 10
    assert ok_json("verify", run / "student.edgekd")["ok"]

    before = {name: (run / "stages" / f"{name}.json").read_bytes() for name in ("teacher", "teacher_2", "student")}
    ok("distill-and-export", recipe, *quick, "--set", "teachers.0.weight=1", "--out", run)
    after = {name: (run / "stages" / f"{name}.json").read_bytes() for name in before}
    assert after["teacher"] == before["teacher"], "what a teacher learned does not depend on how much it counts"
    assert after["teacher_2"] == before["teacher_2"]
    assert after["student"] != before["student"]
    assert "nothing" in ok("distill-and-export", recipe, *quick, "--set", "teachers.0.weight=1", "--out", run)


def test_each_teacher_for_its_own_classes(quick: tuple[str, ...], tmp_path: Path) -> None:
    """The second teacher never learned to speak: only where it is not asked does it do no harm."""
    mute = SECOND.replace("epochs = 8", "epochs = 1").replace("lr = 5e-3", "lr = 1e-9")
    soft = "distill.terms=[{loss='kd', options={temperature=2.0}}]"
    scores = {}
    for name, first, second in (("all", "", ""), ("own", "", 'labels = ["7"]\n')):
        labels = 'labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]' if second else first
        recipe = write(tmp_path, mute.replace("weight = 3.0\n", f"weight = 3.0\n{second}"), labels)
        run = tmp_path / name
        ok("distill", recipe, "--student-only", "--set", soft, "--set", "threads=1", "--out", run)
        scores[name] = stage(run, "student")["result"]["history"][-1]["loss"]
    assert scores["own"] > 1.5 * scores["all"], "nearly all samples have a teacher that is sure of itself"
    recipe = write(tmp_path, SECOND.replace("weight = 3.0", 'labels = ["zero"]'))
    assert "the data has no label 'zero'" in refused(2, "distill", recipe, "--out", tmp_path / "wrong")


def test_a_teacher_assistant_stands_between(quick: tuple[str, ...], tmp_path: Path) -> None:
    chain = '\n[[assistant]]\nmodel = "mlp_m"\nepochs = 4\n\n[[assistant]]\nmodel = "mlp_s"\n'
    recipe, run = write(tmp_path, chain), tmp_path / "run"
    shown = ok("distill", recipe, "--student-only", "--set", "threads=1", "--out", run)
    assert "assistant_1" in shown
    assert stage(run, "assistant_1")["result"]["epochs"] == 4
    assert stage(run, "assistant_2")["result"]["epochs"] == 6
    generation, student = weights(run, "assistant_2"), weights(run, "student")
    assert generation.keys() == student.keys()
    assert any(not np.array_equal(generation[key], student[key]) for key in student)
    # Another teacher's epoch changes everything below it; another assistant nothing above it.
    before = {
        name: (run / "stages" / f"{name}.json").read_bytes() for name in ("teacher", "assistant_1", "assistant_2")
    }
    ok("distill", recipe, "--student-only", "--set", "threads=1", "--set", "assistant.1.epochs=2", "--out", run)
    after = {name: (run / "stages" / f"{name}.json").read_bytes() for name in before}
    assert after["teacher"] == before["teacher"]
    assert after["assistant_1"] == before["assistant_1"]
    assert after["assistant_2"] != before["assistant_2"]


FEATURE = """
[[distill.terms]]
loss = "kd"

[[distill.terms]]
loss = "logit_mse"
name = "feature"
student_tap = "{student}"
teacher_tap = "{teacher}"
adapter = "auto"
"""


def test_a_term_looks_into_one_of_several_teachers(tmp_path: Path) -> None:
    """By its number; without one, or with that of a part that is not there, before any of them is trained."""
    for name, tap, told in (
        ("none", "2", "found the tap '2' of 2 teachers, expected the number of one before it, 0 to 1, such as '0/2'"),
        ("third", "2/2", "expected the number of one before it, 0 to 1"),
        ("part", "1/9", "the tap '9' leads nowhere"),
    ):
        recipe, run = write(tmp_path, SECOND + FEATURE.format(student="2", teacher=tap)), tmp_path / name
        assert told in refused(3, "distill", recipe, "--student-only", "--out", run)
        assert not (run / "teacher").exists()
    recipe, run = write(tmp_path, SECOND + FEATURE.format(student="2", teacher="1/2")), tmp_path / "run"
    quick = [f"--set={name}.train.epochs=1" for name in ("teacher", "teachers.0")]
    ok("distill", recipe, "--student-only", *quick, "--set=distill.epochs=1", "--set=threads=1", "--out", run)
    assert stage(run, "student")["result"]["history"][0]["terms"]["feature"] > 0


def test_a_module_beside_a_black_box_can_be_looked_into(tmp_path: Path) -> None:
    ok("distill", write(tmp_path), "--set=teacher.train.epochs=1", "--student-only", "--out", tmp_path / "run")
    ok("export", tmp_path / "run", tmp_path / "net.onnx")
    black = '[[teachers]]\nonnx = "net.onnx"\nlicence = "MIT"\n'
    quick = ("--student-only", *(f"--set={name}.epochs=1" for name in ("teacher.train", "distill")))
    recipe = write(tmp_path, black + FEATURE.format(student="2", teacher="0/2"))
    ok("distill", recipe, *quick, "--out", tmp_path / "both")
    recipe = write(tmp_path, black + FEATURE.format(student="2", teacher="1/2"))
    told = refused(2, "distill", recipe, *quick, "--out", tmp_path / "wrong")
    assert "teacher_tap = '1/2' looks inside the teacher, which is a black box" in told


def test_the_chain_is_tried_out_before_its_teacher_is_trained(tmp_path: Path) -> None:
    """Assistants learn from each other by the student's terms: each must have what these look at."""
    images = (
        "--set=preprocess.steps=[{op='scale'}, {op='layout', to='CHW'}]",
        '--set=teacher={model="cnn_m", train={epochs=1}}', "--set=student.model=cnn_s", "--set=distill.epochs=1",
        "--set=threads=1", "--student-only",
    )  # fmt: skip
    chain = "\n[[assistant]]\nmodel = '{model}'\n"
    feature = FEATURE.format(student="2.0", teacher="2.0")
    recipe, run = write(tmp_path, chain.format(model="mlp_m") + feature), tmp_path / "run"
    told = refused(3, "distill", recipe, *images, "--out", run)
    assert "assistant_1, taught by the teacher: the tap '2.0' leads nowhere" in told
    assert not (run / "teacher").exists()
    wrong = chain.format(model="cnn_m") + FEATURE.format(student="2.0", teacher="4")
    told = refused(2, "distill", write(tmp_path, wrong), *images, "--out", run)
    assert told.startswith("assistant_1, taught by the teacher: "), "maps beside rows"
    ok("distill", write(tmp_path, chain.format(model="cnn_m") + feature), *images, "--out", run)


def test_plan_and_refusals(tmp_path: Path) -> None:
    chain = '\n[[assistant]]\nmodel = "mlp_m"\n'
    recipe = write(tmp_path, SECOND + chain)
    rows = {
        row["stage"] for row in ok_json("distill-and-export", recipe, "--dry-run", "--out", tmp_path / "run")["stages"]
    }
    assert {"teacher", "teacher_2", "assistant_1", "student"} <= rows
    told = refused(2, "distill", recipe, "--set", "teachers.0.logits=own.npz", "--out", tmp_path / "run")
    assert "teachers.0 has 'model' and 'logits'; expected one of them" in told
    done = edgekd("distill", write(tmp_path, "\n[[assistant]]\nmodel = 'mlp_x'\n"), "--out", tmp_path / "run")
    assert done.returncode == 3
    assert "mlp_x" in done.stderr
