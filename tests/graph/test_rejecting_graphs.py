"""The reject option at the end of a graph: found, taken off, put back, and left in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgekd.device.rejection import reject
from edgekd.device.runtimes import open_session
from edgekd.errors import ModelError
from edgekd.graph.integer_reading import read_program
from edgekd.graph.quantization import VARIANTS, MixedPrecision, graph_for, quantize
from edgekd.graph.rejection import find_rule, with_rule, without_rule
from edgekd.spec import Array

CLASSES, INPUTS, HIDDEN, REJECTED, THRESHOLD = 5, 64, 64, 1, 0.6


def rejecting(*, rejected: int | None = REJECTED) -> ModelProto:
    """Two layers with the rule behind them, as torch's exporter writes it."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.standard_normal((INPUTS, HIDDEN)) / 8,
        "w2": rng.standard_normal((HIDDEN, CLASSES)) / 2,
        "b1": np.zeros(HIDDEN),
        "b2": np.zeros(CLASSES),
        "log_t": np.array(np.log(THRESHOLD)),
    }
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()]
    constants.append(numpy_helper.from_array(np.array([1]), "axis"))
    constants.append(numpy_helper.from_array(np.arange(CLASSES)[None] == rejected, "chosen"))
    make = helper.make_node
    nodes = [
        make("Gemm", ["input", "w1", "b1"], ["h"]),
        make("Relu", ["h"], ["r"]),
        make("Gemm", ["r", "w2", "b2"], ["z"]),
        make("ReduceMax", ["z", "axis"], ["top"]),
        make("Sub", ["z", "top"], ["below"]),
        make("Exp", ["below"], ["powers"]),
        make("ReduceSum", ["powers", "axis"], ["sum"]),
        make("Log", ["sum"], ["log"]),
        make("Add", ["top", "log"], ["log_sum"]),
        make("Add", ["log_sum", "log_t"], ["least"]),
        make("Max", ["z", "least"], ["raised"]),
        make("Where", ["chosen", "raised", "z"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", INPUTS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: ModelProto | Path, x: Array) -> Array:
    session = open_session(model if isinstance(model, Path) else model.SerializeToString(), threads=1)
    try:
        return next(iter(session.run({"input": x}).values()))
    finally:
        session.close()


def samples(count: int = 128) -> Array:
    return np.random.default_rng(1).standard_normal((count, INPUTS)).astype(np.float32)


def test_the_rule_is_found_taken_off_and_put_back() -> None:
    model, x = rejecting(), samples()
    rule = find_rule(model)
    assert rule is not None
    assert (rule.source, len(rule.nodes)) == ("z", 9)
    network = without_rule(model, rule)
    onnx.checker.check_model(network, full_check=True)
    assert [node.op_type for node in network.graph.node] == ["Gemm", "Relu", "Gemm"]
    assert find_rule(network) is None
    np.testing.assert_allclose(run(model, x), reject(run(network, x), REJECTED, THRESHOLD), rtol=1e-5, atol=1e-5)
    whole = with_rule(network, rule)
    onnx.checker.check_model(whole, full_check=True)
    assert (run(whole, x) == run(model, x)).all()


def test_other_endings_are_none() -> None:
    assert find_rule(rejecting(rejected=None)) is None, "no class is marked"
    changed = rejecting()
    changed.graph.node[5].op_type = "Sigmoid"
    assert find_rule(changed) is None
    from_input = rejecting()
    from_input.graph.node[-2].input[1] = "input"
    assert find_rule(from_input) is None


@pytest.mark.parametrize("name", [*VARIANTS])
def test_every_variant_keeps_the_rule_in_float(tmp_path: Path, name: str) -> None:
    model, x = rejecting(), samples()
    config = MixedPrecision(budget=50.0) if name == "mixed" else VARIANTS[name]
    path = quantize(model, tmp_path / "q.onnx", config, calibration={"input": x}).path
    quantized = onnx.load(path)
    if name != "fp16":
        rule = find_rule(quantized)
        assert rule is not None
        assert {node.op_type for node in rule.nodes}.isdisjoint({"QuantizeLinear", "DequantizeLinear"})
        if name.startswith("int8_u8s8"):
            layer = next(node for node in quantized.graph.node if rule.source in node.output)
            assert layer.op_type == "Gemm", "the logits come as floats from the integer kernel, as without the rule"
    before, after = run(model, x), run(path, x)
    assert (after.argmax(axis=1) == before.argmax(axis=1)).mean() > (0.6 if "int4" in name else 0.95)
    assert 0.1 < (after.argmax(axis=1) == REJECTED).mean() < 0.9


def test_static_int8_rounds_the_network_as_without_the_rule(tmp_path: Path) -> None:
    model, x = rejecting(), samples()
    rule = find_rule(model)
    assert rule is not None
    config = VARIANTS["int8_u8s8"]
    plain = quantize(without_rule(model, rule), tmp_path / "plain.onnx", config, calibration={"input": x}).path
    whole = quantize(model, tmp_path / "whole.onnx", config, calibration={"input": x}).path
    np.testing.assert_allclose(run(whole, x), reject(run(plain, x), REJECTED, THRESHOLD), rtol=1e-5, atol=1e-5)


def test_it_is_found_in_what_is_prepared_for_quantization() -> None:
    assert find_rule(graph_for(rejecting(), VARIANTS["int8_u8s8"])) is not None


def test_integers_alone_refuse_it(tmp_path: Path) -> None:
    path = quantize(rejecting(), tmp_path / "q.onnx", VARIANTS["int8_u8s8"], calibration={"input": samples()}).path
    with pytest.raises(ModelError, match=r"ends in the reject option \(\[export\] reject\)"):
        read_program(path)
