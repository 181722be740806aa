"""A graph computes in torch what it computes in onnxruntime, and gives gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekd.distill.models import TYPICAL_INPUT, build_model
from edgekd.distill.onnx_module import OnnxModule
from edgekd.distill.onnx_operators import OPERATORS
from edgekd.distill.to_onnx import export
from edgekd.errors import ModelError
from edgekd.spec import Array, TensorSpec

RNG = np.random.default_rng(3)
IMAGE = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)
ROWS = RNG.normal(size=(3, 8)).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


# (operator, first input, further inputs as constants, attributes)
CASES: list[tuple[str, Array, list[Array], dict[str, Any]]] = [
    ("Abs", ROWS, [], {}),
    ("Add", ROWS, [floats(8)], {}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("BatchNormalization", IMAGE, [floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.5], {"epsilon": 1e-3}),
    ("Clip", ROWS, [np.float32(-0.5), np.float32(0.5)], {}),
    ("Concat", ROWS, [floats(3, 2)], {"axis": 1}),
    ("Conv", IMAGE, [floats(6, 4, 3, 3), floats(6)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", IMAGE, [floats(4, 1, 3, 3)], {"group": 4, "dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    ("Conv", floats(2, 3, 9), [floats(5, 3, 3)], {"pads": [1, 1]}),
    ("Div", ROWS, [np.float32([3.0, 2.0]).repeat(4)], {}),
    ("Elu", ROWS, [], {"alpha": 0.7}),
    ("Erf", ROWS, [], {}),
    ("Exp", ROWS, [], {}),
    ("Expand", floats(3, 1), [ints(3, 4)], {}),
    ("Flatten", IMAGE, [], {"axis": 2}),
    ("Gather", ROWS, [ints(1, -1, 0)], {"axis": 1}),
    ("Gather", ROWS, [np.array(2, np.int64)], {"axis": 1}),
    ("Gelu", ROWS, [], {"approximate": "tanh"}),
    ("Gemm", ROWS, [floats(5, 8), floats(5)], {"transB": 1}),
    ("Gemm", ROWS, [floats(8, 5), floats(1, 5)], {"alpha": 0.5, "beta": 2.0}),
    ("GlobalAveragePool", IMAGE, [], {}),
    ("HardSigmoid", ROWS, [], {"alpha": 1 / 6, "beta": 0.5}),
    ("HardSwish", ROWS, [], {}),
    ("LayerNormalization", ROWS, [floats(8), floats(8)], {"epsilon": 1e-4}),
    ("LeakyRelu", ROWS, [], {"alpha": 0.2}),
    ("LogSoftmax", ROWS, [], {"axis": 1}),
    ("MatMul", ROWS, [floats(8, 3)], {}),
    ("Max", ROWS, [floats(8)], {}),
    ("MaxPool", IMAGE, [], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}),
    ("Min", ROWS, [floats(8)], {}),
    ("Mul", ROWS, [floats(3, 1)], {}),
    ("Neg", ROWS, [], {}),
    ("PRelu", ROWS, [floats(8)], {}),
    ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 0, 1)], {}),
    ("Pow", ROWS, [np.float32(2.0)], {}),
    ("ReduceMax", ROWS, [ints(1)], {"keepdims": 0}),
    ("ReduceMean", IMAGE, [ints(2, 3)], {"keepdims": 0}),
    ("ReduceSum", IMAGE, [ints(1)], {}),
    ("Relu", ROWS, [], {}),
    ("Reshape", IMAGE, [ints(0, -1)], {}),
    ("Sigmoid", ROWS, [], {}),
    ("Slice", ROWS, [ints(1, 1), ints(2**62, 7), ints(0, 1), ints(1, 2)], {}),
    ("Softmax", IMAGE, [], {"axis": 1}),
    ("Squeeze", floats(3, 1, 2), [ints(1)], {}),
    ("Sub", ROWS, [floats(8)], {}),
    ("Tanh", ROWS, [], {}),
    ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}),
    ("Unsqueeze", ROWS, [ints(0, -1)], {}),
]


def one_node(operator: str, first: Array, further: list[Array], attributes: dict[str, Any]) -> onnx.ModelProto:
    names = [f"c{index}" for index in range(len(further))]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"], **attributes)],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *first.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in zip(names, further)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto | Path, x: Array) -> Array:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    value: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
    return value


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}_{index}" for index, case in enumerate(CASES)])
def test_operators_give_what_onnxruntime_gives(case: tuple[str, Array, list[Array], dict[str, Any]]) -> None:
    model = one_node(*case)
    x = torch.tensor(case[1], requires_grad=True)
    y = OnnxModule(model)(x)
    np.testing.assert_allclose(y.detach().numpy(), run(model, case[1]), rtol=1e-5, atol=2e-6)
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_every_operator_of_floats_has_a_case() -> None:
    of_sizes = {"And", "Cast", "Dropout", "Equal", "Identity", "Log", "Reciprocal", "Shape", "Split", "Sqrt", "Where"}
    assert {case[0] for case in CASES} == OPERATORS.keys() - of_sizes


@pytest.mark.parametrize("name", ["dscnn_s", "resnet_s", "tcn_s"])
def test_exported_students_as_modules(name: str, tmp_path: Path) -> None:
    shape = TYPICAL_INPUT[name]
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    student = build_model(name, num_outputs=4, input_shape=shape).eval()
    path = export(
        student, tmp_path / "s.onnx", inputs=[TensorSpec("input", "float32", ("N", *shape))], samples={"input": x}
    ).path
    module = OnnxModule(path)
    given = module(torch.from_numpy(x))
    np.testing.assert_allclose(given.detach().numpy(), run(path, x), rtol=1e-4, atol=1e-5)
    given.square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_statistics_of_batch_norm_are_no_parameters() -> None:
    case = next(case for case in CASES if case[0] == "BatchNormalization")
    module = OnnxModule(one_node(*case))
    assert sorted(name for name, _ in module.named_parameters()) == ["weights.c0", "weights.c1"]
    assert module.state_dict().keys() == {"weights.c0", "weights.c1"}


def test_an_operator_that_cannot_be_trained_is_named() -> None:
    with pytest.raises(ModelError, match="is a Sign, which cannot be trained; take a student without it"):
        OnnxModule(one_node("Sign", ROWS, [], {}))
    with pytest.raises(ModelError, match="auto_pad = SAME depends on the size"):
        OnnxModule(one_node("Conv", IMAGE, [floats(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER"}))(torch.tensor(IMAGE))
