from __future__ import annotations

import json

import numpy as np
import pytest
from graphs import build, cnn, mlp, samples, transformer_block, with_initializers_as_inputs, with_traces
from onnx import TensorProto, helper

from edgekd.errors import ModelError
from edgekd.graph.inspection import inspect, min_onnxruntime
from edgekd.graph.quantization import VARIANTS, quantize
from edgekd.spec import TensorSpec

# By hand. mlp: 16*24 + 24*5. cnn: conv1 8*12*12 outputs of 3*3*3, conv2 8*12*12 of 3*3, conv3 16*12*12 of 8, head 16*7.
MACS = {mlp: 384 + 120, cnn: 1152 * 27 + 1152 * 9 + 2304 * 8 + 112, transformer_block: 4 * 32 * 32 + 2 * 32 + 32 * 4}
# Without batch normalization, which quantization folds: 8 + 8 + 16 channels keep one bias each.
PARAMETERS = {
    mlp: 384 + 24 + 120 + 5,
    cnn: 216 + 72 + 128 + 112 + 7 + 32,
    transformer_block: 4 * 1024 + 128 + 64,
}


@pytest.mark.parametrize("make", [mlp, cnn, transformer_block])
def test_macs_and_parameters_are_those_counted_by_hand(make):
    found = inspect(make().SerializeToString())
    folded_away = 4 * 32 - 32 if make is cnn else 0
    assert found.macs == MACS[make]
    assert found.parameters == PARAMETERS[make] + folded_away
    assert found.problems == ()
    assert found.precision == "float32"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [mlp, cnn, transformer_block])
def test_quantization_changes_neither_macs_nor_parameters(make, variant, tmp_path):
    path = quantize(make(), tmp_path / "q.onnx", VARIANTS[variant], calibration=samples(make(), 40)).path
    found = inspect(path)
    assert (found.macs, found.parameters) == (MACS[make], PARAMETERS[make])
    expected = {"fp16": "float16", "int4_weight_only": "int4"}
    assert found.precision == expected.get(variant, "int8")
    assert found.size_bytes == path.stat().st_size
    assert found.min_runtime == {"onnxruntime": "1.17" if variant == "int4_weight_only" else "1.14"}
    # Fused transformer layers are onnxruntime's own, too.
    if variant == "int4_weight_only" or any(op.startswith("com.microsoft") for op in found.ops):
        assert found.problems == (
            "needs operators of the domain com.microsoft, which are onnxruntime's own: other runtimes cannot load the "
            "file",
        )
    else:
        assert found.problems == ()


def test_what_the_file_says_is_listed():
    model = with_traces(with_initializers_as_inputs(mlp(opset=13)), "/a")
    del model.graph.initializer[-1]  # files of IR 3 list every initializer among the inputs: this one is not
    found = inspect(model.SerializeToString())
    assert dict(found.ops) == {"Gemm": 2, "Relu": 1}
    assert list(found.ops) == ["Gemm", "Relu"]
    assert (found.opset, found.ir_version) == (13, 3)
    assert found.inputs == (TensorSpec("x", "float32", ("N", 16)),)
    assert found.outputs == (TensorSpec("logits", "float32", ("N", 5)),)
    assert found.metadata["names"] == "{0: 'cat'}"
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 16]}]
    assert plain["min_runtime"] == {"onnxruntime": "1.6"}


@pytest.mark.parametrize(
    ("opset", "ir_version", "release"),
    [
        (18, 8, "1.14"),
        (11, 6, "1.3"),
        (13, 7, "1.6"),
        (17, 8, "1.12"),
        (18, 9, "1.15"),
        (18, 10, "1.18"),
        (21, 8, "1.18"),
        (22, 10, "1.21"),
        (23, 11, "1.23"),
        (24, 13, "1.24"),
        (26, 13, "1.31"),
        (27, 8, None),
        (18, 14, None),
    ],
)
def test_the_oldest_onnxruntime_follows_from_opset_and_ir(opset, ir_version, release):
    assert min_onnxruntime(opset, ir_version) == release


def test_the_installed_onnxruntime_loads_what_the_table_says_it_loads():
    import onnxruntime

    installed = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    for opset in range(11, 27):
        for ir_version in range(4, 14):
            oldest = min_onnxruntime(opset, ir_version)
            if oldest and tuple(int(part) for part in oldest.split(".")) <= installed:
                node = helper.make_node("Relu", ["x"], ["y"])
                shape = {"inputs": {"x": ["N", 4]}, "outputs": {"y": ["N", 4]}}
                model = build([node], {}, opset=opset, ir_version=ir_version, **shape)
                onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_what_stands_in_the_way_is_said():
    fixed = inspect(mlp(batch=4).SerializeToString())
    assert fixed.problems == ("the first axis of the input x is fixed: the model takes no other batch size",)
    assert fixed.macs == 4 * MACS[mlp]
    node = helper.make_node("Strange", ["x"], ["y"], domain="com.example")
    shape = {"inputs": {"x": ["N", 4]}, "outputs": {"y": ["N", 4]}}
    strange = inspect(build([node], {}, domains={"com.example": 1}, **shape).SerializeToString())
    assert "domain com.example, which are not part of ONNX" in strange.problems[0]
    assert dict(strange.ops) == {"com.example.Strange": 1}
    newest = inspect(build([helper.make_node("Relu", ["x"], ["y"])], {}, opset=27, **shape).SerializeToString())
    assert newest.min_runtime == {}
    assert "opset 27 with IR 8 is newer than what onnxruntime" in newest.problems[0]


def test_macs_that_depend_on_the_data_are_none_and_said():
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"], name="/late/MatMul"),
    ]
    weights = {"w": np.ones((2, 3), np.float32)}
    model = build(nodes, weights, inputs={"x": ["N", 4]}, outputs={"y": ["M", 3]})
    found = inspect(model.SerializeToString())
    assert found.macs is None
    assert found.problems == (
        "MACs are not known: the shapes around '/late/MatMul' depend on the data or were not inferred",
    )


def test_products_inside_functions_are_counted():
    node = helper.make_node("MatMul", ["a", "w"], ["b"])
    function = helper.make_function("local", "Linear", ["a", "w"], ["b"], [node], [helper.make_opsetid("", 18)])
    call = helper.make_node("Linear", ["x", "w"], ["y"], domain="local")
    weights = {"w": np.ones((4, 3), np.float32)}
    model = build([call], weights, inputs={"x": ["N", 4]}, outputs={"y": ["N", 3]}, domains={"local": 1})
    model.functions.append(function)
    assert inspect(model.SerializeToString()).macs == 12


def test_an_unknown_element_type_and_garbage_are_refused(tmp_path):
    model = mlp()
    model.graph.output[0].type.tensor_type.elem_type = 68
    with pytest.raises(ModelError, match="tensor 'logits' of the given model has the element type 68, which onnx"):
        inspect(model.SerializeToString())
    with pytest.raises(ModelError, match="there is no file"):
        inspect(tmp_path / "none.onnx")
