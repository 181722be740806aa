"""The recipe's keys of distillation: taps, adapters, schedules, stages, mixing, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import ModelError, RecipeError
from edgekd.recipe import Recipe, load_recipe, recipe_to_toml
from edgekd.recipe_sections import ScheduleSection

RECIPE = """
[data]
kind = "digits"
[teacher]
model = "resnet_teacher"
[student]
model = "cnn_s"
[distill]
ema = 0.99
patience = 5
keep = "last"
clip_norm = 1
mixup = 0.2
cutmix = 1.0
[[distill.terms]]
loss = "kd"
weight = {start = 0.0, end = 0.9, shape = "cosine", until = 0.5}
options = {temperature = {start = 8, end = 2.0}}
[[distill.terms]]
name = "hint"
loss = "logit_mse"
student_tap = "1"
teacher_tap = ["2", "3"]
adapter = "auto"
adapter_options = {hidden = 3}
[[distill.stages]]
name = "hints"
epochs = 4
terms = "hint"
[[distill.stages]]
name = "soft"
epochs = 6
terms = ["kd"]
lr = 1e-4
"""


def load(folder: Path, *overrides: str, text: str = RECIPE, name: str = "r.toml") -> Recipe:
    (folder / name).write_text(text)
    return load_recipe(folder / name, overrides=overrides, environ={}).recipe


def test_texts_are_not_mixed_and_wrong_labels_send_nobody_to_a_teacher(tmp_path: Path) -> None:
    text = RECIPE.replace('kind = "digits"', 'kind = "sst2"').replace("cutmix = 1.0", "")
    steps = 'preprocess.steps=[{op="tokenize",file="t.json",max_length=8},{op="trim"}]'
    with pytest.raises(RecipeError, match=r"mixup and cutmix blend numbers, but the samples are texts"):
        load(tmp_path, steps, text=text)
    more = RECIPE.replace("[student]", '[[teachers]]\nmodel = "cnn_m"\nlabels = ["3"]\n[student]')
    with pytest.raises(RecipeError, match=r"teacher_2.labels sends each sample to the teachers of its class"):
        load(tmp_path, "data.wrong_labels=0.2", text=more)


def test_every_key_arrives_and_the_resolved_recipe_reads_back(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    distill = recipe.distill
    soft, hint = distill.terms
    assert soft.weight == ScheduleSection(start=0.0, end=0.9, shape="cosine", until=0.5)
    assert soft.options == {"temperature": {"start": 8, "end": 2.0}}
    assert (soft.student_tap, hint.student_tap, hint.teacher_tap) == ("logits", "1", ("2", "3"))
    assert (hint.adapter, hint.adapter_options, hint.weight) == ("auto", {"hidden": 3}, 1.0)
    assert [(stage.name, stage.epochs, stage.terms, stage.lr) for stage in distill.stages] == [
        ("hints", 4, ("hint",), None),
        ("soft", 6, ("kd",), 1e-4),
    ]
    assert distill.keep == "last"
    assert (distill.ema, distill.patience, distill.clip_norm, distill.mixup, distill.cutmix) == (0.99, 5, 1.0, 0.2, 1.0)
    assert distill.epochs == 10, "the stages together"
    assert load(tmp_path, text=recipe_to_toml(recipe), name="again.toml") == recipe.model_copy(update={"name": "r"})


def test_one_value_of_a_stage_can_be_set(tmp_path: Path) -> None:
    assert load(tmp_path, "distill.stages.0.epochs=2").distill.epochs == 8


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "distill.terms.0.weight=-1",
            "distill.terms.0.weight: found -1 (a whole number), expected a number of at least 0",
        ),
        ("distill.terms.0.weight=much", 'distill.terms.0.weight: found "much" (a text), expected a number'),
        (
            "distill.terms.0.weight.until=2",
            "distill.terms.0.weight.until: found 2 (a whole number), expected a number of",
        ),
        (
            "distill.terms.0.weight.shape=steep",
            "distill.terms.0.weight.shape: found \"steep\" (a text), expected 'constant'",
        ),
        (
            "distill.terms.0.weight.stop=2",
            "unknown key 'distill.terms.0.weight.stop'. Known keys: start, end, shape, until",
        ),
        ("distill.terms.0.weight={start=1}", "'distill.terms.0.weight.end' is missing"),
        ("distill.terms.0.weight={start=0, end=0}", ""),
        ("distill.terms.1.student_tap=3", "distill.terms.1.student_tap: found 3 (a whole number), expected a text"),
        ("distill.terms.1.teacher_tap=[1]", "distill.terms.1.teacher_tap.0: found 1 (a whole number), expected a text"),
        ("distill.terms.0.options={temperature={start=1, end='x'}}", 'options.temperature: end: found "x" (a text)'),
        (
            "distill.terms.0.options={temperature={start=1, end=2, til=1}}",
            "options.temperature: unknown key 'til'. Did you",
        ),
        ("distill.stages.1.name=hints", "distill.stages: two stages are called 'hints'; give each its own name"),
        (
            "distill.stages.1.terms=kdd",
            "distill.stages.1.terms: there is no term 'kdd'. Did you mean 'kd'? Known: hint, kd",
        ),
        ("distill.stages.1.terms=[]", "distill.stages.1.terms is empty, expected some of kd, hint"),
        (
            "distill.stages.1.terms=hint",
            "distill.stages: no stage learns the term 'kd'; name it in one, or drop the term",
        ),
        (
            "distill.stages.0.epochs=0",
            "distill.stages.0.epochs: found 0 (a whole number), expected a number of at least 1",
        ),
        ("distill.warmup_epochs=4", "distill.stages.0.epochs = 4: the stage ends before its warm-up"),
        ("distill.epochs=20", "distill.epochs = 20, but the stages have 10 epochs in all; remove distill.epochs"),
        ("distill.ema=1", "distill.ema: found 1 (a whole number), expected a number below 1"),
        ("distill.patience=0", "distill.patience: found 0 (a whole number), expected a number of at least 1"),
        ("distill.clip_norm=0", "distill.clip_norm: found 0 (a whole number), expected a number above 0"),
        ("distill.mixup=-0.5", "distill.mixup: found -0.5 (a number), expected a number of at least 0"),
        (
            "distill.cache=true",
            "data.views is missing: distill.cache keeps the teacher's answers, and distill.mixup and cutmix make other "
            "samples in every epoch; add data.views = 8",
        ),
        (
            "teacher={onnx='t.onnx', licence='MIT'}",
            "distill.terms.1: teacher_tap = '2' looks inside the teacher, which is a black box; expected a",
        ),
    ],
)
def test_mistakes(tmp_path: Path, override: str, text: str) -> None:
    if not text:  # a schedule that is always 0 beside a term that is not
        load(tmp_path, override)
        return
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, override)
    assert text in str(caught.value)
    assert "(table)" not in str(caught.value)


def test_answers_in_a_file_are_to_unmixed_samples(tmp_path: Path) -> None:
    (tmp_path / "answers.npz").touch()
    text = RECIPE.replace('model = "resnet_teacher"', 'logits = "answers.npz"\nlicence = "MIT"').replace(
        'teacher_tap = ["2", "3"]\n', ""
    )
    with pytest.raises(RecipeError, match=r"mixup and cutmix make samples that teacher\.logits holds no answers to"):
        load(tmp_path, text=text)


def test_views_of_mixed_samples_need_no_augmentation(tmp_path: Path) -> None:
    assert load(tmp_path, "distill.cache=true", "data.views=4").data.views == 4


def test_weights_that_are_always_0(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"distill.terms: every weight is 0"):
        load(tmp_path, "distill.terms.0.weight={start=0, end=0}", "distill.terms.1.weight=0")


TEACHERS = """
[data]
kind = "digits"
[teacher]
model = "mlp_m"
[[teachers]]
model = "mlp_m"
labels = ["3", "5"]
[student]
model = "mlp_s"
"""
FILE = "teachers.0={logits='own.npz', licence='MIT', labels=['3', '5']}"
URL = "teachers.0={url='https://host/x', licence='MIT'}"


def test_whose_answers_are_kept(tmp_path: Path) -> None:
    (tmp_path / "own.npz").touch()
    kept, chain = "distill.cache=true", "assistant=[{model='mlp_s'}]"
    assert load(tmp_path, text=TEACHERS).kept == ()
    assert load(tmp_path, kept, chain, text=TEACHERS).kept == ("teacher", "teacher_2", "assistant_1")
    assert load(tmp_path, URL, chain, text=TEACHERS).kept == ("teacher_2",), "an endpoint is asked once in any case"
    files = (FILE.replace("own.npz", str(tmp_path / "own.npz")), kept)
    assert load(tmp_path, *files, text=TEACHERS).kept == ("teacher",), "a file is kept already"
    text = TEACHERS.replace('[[teachers]]\nmodel = "mlp_m"', '[[teachers]]\nlogits = "own.npz"\nlicence = "MIT"')
    assert load(tmp_path, text=text).teachers[0].logits == str(tmp_path / "own.npz"), "beside the recipe"
    assert load(tmp_path, "distill.ensemble=probabilities", text=TEACHERS).distill.ensemble == "probabilities"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["distill.ensemble=median"],
            "distill.ensemble: found \"median\" (a text), expected 'logits' or 'probabilities'",
        ),
        (
            ["distill.ensemble=probabilities", "teachers=[]"],
            "distill.ensemble = 'probabilities' averages what several teachers of a classification say, but there is "
            "one teacher; remove it",
        ),
        (
            ["distill.ensemble=probabilities", "task=multilabel", "data={kind='arrays', root='d.npz'}"],
            "what several teachers of a classification say, but task = 'multilabel'; remove it",
        ),
        (["teachers.0={labels=['3']}"], "teachers.0 has neither 'model' nor 'onnx', 'logits' or 'url'; expected a"),
        (["teachers.0={onnx='t.onnx', logits='t.npz'}"], "teachers.0 has 'onnx' and 'logits'; expected one of them"),
        (["teachers.0={logits='t.npz'}"], "teachers.0.licence is missing: teachers.0.logits is a black box"),
        (
            ["teachers.0={onnx='t.onnx', licence='MIT', weights='t.pt'}"],
            "teachers.0.onnx is a finished teacher; remove teachers.0.weights",
        ),
        (
            ["teachers.0={url='ftp://h/x', licence='MIT'}"],
            "teachers.0.url: found ftp://h/x, expected https://HOST/PATH",
        ),
        (["teachers.0.request={batch_size=4}"], "teachers.0.request says how a teachers.0.url is asked, but there is"),
        (["teachers.0.labels=['3', '5', '3']"], "teacher_2.labels names '3' twice; expected each label once"),
        (
            [FILE, "distill.mixup=0.2"],
            "distill.mixup and cutmix make samples that teachers.0.logits holds no answers to; remove them",
        ),
        (
            [FILE, "transfer={kind='synthetic'}"],
            "transfer brings samples that teachers.0.logits holds no answers to; take a teacher that can be asked",
        ),
        ([URL, "data.augment={shift=1}"], "data.views is missing: teachers.0.url keeps the teacher's answers"),
        (
            [FILE, "teacher={logits='all.npz', licence='MIT'}", "distill.cache=true"],
            "distill.cache keeps what a teacher answers, but teacher.logits is such a file; remove one",
        ),
    ],
)
def test_mistakes_about_several_teachers(tmp_path: Path, overrides: list[str], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, *overrides, text=TEACHERS)
    assert text in str(caught.value)


def test_a_file_of_a_further_teacher_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"teachers\.0\.logits: there is no file .*own\.npz; correct the path"):
        load(tmp_path, FILE, text=TEACHERS)
