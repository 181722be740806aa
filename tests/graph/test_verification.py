from __future__ import annotations

import json

import numpy as np
import pytest
from graphs import build, cnn, mlp, run, samples
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgekd.errors import ModelError, UsageError
from edgekd.graph.verification import Tolerance, tolerance_for, verify


def _mlp_outputs(feeds):
    return run(mlp(), dict(feeds))


def _with_weight(model: ModelProto, name: str, change) -> bytes:
    changed = ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    return changed.SerializeToString()


def _frozen_inside(fixed: int) -> ModelProto:
    """Declares a symbolic batch, but reshapes to a constant batch size, as exporters do by mistake."""
    model = mlp()
    model.graph.initializer.append(numpy_helper.from_array(np.array([fixed, 16], np.int64), "shape"))
    model.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["x0"]))
    model.graph.node[1].input[0] = "x0"
    return model


def test_a_model_agrees_with_itself_at_every_batch_size(tmp_path):
    model = cnn()
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    result = verify(path, model.SerializeToString(), samples(model, 21))
    assert result.ok
    assert result.problems == ()
    assert result.batch_sizes == (1, 2, 3, 5, 8, 16)
    assert result.num_samples == 21
    assert result.label_agreement == 1.0
    assert result.max_abs_diff < 1e-6
    assert json.loads(json.dumps(result.to_json()))["ok"] is True


def test_a_function_is_a_reference_and_its_differences_are_measured():
    feeds = samples(mlp(), 11)
    expected = _mlp_outputs(feeds)["logits"]

    def shifted(batch):
        return {"logits": _mlp_outputs(batch)["logits"] + np.float32(0.25)}

    assert verify(_mlp_outputs, mlp().SerializeToString(), feeds).ok
    result = verify(shifted, mlp().SerializeToString(), feeds)
    assert not result.ok
    assert result.max_abs_diff == pytest.approx(0.25, abs=1e-6)
    assert result.max_rel_diff == pytest.approx(0.25 / np.abs(expected + 0.25).max(), rel=1e-5)
    assert "output 'logits' differs by up to 0.25" in result.problems[0]


def test_a_batch_axis_that_is_frozen_inside_the_graph_is_found():
    feeds = samples(mlp(), 9)
    result = verify(_mlp_outputs, _frozen_inside(1).SerializeToString(), feeds)
    assert not result.ok
    assert result.batch_sizes == (1,)
    assert result.problems[0].startswith("the candidate fails at batch sizes 2, 3, 5, 8, 16 (")
    assert "its batch axis is frozen inside the graph" in result.problems[0]
    assert result.label_agreement == 1.0, "the samples are still compared at the size that runs"


def test_a_declared_fixed_batch_axis_is_found():
    result = verify(_mlp_outputs, mlp(batch=4).SerializeToString(), samples(mlp(), 9))
    assert not result.ok
    assert result.batch_sizes == (4,)
    assert "the candidate's batch axis is fixed at 4 but the reference takes any batch size" in result.problems[0]


def test_two_models_of_one_fixed_batch_are_compared_at_that_size_over_all_samples():
    model, feeds = mlp(batch=4).SerializeToString(), samples(mlp(), 9)
    result = verify(model, model, feeds)
    assert result.ok
    assert result.batch_sizes == (4,)
    wrong = _with_weight(mlp(batch=4), "b2", lambda bias: bias + 1)
    assert not verify(model, wrong, feeds).ok
    other = verify(model, mlp(batch=2).SerializeToString(), feeds)
    assert not other.ok
    assert "fixed at 2 but the reference takes batches of 4" in other.problems[0]


def test_values_that_are_wrong_only_at_other_batch_sizes_are_found():
    """The rows of a batch leak into each other: at batch size 1 nothing is to be seen."""
    model = mlp()
    model.graph.node[-1].output[0] = "own"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    model.graph.node.append(helper.make_node("ReduceMean", ["own", "axes"], ["logits0"], keepdims=1))
    model.graph.node.append(helper.make_node("Sub", ["own", "logits0"], ["centred"]))
    model.graph.node.append(helper.make_node("Add", ["centred", "logits0"], ["same"]))
    model.graph.node.append(helper.make_node("Max", ["same", "logits0"], ["logits"]))
    feeds = samples(mlp(), 7)
    assert verify(_mlp_outputs, model.SerializeToString(), {"x": feeds["x"][:1]}, batch_sizes=(1,)).ok
    result = verify(_mlp_outputs, model.SerializeToString(), feeds, batch_sizes=(1, 4))
    assert not result.ok
    assert "output 'logits' differs by up to" in result.problems[0]


def test_every_sample_is_compared_not_only_the_first_ones():
    """A candidate that is wrong for one sample far behind the first batches."""
    feeds = samples(mlp(), 150)
    last = feeds["x"][149].tobytes()

    def reference(batch):
        outputs = _mlp_outputs(batch)["logits"].copy()
        for row, x in enumerate(batch["x"]):
            if x.tobytes() == last:
                outputs[row] += 3
        return {"logits": outputs}

    result = verify(reference, mlp().SerializeToString(), feeds)
    assert not result.ok
    assert result.max_abs_diff == pytest.approx(3, abs=1e-5)
    assert verify(reference, mlp().SerializeToString(), {"x": feeds["x"][:149]}).ok


def test_label_agreement_counts_each_sample_once():
    feeds = samples(mlp(), 10)

    def reference(batch):
        """Another label for exactly the samples with a positive first number."""
        outputs = _mlp_outputs(batch)["logits"].copy()
        for row, x in enumerate(batch["x"]):
            if x[0] > 0:
                outputs[row, (outputs[row].argmax() + 1) % 5] = outputs[row].max() + 1
        return {"logits": outputs}

    expected = float((feeds["x"][:, 0] <= 0).mean())
    assert 0 < expected < 1
    loose = Tolerance(abs=100, rel=0, label_agreement=expected)
    result = verify(reference, mlp().SerializeToString(), feeds, tolerance=loose)
    assert result.label_agreement == pytest.approx(expected)
    assert result.ok
    strict = Tolerance(abs=100, rel=0, label_agreement=expected + 0.01)
    result = verify(reference, mlp().SerializeToString(), feeds, tolerance=strict)
    assert not result.ok
    assert f"the reference's label for {round(expected * 10)} of 10 samples" in result.problems[0]
    assert verify(reference, mlp().SerializeToString(), feeds, tolerance="int8", labels=False).label_agreement is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_found_on_either_side(value):
    def poison(bias):
        bias[2] = value
        return bias

    feeds, bad = samples(mlp(), 4), _with_weight(mlp(), "b2", poison)
    result = verify(_mlp_outputs, bad, feeds)
    assert not result.ok
    assert "output 'logits' of the candidate is NaN or infinite at batch sizes 1, 2" in result.problems[0]
    assert result.to_json()["max_abs_diff"] is None
    json.dumps(result.to_json(), allow_nan=False)
    assert "of the reference is NaN or infinite" in verify(bad, mlp().SerializeToString(), feeds).problems[0]


def test_wrong_shape_and_missing_output_are_problems():
    feeds = samples(mlp(), 4)
    wide = verify(lambda batch: {"logits": np.zeros((len(batch["x"]), 6))}, mlp().SerializeToString(), feeds)
    assert "output 'logits' of the candidate has the wrong shape at batch sizes" in wide.problems[0]
    assert "[1, 5] instead of [1, 6]" in wide.problems[0]
    missing = verify(lambda batch: {"embedding": batch["x"]}, mlp().SerializeToString(), feeds)
    assert "the candidate lacks the outputs ['embedding']" in missing.problems[0]
    assert not missing.ok


def test_whole_numbers_must_be_equal_unless_an_agreement_is_asked_for():
    node = helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0)
    model = build([node], {}, inputs={"x": ["N", 4]}, outputs={"label": ["N"]}, output_type=TensorProto.INT64)
    x = np.eye(4, dtype=np.float32)
    one_wrong = {tuple(row): label for row, label in zip(x, [0, 1, 2, 0])}

    def reference(batch):
        return {"label": np.array([one_wrong[tuple(row)] for row in batch["x"]])}

    def right(batch):
        return {"label": batch["x"].argmax(axis=1)}

    assert verify(right, model.SerializeToString(), {"x": x}).ok
    result = verify(reference, model.SerializeToString(), {"x": x})
    assert "output 'label' of the candidate differs from the reference" in result.problems[0]
    tolerance = Tolerance(abs=0, rel=0, label_agreement=0.75)
    assert verify(reference, model.SerializeToString(), {"x": x}, tolerance=tolerance).ok


def test_the_default_tolerance_follows_the_magnitude_of_the_outputs():
    big = _with_weight(mlp(), "w2", lambda weight: weight * 1e6)
    assert verify(_with_weight(mlp(), "w2", lambda weight: weight * 1e6 * (1 + 1e-6)), big, samples(mlp(), 8)).ok
    small = _with_weight(_parse(_with_weight(mlp(), "w2", lambda w: w * 1e-3)), "b2", lambda bias: bias * 1e-3)
    half = _with_weight(_parse(small), "b2", lambda bias: bias + 1e-5)
    assert not verify(small, half, samples(mlp(), 8)).ok
    assert tolerance_for("float32", 10.0).abs == pytest.approx(1e-4)
    assert tolerance_for("int8", 8.0) == Tolerance(abs=2.0, rel=0.0, label_agreement=0.9)
    assert tolerance_for("int8", 8.0, labels=False).label_agreement is None
    with pytest.raises(UsageError, match=r"precision 'int9'\. Did you mean 'int"):
        tolerance_for("int9", 1.0)  # type: ignore[arg-type]


def _parse(data: bytes) -> ModelProto:
    return ModelProto.FromString(data)


def test_samples_that_do_not_fit_say_what_is_expected():
    model = mlp().SerializeToString()
    feeds = samples(mlp(), 4)
    with pytest.raises(UsageError, match=r"the samples name the inputs \['y'\], but .* x float32 \['N', 16\]"):
        verify(model, model, {"y": feeds["x"]})
    with pytest.raises(UsageError, match=r"samples for 'x' are float64 \[4, 16\].*expects float32 \['N', 16\]"):
        verify(model, model, {"x": feeds["x"].astype(np.float64)})
    with pytest.raises(UsageError, match=r"samples for 'x' are float32 \[4, 15\]"):
        verify(model, model, {"x": feeds["x"][:, :15]})
    with pytest.raises(UsageError, match=r"at least 1, found \{'x': 0\}"):
        verify(model, model, {"x": feeds["x"][:0]})
    with pytest.raises(UsageError, match=r"batch_sizes are \[0\]"):
        verify(model, model, feeds, batch_sizes=(0,))


def test_a_model_that_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        verify(tmp_path / "none.onnx", mlp().SerializeToString(), samples(mlp(), 2))
    unknown = build(
        [helper.make_node("Unheard", ["x"], ["y"], domain="com.example")],
        {},
        inputs={"x": ["N", 4]},
        outputs={"y": ["N", 4]},
        domains={"com.example": 1},
    )
    with pytest.raises(ModelError, match=r"cannot load the candidate: .*Unheard"):
        verify(mlp().SerializeToString(), unknown.SerializeToString(), samples(mlp(), 2))
