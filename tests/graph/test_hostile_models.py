"""Models that cannot be used: each refusal names what is wrong and what to do, and damaged bytes never crash."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from graphs import build, cnn, mlp, run, samples, transformer_block
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgekd.errors import EdgekdError, ModelError
from edgekd.graph.clean import load_model
from edgekd.graph.inspection import inspect
from edgekd.graph.quantization import VARIANTS, quantize
from edgekd.graph.sessions import open_graph
from edgekd.graph.verification import verify


def with_operator(kind: str, *, domain: str = "", opset: int = 18, count: int = 1, **attributes: object) -> ModelProto:
    node = helper.make_node(kind, ["x"] * count, ["y"], name="strange", domain=domain, **attributes)
    domains = {domain: 1} if domain else None
    return build([node], {}, inputs={"x": ["N", 4]}, outputs={"y": ["N", 4]}, opset=opset, domains=domains)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (with_operator("SiLU"), "node 'strange' (SiLU) is not an operator of opset 18; use Mul with Sigmoid instead"),
        (with_operator("Gelu"), "(Gelu) is not an operator of opset 18; opset 20 brought it: export the model with"),
        (with_operator("Upsample"), "(Upsample) is not an operator of opset 18; use Resize instead"),
        (with_operator("Sigmoidd"), "did you mean Sigmoid? Write it with ONNX's own operators"),
        (with_operator("Qzx"), "is not an operator of opset 18; Write it with ONNX's own operators"),
    ],
)
def test_an_unknown_operator_is_named_with_its_alternative(model: ModelProto, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(model.SerializeToString())
    assert text in str(caught.value)


def test_an_operator_of_a_foreign_domain_is_named_and_inspected() -> None:
    data = with_operator("Reluu", domain="com.example").SerializeToString()
    problems = " ".join(inspect(data).problems)
    assert "node 'strange' (com.example.Reluu) is an operator that no runtime here knows: write it with" in problems
    assert "such as Relu" in problems
    with pytest.raises(ModelError, match=r"cannot load .*com\.example.*Reluu.*; write it with ONNX's own operators"):
        open_graph(data)


@pytest.mark.parametrize("kind", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_nodes_are_named(kind: str) -> None:
    data = with_operator(kind).SerializeToString()
    assert f"node 'strange' ({kind}) draws random numbers" in inspect(data).problems[0]
    with pytest.raises(ModelError, match=rf"node 'strange' \({kind}\) draws random numbers.*in eval mode"):
        verify(data, data, {"x": np.ones((3, 4), np.float32)})


def test_dropout_counts_as_random_only_while_it_trains() -> None:
    for trains in (True, False):
        nodes = [helper.make_node("Dropout", ["x", "share", "trains"], ["y"], name="drop")]
        model = build(
            nodes,
            {"share": np.array(0.5, np.float32), "trains": np.array(trains)},
            inputs={"x": ["N", 4]},
            outputs={"y": ["N", 4]},
        )
        assert any("draws random" in problem for problem in inspect(model.SerializeToString()).problems) == trains


def branch(name: str, kind: str) -> object:
    nodes = [helper.make_node(kind, ["h"], [name])]
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


def with_branches() -> ModelProto:
    """A Gemm, then ReLU or its opposite, by the sign of the sum of the batch."""
    model = mlp()
    model.graph.node[1].CopyFrom(
        helper.make_node(
            "If", ["positive"], ["a"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg"), name="if"
        )
    )
    model.graph.node.insert(1, helper.make_node("ReduceSum", ["h"], ["sum"], keepdims=0))
    model.graph.node.insert(2, helper.make_node("Greater", ["sum", "zero"], ["positive"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    return model


def test_control_flow_is_read_compared_and_quantized(tmp_path) -> None:
    data = with_branches().SerializeToString()
    assert inspect(data).ops["If"] == 1
    assert verify(data, data, samples(mlp(), 7)).max_abs_diff == 0
    for name in ("int8_dynamic", "int8_u8s8"):
        quantize(data, tmp_path / "q.onnx", VARIANTS[name], calibration=samples(mlp(), 32))
        quantized = run((tmp_path / "q.onnx").read_bytes(), samples(mlp(), 7))["logits"]
        expected = run(data, samples(mlp(), 7))["logits"]
        assert np.abs(quantized - expected).max() < 0.25 * np.abs(expected).max()


def test_nan_weights_are_told_and_refused(tmp_path) -> None:
    model = mlp()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    data = model.SerializeToString()
    assert inspect(data).problems == ("the weight 'w1' holds 1 NaN of 384 numbers: did training diverge?",)
    with pytest.raises(EdgekdError, match="NaN"):
        quantize(data, tmp_path / "q.onnx", VARIANTS["int8_u8s8"], calibration=samples(mlp(), 32))
    result = verify(data, data, samples(mlp(), 3))
    assert not result.ok
    assert "output 'logits' of the reference is NaN" in result.problems[0]


MODELS = [model.SerializeToString() for model in (mlp(), cnn(), transformer_block(), with_branches())]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    """Bits flipped, pieces cut out, doubled and exchanged: an Inspection or a ModelError, nothing else."""
    damaged = bytearray(data.draw(st.sampled_from(MODELS)))
    for _ in range(data.draw(st.integers(1, 4))):
        # The head of these files holds the nodes: more can go wrong there.
        place = data.draw(st.integers(0, len(damaged) - 1) | st.integers(0, min(600, len(damaged) - 1)))
        kind = data.draw(st.sampled_from(["flip", "set", "cut", "double"]))
        length = data.draw(st.integers(1, 12))
        if kind == "flip":
            damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set":
            damaged[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del damaged[place : place + length]
        else:
            damaged[place:place] = damaged[place : place + length]
        if not damaged:
            break
    with contextlib.suppress(ModelError):
        inspect(bytes(damaged))
