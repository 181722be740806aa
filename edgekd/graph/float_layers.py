"""Layers that stay in float inside an int8 model: kept so when the file is loaded, and stored in 16 bits if asked."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekd.graph.traversal import reads

# What onnxruntime moves QuantizeLinear across, towards the layer.
_PASSED = ("Relu", "Clip", "MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Identity")
_LARGEST_HALF = 65504.0


def guard(model: ModelProto, layers: Collection[str]) -> ModelProto:
    """The same model, whose nodes `layers` no runtime quantizes again.

    onnxruntime (seen in 1.31) rounds the float weights of a Conv or Gemm between DequantizeLinear and QuantizeLinear
    to int8 when it loads the file, which is what was to be avoided. With a Max behind the layer it finds no such
    pair: Max(x, 0) instead of a ReLU, else Max(x, lowest float), which changes nothing.
    """
    graph = model.graph
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    guards: dict[str, NodeProto] = {}
    for node in graph.node:
        if node.name not in layers or not constants & set(node.input[1:]) or node.output[0] in outputs:
            continue
        if not _is_quantized(node.output[0], readers):
            continue
        after = readers[node.output[0]]
        if len(after) == 1 and after[0].op_type == "Relu":
            after[0].op_type = "Max"
            after[0].input.append(_constant(model, "guard_zero", 0.0))
            continue
        inner = f"{node.output[0]}_unguarded"
        lowest = _constant(model, "guard_lowest", float(np.finfo(np.float32).min))
        guards[node.name] = helper.make_node("Max", [inner, lowest], [node.output[0]], f"{node.name}_guard")
        node.output[0] = inner
    nodes = [item for node in graph.node for item in (node, *filter(None, [guards.get(node.name)]))]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def halve_weights(model: ModelProto, layers: Collection[str]) -> ModelProto:
    """The same model with the float32 weights of these nodes stored in 16 bits, and a Cast back behind each, which
    onnxruntime folds when it loads the file: half the bytes, the kernels of float32."""
    read = {name for node in model.graph.node if node.name in layers for name in node.input}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name not in read or tensor.data_type != TensorProto.FLOAT:
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        if values.size < 2 or np.abs(values).max() > _LARGEST_HALF:
            continue
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_float16"))
        casts.append(helper.make_node("Cast", [f"{name}_float16"], [name], f"{name}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _is_quantized(name: str, readers: dict[str, list[NodeProto]]) -> bool:
    """Whether a QuantizeLinear reads the tensor, or what is only moved or cut from it."""
    return any(
        node.op_type == "QuantizeLinear" or (node.op_type in _PASSED and _is_quantized(node.output[0], readers))
        for node in readers.get(name, ())
    )


def _constant(model: ModelProto, name: str, value: float) -> str:
    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    return name
