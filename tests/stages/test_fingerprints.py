"""What makes a stage run again, and what does not."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from spaces import make_space, write_project

from edgekd.files import canonical_json
from edgekd.stages import fingerprints
from edgekd.stages.diet import WHOLE
from edgekd.stages.table import STAGES, stages

CODE = {
    "models.py": "import parts\n\n\ndef build():\n    return parts.net()\n",
    "parts.py": "def net():\n    raise RuntimeError('never run')\n",
    "adapters.py": "def own(student_shape, teacher_shape):\n    raise RuntimeError('never run')\n",
    "losses.py": "def own(student, teacher):\n    return (student - teacher).abs().mean()\n",
    "my_target.toml": """
version = 1
description = "mine"
runtime = "onnxruntime"
variants = ["float32", "int8_u8s8"]
max_opset = 18
max_ir = 8
[default]
"*" = ["float32"]
""",
    "my_suite.toml": "min_calls = 10\nmax_seconds = 1\nblock_ms = 1\ncold_starts = 0\nmemory = false\n",
}
EXTRA = """
[[distill.terms]]
loss = "losses:own"
adapter = "adapters:own"
[[distill.stages]]
name = "all"
epochs = 20
terms = "losses:own"
[target]
name = "my_target.toml"
[benchmark]
suite = "my_suite.toml"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for name, text in CODE.items():
        (tmp_path / name).write_text(text)
    path = write_project(tmp_path, "classification")
    text = path.read_text().replace('[student]\nmodel = "mlp_s"', '[student]\nmodel = "models:build"')
    path.write_text(text + EXTRA)
    return path


def changed(recipe: Path, *overrides: str, threads: int = 1) -> set[str]:
    """The stages whose own inputs differ from those of the recipe as it was when `before` was taken."""
    space = make_space(recipe, *overrides, threads=threads)
    found = {name for name, (_, _, inputs, _) in STAGES.items() if canonical_json(inputs(space)) != BEFORE[name]}
    assert (WHOLE in found) == ("student" in found), "a student that will be cut is trained as the others are"
    return found - {WHOLE}


BEFORE: dict[str, str] = {}


@pytest.fixture(autouse=True)
def before(recipe: Path) -> None:
    space = make_space(recipe)
    BEFORE.update({name: canonical_json(inputs(space)) for name, (_, _, inputs, _) in STAGES.items()})


TRAINED = {"teacher", "student", "student_alone"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("teacher.licence=MIT", {"bundle"}),
        ("data.licence=MIT", {"bundle"}),
        ("student.licence=MIT", {"export", "bundle"}),
        ("description=other", {"bundle"}),
        ("distill.baseline=false", {"bundle"}),
        ("distill.precision=bfloat16", {*TRAINED, "cache", "bundle"}),
        ("distill.terms.0.weight=0.5", {"student", "bundle"}),
        ("distill.terms.0.weight={start=0.5, end=1}", {"student", "bundle"}),
        ("distill.terms.0.student_tap='1'", {"student", "bundle"}),
        ("distill.terms.0.teacher_tap='1'", {"student", "cache", "bundle"}),
        ("distill.terms.0.adapter='auto'", {"student", "bundle"}),
        ("distill.terms.0.adapter_options={a=1}", {"student", "bundle"}),
        ("distill.stages.0.name=other", {"student", "bundle"}),
        ("distill.stages.0.lr=0.1", {"student", "bundle"}),
        ("distill.stages.0.epochs=7", {"student", "student_alone", "bundle"}),
        ("distill.ema=0.9", {"student", "student_alone", "bundle"}),
        ("distill.patience=3", {"student", "student_alone", "bundle"}),
        ("distill.keep=last", {"student", "student_alone", "bundle"}),
        ("distill.clip_norm=1", {"student", "student_alone", "bundle"}),
        ("distill.mixup=0.2", {"student", "student_alone", "cache", "bundle"}),
        ("distill.cutmix=1.0", {"student", "student_alone", "cache", "bundle"}),
        ("data.augment={noise=0.1}", {*TRAINED, "cache", "bundle"}),
        ("data.views=1", {"student", "student_alone", "cache", "bundle"}),
        ("distill.cache=true", {"bundle"}),
        ("distill={cache=true, cache_dtype='float16'}", {"cache", "student", "bundle"}),
        ("export.opset=19", {"export", "bundle"}),
        ("export={reject={label='1'}}", {"export", "bundle"}),
        ("limits.unproven=fail", {"bundle"}),
        ("limits.size_kb=3", {"select", "bundle"}),
        ("limits.confidence=0.9", {"verify", "select", "bundle", "benchmark"}),
        ("quantize.calibration=entropy", {"quantize", "bundle"}),
        ("seed=3", {"data", *TRAINED, "bundle"}),
    ],
)
def test_a_changed_key_touches_what_depends_on_it(recipe: Path, override: str, expected: set[str]) -> None:
    assert changed(recipe, override) == expected


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("models.py", "import parts", "import parts  # changed", {"student", "student_alone"}),
        ("parts.py", "never run", "changed", {"student", "student_alone"}),
        ("losses.py", "abs()", "square()", {"student"}),
        ("adapters.py", "never run", "changed", {"student"}),
        ("my_target.toml", "max_opset = 18", "max_opset = 20", {"quantize", "bundle"}),
        ("my_target.toml", '["float32"]', '["int8_u8s8"]', {"bundle"}),
        ("my_suite.toml", "min_calls = 10", "min_calls = 11", {"benchmark"}),
    ],
)
def test_a_changed_file_touches_what_reads_it(recipe: Path, file: str, old: str, new: str, expected: set[str]) -> None:
    text = (recipe.parent / file).read_text()
    assert old in text
    (recipe.parent / file).write_text(text.replace(old, new))
    assert changed(recipe) == expected


def test_changed_data_touches_the_data(recipe: Path) -> None:
    (recipe.parent / "data.npz").write_bytes((recipe.parent / "data.npz").read_bytes() + b"\0")
    assert changed(recipe) == {"data"}


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("torch", {*TRAINED, "cache", "export", "benchmark"}),
        ("onnx", {"export", "quantize"}),
        ("onnxscript", {"export"}),
        ("onnxruntime", {"export", "quantize", "verify", "select", "bundle", "benchmark"}),
        ("pillow", {"data"}),
    ],
)
def test_another_version_of_a_tool_touches_what_it_makes(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, package: str, expected: set[str]
) -> None:
    installed = fingerprints.versions()
    monkeypatch.setattr(fingerprints, "versions", lambda: {**installed, package: "0.0.1"})
    assert changed(recipe) == expected


@pytest.mark.parametrize("reference", ["hf:bert", "timm:resnet18", "torchvision:resnet18"])
def test_another_version_of_a_library_of_models_trains_its_models_again(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    package = {"hf": "transformers"}.get(family := reference.partition(":")[0], family)
    theirs, override = importlib.metadata.version, f"teacher.model={reference}"
    installed = fingerprints.teacher(make_space(recipe, override))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == package else theirs(name))
    assert fingerprints.teacher(make_space(recipe, override)) != installed
    assert changed(recipe) == set(), "the recipe's own models are no such"


def test_another_cpu_is_measured_anew_and_not_trained_anew(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "cpu_kind", lambda: "aarch64")
    assert changed(recipe) == {"verify", "select", "bundle", "benchmark"}


def test_weights_count_by_their_content_not_by_their_place(recipe: Path) -> None:
    weights = recipe.parent / "w.safetensors"
    weights.write_bytes(b"1")
    here = dict(fingerprints.teacher(make_space(recipe, f"teacher.weights={weights}", "seed=1")))
    moved = weights.rename(recipe.parent / "v.safetensors")
    there = dict(fingerprints.teacher(make_space(recipe, f"teacher.weights={moved}", "seed=2")))
    assert here == there, "a finished teacher depends on no seed either"
    moved.write_bytes(b"2")
    assert fingerprints.teacher(make_space(recipe, f"teacher.weights={moved}")) != here


def test_without_a_baseline_no_student_is_trained_alone(recipe: Path) -> None:
    table = stages(make_space(recipe, "distill.baseline=false"))
    assert "student_alone" not in {stage.name for stage in table}
    assert not any("student_alone" in stage.needs for stage in table)
    everything = make_space(recipe, "distill.cache=true", "student.prune=0.5")
    assert [stage.name for stage in stages(everything)] == list(STAGES)


def test_only_a_student_that_is_cut_is_trained_whole_first(recipe: Path) -> None:
    assert WHOLE not in {stage.name for stage in stages(make_space(recipe))}
    cut = {stage.name: stage for stage in stages(make_space(recipe, "student.prune=0.5"))}
    assert WHOLE in cut["student"].needs
    before, space = make_space(recipe, "student.prune=0.4"), make_space(recipe, "student.prune=0.5")
    inputs = {name: row[2] for name, row in STAGES.items()}
    assert inputs["student"](before) != inputs["student"](space)
    assert inputs[WHOLE](before) == inputs[WHOLE](space), "another share is cut out of the same network"


def test_answers_are_kept_only_when_asked_for(recipe: Path) -> None:
    table = stages(make_space(recipe))
    assert "cache" not in {stage.name for stage in table}
    assert not any("cache" in stage.needs for stage in table)
    table = stages(make_space(recipe, "distill.cache=true"))
    assert next(stage for stage in table if stage.name == "student").needs == ("data", "teacher", "cache")
    alone = next(stage for stage in table if stage.name == "student_alone")
    assert "cache" not in alone.needs, "the student alone is not trained again when answers are kept in another way"


def test_how_an_endpoint_is_asked_trains_nothing_again(recipe: Path) -> None:
    text = recipe.read_text().replace('[teacher]\nmodel = "mlp_s"', '[teacher]\nurl = "https://h/x"\nlicence = "MIT"')
    recipe.write_text(text)
    space = make_space(recipe)
    BEFORE.update({name: canonical_json(inputs(space)) for name, (_, _, inputs, _) in STAGES.items()})
    assert changed(recipe, "teacher.request.batch_size=7", "teacher.request.retries=1") == {"bundle"}
    assert changed(recipe, "teacher.url=https://h/y") == {"teacher", "bundle"}


def test_every_file_of_weights_beside_a_model_counts(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    space: Any = SimpleNamespace(search_path=tmp_path)
    seen = [fingerprints._hugging_face(space, str(folder))]
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model-00001.bin"):
        for content in (b"a", b"b"):
            (folder / name).write_bytes(content)
            found = fingerprints._hugging_face(space, str(folder))
            assert found not in seen
            seen.append(found)
