"""Tables of embeddings in 8 bits: most of a small text model is its table, and only a few rows of it are ever read.

Each row has a scale of its own. What is looked up is multiplied back after the look-up,

    Gather(int8 table, ids) -> Cast -> Mul(Gather(scales, ids))

because DequantizeLinear in front of the Gather would turn the whole table into float when the file is loaded.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

# Values; a smaller table is not worth three further nodes.
LEAST = 4096
_LARGEST = 127.0


def quantize_tables(model: ModelProto) -> ModelProto:
    """The same model, changed in place, with its embedding tables in int8.

    A table is a float32 initializer (rows, width) that nothing but Gather reads, along its rows.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and tensor.dims[0] * tensor.dims[1] >= LEAST
        and readers.get(name)
        and all(_looks_up_rows(node, name) for node in readers[name])
    }
    for name, tensor in found.items():
        table = numpy_helper.to_array(tensor)
        scales = np.abs(table).max(axis=1, keepdims=True) / np.float32(_LARGEST)
        scales = np.where(scales > 0, scales, 1).astype(np.float32)
        rows = np.rint(table / scales).astype(np.int8)
        tensor.CopyFrom(numpy_helper.from_array(rows, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scales"))
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += _looked_up(node) if node.op_type == "Gather" and node.input[0] in found else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _looks_up_rows(node: NodeProto, name: str) -> bool:
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    return node.op_type == "Gather" and node.domain == "" and axis in (0, -2) and list(node.input).count(name) == 1


def _looked_up(node: NodeProto) -> list[NodeProto]:
    """The nodes in the place of one look-up."""
    (table, ids), out, name = node.input, node.output[0], node.name or node.output[0]
    return [
        helper.make_node("Gather", [f"{table}_int8", ids], [f"{out}_int8"], f"{name}_int8", axis=0),
        helper.make_node("Gather", [f"{table}_scales", ids], [f"{out}_scale"], f"{name}_scale", axis=0),
        helper.make_node("Cast", [f"{out}_int8"], [f"{out}_cast"], f"{name}_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{out}_cast", f"{out}_scale"], [out], f"{name}_scaled"),
    ]
