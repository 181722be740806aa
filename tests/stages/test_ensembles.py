"""Several teachers: how wide they are, at which temperature they are averaged, whose answers are kept where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spaces import make_space, record

from edgekd.distill.teachers import EnsembleTeacher, ModuleTeacher
from edgekd.errors import ModelError, RecipeError
from edgekd.files import canonical_json
from edgekd.stages import caching, ensembles, fingerprints
from edgekd.stages.table import is_training, stages
from edgekd.stages.training import load_teacher, teacher_for_student, work_on_teacher
from edgekd.stages.workspace import Workspace

MODULES = """
from torch import nn


def linear(num_outputs):
    return nn.Sequential(nn.Linear(4, num_outputs))


def two():
    return nn.Sequential(nn.Linear(4, 2))
"""
RECIPE = """
[data]
kind = "arrays"
root = "data.npz"
[teacher]
model = "modules:linear"
weights = "all.pt"
[[teachers]]
model = "modules:linear"
weights = "own.pt"
labels = ["3", "1"]
weight = 3.0
[student]
model = "mlp_s"
[distill]
baseline = false
"""
# Four classes: the largest of four numbers.
OWN = [3, 1]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=x.argmax(axis=1))
    (tmp_path / "modules.py").write_text(MODULES)
    torch.save(linear(range(4)), tmp_path / "all.pt")
    torch.save(linear(OWN), tmp_path / "own.pt")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def linear(classes: Any) -> dict[str, torch.Tensor]:
    """The weights of a model that says the number of each of these classes, and half of it twice."""
    weight = torch.eye(4)[list(classes)] * 2
    return {"0.weight": weight, "0.bias": torch.zeros(len(weight))}


def worked(recipe: Path, *overrides: str, names: tuple[str, ...] = ("teacher", "teacher_2")) -> Workspace:
    """The workspace after the stages of the teachers."""
    space = make_space(recipe, *overrides)
    for name in names:
        result, _ = work_on_teacher(space, name)
        space.records[name] = record(dict(result))
    return space


def test_a_module_has_the_outputs_that_its_weights_have(recipe: Path) -> None:
    space = worked(recipe)
    assert [ensembles.width_of(space, name) for name in ("teacher", "teacher_2")] == [4, 2]
    assert ensembles.width_of(make_space(recipe), "teacher_2") == 2, "before its stage too"
    assert "outputs" not in space.result("teacher")
    assert space.result("teacher_2")["best"] == 1.0, "judged by the samples of its own classes"
    val = space.prepared.dataset.val
    batch = {"x": torch.from_numpy(val.x[:]), "y": torch.from_numpy(val.y), "id": torch.from_numpy(val.ids)}
    z = 2 * val.x[:].astype(np.float64)
    expected = z.copy()
    own = np.isin(val.y, OWN)
    level = (z[:, OWN] - z[:, OWN]).mean()
    expected[own[:, None] & np.isin(np.arange(4), OWN)] += level  # it says the same as the other, so nothing changes
    assert isinstance(load_teacher(space, "teacher_2"), ModuleTeacher)
    np.testing.assert_allclose(teacher_for_student(space)(batch)["logits"].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ("teachers.0.labels=['0', '1', '2']",),
            r"own.pt fits the model neither with 4 outputs, .*, nor with 3, one for each of the teacher's own. With 4: "
            r"own.pt does not fit the model: other shapes: 0.weight is \[2, 4\], expected \[4, 4\]",
        ),
        (("teachers.0.labels=['3']",), "own.pt fits the model neither with 4 outputs"),
        (
            ("teachers.0.labels=['1', '3']",),
            r"does not follow its labels: right for 0%.*Expected labels = \[\"3\", \"1\"\]",
        ),
    ],
)
def test_weights_that_are_neither_the_datas_nor_its_own(recipe: Path, overrides: tuple[str, ...], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        worked(recipe, *overrides)


def test_a_model_of_one_width_is_taken_as_it_is(recipe: Path) -> None:
    assert worked(recipe, "teachers.0.model=modules:two").result("teacher_2")["outputs"] == 2


def test_widths_are_told_from_the_answers(recipe: Path) -> None:
    space = make_space(recipe)
    assert not ensembles.is_specialist(space, "teacher_2", np.zeros((5, 4), np.float32))
    assert ensembles.is_specialist(space, "teacher_2", np.zeros((5, 2), np.float32))
    with pytest.raises(ModelError) as caught:
        ensembles.is_specialist(space, "teacher_2", np.zeros((5, 3), np.float32))
    assert str(caught.value) == (
        "teacher_2 gives [5, 3] for 5 samples, but the data has 4 labels, and the teacher 2 of its own; is this the "
        "right teacher for the data?"
    )
    with pytest.raises(ModelError, match=r"the teacher gives \[5, 2\] for 5 samples, but the data has 4 labels; is"):
        ensembles.is_specialist(space, "teacher", np.zeros((5, 2), np.float32))
    first = make_space(recipe, "teacher.labels=['0', '2']")
    with pytest.raises(
        ModelError, match=r"the teacher has 2 outputs, for teacher.labels alone, .* expected 4, .* Move it"
    ):
        ensembles.is_specialist(first, "teacher", np.zeros((5, 2), np.float32))
    one = make_space(recipe, "teachers.0.labels=['2']")
    with pytest.raises(
        ModelError, match=r"teacher_2 has one output, for its one label, .* Expected two labels or more, or 4"
    ):
        ensembles.is_specialist(one, "teacher_2", np.zeros((5, 1), np.float32))


def test_a_specialist_is_judged_by_samples_of_its_classes(recipe: Path) -> None:
    space = make_space(recipe)
    val = space.prepared.dataset.val
    answers, own = ensembles.of_own_classes(space, "teacher_2", val.x[:], val)
    rows = np.isin(val.y, OWN)
    np.testing.assert_array_equal(answers, val.x[:][rows])
    np.testing.assert_array_equal(np.array(OWN)[own.y], val.y[rows])
    np.testing.assert_array_equal(own.ids, val.ids[rows])
    none = val.take(np.flatnonzero(~rows))
    with pytest.raises(
        ModelError, match=r"teacher_2 cannot be judged: none of the \d+ validation samples is of its labels 3, 1"
    ):
        ensembles.of_own_classes(space, "teacher_2", none.x[:], none)


def test_blended_samples_want_a_teacher_of_all_samples(recipe: Path) -> None:
    mixed = ("distill.mixup=0.2",)
    assert isinstance(teacher_for_student(worked(recipe, *mixed)), EnsembleTeacher)
    with pytest.raises(
        RecipeError, match=r"mixup and cutmix blend samples of two classes: teacher_2 has outputs for its own"
    ):
        teacher_for_student(worked(recipe, *mixed, "teacher.labels=['0', '2']"))
    assert teacher_for_student(worked(recipe, "teacher.labels=['0', '2']")) is not None


# The temperature


def degrees(recipe: Path, *terms: str) -> float | None:
    space = make_space(recipe, "distill.ensemble=probabilities", f"distill.terms=[{', '.join(terms)}]")
    return ensembles.temperature(space, space.recipe.distill_terms)


def test_probabilities_are_averaged_at_the_temperature_of_the_terms(recipe: Path) -> None:
    assert degrees(recipe, "{loss='kd', options={temperature=3}}", "{loss='cross_entropy'}") == 3.0
    assert degrees(recipe, "{loss='kd'}") == 4.0, "that of the loss itself"
    assert degrees(recipe, "{loss='kd'}", "{loss='dkd'}") == 4.0
    assert degrees(recipe, "{loss='trusted_kd', options={temperature=2.0}}") == 2.0
    assert degrees(recipe, "{loss='rkd'}") == 1.0, "it has none"
    feature = "{loss='hint', student_tap='0', teacher_tap='0/0'}"
    assert degrees(recipe, feature) is None, "nobody looks at what they say together"
    assert degrees(recipe, feature, "{loss='kd', options={temperature=3}}") == 3.0
    plain = make_space(recipe)
    assert ensembles.temperature(plain, plain.recipe.distill_terms) is None
    space = worked(recipe, "distill.ensemble=probabilities")
    teacher = teacher_for_student(space)
    assert isinstance(teacher, EnsembleTeacher)
    assert teacher.temperature == 4.0
    terms = "distill.terms=[{loss='kd', adapter='linear', options={temperature=2.0}}]"
    variant = teacher_for_student(worked(recipe, "distill.ensemble=probabilities", terms), "int8_qat")
    assert isinstance(variant, EnsembleTeacher)
    assert variant.temperature == 4.0, "a variant that is trained has terms of its own"


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        (
            ("{loss='kd', options={temperature=3.0}}", "{loss='dkd'}"),
            r"not the same for all: 3 \('kd'\), 4 \('dkd'\); give them one, or take ensemble = 'logits'",
        ),
        (
            ("{loss='kd', options={temperature={start=8, end=2}}}",),
            "the term 'kd' looks at the teachers at several; give",
        ),
        (("{loss='multi_temperature_kd'}",), "the term 'multi_temperature_kd' looks at the teachers at several"),
    ],
)
def test_it_is_one_temperature(recipe: Path, terms: tuple[str, ...], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        degrees(recipe, *terms)


# What is kept


def test_each_teacher_has_a_cache_and_a_stage_of_its_own(recipe: Path) -> None:
    kept, chain = "distill.cache=true", "assistant=[{model='mlp_s'}, {model='mlp_m'}]"
    names = [stage.name for stage in stages(make_space(recipe, kept, chain)) if is_training(stage.name)]
    assert names == [
        "data", "teacher", "cache", "teacher_2", "cache_teacher_2",
        "assistant_1", "cache_assistant_1", "assistant_2", "cache_assistant_2", "student",
    ]  # fmt: skip
    table = {stage.name: stage for stage in stages(make_space(recipe, kept, chain))}
    assert table["assistant_1"].needs == ("data", "teacher", "cache", "teacher_2", "cache_teacher_2")
    assert table["cache_assistant_1"].needs == ("data", "assistant_1")
    assert {"cache_teacher_2", "cache_assistant_2"} <= set(table["student"].needs)
    assert table["cache_assistant_1"].salvage is None, "no training that could diverge"
    assert not any("cache" in stage.name for stage in stages(make_space(recipe, chain)))
    url = make_space(recipe, "teachers.0={url='https://h/x', licence='MIT', labels=['3', '1']}")
    assert [stage.name for stage in stages(url) if "cache" in stage.name] == ["cache_teacher_2"], "that is asked once"
    for name in ("teacher", "teacher_2", "assistant_1"):
        assert caching.asked_in(caching.stage_of(name)) == name
    assert [name for name in names if caching.asked_in(name) is None] == [n for n in names if "cache" not in n]


def test_who_learns_from_whom(recipe: Path) -> None:
    assert make_space(recipe).recipe.taught_by("student") == ("teacher", "teacher_2")
    chain = make_space(recipe, "assistant=[{model='mlp_s'}, {model='mlp_m'}]").recipe
    told = [chain.taught_by(name) for name in ("assistant_1", "assistant_2", "student", "int8_qat")]
    assert told == [("teacher", "teacher_2"), ("assistant_1",), ("assistant_2",), ("assistant_2",)]


def test_answers_of_a_teacher_are_its_own_whoever_stands_beside_it(recipe: Path) -> None:
    def facts(space: Workspace, name: str) -> dict[str, Any]:
        # As the stages leave them: which weights these are.
        space.records["teacher"] = record_of("1")
        space.records["teacher_2"] = record_of("2", outputs=2)
        return caching.facts_of(space, "train", name)

    def record_of(digest: str, **result: object) -> Any:
        found = record(dict(result))
        return type(found)("", {"x.safetensors": digest}, found.result, 0.0)

    space = make_space(recipe, "distill.cache=true")
    first, second = facts(space, "teacher"), facts(space, "teacher_2")
    assert first["teacher"] != second["teacher"]
    further = ("teachers.0.weight=1.0", "distill.ensemble=probabilities", "student.model=mlp_m")
    other = make_space(recipe, "distill.cache=true", *further)
    assert facts(other, "teacher_2") == second
    alone = make_space(recipe, "distill.cache=true", "teachers=[]")
    assert facts(alone, "teacher") == first
    inside = "distill.terms=[{loss='kd'}, {loss='hint', student_tap='0', teacher_tap='1/0'}]"
    looking = make_space(recipe, "distill.cache=true", inside)
    assert facts(looking, "teacher") == first
    assert facts(looking, "teacher_2")["store"]["taps"] == ["0", "logits"]
    few = make_space(recipe, "distill.cache=true", "distill.cache_top_k=2")
    assert facts(few, "teacher")["store"]["top_k"] == 2
    assert facts(few, "teacher_2")["store"]["top_k"] is None, "it has no more than these"


def test_teachers_compute_in_what_all_of_them_choose(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the engine does beside the student, or the answers would be others."""
    from edgekd.distill import execution

    chosen = {4: "bfloat16", 2: "bfloat16"}

    def choose(precision: str, device: Any, module: Any, shape: Any) -> Any:
        return execution.Precision(chosen[module[0].out_features], "told")

    monkeypatch.setattr(execution, "choose_precision", choose)
    space = make_space(recipe, "distill.cache=true")
    assert [caching._precision(space, name) for name in ("teacher", "teacher_2")] == ["bfloat16"] * 2
    chosen[2] = "float32"
    assert [caching._precision(space, name) for name in ("teacher", "teacher_2")] == ["float32"] * 2


def test_another_mean_trains_the_student_again_and_nobody_else(recipe: Path) -> None:
    def inputs(*overrides: str) -> dict[str, str]:
        table = stages(make_space(recipe, "distill.baseline=true", *overrides))
        return {stage.name: canonical_json(stage.inputs()) for stage in table if is_training(stage.name)}

    before, after = inputs(), inputs("distill.ensemble=probabilities")
    assert [name for name in before if before[name] != after[name]] == ["student"]
    chain = "assistant=[{model='mlp_s'}]"
    before, after = inputs(chain), inputs(chain, "distill.ensemble=probabilities")
    assert [name for name in before if before[name] != after[name]] == ["assistant_1", "student"]
    assert "ensemble" not in fingerprints.student(make_space(recipe, "teachers=[]")), "as runs of one teacher have it"


def test_other_labels_are_looked_at_anew(recipe: Path) -> None:
    """A finished teacher's outputs are what its labels say; one that is trained here knows all classes in any case."""
    before = fingerprints.teacher(make_space(recipe), "teacher_2")
    assert fingerprints.teacher(make_space(recipe, "teachers.0.labels=['1', '3']"), "teacher_2") != before
    assert fingerprints.teacher(make_space(recipe, "teachers.0.weight=1.0"), "teacher_2") == before
    trained = "teachers.0={model='mlp_s', labels=['1', '3']}"
    other = trained.replace("'3'", "'2'")
    assert fingerprints.teacher(make_space(recipe, trained), "teacher_2") == fingerprints.teacher(
        make_space(recipe, other), "teacher_2"
    )
