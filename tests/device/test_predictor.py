"""Predictions: the whole way from a file or array to an answer, by task, alone, in batches and from threads."""

from __future__ import annotations

import dataclasses
import io
import threading

import numpy as np
import pytest
from device_models import linear_model, make_parts, weights, write_bundle
from PIL import Image

import edgekd
from edgekd.device.bundle import Bundle
from edgekd.device.postprocess import apply_post, parse_post_steps
from edgekd.device.predictor import PROGRAMS, Prediction, Predictor, load
from edgekd.device.preprocess import preprocess
from edgekd.device.programs import classify
from edgekd.device.runtimes import open_session
from edgekd.errors import BundleError, DataError, UsageError
from edgekd.spec import TASKS, parse_steps


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b.edgekd")


@pytest.fixture
def predictor(bundle):
    with load(bundle.path) as predictor:
        yield predictor


def images(n=5, side=9, channels=3):
    return np.random.default_rng(7).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def by_hand(bundle, raw):
    """Scores from the parts that have tests of their own."""
    ready = preprocess(parse_steps(bundle.manifest["preprocess"]), raw)
    logits = ready.reshape(1, 16) @ weights(16, len(bundle.manifest["labels"]))
    return logits, apply_post(parse_post_steps(bundle.manifest["postprocess"]), logits)[0]


def test_a_prediction_is_the_parts_in_a_row(bundle, predictor):
    for raw in images():
        logits, scores = by_hand(bundle, raw)
        found = predictor.predict(raw, top_k=3)
        best = int(scores.argmax())
        assert isinstance(found, Prediction)
        assert (found.label, found.index) == (bundle.manifest["labels"][best], best)
        assert found.score == pytest.approx(scores[best], abs=1e-5)
        assert [label for label, _ in found.top] == [bundle.manifest["labels"][i] for i in np.argsort(-scores)]
        assert sum(score for _, score in found.top) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(found.outputs["logits"], logits[0], atol=1e-4)
        assert found.latency_ms > 0


def test_top_k(predictor):
    raw = images()[0]
    assert len(predictor.predict(raw).top) == 1
    assert len(predictor.predict(raw, top_k=2).top) == 2
    assert len(predictor.predict(raw, top_k=99).top) == 3
    for wrong in (0, -1, 1.5, True, "3"):
        with pytest.raises(UsageError, match="top_k is .*, expected a whole number from 1"):  # noqa: RUF043
            predictor.predict(raw, top_k=wrong)


def test_of_equal_scores_the_first_class_wins():
    labels = [f"class {number}" for number in range(200)]
    scores = np.tile(np.float32([0.1, 0.2]), 100)
    found = classify.interpret(scores, labels=labels, top_k=4, threshold=0.5)
    assert [label for label, _ in found.top] == ["class 1", "class 3", "class 5", "class 7"]
    assert (found.label, found.index) == ("class 1", 1)


def test_paths_bytes_and_arrays_give_the_same_answer(predictor, tmp_path):
    raw = images()[0]
    buffer = io.BytesIO()
    Image.fromarray(raw).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    expected = predictor.predict(raw).outputs["logits"]
    for x in (tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue()):
        np.testing.assert_array_equal(predictor.predict(x).outputs["logits"], expected)


@pytest.mark.parametrize("n", [1, 5, 64, 65, 130])
def test_a_batch_is_its_samples(predictor, n):
    raws = images(n)
    together = predictor.predict_batch(raws, top_k=2)
    assert len(together) == n
    for raw, found in zip(raws[::13], together[::13]):
        alone = predictor.predict(raw, top_k=2)
        assert (found.label, found.index) == (alone.label, alone.index)
        np.testing.assert_allclose(found.outputs["logits"], alone.outputs["logits"], atol=1e-5)


def test_a_batch_may_be_any_iterable_of_any_size(predictor, tmp_path):
    assert predictor.predict_batch([]) == []
    small, large = images(side=9)[0], images(side=20)[0]
    found = predictor.predict_batch(iter([small, large]))  # resize makes them one shape
    assert len(found) == 2
    with pytest.raises(UsageError, match="predict_batch found one str, expected a list of samples; use predict"):
        predictor.predict_batch("a.png")


def test_a_graph_of_fixed_batch_predicts_too(tmp_path):
    manifest, graphs, golden = make_parts()
    plain = Bundle.write(tmp_path / "a", manifest, graphs, golden)
    graphs["float32"]["main"] = linear_model(weights(16, 3), shape=(1, 4, 4), batch=4)
    fixed = Bundle.write(tmp_path / "b", manifest, graphs, golden)
    raws = images(6)
    for a, b in zip(load(plain.path).predict_batch(raws), load(fixed.path).predict_batch(raws)):
        np.testing.assert_allclose(a.outputs["logits"], b.outputs["logits"], atol=1e-5)


def test_multilabel_names_every_label_that_is_present(tmp_path):
    bundle = write_bundle(
        tmp_path / "b", task="multilabel", postprocess=[{"op": "sigmoid"}, {"op": "threshold", "value": 0.6}]
    )
    counts = set()
    with load(bundle.path) as predictor:
        for raw in images(40):
            _, scores = by_hand(bundle, raw)
            found = predictor.predict(raw)
            present = [int(i) for i in np.argsort(-scores) if scores[i] >= 0.6]
            assert [label for label, _ in found.top] == [bundle.manifest["labels"][i] for i in present]
            assert found.score == pytest.approx(scores.max(), abs=1e-5)
            assert found.index == (present[0] if present else None)
            assert found.label == (bundle.manifest["labels"][present[0]] if present else None)
            counts.add(len(present))
    assert {0, 1, 2} <= counts


def test_regression_gives_every_target_in_its_units(tmp_path):
    bundle = write_bundle(
        tmp_path / "b",
        task="regression",
        labels=("height_m", "mass_kg"),
        postprocess=[{"op": "denormalize", "mean": [1.7, 70.0], "std": [0.1, 12.0]}],
    )
    with load(bundle.path) as predictor:
        raw = images()[0]
        logits, _ = by_hand(bundle, raw)
        found = predictor.predict(raw)
    expected = logits[0] * [0.1, 12.0] + [1.7, 70.0]
    assert (found.label, found.index) == ("height_m", 0)
    assert [label for label, _ in found.top] == ["height_m", "mass_kg"]
    np.testing.assert_allclose([value for _, value in found.top], expected, rtol=1e-5)
    assert found.score == found.top[0][1]


def test_threads_share_a_predictor(predictor):
    raws = images(4)
    expected = [predictor.predict(raw).outputs["logits"] for raw in raws]
    failures = []

    def work(number):
        for _ in range(40):
            if not np.array_equal(predictor.predict(raws[number]).outputs["logits"], expected[number]):
                failures.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def test_warm_up_and_close(bundle):
    predictor = load(bundle.path)
    predictor.warm_up()
    assert predictor.bundle.manifest["name"] == "tiny"
    assert predictor.session.inputs[0].name == "x"
    predictor.close()
    with pytest.raises(UsageError, match="this session is closed"):
        predictor.predict(images()[0])
    with load(bundle.path) as inside:
        pass
    with pytest.raises(UsageError, match="this session is closed"):
        inside.warm_up()


def test_a_prediction_cannot_be_changed(predictor):
    with pytest.raises(dataclasses.FrozenInstanceError):
        predictor.predict(images()[0]).score = 1.0


def test_the_variant_is_the_cpus_or_the_askers(tmp_path):
    manifest, graphs, golden = make_parts(variants={"float32": {}, "int8": {}}, default={"*": "int8"})
    graphs["int8"]["main"] = linear_model(-weights(16, 3), shape=(1, 4, 4))
    bundle = Bundle.write(tmp_path / "b", manifest, graphs, golden)
    raw = images()[0]
    by_default = load(bundle.path).predict(raw).outputs["logits"]
    asked = load(bundle.path, variant="float32").predict(raw).outputs["logits"]
    np.testing.assert_allclose(by_default, -asked, atol=1e-5)


def test_nan_is_not_an_answer(tmp_path):
    bundle = write_bundle(tmp_path / "b", preprocess=[{"op": "layout", "to": "CHW"}])
    x = np.zeros((4, 4), np.float32)
    x[1, 1] = np.nan
    with (
        load(bundle.path) as predictor,
        pytest.raises(DataError, match="the model's answer is NaN or infinite; look for NaN"),
    ):
        predictor.predict(x)


def test_samples_that_do_not_fit(tmp_path):
    bundle = write_bundle(tmp_path / "b", preprocess=[{"op": "layout", "to": "CHW"}])
    with load(bundle.path) as predictor:
        with pytest.raises(UsageError, match=r"input 'x' has the shape \(1, 1, 5, 5\), expected \(N, 1, 4, 4\)"):
            predictor.predict(np.zeros((5, 5)))
        with pytest.raises(DataError, match=r"the samples have the shapes \(4, 4\), \(5, 5\), expected one shape"):
            predictor.predict_batch([np.zeros((4, 4)), np.zeros((5, 5))])
        with pytest.raises(
            DataError, match=r"found the path a\.png, expected an array: this preprocessing has no decode"
        ):
            predictor.predict("a.png")


def test_bundles_that_contradict_their_graph(tmp_path):
    manifest, graphs, golden = make_parts()
    Bundle.write(tmp_path / "labels", {**manifest, "labels": ["cat", "dog"]}, graphs, golden)
    with pytest.raises(
        BundleError, match=r"'logits' has the shape \('N', 3\), expected \(N, 2\): one number per label"
    ):
        load(tmp_path / "labels")
    outputs = [{**manifest["outputs"][0], "name": "scores"}]
    Bundle.write(tmp_path / "names", {**manifest, "outputs": outputs}, graphs, golden)
    with pytest.raises(BundleError, match="the graph gives logits, but bundle.json expects 'scores'"):  # noqa: RUF043
        load(tmp_path / "names")


def test_every_task_has_a_program():
    assert set(PROGRAMS) == set(TASKS)


def test_an_embedding_is_a_vector_without_a_label(tmp_path):
    bundle = write_bundle(tmp_path / "b", task="embedding")
    with load(bundle.path) as predictor:
        answer = predictor.predict(predictor.bundle.golden()["raw"][0])
    assert (answer.label, answer.index, answer.top) == (None, None, ())
    assert answer.score == pytest.approx(float(np.linalg.norm(next(iter(answer.outputs.values())))), rel=1e-5)


def test_the_public_names():
    assert sorted(edgekd.__all__) == ["Bundle", "Prediction", "Predictor", "__version__", "load", "open_session"]
    assert edgekd.load is load
    assert edgekd.Bundle is Bundle
    assert edgekd.Predictor is Predictor
    assert edgekd.Prediction is Prediction
    assert edgekd.open_session is open_session
    assert set(edgekd.__all__) <= set(dir(edgekd))
    with pytest.raises(AttributeError, match="module 'edgekd' has no attribute 'lod'"):
        edgekd.lod  # noqa: B018
