"""Units of targets and thresholds of labels: the same in training, in the report and in the predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from spaces import make_space, write_project, write_texts

from edgekd.device.metrics import score
from edgekd.device.postprocess import Denormalize, apply_post
from edgekd.stages.workspace import work_on_data


def test_a_regression_learns_standardized_targets_and_answers_in_units(tmp_path: Path) -> None:
    prepared = make_space(write_project(tmp_path, "regression")).prepared
    train = prepared.dataset.train
    assert train.y.mean(axis=0) == pytest.approx([0, 0], abs=1e-4)
    assert train.y.std(axis=0) == pytest.approx([1, 1], abs=1e-4)
    in_units = prepared.labelled(train).y
    assert in_units == pytest.approx(5000 + 300 * train.x[:, :2], rel=1e-5)
    assert apply_post(prepared.post, train.y) == pytest.approx(in_units)


@pytest.mark.parametrize(
    ("steps", "learned"),
    [
        ("[{op='denormalize', mean=[4000.0], std=[100.0]}]", lambda x: 10 + 3 * x),
        ("[]", lambda x: 5000 + 300 * x),
    ],
)
def test_own_postprocess_says_what_the_graph_learns(tmp_path: Path, steps: str, learned) -> None:
    space = make_space(write_project(tmp_path, "regression"), f"postprocess.steps={steps}")
    train = space.prepared.dataset.train
    assert train.y == pytest.approx(learned(train.x[:, :2]), rel=1e-4)
    assert space.prepared.labelled(train).y == pytest.approx(5000 + 300 * train.x[:, :2], rel=1e-5)


def test_a_label_is_present_from_the_threshold_of_the_recipe_on(tmp_path: Path) -> None:
    recipe = write_project(tmp_path, "multilabel")
    val = make_space(recipe).prepared.dataset.val
    logits = np.where(val.y > 0, -1.0, -2.0).astype(np.float32)  # probabilities 0.27 and 0.12
    assert score("multilabel", make_space(recipe).prepared.judge(logits, val)) == 0.0
    low = make_space(recipe, "postprocess.steps=[{op='sigmoid'}, {op='threshold', value=0.2}]")
    assert score("multilabel", low.prepared.judge(logits, val)) == 1.0


def test_a_finished_teacher_of_a_regression_speaks_in_units(tmp_path: Path) -> None:
    recipe = write_project(tmp_path, "regression")
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(b"")
    assert make_space(recipe).teacher_post == make_space(recipe).prepared.post
    finished = make_space(recipe, f"teacher.weights={weights}")
    assert finished.teacher_post == ()
    val = finished.prepared.dataset.val
    truth = finished.prepared.labelled(val).y
    assert score("regression", finished.prepared.judge(truth, val, finished.teacher_post)) == pytest.approx(1.0)
    told = make_space(
        recipe, f"teacher.weights={weights}", "postprocess.steps=[{op='denormalize', mean=[5000.0], std=[300.0]}]"
    )
    assert told.teacher_post == (Denormalize((5000.0,), (300.0,)),)


def test_the_result_of_the_data_stage_holds_no_licence(tmp_path: Path) -> None:
    from edgekd.stages.workspace import work_on_data

    recipe = write_project(tmp_path, "regression")
    plain, _ = work_on_data(make_space(recipe))
    assert work_on_data(make_space(recipe, "data.licence=MIT"))[0] == plain, "stating it later trains nothing anew"
    assert plain["target_units"][0]["op"] == "denormalize"


def test_a_depthwise_student_is_quantized_with_one_scale_per_weight_too(tmp_path: Path) -> None:
    from edgekd.stages.graphs import variant_names

    images = ("data.kind=digits", 'preprocess.steps=[{op="scale"},{op="layout"}]', "teacher.model=cnn_s", "threads=1")
    for model, is_depthwise in (("dscnn_s", True), ("cnn_s", False)):
        space = make_space(write_project(tmp_path, "classification"), *images, f"student.model={model}")
        assert ("int8_u8s8_per_tensor" in variant_names(space)) is is_depthwise
        asked = make_space(
            write_project(tmp_path, "classification"),
            *images,
            f"student.model={model}",
            'quantize.variants=["int8_u8s8"]',
        )
        assert variant_names(asked) == ("float32", "int8_u8s8")


@pytest.mark.parametrize(("length", "is_told"), [(12, True), (20, False)])
def test_texts_that_are_cut_are_counted_and_told(tmp_path: Path, length: int, is_told: bool) -> None:
    pytest.importorskip("tokenizers", reason="models of texts need the extra text")
    recipe = write_texts(tmp_path)
    recipe.write_text(recipe.read_text().replace("max_length = 12", f"max_length = {length}"))
    space = make_space(recipe)
    result, told = work_on_data(space)
    words = [len(line.split(",")[0].split()) for line in (tmp_path / "texts.csv").read_text().splitlines()[1:]]
    ids = space.prepared.dataset.train.ids
    cut = sum(words[number] >= length for number in ids)
    assert result["cut"] == cut
    said = f"; {100 * cut / len(ids):.0f} % of the texts have {length} tokens or more: cut; raise max_length"
    assert told.endswith(said) == is_told
    assert ("cut" in told) == is_told


def test_numbers_are_not_cut(tmp_path: Path) -> None:
    result, told = work_on_data(make_space(write_project(tmp_path, "regression")))
    assert "cut" not in result
    assert "cut" not in told
