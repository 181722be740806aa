"""Transformer layers as exporters write them are joined before int8, and what is joined computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import build, cnn, load, op_types, run, samples, transformer_block
from onnx import ModelProto, helper

from edgekd.graph import fusion
from edgekd.graph.fusion import fuse
from edgekd.graph.quantization import Int8Dynamic, Int8Static, quantize
from edgekd.graph.quantizers import prepare
from edgekd.graph.verification import verify

WIDTH, HEADS = 32, 4


def encoder() -> ModelProto:
    """x (N, L, 32) -> four-head attention, residual, LayerNormalization, GELU feed-forward, again -> logits (N, 5)."""
    rng, weights = np.random.default_rng(0), {}
    nodes, node = [], helper.make_node

    def linear(source: str, name: str, before: int, after: int) -> str:
        weights[f"{name}.w"] = rng.normal(0, before**-0.5, (before, after)).astype(np.float32)
        weights[f"{name}.b"] = rng.normal(0, 0.1, after).astype(np.float32)
        nodes.append(node("MatMul", [source, f"{name}.w"], [f"{name}.m"], f"/{name}/MatMul"))
        nodes.append(node("Add", [f"{name}.b", f"{name}.m"], [name], f"/{name}/Add"))
        return name

    weights |= {
        "split": np.array([0, 0, HEADS, WIDTH // HEADS], np.int64),
        "join": np.array([0, 0, WIDTH], np.int64),
        "root": np.array((WIDTH // HEADS) ** 0.5, np.float32),
        "root2": np.array(2**0.5, np.float32),
        "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
        "gamma": np.ones(WIDTH, np.float32),
        "beta": np.zeros(WIDTH, np.float32),
        "axes": np.array([1], np.int64),
    }
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        linear("x", part, WIDTH, WIDTH)
        nodes.append(node("Reshape", [part, "split"], [f"{part}4"]))
        nodes.append(node("Transpose", [f"{part}4"], [f"{part}t"], perm=order))
    nodes += [
        node("MatMul", ["qt", "kt"], ["scores"], "/scores"),
        node("Div", ["scores", "root"], ["scaled"]),
        node("Softmax", ["scaled"], ["p"], axis=-1),
        node("MatMul", ["p", "vt"], ["context4"], "/context"),
        node("Transpose", ["context4"], ["contextt"], perm=[0, 2, 1, 3]),
        node("Reshape", ["contextt", "join"], ["context"]),
    ]
    linear("context", "o", WIDTH, WIDTH)
    nodes += [
        node("Add", ["x", "o"], ["residual"]),
        node("LayerNormalization", ["residual", "gamma", "beta"], ["normal"], axis=-1),
    ]
    linear("normal", "up", WIDTH, 4 * WIDTH)
    nodes += [
        node("Div", ["up", "root2"], ["up2"]),
        node("Erf", ["up2"], ["erf"]),
        node("Add", ["erf", "one"], ["erf1"]),
        node("Mul", ["up", "erf1"], ["upm"]),
        node("Mul", ["upm", "half"], ["gelu"]),
    ]
    linear("gelu", "down", 4 * WIDTH, WIDTH)
    nodes += [
        node("Add", ["normal", "down"], ["residual2"]),
        node("LayerNormalization", ["residual2", "gamma", "beta"], ["last"], axis=-1),
        node("ReduceMean", ["last", "axes"], ["mean"], keepdims=0),
    ]
    linear("mean", "logits", WIDTH, 5)
    return build(nodes, weights, inputs={"x": ["N", "L", WIDTH]}, outputs={"logits": ["N", 5]})


def test_joined_layers_compute_the_same_with_fewer_nodes() -> None:
    ready = prepare(encoder())
    for attention in (False, True):
        fused = fuse(ready, attention=attention)
        kinds = op_types(fused)
        assert "SkipLayerNormalization" in kinds
        assert {"BiasGelu", "Gelu"} & set(kinds)
        assert "Erf" not in kinds
        assert ("Attention" in kinds) is attention
        assert len(kinds) < len(ready.graph.node) - 5
        for length in (3, 11):
            feeds = samples(encoder(), 7, length=length)
            assert run(fused, feeds)["logits"] == pytest.approx(run(ready, feeds)["logits"], abs=1e-5)


@pytest.mark.parametrize("config", [Int8Static(), Int8Dynamic()])
def test_int8_of_joined_layers_is_right_at_every_size_and_has_fewer_nodes(config, tmp_path) -> None:
    feeds = samples(encoder(), 64, length=9)
    result = quantize(encoder(), tmp_path / "q.onnx", config, calibration=feeds)
    answer = verify(encoder().SerializeToString(), result.path, samples(encoder(), 200, seed=3), tolerance="int8")
    assert answer.ok, answer.problems
    kinds = op_types(load(result.path))
    assert "SkipLayerNormalization" not in kinds, "it kept the additions in float; its kernel is slow"
    assert kinds.count("LayerNormalization") == kinds.count("Sum") == 2
    assert "SkipLayerNormalization" not in op_types(loaded(result.path, tmp_path)), "nor joined again"
    assert ("QAttention" in kinds) is isinstance(config, Int8Dynamic)
    assert result.notes == ("needs the operators of the domain com.microsoft, version 1",)
    plain = type(config)(fuse=False)
    without = quantize(encoder(), tmp_path / "p.onnx", plain, calibration=feeds)
    assert len(op_types(load(without.path))) > len(kinds)
    assert without.notes == ()


def loaded(path, tmp_path) -> ModelProto:
    """The graph as onnxruntime runs it, for inputs of a known size."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    for axis, size in (("N", 1), ("L", 9)):
        options.add_free_dimension_override_by_name(axis, size)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return load(tmp_path / "loaded.onnx")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("total", [True, False])
def test_norms_apart_compute_what_the_joined_ones_did(bias: bool, beta: bool, total: bool) -> None:
    rng, node = np.random.default_rng(0), helper.make_node
    weights = {name: rng.normal(size=8).astype(np.float32) for name in ("gamma", "beta", "bias")}
    joined = ["y", "z", "gamma", "beta" if beta else "", "bias" if bias else ""]
    nodes = [
        node("LayerNormalization", ["x", "gamma", "beta"], ["y"], axis=-1),
        node("Tanh", ["x"], ["z"]),
        node(
            "SkipLayerNormalization", joined, ["n", "", "", "t"] if total else ["n"], "s",
            domain="com.microsoft", epsilon=0.5,
        ),
        node("Add", ["n", "t" if total else "z"], ["out"]),
    ]  # fmt: skip
    sizes = {"x": ["N", "L", 8]}
    model = build(nodes, weights, inputs=sizes, outputs={"out": ["N", "L", 8]}, domains={"com.microsoft": 1})
    feeds = samples(model, 3, length=5)
    expected = run(model, feeds)["out"]
    apart = fusion.norms_apart(model)
    assert "SkipLayerNormalization" not in op_types(apart)
    onnx.checker.check_model(apart)
    np.testing.assert_allclose(run(apart, feeds)["out"], expected, atol=1e-5)


def test_an_opset_without_the_norm_keeps_the_joined_one() -> None:
    weights = {"gamma": np.ones(8, np.float32)}
    joined = helper.make_node("SkipLayerNormalization", ["x", "x", "gamma"], ["out"], "s", domain="com.microsoft")
    sizes = ["N", "L", 8]
    domains = {"com.microsoft": 1}
    model = build([joined], weights, inputs={"x": sizes}, outputs={"out": sizes}, opset=16, domains=domains)
    assert op_types(fusion.norms_apart(model)) == ["SkipLayerNormalization"]


def test_what_is_no_transformer_or_cannot_be_joined_stays_as_it_was(monkeypatch) -> None:
    ready = prepare(cnn())
    assert fuse(ready, attention=True) is ready
    transformer = prepare(transformer_block())
    monkeypatch.setattr(fusion, "_same", lambda *_: False)
    assert fuse(prepare(encoder()), attention=True).graph.node[0].op_type != "Attention"
    assert fuse(transformer, attention=True) is transformer

    def crash(ready: ModelProto, *, attention: bool) -> ModelProto:
        raise KeyError("a pattern of nobody's graph")

    monkeypatch.setattr(fusion, "_fused", crash)
    assert fuse(transformer, attention=True) is transformer
