"""Mixtures of int8 and float: three broken layers are found among twelve, within the promised number of evaluations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from graphs import build, load, mlp, op_types, run, samples
from onnx import ModelProto, helper, numpy_helper

from edgekd.device.metrics import contributions, drop_points
from edgekd.errors import AnswerIsNo
from edgekd.graph import mixed
from edgekd.graph.quantization import Int8Static, MixedPrecision, quantize
from edgekd.graph.quantizers import prepare
from edgekd.spec import Interval

WIDTH, CLASSES, DEPTH = 32, 10, 11
BAD = ("/fc2/Gemm", "/fc5/Gemm", "/fc9/Gemm")


def planted(bad: tuple[str, ...] = BAD) -> ModelProto:
    """x (N, 32), none negative -> eleven layers that shuffle it -> logits (N, 10).

    The first hidden number of each layer is a ReLU that never opens. Into a bad layer's weights of it go huge numbers:
    in float they are multiplied by zero, in int8 they take all steps from the weights that count.
    """
    rng = np.random.default_rng(3)
    nodes, weights, before = [], {}, "x"
    for index in range(DEPTH):
        weight, bias = rng.normal(0, 0.03, (WIDTH, WIDTH)), rng.normal(0, 0.02, WIDTH)
        weight[np.arange(1, WIDTH), rng.permutation(np.arange(1, WIDTH))] += 1.0
        weight[0], bias[0] = 0.0, -1.0
        if f"/fc{index}/Gemm" in bad:
            weight[1:, 0] = 400.0 * rng.choice([-1, 1], WIDTH - 1)
        weights |= {f"w{index}": weight.astype(np.float32), f"b{index}": bias.astype(np.float32)}
        nodes.append(
            helper.make_node("Gemm", [before, f"w{index}", f"b{index}"], [f"h{index}"], f"/fc{index}/Gemm", transB=1)
        )
        nodes.append(helper.make_node("Relu", [f"h{index}"], [f"a{index}"], f"/act{index}/Relu"))
        before = f"a{index}"
    weights["head"] = rng.normal(0, 1 / np.sqrt(WIDTH), (WIDTH, CLASSES)).astype(np.float32)
    nodes.append(helper.make_node("MatMul", [before, "head"], ["logits"], "/head/MatMul"))
    return build(nodes, weights, inputs={"x": ["N", WIDTH]}, outputs={"logits": ["N", CLASSES]})


def inputs(count: int, seed: int) -> dict[str, np.ndarray]:
    return {"x": np.abs(np.random.default_rng(seed).normal(0, 1, (count, WIDTH))).astype(np.float32)}


def labelled(model: ModelProto, count: int = 2000) -> mixed.Evaluation:
    """The float model's answers as labels, the answers of a quantized one as the drop."""
    feeds = inputs(count, seed=5)
    feeds["x"][:, 0] = 0.0  # what is before the first layer has a closed ReLU too
    truth = run(model, feeds)["logits"]
    y = truth.argmax(axis=1)
    own = contributions("classification", truth, y)

    def drop(outputs: Mapping[str, np.ndarray]) -> Interval:
        return drop_points("classification", own, contributions("classification", outputs["logits"], y))

    return mixed.Evaluation(feeds, drop)


def even_times(ready, quantized, owners, feeds) -> dict[str, tuple[float, float]]:
    return {name: (2.0, 1.0) for name in owners.values()}


def mix(model: ModelProto, path, *, budget: float, **options):
    feeds = inputs(300, seed=1)
    config = MixedPrecision(budget, base=Int8Static(per_channel=False), **options)
    return quantize(model, path, config, calibration=feeds, evaluation=labelled(model))


@pytest.fixture
def no_clock(monkeypatch) -> None:
    monkeypatch.setattr(mixed, "profile_layers", even_times)


def test_exactly_the_planted_layers_are_put_back(no_clock, tmp_path) -> None:
    model = planted()
    found = mix(model, tmp_path / "q.onnx", budget=15.0)
    search = found.search
    assert search is not None
    assert set(search.put_back) == set(BAD)
    assert len(search.layers) == DEPTH + 1
    assert search.evaluations <= search.most_evaluations == DEPTH + 1 + 8
    assert search.proven
    assert search.drop.high <= 15.0 < 30.0 < search.all_quantized.value
    worst = sorted(search.layers, key=lambda layer: -layer.error)[:3]
    assert {layer.name for layer in worst} == set(BAD)
    assert min(layer.error for layer in worst) > 10 * max(layer.error for layer in search.layers if not layer.put_back)
    assert found.num_quantized == DEPTH + 1 - 3
    # What was found is what was written.
    evaluation = labelled(model)
    again = evaluation.drop(run(load(found.path), dict(evaluation.feeds)))
    assert again == search.drop


def test_the_clock_of_the_machine_finds_them_too(tmp_path) -> None:
    """With real timings, whatever they are: what costs nothing may be put back as well, what is broken must be."""
    search = mix(planted(), tmp_path / "q.onnx", budget=15.0).search
    assert search is not None
    assert set(BAD) <= set(search.put_back)
    assert search.evaluations <= search.most_evaluations
    assert search.drop.high <= 15.0
    assert all(layer.float_ms is not None and layer.float_ms > 0 for layer in search.layers if layer.name in BAD)


def test_of_equally_bad_layers_the_one_that_buys_least_time_goes_first(tmp_path, monkeypatch) -> None:
    def times(ready, quantized, owners, feeds) -> dict[str, tuple[float, float]]:
        return {name: (9.0, 1.0) if name == BAD[0] else (1.5, 1.0) for name in owners.values()}

    monkeypatch.setattr(mixed, "profile_layers", times)
    found = mix(planted(BAD[:2]), tmp_path / "q.onnx", budget=25.0).search
    assert found is not None
    assert BAD[1] in found.put_back
    ratio = mixed._ratio(found.layers)
    by_name = {layer.name: layer for layer in found.layers}
    assert ratio(by_name[BAD[1]]) > ratio(by_name[BAD[0]])


def test_where_int8_holds_the_budget_nothing_is_put_back_and_two_evaluations_do(tmp_path) -> None:
    found = mix(planted(()), tmp_path / "q.onnx", budget=20.0)
    assert found.search is not None
    assert (found.search.put_back, found.search.evaluations, found.search.layers) == ((), 2, ())


def test_float16_halves_the_weights_of_the_layers_that_stay_float(no_clock, tmp_path) -> None:
    wide = mix(planted(), tmp_path / "a.onnx", budget=15.0)
    half = mix(planted(), tmp_path / "b.onnx", budget=15.0, fallback="float16")
    assert half.search is not None
    assert set(half.search.put_back) == set(BAD)
    saved = len(BAD) * WIDTH * WIDTH * 2
    assert 0.8 * saved < wide.size_bytes - half.size_bytes < 1.2 * saved
    written = load(half.path)
    assert op_types(written).count("Cast") >= len(BAD)
    halves = [t for t in written.graph.initializer if numpy_helper.to_array(t).dtype == np.float16]
    assert len(halves) >= len(BAD)


def test_a_budget_that_nothing_holds_is_answered_with_no_and_nothing_is_written(no_clock, tmp_path) -> None:
    model, out = planted(), tmp_path / "q.onnx"

    def hopeless(outputs: Mapping[str, np.ndarray]) -> Interval:
        return Interval(5.0, 4.0, 6.0)

    evaluation = mixed.Evaluation(inputs(50, seed=5), hopeless)
    with pytest.raises(
        AnswerIsNo, match=r"the float model itself loses 5 points where 1 are allowed: .*train it furth"
    ):
        quantize(model, out, MixedPrecision(1.0), calibration=inputs(50, seed=1), evaluation=evaluation)
    with pytest.raises(AnswerIsNo, match=r"holds only with every layer in float \(\d+ evaluations; all in int8 loses"):
        mix(model, out, budget=0.2)
    assert not out.exists()


def test_too_few_samples_to_prove_anything_are_said_and_the_figure_decides(no_clock, tmp_path) -> None:
    model = planted()
    evaluation = labelled(model, count=10)
    config = MixedPrecision(15.0, base=Int8Static(per_channel=False))
    found = quantize(model, tmp_path / "q.onnx", config, calibration=inputs(300, seed=1), evaluation=evaluation).search
    assert found is not None
    assert not found.proven
    assert found.drop.value <= 15.0 < found.drop.high
    assert set(BAD) <= set(found.put_back)


def test_without_labels_the_float_models_answers_are_the_truth(tmp_path) -> None:
    feeds = samples(mlp(), 300)
    found = quantize(mlp(), tmp_path / "q.onnx", MixedPrecision(30.0), calibration=feeds).search
    assert found is not None
    assert found.evaluations == 2
    same = run(load(tmp_path / "q.onnx"), feeds)["logits"].argmax(1) == run(mlp(), feeds)["logits"].argmax(1)
    assert found.drop.value == pytest.approx(100 * (1 - same.mean()))


def test_every_node_belongs_to_a_layer_and_what_follows_a_layer_to_it() -> None:
    from graphs import cnn, transformer_block

    owners = mixed.owners_of(prepare(cnn()))
    assert set(owners.values()) == {"/conv1/Conv", "/conv2/Conv", "/conv3/Conv", "/fc/Gemm"}
    assert owners["/relu1/Relu"] == "/conv1/Conv"
    assert owners["/flatten"] == owners["/pool"] == "/conv3/Conv"
    ready = prepare(transformer_block())
    owners = mixed.owners_of(ready)
    assert set(owners) == {node.name for node in ready.graph.node}
    assert len(set(owners.values())) == 7


@pytest.mark.parametrize(
    ("told", "owner"),
    [
        ("fused /fc1/Gemm", "/fc1/Gemm"),
        ("/conv1/Conv_token_12", "/conv1/Conv"),
        ("r1_nchwc", "/conv1/Conv"),
        ("/attn/scores/MatmulTransposeFusion//MatMulScaleFusion/", "/attn/scores"),
        ("r1_QuantizeLinear", "/conv1/Conv"),
        ("QLinearMul_54", None),
    ],
)
def test_a_profile_names_fused_nodes_in_its_own_way(told: str, owner: str | None) -> None:
    known = {name: name for name in ("/fc1/Gemm", "/conv1/Conv", "/attn/scores")} | {"r1": "/conv1/Conv"}
    assert mixed._owner(told, known) == owner


@pytest.mark.parametrize("name", ["/conv1/Conv", "/conv3/Conv", "/fc/Gemm"])
def test_a_layer_that_stays_in_float_is_run_in_float(name: str, tmp_path) -> None:
    """onnxruntime quantizes float weights between DequantizeLinear and QuantizeLinear by itself; ours it may not."""
    import onnxruntime
    from graphs import cnn

    from edgekd.graph.calibration import calibrate
    from edgekd.graph.float_layers import guard
    from edgekd.graph.quantizers import static

    ready = prepare(cnn())
    keep = [node for node, owner in mixed.owners_of(ready).items() if owner == name]
    ranges = calibrate(ready, samples(cnn(), 64)).values
    scheme = {"activation": "uint8", "weight": "int8", "per_channel": True, "symmetric": False, "reduce_range": False}
    model = guard(static(ready, ranges, **scheme, keep=keep), keep)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ops = op_types(load(tmp_path / "fused.onnx"))
    in_float = {"/fc/Gemm": ("Gemm", "FusedGemm")}.get(name, ("Conv", "FusedConv"))
    assert sum(op in in_float for op in ops) == 1
    assert ops.count("QLinearConv") + ops.count("QGemm") == 3
