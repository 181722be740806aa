"""Graphs of texts that read their ids alone, as those of edgekd do.

Exporters of Hugging Face's models ask for a mask and for types of tokens beside the ids. For one text, padded on the
right, both follow from the ids: they are made inside, and cannot get out of step with them.

Axes: N batch, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, helper

from edgekd.device.texts import MASK, ids_of
from edgekd.graph.clean import clean
from edgekd.graph.nodes import Nodes, copy_to_extend, free_name, put, rename_tensor, value_info
from edgekd.spec import TensorSpec

# What stands between an input and its table, and between a table and where it is looked up.
_SAME_VALUES = frozenset({"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_SAME_ROWS = frozenset({"Cast", "Identity", "DequantizeLinear"})


def table_rows(model: ModelProto, name: str) -> int | None:
    """How many rows the table has in which the integer input `name` is looked up: its ids are smaller than that.

    Of several tables that of the fewest rows; None where no constant is found that is looked up along its rows.
    """
    rows = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if tensor.dims}
    ids, found = {name}, list[int]()
    for node in model.graph.node:
        if node.op_type in _SAME_VALUES and node.input[0] in ids:
            ids.add(node.output[0])
        elif node.op_type in _SAME_ROWS and node.input[0] in rows:
            rows[node.output[0]] = rows[node.input[0]]
        elif node.op_type == "Gather" and node.input[1] in ids and node.input[0] in rows:
            found += [rows[node.input[0]]] if not any(item.name == "axis" and item.i for item in node.attribute) else []
    return min(found, default=None)


def reading_ids_alone(model: ModelProto, specs: Sequence[TensorSpec], pad: int) -> ModelProto:
    """A copy with one input, the ids in int64: all that are not `pad` count, and all are of the first type.

    `specs` are the inputs of `model`. Raises `InputRefused` for those that do not follow from ids.
    """
    ids, made, nodes = ids_of(specs), copy_to_extend(model), Nodes("texts/")
    for spec in specs:
        if spec is ids and spec.dtype == "int64":
            continue
        inner = free_name(made, f"texts/{spec.name}")
        rename_tensor(made, spec.name, inner)
        kind = {"to": helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))}
        if spec is ids:
            nodes.add("Cast", ids.name, into=inner, attributes=kind)
        elif spec.name == MASK:
            counts = nodes.add("Not", nodes.add("Equal", ids.name, nodes.constant(np.array(pad, np.int64))))
            nodes.add("Cast", counts, into=inner, attributes=kind)
        else:
            first = helper.make_tensor("first", kind["to"], [1], [0])
            nodes.add("ConstantOfShape", nodes.add("Shape", ids.name), into=inner, attributes={"value": first})
    put(made, nodes, in_front=True)
    weights = {tensor.name for tensor in made.graph.initializer}
    kept = [value for value in made.graph.input if value.name in weights]
    del made.graph.input[:]
    made.graph.input.extend([value_info(alone(ids)), *kept])
    return clean(made, ir_version=made.ir_version)


def alone(ids: TensorSpec) -> TensorSpec:
    """The one input that is left of `ids`: int64, its axes with names."""
    return TensorSpec(ids.name, "int64", tuple(name if size == "?" else size for size, name in zip(ids.shape, "NL")))
