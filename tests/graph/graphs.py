"""Small real ONNX graphs for the tests of the graph floor, written with onnx.helper as other people's files are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def build(
    nodes: Sequence[NodeProto],
    weights: dict[str, np.ndarray],
    *,
    inputs: dict[str, Sequence[int | str | None]],
    outputs: dict[str, Sequence[int | str | None]],
    opset: int = 18,
    ir_version: int = 8,
    input_type: int = TensorProto.FLOAT,
    output_type: int = TensorProto.FLOAT,
    domains: dict[str, int] | None = None,
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, input_type, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, output_type, list(shape)) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid(name, version) for name, version in {"": opset, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def mlp(
    *, opset: int = 18, ir_version: int = 8, batch: int | str = "N", seed: int = 0, gemm: bool = True
) -> ModelProto:
    """x (N, 16) -> Linear(24) -> ReLU -> Linear(5) -> logits (N, 5)."""
    random = np.random.default_rng(seed)
    w1, b1 = random.normal(0, 0.3, (24, 16)), random.normal(0, 0.1, 24)
    w2, b2 = random.normal(0, 0.3, (5, 24)), random.normal(0, 0.1, 5)
    if gemm:
        nodes = [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="/fc1/Gemm", transB=1),
            helper.make_node("Relu", ["h"], ["a"], name="/act/Relu"),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["logits"], name="/fc2/Gemm", transB=1),
        ]
    else:
        w1, w2 = w1.T, w2.T
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["h0"], name="/fc1/MatMul"),
            helper.make_node("Add", ["h0", "b1"], ["h"], name="/fc1/Add"),
            helper.make_node("Relu", ["h"], ["a"], name="/act/Relu"),
            helper.make_node("MatMul", ["a", "w2"], ["l0"], name="/fc2/MatMul"),
            helper.make_node("Add", ["l0", "b2"], ["logits"], name="/fc2/Add"),
        ]
    weights = {"w1": w1, "b1": b1, "w2": w2, "b2": b2}
    return build(
        nodes,
        {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()},
        inputs={"x": [batch, 16]},
        outputs={"logits": [batch, 5]},
        opset=opset,
        ir_version=ir_version,
    )


def cnn(*, opset: int = 18, ir_version: int = 8, batch: int | str = "N", seed: int = 0) -> ModelProto:
    """x (N, 3, 12, 12) -> Conv-BN-ReLU -> depthwise Conv-BN-ReLU -> mean over the image -> Flatten -> Gemm (N, 7)."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {
        "conv1.weight": random.normal(0, 0.3, (8, 3, 3, 3)),
        "conv2.weight": random.normal(0, 0.3, (8, 1, 3, 3)),
        "conv3.weight": random.normal(0, 0.3, (16, 8, 1, 1)),
        "fc.weight": random.normal(0, 0.5, (7, 16)),
        "fc.bias": random.normal(0, 0.1, 7),
    }
    nodes: list[NodeProto] = []
    previous = "x"
    for index, (channels, options) in enumerate(
        ((8, {"pads": [1, 1, 1, 1]}), (8, {"pads": [1, 1, 1, 1], "group": 8}), (16, {})), start=1
    ):
        for part, low, high in (("gamma", 0.5, 1.5), ("beta", -0.2, 0.2), ("mean", -0.3, 0.3), ("var", 0.5, 2.0)):
            weights[f"bn{index}.{part}"] = random.uniform(low, high, channels)
        nodes += [
            helper.make_node(
                "Conv", [previous, f"conv{index}.weight"], [f"c{index}"], name=f"/conv{index}/Conv", **options
            ),
            helper.make_node(
                "BatchNormalization",
                [f"c{index}", *(f"bn{index}.{part}" for part in ("gamma", "beta", "mean", "var"))],
                [f"n{index}"],
                name=f"/bn{index}/BatchNormalization",
            ),
            helper.make_node("Relu", [f"n{index}"], [f"r{index}"], name=f"/relu{index}/Relu"),
        ]
        previous = f"r{index}"
    nodes += [
        helper.make_node("GlobalAveragePool", [previous], ["pooled"], name="/pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="/flatten"),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], name="/fc/Gemm", transB=1),
    ]
    return build(
        nodes,
        {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()},
        inputs={"x": [batch, 3, 12, 12]},
        outputs={"logits": [batch, 7]},
        opset=opset,
        ir_version=ir_version,
    )


def transformer_block(*, opset: int = 18, ir_version: int = 8, seed: int = 0) -> ModelProto:
    """x (N, L, 32) -> one-head attention -> residual, LayerNormalization -> mean over L -> logits (N, 4)."""
    random = np.random.default_rng(seed)
    weights = {name: random.normal(0, 0.2, (32, 32)).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
    weights["head"] = random.normal(0, 0.3, (32, 4)).astype(np.float32)
    weights["scale"] = np.array(32**-0.5, np.float32)
    weights["gamma"], weights["beta"] = np.ones(32, np.float32), np.zeros(32, np.float32)
    weights["axes"] = np.array([1], np.int64)
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "wq"], ["q"], name="/attn/q/MatMul"),
        node("MatMul", ["x", "wk"], ["k"], name="/attn/k/MatMul"),
        node("MatMul", ["x", "wv"], ["v"], name="/attn/v/MatMul"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["qk"], name="/attn/scores"),
        node("Mul", ["qk", "scale"], ["scaled"]),
        node("Softmax", ["scaled"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["ctx"], name="/attn/context"),
        node("MatMul", ["ctx", "wo"], ["o"], name="/attn/o/MatMul"),
        node("Add", ["x", "o"], ["res"]),
        node("LayerNormalization", ["res", "gamma", "beta"], ["ln"], axis=-1),
        node("ReduceMean", ["ln", "axes"], ["mean"], keepdims=0),
        node("MatMul", ["mean", "head"], ["logits"], name="/head/MatMul"),
    ]
    return build(
        nodes,
        weights,
        inputs={"x": ["N", "L", 32]},
        outputs={"logits": ["N", 4]},
        opset=opset,
        ir_version=ir_version,
    )


def with_traces(model: ModelProto, path: str) -> ModelProto:
    """What exporters leave behind: stack traces with paths on nodes, tensors, values, the graph and the model."""
    dirty = ModelProto()
    dirty.CopyFrom(model)
    dirty.producer_name, dirty.doc_string = "pytorch", f"built in {path}"
    dirty.graph.doc_string, dirty.graph.name = f"from {path}", f"{path}/main_graph"
    dirty.graph.metadata_props.add(key="folder", value=path)
    dirty.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    dirty.metadata_props.add(key="names", value="{0: 'cat'}")
    dirty.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 24]))
    dirty.opset_import.add(domain="com.example.unused", version=1)
    for node in dirty.graph.node:
        node.doc_string = f'File "{path}/model.py", line 3'
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=f'File "{path}/model.py", line 3')
    for tensor in dirty.graph.initializer:
        tensor.doc_string = path
    for value in (*dirty.graph.input, *dirty.graph.output):
        value.doc_string = path
    dirty.graph.initializer.append(numpy_helper.from_array(np.zeros(1000, np.float32), "unused"))
    return dirty


def with_initializers_as_inputs(model: ModelProto) -> ModelProto:
    """As files of IR 3 are: every initializer is listed among the inputs too."""
    old = ModelProto()
    old.CopyFrom(model)
    for tensor in model.graph.initializer:
        old.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    old.ir_version = 3
    return old


def run(model: ModelProto | bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the model in a bare onnxruntime session: independent of the code under test."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def samples(model: ModelProto, count: int, *, seed: int = 1, length: int = 6) -> dict[str, np.ndarray]:
    """Normal random float32 samples that fit the model's first input; inner symbolic axes get `length`."""
    value = model.graph.input[0]
    shape = [dim.dim_value or length for dim in value.type.tensor_type.shape.dim[1:]]
    return {value.name: np.random.default_rng(seed).normal(0, 1, (count, *shape)).astype(np.float32)}


def op_types(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def first_axis(model: ModelProto) -> list[str | int]:
    """The first axis of every input and output, as the file names it."""
    axes = [value.type.tensor_type.shape.dim[0] for value in (*model.graph.input, *model.graph.output)]
    return [dim.dim_param or dim.dim_value for dim in axes]


def load(path: object) -> ModelProto:
    return onnx.load(str(path))
