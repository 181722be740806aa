"""Teachers that were made elsewhere: other orders of the classes and other preprocessing are found and named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import ok, refused

from edgekd.errors import ModelError
from edgekd.graph.metadata import meaning
from edgekd.spec import Normalize, Scale
from edgekd.stages.acquaintance import check_ids, check_order, check_own, check_stated, places_of, stated

LABELS = ("cat", "dog", "emu")
STEPS = (Scale(), Normalize(mean=(0.2860,), std=(0.3530,)))


def test_the_same_meaning_passes() -> None:
    check_stated(meaning(LABELS, STEPS), LABELS, STEPS, where="teacher.onnx")
    nearly = (Scale(), Normalize(mean=(0.2871,), std=(0.3519,)))
    check_stated(meaning(LABELS, nearly), LABELS, STEPS, where="measured on another split of the data")


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"names": "{}"},
        {"names": "", "preprocess": ""},
        {"names": "(" * 500, "preprocess": "{"},
        {"names": "{0: 'cat', 7: 'dog'}", "preprocess": "3"},
        {"names": "['Katze', 'Hund', 'Emu']", "preprocess": '[{"op": "unheard of"}]'},
    ],
)
def test_what_says_nothing_of_these_classes_passes(said: dict[str, str]) -> None:
    check_stated(said, LABELS, STEPS, where="teacher.onnx")


@pytest.mark.parametrize("names", ["{0: 'dog', 1: 'cat', 2: 'emu'}", '["dog", "cat", "emu"]'])
def test_another_order_of_the_names_is_refused_with_the_line_that_mends_it(names: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_stated({"names": names}, LABELS, STEPS, where="teacher.onnx")
    assert str(caught.value) == (
        "teacher.onnx has the classes in another order than the data: its file names 0 is 'dog', not 'cat', "
        "1 is 'cat', not 'dog'. Bring its answers into the data's order; or, where the data names its classes "
        '(folders, tables), take the teacher\'s order: data.labels = ["dog", "cat", "emu"]'
    )


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((Scale(),), r'says nothing in step 2, the recipe {"op": "normalize"'),
        ((Scale(), Normalize(mean=(0.5,), std=(0.5,))), r'says {"op": "normalize", "mean": \[0.5\], "std": \[0.5\]}'),
        ((Scale(factor=1.0), *STEPS[1:]), r'says {"op": "scale", "factor": 1.0.*} in step 1'),
    ],
)
def test_other_preprocessing_is_refused(steps: tuple[Scale | Normalize, ...], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        check_stated(meaning(LABELS, steps), LABELS, STEPS, where="teacher.onnx")


@pytest.mark.parametrize(
    ("classes", "places"),
    [
        ((), None),
        (("cat", "dog", "emu"), None),
        (("CAT", "Dog", "emu"), None),
        (("emu", "cat", "dog"), [1, 2, 0]),
        (("DOG", "EMU", "CAT"), [2, 0, 1]),
    ],
)
def test_a_finished_classifiers_outputs_are_found_by_name(classes: tuple[str, ...], places: list[int] | None) -> None:
    assert places_of(classes, LABELS, where="the teacher hf:a") == places
    if places is not None:
        assert [classes[place].lower() for place in places] == list(LABELS)


@pytest.mark.parametrize(
    "classes", [("cat", "dog"), ("cat", "dog", "emu", "fox"), ("Katze", "Hund", "Emu"), ("cat", "cat", "emu")]
)
def test_other_classes_are_refused_with_both_lists(classes: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        places_of(classes, LABELS, where="the teacher hf:a")
    assert str(caught.value) == (
        f'the teacher hf:a answers with the classes {json.dumps(classes)}, but the data has the labels ["cat", "dog", '
        '"emu"]: a finished teacher is taken by these names. Where both mean the same, say so with '
        'teacher.args.id2label = {0 = "...", 1 = "..."}, the data\'s labels in the order of its outputs; where they do '
        "not, remove teacher.weights, and it learns the data's"
    )
    many = tuple(f"class {number}" for number in range(25))
    with pytest.raises(ModelError, match=r'"class 19"\] and 5 more, but the data'):
        places_of(many, LABELS, where="the teacher hf:a")


def test_names_that_differ_in_their_letters_only_are_not_moved_by_chance() -> None:
    assert places_of(("no", "No", "yes"), ("no", "No", "yes"), where="the teacher hf:a") is None
    with pytest.raises(ModelError, match="answers with the classes"):
        places_of(("yes", "No", "no"), ("no", "No", "yes"), where="the teacher hf:a")


def answers(y_N: np.ndarray, order: list[int], *, wrong: float = 0.0) -> np.ndarray:
    """Logits of somebody who knows the classes but says `order[c]` for c, and anything for some."""
    rng = np.random.default_rng(0)
    said = np.asarray(order)[np.where(rng.random(len(y_N)) < wrong, rng.integers(0, len(order), len(y_N)), y_N)]
    logits: np.ndarray = np.eye(len(order), dtype=np.float32)[said] * 5
    return logits


Y = np.random.default_rng(1).integers(0, 3, 400)


def test_answers_in_another_order_are_found_and_named() -> None:
    with pytest.raises(ModelError) as caught:
        check_order(answers(Y, [1, 2, 0], wrong=0.2), Y, LABELS, where="the teacher")
    text = str(caught.value)
    assert "in another order for 8" in text
    assert "0 is 'emu', not 'cat', 1 is 'cat', not 'dog', 2 is 'dog', not 'emu'" in text
    assert json.loads(text.split("data.labels = ")[1]) == ["emu", "cat", "dog"]


def test_a_specialist_is_told_to_follow_its_own_labels() -> None:
    with pytest.raises(ModelError) as caught:
        check_order(answers(Y, [1, 2, 0]), Y, LABELS, where="the teacher", own=True)
    assert str(caught.value) == (
        "the teacher does not follow its labels: right for 0% of the validation samples, in another order for 100%; by "
        "that 0 is 'emu', not 'cat', 1 is 'cat', not 'dog', 2 is 'dog', not 'emu'. Expected labels = "
        '["emu", "cat", "dog"]'
    )


@pytest.mark.parametrize("names", ["['dog', 'cat']", "['cat', 'emu']", "{0: 'dog', 1: 'cat'}"])
def test_a_file_that_names_other_outputs_than_its_labels_is_refused(names: str) -> None:
    with pytest.raises(ModelError, match=r"t.onnx has other outputs than its labels say: its file names \[.*, the rec"):
        check_own({"names": names}, ("cat", "dog"), LABELS, where="t.onnx")


@pytest.mark.parametrize("names", ["", "['cat', 'dog']", "['Katze', 'Hund']", f"{list(LABELS)}", "['cat', 'fox']"])
def test_a_file_that_says_nothing_against_its_labels_passes(names: str) -> None:
    check_own({"names": names}, ("cat", "dog"), LABELS, where="t.onnx")
    check_own({"names": names}, (), LABELS, where="t.onnx")


@pytest.mark.parametrize(
    ("given", "y"),
    [
        (answers(Y, [0, 1, 2], wrong=0.5), Y),
        (answers(Y, [0, 2, 1], wrong=0.9), Y),  # too bad in any order to say
        (answers(Y[:10], [1, 2, 0]), Y[:10]),  # too few to say
        (answers(Y, [1, 2, 0]), np.full(400, -1)),  # no labels
    ],
)
def test_what_is_only_a_bad_or_unknown_teacher_passes(given: np.ndarray, y: np.ndarray) -> None:
    check_order(given, y, LABELS, where="the teacher")


# Through the command line: three kinds of flowers whose rule is the largest of the first three columns.


def project(folder: Path, order: list[int], metadata: dict[str, str] | None = None) -> Path:
    """A table, an ONNX teacher that says class order[c] for c, and their recipe."""
    x = np.random.default_rng(0).standard_normal((150, 4)).astype(np.float32)
    names = np.array(LABELS)[x[:, :3].argmax(axis=1)]
    rows = [",".join([*map(str, row), name]) for row, name in zip(x.tolist(), names, strict=True)]
    (folder / "flowers.csv").write_text("\n".join(["a,b,c,d,kind", *rows]))
    weights = np.zeros((4, 3), np.float32)
    weights[range(3), order] = 4.0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["logits"])],
        "teacher",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, folder / "teacher.onnx")
    path = folder / "recipe.toml"
    path.write_text(
        'task = "classification"\n[data]\nkind = "arrays"\nroot = "flowers.csv"\ntarget = "kind"\n'
        '[teacher]\nonnx = "teacher.onnx"\nlicence = "MIT"\n[student]\nmodel = "mlp_s"\n'
        "[distill]\nepochs = 2\nbaseline = false\n"
    )
    return path


def test_a_teacher_in_another_order_stops_the_run_and_the_line_it_names_mends_it(tmp_path: Path) -> None:
    recipe = project(tmp_path, [1, 2, 0])
    told = refused(3, "distill", recipe, "--out", tmp_path / "run")
    assert "in another order than the data: right for 0% of the validation samples, in another order for 100%" in told
    labels = json.loads(told.split("data.labels = ")[1])
    done = ok("distill", recipe, "--set", f"data.labels={json.dumps(labels)}", "--out", tmp_path / "run", "--json")
    assert json.loads(done)["stages"]["teacher"]["best"] == 1.0


def test_a_file_that_names_its_classes_otherwise_stops_the_run(tmp_path: Path) -> None:
    recipe = project(tmp_path, [0, 1, 2], {"names": "{0: 'emu', 1: 'cat', 2: 'dog'}"})
    assert stated(tmp_path / "teacher.onnx") == {"names": "{0: 'emu', 1: 'cat', 2: 'dog'}"}
    told = refused(3, "distill", recipe, "--out", tmp_path / "run")
    assert "the teacher teacher.onnx has the classes in another order than the data: its file names 0 is 'emu'" in told


def test_weights_say_what_they_mean_to_the_next_run(tmp_path: Path) -> None:
    recipe = project(tmp_path, [0, 1, 2])
    text = recipe.read_text().replace('onnx = "teacher.onnx"\nlicence = "MIT"', 'model = "mlp_s"\ntrain.epochs = 3')
    recipe.write_text(text)
    ok("distill", recipe, "--out", tmp_path / "first")
    weights = tmp_path / "first" / "teacher" / "weights.safetensors"
    assert stated(weights)["names"] == str(dict(enumerate(LABELS)))
    header = weights.read_bytes()[8:600].decode(errors="replace")
    assert header.count("__metadata__") == header.count('{"edgekd":') == 1, "several pairs come in any order"
    reused = text.replace("train.epochs = 3", f'weights = "{weights}"')
    recipe.write_text(reused)
    ok("distill", recipe, "--out", tmp_path / "second")
    told = refused(3, "distill", recipe, "--set", 'data.labels=["emu","dog","cat"]', "--out", tmp_path / "third")
    assert "the teacher weights.safetensors has the classes in another order than the data: its file names" in told
    recipe.write_text(reused + '[preprocess]\nsteps = [{op = "scale", factor = 0.5}]\n')
    told = refused(3, "distill", recipe, "--out", tmp_path / "fourth")
    assert "was made for other preprocessing than the data gets" in told


def test_the_ids_of_a_graph_that_names_no_tokens() -> None:
    words = ["[PAD]", "good", "bad"]
    # It names them (and is judged by that), reads no texts, has a row for each, or its table is not known.
    assert check_ids({"tokens": "abc"}, 2, words, cut=3, where="teacher.onnx") is None
    assert check_ids({}, None, (), cut=None, where="teacher.onnx") is None
    assert check_ids({}, 3, words, cut=None, where="teacher.onnx") is None
    assert check_ids({}, None, words, cut=None, where="teacher.onnx") is None
    with pytest.raises(
        ModelError, match=r"preprocess.steps keep 3 of the tokenizer's \(vocabulary\), which gives them"
    ):
        check_ids({}, 3, words, cut=3, where="teacher.onnx")
    with pytest.raises(ModelError, match="has a table of 2 rows, but the texts have 3 tokens: they were"):
        check_ids({}, 2, words, cut=None, where="teacher.onnx")
    warning = check_ids({}, 4, words, cut=None, where="teacher.onnx")
    assert warning is not None
    assert "a table of 4 rows, but the texts have 3 tokens, and its file does not say" in warning
