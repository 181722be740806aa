"""The single-file loader of the Python app: what edgekd says, without edgekd; real images of every odd kind."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import json
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from device_models import write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_images import STEP_LISTS, images, picture
from text_bundle import TEXTS, UNEVEN, make_text_bundle

import edgekd
from edgekd import assets
from edgekd.device.preprocess import preprocess
from edgekd.spec import parse_steps


def load_module():
    place = assets.folder("export", "apps") / "python" / "student.py"
    spec = importlib.util.spec_from_file_location("student", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules["student"] = module
    spec.loader.exec_module(module)
    return module


app = load_module()
Student, StudentError = app.Student, app.StudentError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python_app") / "b"
    write_bundle(folder)
    return folder


IMAGES = images()


def own(steps, x):
    first = [step for step in steps if step["op"] in app.SPATIAL]
    return app.arithmetic(steps[len(first) :], app.prepare(first, x)[np.newaxis])[0]


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("steps", STEP_LISTS.values(), ids=STEP_LISTS)
def test_preprocessing_is_edgekds_number_for_number(name, steps):
    np.testing.assert_array_equal(own(steps, IMAGES[name]), preprocess(parse_steps(steps), IMAGES[name]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_array_is_preprocessed_alike(data):
    steps = data.draw(st.sampled_from(list(STEP_LISTS.values())))
    shape = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 3, 4])))
    array = picture(*shape, seed=data.draw(st.integers(0, 99)))
    array = array if data.draw(st.booleans()) else array.astype(np.float64) / 7
    try:
        wanted = preprocess(parse_steps(steps), array)
    except edgekd.errors.EdgekdError:
        with pytest.raises(StudentError):
            own(steps, array)
        return
    np.testing.assert_array_equal(own(steps, array), wanted)


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_answers_are_edgekds(tmp_path, task, as_zip):
    post = {"regression": [{"op": "denormalize", "mean": [3.0], "std": [2.0]}]}.get(task)
    write_bundle(tmp_path / "b", task=task, postprocess=post, as_zip=as_zip)
    xs = [picture(20, 30, 3, seed=seed) for seed in range(5)]
    with Student(tmp_path / "b") as student, edgekd.load(tmp_path / "b") as predictor:
        assert student.self_test() == []
        for mine, wanted in zip(student.predict_batch(xs, top_k=2), predictor.predict_batch(xs, top_k=2)):
            assert (mine.label, mine.index) == (wanted.label, wanted.index)
            assert mine.top == pytest.approx(wanted.top) if not mine.top else mine.top[0][0] == wanted.top[0][0]
            assert [score for _, score in mine.top] == pytest.approx([score for _, score in wanted.top])
            np.testing.assert_array_equal(mine.outputs["logits"], wanted.outputs["logits"])
            assert mine.uncertainty == wanted.uncertainty
            assert (mine.uncertainty is None) == (task != "classification")


def test_uncertainty_is_the_entropy():
    assert app.entropy(np.array([1.0, 0.0, 0.0])) == 0.0
    assert app.entropy(np.full(4, 0.25)) == pytest.approx(1.0)
    assert app.entropy(np.array([0.5, 0.5, 0.0, 0.0])) == pytest.approx(0.5)
    assert app.entropy(np.array([2.0, 3.0])) is None


def test_threads_share_one_student(place):
    xs = [picture(12 + at, 9, 3, seed=at) for at in range(40)]
    with Student(place) as student:
        student.warm_up()
        alone = [student.predict(x).outputs["logits"] for x in xs]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda x: student.predict(x).outputs["logits"], xs * 5))
    np.testing.assert_array_equal(np.stack(together), np.stack(alone * 5))


@pytest.mark.parametrize("kind", ["app", "edgekd"])
def test_an_event_loop_goes_on_meanwhile(place, kind):
    student = Student(place) if kind == "app" else edgekd.load(place)
    xs = [picture(15, 10, 3, seed=at) for at in range(20)]

    async def ask():
        return await asyncio.gather(*(student.predict_async(x, top_k=2) for x in xs))

    with student:
        answers = asyncio.run(ask())
        assert [answer.top for answer in answers] == [student.predict(x, top_k=2).top for x in xs]


@pytest.fixture(scope="module")
def for_texts(tmp_path_factory):
    return make_text_bundle(tmp_path_factory.mktemp("python_app_texts"))


@pytest.mark.parametrize("kind", ["app", "edgekd"])
def test_texts_together_are_texts_alone(for_texts, kind):
    """Where a graph measures its activations in every call, its neighbours and its padding would change an answer."""
    student = (Student if kind == "app" else edgekd.load)(for_texts, variant="int8_dynamic")
    with student:
        alone = [student.predict(text, top_k=3) for text in UNEVEN]
        together = student.predict_batch(list(UNEVEN), top_k=3)
        assert student.predict_batch([]) == []
    assert [answer.top for answer in together] == [answer.top for answer in alone]
    for one, other in zip(together, alone):
        np.testing.assert_array_equal(one.outputs["logits"], other.outputs["logits"])


def test_a_vector_is_no_list_of_classes(tmp_path):
    place = make_text_bundle(tmp_path, vectors=True)
    with Student(place) as student, edgekd.load(place) as predictor:
        assert student.self_test() == []
        answers = student.predict_batch(list(TEXTS), top_k=3)
        for mine, wanted in zip(answers, predictor.predict_batch(TEXTS), strict=True):
            assert (mine.label, mine.index, mine.top, mine.uncertainty) == (None, None, (), None)
            assert mine.score == pytest.approx(wanted.score)
            np.testing.assert_array_equal(mine.outputs["logits"], wanted.outputs["logits"])


def test_bad_inputs_end_in_one_sentence(place, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with Student(place) as student:
        for x, text in (
            (b"no image", "cannot be read as an image"),
            (tmp_path / "empty.png", "cannot be read as an image"),
            (tmp_path / "none.png", "cannot be read as an image"),
            (np.full((4, 4), np.nan), "NaN or infinite; look for NaN"),
            (np.zeros((4, 4, 5), np.uint8), "found 5 channels, expected 1 or 3"),
            (np.zeros((2, 2, 2, 2)), "expected an image"),
            (np.array(["a"]), "expected numbers"),
            (IMAGES["jpeg"][:300], "cannot be read as an image"),
        ):
            with pytest.raises(StudentError, match=text) as error:
                student.predict(x)
            assert error.value.exit_code == 3
        with pytest.raises(StudentError, match="top_k is 0, expected a whole number from 1"):
            student.predict(IMAGES["jpeg"], top_k=0)
    with pytest.raises(StudentError, match="this student is closed"):
        student.predict(IMAGES["jpeg"])
    for threads in (0, 100_000, True):
        with pytest.raises(StudentError, match=r"expected a whole number from 1 to \d+ cores"):
            Student(place, threads=threads)
    with pytest.raises(StudentError, match="no variant 'x', expected one of float32"):
        Student(place, variant="x")


def test_bundles_that_must_not_be_used(place, tmp_path):
    def changed(name, change):
        folder = tmp_path / name
        write_bundle(folder)
        manifest = json.loads((folder / "bundle.json").read_text())
        change(manifest, folder)
        (folder / "bundle.json").write_text(json.dumps(manifest))
        return folder

    def link(manifest, folder):
        (folder / "golden.npz").rename(folder / "real.npz")
        (folder / "golden.npz").symlink_to("real.npz")

    def outside(manifest, folder):
        manifest["files"]["../x.onnx"] = manifest["files"].pop("graphs/float32.onnx")
        manifest["variants"]["float32"]["graphs"]["main"] = "../x.onnx"

    cases = {
        "newer": (lambda m, _: m.update(version=2), "has version 2, this loader reads 1; update"),
        "step": (
            lambda m, _: m["preprocess"].insert(0, {"op": "exec"}),
            "has the step 'exec', which this loader lacks; update",
        ),
        "graph": (lambda _, f: (f / "graphs" / "float32.onnx").write_bytes(b"x" * 20), "was changed after|is longer"),
        "outside": (outside, r"lists '\.\./x\.onnx', which is no file inside it"),
        "less": (lambda m, _: m.pop("inputs"), "is no readable bundle"),
    }
    for name, (change, text) in cases.items():
        with pytest.raises(StudentError, match=text):
            Student(changed(name, change))
    with pytest.raises(StudentError, match=r"is missing in .*, or is a link"):
        Student(changed("link", link)).self_test()
    with pytest.raises(StudentError, match="is no readable bundle"):
        Student(tmp_path / "nowhere")
    whole = write_bundle(tmp_path / "zip", as_zip=True).path.read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StudentError, match="is no readable bundle"):
        Student(tmp_path / "cut")
    with zipfile.ZipFile(tmp_path / "zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("golden.npz", b"again")
    with pytest.raises(StudentError, match="holds a name twice"):
        Student(tmp_path / "zip")


VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})


def spots(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from spots(item, (*path, key))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_manifest_works_or_is_refused(place, data):
    """As an app meets it: opened, proven, asked. Only StudentError may come out."""
    manifest = copy.deepcopy(json.loads((place / "bundle.json").read_text()))
    *parents, last = data.draw(st.sampled_from([spot for spot in spots(manifest) if spot]))
    parent = manifest
    for key in parents:
        parent = parent[key]
    parent[last] = data.draw(VALUES)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "b.zip"
        with zipfile.ZipFile(whole, "w") as archive:
            archive.writestr("bundle.json", json.dumps(manifest))
            for name in ("golden.npz", "graphs/float32.onnx"):
                archive.write(place / name, name)
        try:
            with Student(whole) as student:
                student.self_test()
                student.predict(picture(6, 6, 3))
        except StudentError:
            pass


def test_the_command_line(place, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(IMAGES["jpeg"])
    assert app.main(["--bundle", str(place), str(tmp_path / "a.jpg"), "--top-k", "3"]) == 0
    assert len(capsys.readouterr().out.split()) == 7
    assert app.main(["--bundle", str(place), "--self-test"]) == 0
    assert app.main(["--bundle", str(tmp_path), "--self-test"]) == 3
    assert "bundle.json is missing in" in capsys.readouterr().err
    assert app.main(["--bundle", str(place), str(tmp_path / "none.npy")]) == 3
    with pytest.raises(SystemExit, match="2"):
        app.main([])
