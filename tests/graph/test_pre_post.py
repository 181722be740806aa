"""Preprocessing and postprocessing inside the graph say what numpy says on the device."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import build, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgekd.device.images import decode_image
from edgekd.device.postprocess import Denormalize, Sigmoid, Softmax, Threshold, TopK, apply_post
from edgekd.device.preprocess import apply_arithmetic, prepare, preprocess
from edgekd.errors import ModelError, RecipeError, UsageError
from edgekd.graph.postprocessing import with_postprocessing
from edgekd.graph.preprocessing import preprocessing, raw_spec, with_preprocessing
from edgekd.spec import Decode, TensorSpec, parse_steps

IMAGE = TensorSpec("x", "uint8", ("N", "H", "W", "C"))
LEVEL = 1 / 255


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def steps_of(*steps):
    return parse_steps(({"op": "decode"}, *steps, {"op": "scale"}, {"op": "layout"}))


def differences(model, steps, image):
    expected = preprocess(steps, image)
    found = session(model).run(None, {"raw": image[np.newaxis]})[0][0]
    assert found.shape == expected.shape
    return np.abs(found - expected)


def smooth(height, width, channels, seed=0):
    """Something like a photograph: large areas, edges, some noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = 128 + 90 * np.sin(x / 9.0) * np.cos(y / 7.0) + 60 * ((x // 11 + y // 5) % 2)
    noisy = base[..., np.newaxis] + random.normal(0, 12, (height, width, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 520),
    channels=st.sampled_from([1, 2, 3, 4]),
    size=st.one_of(st.tuples(st.integers(1, 70), st.integers(1, 70)).map(list), st.integers(1, 12)),
    filter=st.sampled_from(["bilinear", "bicubic", "nearest"]),
    antialias=st.booleans(),
    convert=st.sampled_from(["to_grey", "to_rgb"]),
    alpha=st.sampled_from(["black", "white"]),
    seed=st.integers(0, 99),
)
def test_every_image_is_within_one_level_of_numpy(
    height, width, channels, size, filter, antialias, convert, alpha, seed
):
    steps = parse_steps(
        [
            {"op": "decode", "alpha": alpha},
            {"op": convert},
            {"op": "resize", "size": size, "filter": filter, "antialias": antialias},
            {"op": "scale"},
            {"op": "layout", "to": "CHW"},
        ]
    )
    apart = differences(preprocessing(steps, IMAGE), steps, smooth(height, width, channels, seed))
    assert apart.max() <= LEVEL + 1e-6
    if filter == "nearest":
        assert apart.max() == 0
    # Only sums that end in one half are rounded otherwise: bytes of 8x8 and more show how few.
    if apart.size >= 192 and antialias:
        assert (apart > 0).mean() < 0.1


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 517, 3), (517, 3, 1), (480, 640, 3), (8, 8, 1), (37, 53, 4)])
def test_resize_crop_normalize(shape):
    steps = steps_of(
        {"op": "to_rgb"},
        {"op": "resize", "size": 34},
        {"op": "center_crop", "size": [30, 27]},
    )
    assert differences(
        preprocessing(steps, TensorSpec("x", "uint8", ("N", 30, 27, 3))), steps, smooth(*shape)
    ).max() <= (LEVEL + 1e-6)


def test_without_resize_every_number_is_equal():
    """Crop, grey, scale, normalize: the same float32 operations in the same order."""
    steps = parse_steps(
        [
            {"op": "to_grey"},
            {"op": "center_crop", "size": [5, 8]},
            {"op": "scale"},
            {"op": "normalize", "mean": [0.1307], "std": [0.3081]},
            {"op": "layout", "to": "flat"},
        ]
    )
    model = preprocessing(steps, TensorSpec("x", "uint8", ("N", 5, 8, 1)))
    for height in range(5, 12):  # crops off by half a pixel both ways
        image = smooth(height, height + 4, 3, seed=height)
        np.testing.assert_array_equal(
            session(model).run(None, {"raw": image[np.newaxis]})[0][0], preprocess(steps, image)
        )


def test_transparency_is_composed_as_pillow_does_it():
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    image.fromarray(pixels, "RGBA").save(buffer, "PNG")
    for colour in ("black", "white"):
        step = Decode(alpha=colour)
        decoded = decode_image(buffer.getvalue(), step)
        np.testing.assert_array_equal(prepare((step,), pixels), decoded)
        steps = (step, *parse_steps([{"op": "to_rgb"}, {"op": "layout", "to": "HWC"}]))
        found = session(preprocessing(steps, IMAGE)).run(None, {"raw": pixels[np.newaxis]})[0][0]
        np.testing.assert_array_equal(found, decoded.astype(np.float32))


def test_floats_are_resized_without_rounding():
    steps = parse_steps([{"op": "resize", "size": [9, 14]}, {"op": "layout"}])
    image = np.random.default_rng(0).normal(size=(20, 11, 2)).astype(np.float32)
    model = preprocessing(steps, TensorSpec("x", "float32", ("N", 9, 14, 2)))
    found = session(model).run(None, {"raw": image[np.newaxis]})[0][0]
    np.testing.assert_allclose(found, preprocess(steps, image), atol=2e-6)


def test_one_graph_takes_any_size_and_any_batch():
    steps = steps_of({"op": "to_rgb"}, {"op": "resize", "size": [8, 8]})
    running = session(preprocessing(steps, TensorSpec("x", "uint8", ("N", 8, 8, 3))))
    assert [value.shape for value in running.get_inputs()] == [["N", "H", "W", "C"]]
    assert running.get_outputs()[0].shape == ["N", 3, 8, 8]
    for batch, shape in ((1, (5, 7, 3)), (3, (40, 9, 1)), (2, (8, 8, 4))):
        images = np.stack([smooth(*shape, seed=seed) for seed in range(batch)])
        found = running.run(None, {"raw": images})[0]
        expected = np.stack([preprocess(steps, image) for image in images])
        assert np.abs(found - expected).max() <= LEVEL + 1e-6


def test_only_onnx_own_operators_and_a_clean_check():
    steps = steps_of({"op": "to_grey"}, {"op": "resize", "size": 30}, {"op": "center_crop", "size": [28, 28]})
    for opset in (13, 18, 22):
        model = preprocessing(steps, TensorSpec("x", "uint8", ("N", 28, 28, 1)), opset=opset)
        assert {item.domain for item in model.opset_import} == {""}
        onnx.checker.check_model(model, full_check=True)
        assert model.SerializeToString(deterministic=True) == preprocessing(
            steps, TensorSpec("x", "uint8", ("N", 28, 28, 1)), opset=opset
        ).SerializeToString(deterministic=True)


def test_in_front_of_a_network():
    """A network of somebody else, opset 11, whose input has the name of an operator's output here."""
    steps = parse_steps(
        [{"op": "to_grey"}, {"op": "resize", "size": [4, 4]}, {"op": "scale"}, {"op": "layout", "to": "flat"}]
    )
    network = mlp(opset=11, ir_version=6)
    whole = with_preprocessing(network, steps, TensorSpec("x", "uint8", ("N", 4, 4, 1)))
    image = smooth(33, 21, 3)
    ready = preprocess(steps, image)[np.newaxis]
    expected = session(network).run(None, {"x": ready})[0]
    found = session(whole).run(None, {"x": image[np.newaxis]})[0]
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert [value.name for value in whole.graph.input] == ["x"]
    with pytest.raises(ModelError, match=r"the steps end in float \[.*\], but 'x' reads uint8"):
        with_preprocessing(whole, steps, TensorSpec("x", "uint8", ("N", 4, 4, 1)))


def test_rows_of_an_array_without_spatial_steps():
    steps = parse_steps([{"op": "scale", "factor": 0.5}, {"op": "normalize", "mean": [1.0], "std": [3.0]}])
    whole = with_preprocessing(mlp(), steps, TensorSpec("x", "float32", ("N", 16)))
    rows = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    expected = session(mlp()).run(None, {"x": apply_arithmetic(steps, rows)})[0]
    np.testing.assert_array_equal(session(whole).run(None, {"x": rows})[0], expected)


def test_an_image_smaller_than_the_crop_fails_and_gives_no_answer():
    steps = parse_steps([{"op": "center_crop", "size": [8, 8]}, {"op": "layout"}])
    running = session(preprocessing(steps, TensorSpec("x", "uint8", ("N", 8, 8, 3))))
    for shape in ((1, 7, 9, 3), (2, 4, 8, 3), (4, 4, 4, 3)):
        with pytest.raises(Exception, match=r"Reshape|reshape"):
            running.run(None, {"raw": np.zeros(shape, np.uint8)})


def test_what_cannot_go_into_a_graph():
    steps = parse_steps([{"op": "scale"}, {"op": "normalize", "mean": "train", "std": [1.0]}])
    with pytest.raises(RecipeError, match='"train" stands where numbers were expected'):
        preprocessing(steps, TensorSpec("x", "float32", ("N", 4)))
    with pytest.raises(UsageError, match="samples are int64, expected uint8 or float32"):
        preprocessing((), TensorSpec("x", "int64", ("N", 4)))
    with pytest.raises(UsageError, match=r"the steps work on images, but samples are \['N', 4\]"):
        raw_spec(parse_steps([{"op": "to_rgb"}]), TensorSpec("x", "uint8", ("N", 4)))
    with pytest.raises(ModelError, match=r"the steps end in float \['N', 4, 4, 3\], but 'x' reads float \[None, 16\]"):
        with_preprocessing(mlp(), parse_steps([{"op": "to_rgb"}]), TensorSpec("x", "uint8", ("N", 4, 4, 3)))
    two = build(
        [helper.make_node("Add", ["a", "b"], ["y"])], {}, inputs={"a": ["N", 2], "b": ["N", 2]}, outputs={"y": ["N", 2]}
    )
    with pytest.raises(UsageError, match="the model has the inputs a, b; preprocessing goes into graphs with one"):
        with_preprocessing(two, (), TensorSpec("x", "float32", ("N", 2)))


LABELS = ("ant", "bee", "cat", "dög", "eel")


def test_classes_with_temperature_and_labels():
    steps = (Softmax(temperature=2.5), TopK(3))
    whole, outputs = with_postprocessing(mlp(), steps, task="classification", labels=LABELS)
    assert [(spec.name, spec.dtype, spec.shape) for spec in outputs] == [
        ("probabilities", "float32", ("N", 5)),
        ("top_scores", "float32", ("N", 3)),
        ("top_indices", "int64", ("N", 3)),
        ("top_labels", "str", ("N", 3)),
    ]
    rows = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    logits = session(mlp()).run(None, {"x": rows})[0]
    found = dict(zip([spec.name for spec in outputs], session(whole).run(None, {"x": rows})))
    expected = apply_post(steps, logits)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found["top_indices"], order)
    np.testing.assert_array_equal(found["top_labels"], np.array(LABELS, object)[order])
    np.testing.assert_array_equal(found["top_scores"], np.take_along_axis(found["probabilities"], order, axis=1))


def test_of_equal_classes_the_first_comes_first():
    constant = build(
        [helper.make_node("Mul", ["x", "zero"], ["y"])],
        {"zero": np.zeros((1, 5), np.float32)},
        inputs={"x": ["N", 5]},
        outputs={"y": ["N", 5]},
    )
    whole, _ = with_postprocessing(constant, (), task="classification", labels=LABELS)
    *_, indices, labels = session(whole).run(None, {"x": np.ones((2, 5), np.float32)})
    assert indices.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert labels.tolist() == [list(LABELS)] * 2


def test_labels_that_are_present_and_values_in_their_units():
    rows = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    logits = session(mlp()).run(None, {"x": rows})[0]
    whole, _ = with_postprocessing(mlp(), (Sigmoid(), Threshold(0.6)), task="multilabel", labels=LABELS)
    probabilities, present = session(whole).run(None, {"x": rows})
    np.testing.assert_allclose(probabilities, apply_post((Sigmoid(),), logits), atol=1e-6)
    np.testing.assert_array_equal(present, probabilities >= np.float32(0.6))
    units = (Denormalize(mean=(1.0, 2.0, 3.0, 4.0, 5.0), std=(10.0,)),)
    whole, _ = with_postprocessing(mlp(), units, task="regression", labels=LABELS)
    np.testing.assert_allclose(
        session(whole).run(None, {"x": rows})[0], apply_post(units, logits), rtol=1e-6, atol=1e-5
    )


def test_a_network_whose_output_has_our_name():
    network = mlp()
    network.graph.node[-1].output[0] = network.graph.output[0].name = "probabilities"
    whole, _ = with_postprocessing(network, (Softmax(),), task="classification", labels=LABELS)
    rows = np.ones((1, 16), np.float32)
    np.testing.assert_allclose(
        session(whole).run(["probabilities"], {"x": rows})[0],
        apply_post((Softmax(),), session(network).run(None, {"x": rows})[0]),
        atol=1e-6,
    )


def test_labels_that_do_not_fit_and_unknown_tasks():
    with pytest.raises(ModelError, match=r"'logits' is \['N', 5\], expected \(N, 2\): one number for each label"):
        with_postprocessing(mlp(), (), task="classification", labels=("a", "b"))
    with pytest.raises(UsageError, match="task 'embedding' has no postprocessing"):
        with_postprocessing(mlp(), (), task="embedding", labels=LABELS)
    with pytest.raises(UsageError, match="the model has no output 'scores', only logits"):
        with_postprocessing(mlp(), (), task="classification", labels=LABELS, output="scores")
    whole, _ = with_postprocessing(mlp(), (), task="classification", labels=LABELS)
    with pytest.raises(UsageError, match="the model has its postprocessing inside already"):
        with_postprocessing(whole, (), task="classification", labels=LABELS)
    with pytest.raises(RecipeError, match="the temperature is not calibrated yet"):
        with_postprocessing(mlp(), (Softmax("calibrated"),), task="classification", labels=LABELS)
