"""Ranges of activations: the least squared error against a plain search, the cache, samples that cannot be used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from graphs import cnn, mlp, samples, transformer_block
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.errors import DataError, InputRefused, ModelError, UsageError
from edgekd.graph.calibration import METHODS, calibrate, load_ranges
from edgekd.graph.least_error import least_error_range
from edgekd.graph.quantization import Int8Static, MixedPrecision, graph_for, quantize
from edgekd.graph.quantizers import prepare


def plain_error(values: np.ndarray, low: float, high: float, *, symmetric: bool) -> float:
    """As the runtime rounds: onnxruntime's own scale and zero point, then QuantizeLinear in float64."""
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    lowest, highest = (-127, 127) if symmetric else (-128, 127)
    ends = (np.array(low, np.float64), np.array(high, np.float64))
    zero, scale = compute_scale_zp(*ends, np.array(lowest, np.int8), np.array(highest, np.int8), symmetric)
    x = values.astype(np.float64)
    rounded = (np.clip(np.round(x / float(scale)) + int(zero), lowest, highest) - int(zero)) * float(scale)
    return float(np.square(x - rounded).sum())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["normal", "relu", "outlier", "negative"]), st.booleans())
def test_the_least_squared_error_is_that_of_a_plain_search(seed: int, kind: str, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, rng.uniform(0.1, 10), 500).astype(np.float32)
    if kind == "relu":
        values = np.maximum(values, 0)
    if kind == "outlier":
        values[7] = 300.0
    if kind == "negative":
        values = -np.abs(values)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    search = least_error_range(low, high, symmetric=symmetric)
    for part in np.split(values.reshape(5, 100), 5):  # batches, of any shape
        search.add(part)
    errors = [plain_error(values, a, b, symmetric=symmetric) for a, b in zip(search.low, search.high)]
    assert search.squared_error == pytest.approx(errors, rel=1e-6)
    best = search.best()
    assert plain_error(values, *best, symmetric=symmetric) == pytest.approx(min(errors), rel=1e-6)
    assert low <= best[0] <= 0 <= best[1] <= high or symmetric


def test_a_far_value_is_cut_off_when_so_many_others_pay_for_it() -> None:
    """Its own error is squared too: one of 500 stays within the range, one of 400,000 does not."""

    def highest(count: int) -> float:
        values = np.random.default_rng(0).normal(0, 1, count).astype(np.float32)
        values[7] = 12.0
        search = least_error_range(float(values.min()), 12.0, symmetric=False)
        search.add(values)
        return search.best()[1]

    assert highest(500) == 12.0
    assert highest(400_000) < 9.0


def test_a_tensor_that_is_always_zero_has_an_empty_range() -> None:
    search = least_error_range(0.0, 0.0, symmetric=False)
    search.add(np.zeros((4, 4), np.float32))
    assert search.best() == (0.0, 0.0)


def test_every_method_gives_every_tensor_a_range_and_only_minmax_all_of_it() -> None:
    ready = prepare(mlp())
    feeds = samples(mlp(), 150)
    feeds["x"][3, 3] = 12.0
    found = {method: calibrate(ready, feeds, method=method) for method in METHODS}
    names = {method: set(item.values) for method, item in found.items()}
    assert {"x", "h", "a", "logits"} <= names["mse"] == names["minmax"] == names["entropy"] == names["percentile"]
    assert found["minmax"].values["x"][1] == pytest.approx(12.0)
    assert found["entropy"].values["x"][1] < 10
    assert found["mse"].num_samples == 150


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_range_of_each_tensor_is_the_best_over_all_batches(symmetric: bool) -> None:
    """Against a plain float64 search over what the layers really gave, 75 samples in batches of 25."""
    ready, feeds = prepare(mlp()), samples(mlp(), 75)
    found = calibrate(ready, feeds, method="mse", symmetric=symmetric).values
    x = feeds["x"]
    from onnx import numpy_helper

    weights = {t.name: numpy_helper.to_array(t) for t in ready.graph.initializer}
    hidden = x @ weights["w1"].T + weights["b1"]
    logits = np.maximum(hidden, 0) @ weights["w2"].T + weights["b2"]
    for name, values in (("x", x), ("h", hidden), ("a", np.maximum(hidden, 0)), ("logits", logits)):
        search = least_error_range(min(values.min(), 0.0), max(values.max(), 0.0), symmetric=symmetric)
        errors = [plain_error(values, low, high, symmetric=symmetric) for low, high in zip(search.low, search.high)]
        assert plain_error(values, *found[name], symmetric=symmetric) == pytest.approx(min(errors), rel=1e-3)


def test_the_range_of_least_error_is_what_the_file_rounds_with(tmp_path) -> None:
    from graphs import load
    from onnx import numpy_helper

    def scale_of_x(method: str) -> float:
        config = Int8Static(calibration=method)
        written = load(quantize(cnn(), tmp_path / "q.onnx", config, calibration=feeds).path)
        return next(float(numpy_helper.to_array(t)) for t in written.graph.initializer if t.name == "x_scale")

    feeds = samples(cnn(), 300)
    feeds["x"][5, 1, 5, 5] = 14.0
    low, high = calibrate(graph_for(cnn(), Int8Static()), feeds, method="mse").values["x"]
    assert scale_of_x("mse") == pytest.approx((high - low) / 255, rel=1e-6)
    assert scale_of_x("mse") < 0.9 * scale_of_x("minmax")


def test_symmetric_activations_have_zero_in_the_middle(tmp_path) -> None:
    from graphs import load
    from onnx import numpy_helper

    def zero_points(symmetric: bool) -> set[int]:
        config = Int8Static("int8", symmetric=symmetric)
        written = load(quantize(mlp(), tmp_path / "q.onnx", config, calibration=samples(mlp(), 64)).path)
        tensors = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
        return {int(tensors[n.input[2]]) for n in written.graph.node if n.op_type == "QuantizeLinear"}

    assert zero_points(True) == {0}
    assert zero_points(False) != {0}


def test_a_cache_is_used_again_and_holds_what_was_measured(tmp_path) -> None:
    ready, feeds, cache = prepare(cnn()), samples(cnn(), 40), tmp_path / "ranges.json"
    first = calibrate(ready, feeds, cache=cache)
    told = json.loads(cache.read_text())
    assert told["schema"] == "edgekd.calibration/1"
    assert told["calibrations"][0]["num_samples"] == 40
    assert calibrate(ready, feeds, cache=cache) == first
    # Used, not measured again: what the file says is what comes.
    told["calibrations"][0]["ranges"]["x"] = [-7.0, 7.0]
    cache.write_text(json.dumps(told))
    assert calibrate(ready, feeds, cache=cache).values["x"] == (-7.0, 7.0)
    # Other samples, or another method, are measured and added.
    assert calibrate(ready, samples(cnn(), 40, seed=5), cache=cache).values["x"] != (-7.0, 7.0)
    calibrate(ready, feeds, method="mse", cache=cache)
    kept = load_ranges(cache)
    assert [(item.method, item.values["x"] == (-7.0, 7.0)) for item in kept] == [
        ("minmax", True),
        ("minmax", False),
        ("mse", False),
    ]


def test_the_same_samples_in_batches_are_the_same_samples(tmp_path) -> None:
    ready, x = prepare(mlp()), samples(mlp(), 64)["x"]
    whole = calibrate(ready, {"x": x})
    parts = calibrate(ready, ({"x": x[start : start + 16]} for start in range(0, 64, 16)))
    assert whole == parts


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_batches_of_several_lengths_are_measured_as_one_set(method: str) -> None:
    """Texts without padding: a length has its own batches, and each of them is seen."""
    ready = prepare(transformer_block())
    first, second = (samples(transformer_block(), count, length=length) for count, length in ((40, 6), (9, 3)))
    alone = calibrate(ready, first, method=method)
    both = calibrate(ready, [first, second], method=method)
    assert (alone.num_samples, both.num_samples) == (40, 49)
    assert both.values.keys() == alone.values.keys()
    if method == "minmax":
        second["x"] *= 2
        assert calibrate(ready, [first, second]).values["x"][1] == second["x"].max()


def test_samples_of_equal_bytes_and_other_lengths_are_others() -> None:
    ready, x = prepare(transformer_block()), samples(transformer_block(), 12)["x"]
    hashes = [
        calibrate(ready, [{"x": part} for part in parts]).data_sha256
        for parts in ([x[:6], x[6:]], [x[:6], x[6:].reshape(12, 3, 32)], [x[:6].reshape(12, 3, 32), x[6:]])
    ]
    assert len(set(hashes)) == 3


def test_a_mixture_is_not_judged_by_calibration_samples_of_several_lengths(tmp_path) -> None:
    groups = [samples(transformer_block(), 8, length=length) for length in (6, 3)]
    with pytest.raises(UsageError, match=r"one shape, found 'x' of \[3, 32\] and \[6, 32\]; give evaluation="):
        quantize(transformer_block(), tmp_path / "q.onnx", MixedPrecision(), calibration=groups)


def test_the_cache_of_another_model_is_refused(tmp_path) -> None:
    cache, feeds = tmp_path / "ranges.json", samples(mlp(), 20)
    quantize(mlp(), tmp_path / "a.onnx", Int8Static(), calibration=feeds, cache=cache)
    with pytest.raises(InputRefused, match=r"ranges\.json holds the ranges of another model \(graph .*delete it"):
        quantize(mlp(seed=1), tmp_path / "b.onnx", Int8Static(), calibration=feeds, cache=cache)
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no calibration file of edgekd"),
        ("[]", "is no calibration file of edgekd"),
        ('{"schema": "edgekd.calibration/9"}', "is a file of 'edgekd.calibration/9', expected"),
        (
            '{"schema": "edgekd.calibration/1", "model_sha256": "0", "calibrations": [{"method": "minmax", "symmetric":'
            ' false, "data_sha256": "0", "num_samples": 1, "ranges": {"x": [2, 1]}}]}',
            "a range from 2 to 1",
        ),
    ],
)
def test_a_broken_cache_is_refused(text: str, said: str, tmp_path) -> None:
    cache = tmp_path / "ranges.json"
    cache.write_text(text)
    with pytest.raises(InputRefused, match=r"ranges\.json") as caught:
        calibrate(prepare(mlp()), samples(mlp(), 8), cache=cache)
    assert said in str(caught.value)
    with pytest.raises(InputRefused, match="there is no calibration file"):
        load_ranges(tmp_path / "none.json")


def test_ranges_measured_once_make_the_same_bytes_and_only_for_their_model_and_method(tmp_path) -> None:
    feeds, config = samples(cnn(), 40), Int8Static()
    ranges = calibrate(graph_for(cnn(), config), feeds)
    first = quantize(cnn(), tmp_path / "a.onnx", config, calibration=feeds)
    assert quantize(cnn(), tmp_path / "b.onnx", config, calibration=ranges).sha256 == first.sha256
    with pytest.raises(UsageError, match="the ranges were measured on another model"):
        quantize(cnn(seed=1), tmp_path / "c.onnx", config, calibration=ranges)
    with pytest.raises(UsageError, match="were measured by 'minmax', the configuration asks for 'mse'"):
        quantize(cnn(), tmp_path / "c.onnx", Int8Static(calibration="mse"), calibration=ranges)
    with pytest.raises(UsageError, match="MixedPrecision needs samples to judge mixtures by"):
        quantize(cnn(), tmp_path / "c.onnx", MixedPrecision(), calibration=ranges)
    assert not (tmp_path / "c.onnx").exists()


def test_samples_of_nothing_but_zeros_are_refused(tmp_path) -> None:
    zeros = {"x": np.zeros((30, 16), np.float32)}
    with pytest.raises(DataError, match="nothing but zeros in all of its 30 samples"):
        quantize(mlp(), tmp_path / "q.onnx", Int8Static(), calibration=zeros)
    assert not (tmp_path / "q.onnx").exists()


def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path) -> None:
    from onnx import numpy_helper

    model = mlp()
    broken = numpy_helper.to_array(model.graph.initializer[0]).copy()
    broken[2, 3] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "w1"))
    with pytest.raises(ModelError, match=r"the weight 'w1' holds 1 NaN or infinite numbers of 384; .*diverge"):
        quantize(model, tmp_path / "q.onnx", Int8Static(), calibration=samples(mlp(), 8))
