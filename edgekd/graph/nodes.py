"""Writing ONNX nodes by hand: a builder that names what it makes, and what joins its nodes with somebody's graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgekd.graph.quantizers import raise_opset
from edgekd.graph.traversal import graphs_of_main, subgraphs
from edgekd.spec import Array, TensorSpec


class Nodes:
    """Nodes and constants under one prefix, in the order in which they are asked for."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self._prefix = prefix
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(
        self, kind: str, *inputs: str, outputs: int = 1, into: str | None = None, attributes: Mapping[str, object] = {}
    ) -> str:
        """A node with that operator; its (first) output, which is called `into` where that is given.

        With several outputs their names are the returned one followed by /1, /2, ...
        """
        name = f"{self._prefix}{kind}_{len(self.nodes)}"
        first = into or name
        names = [first, *(f"{first}/{place}" for place in range(1, outputs))]
        node = helper.make_node(kind, list(inputs), names, name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
        self.nodes.append(node)
        return first

    def constant(self, value: Array) -> str:
        """The name of a constant; equal ones are kept once."""
        array = np.ascontiguousarray(value) if value.ndim else value
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"{self._prefix}constant_{len(self._known)}"
            self.weights.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def whole(self, *values: int) -> str:
        """A constant (n,) of int64."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant of float32 without axes."""
        return self.constant(np.array(value, np.float32))

    def texts(self, values: tuple[str, ...]) -> str:
        """A constant (n,) of strings."""
        name = f"{self._prefix}texts_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, object), name))
        return name


def value_info(spec: TensorSpec) -> ValueInfoProto:
    """What a graph says of an input or output; "str" are strings."""
    kind = TensorProto.STRING if spec.dtype == "str" else helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, kind, list(spec.shape))


def rename_tensor(model: ModelProto, old: str, new: str) -> None:
    """Let every node of the main graph, and of the graphs inside it, read and write `new` where it said `old`."""
    for graph in graphs_of_main(model):
        for node in graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == old:
                        names[place] = new
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            if value.name == old:
                value.name = new


def tensor_names(graph: GraphProto) -> set[str]:
    """Every name that the graph, or one inside it, gives to a tensor."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        names.update(node.output)
        for inner in subgraphs(node):
            names |= tensor_names(inner)
    return names


def branch(nodes: Nodes, output: TensorSpec) -> GraphProto:
    """A graph without inputs, for one side of an If: it reads what lies around it."""
    return helper.make_graph(nodes.nodes, output.name.replace("/", "_"), [], [value_info(output)], nodes.weights)


def copy_to_extend(model: ModelProto) -> ModelProto:
    """A copy at opset 13 or above, without the shapes of inner tensors."""
    copy = ModelProto()
    copy.CopyFrom(raise_opset(model))
    del copy.graph.value_info[:]
    return copy


def real_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that are no weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def free_name(model: ModelProto, wanted: str) -> str:
    """`wanted`, with underscores behind it while the graph has such a tensor."""
    taken = tensor_names(model.graph)
    while wanted in taken:
        wanted += "_"
    return wanted


def put(model: ModelProto, made: Nodes, *, in_front: bool) -> None:
    """Add the nodes and constants to the main graph, before or after its own."""
    nodes = [*made.nodes, *model.graph.node] if in_front else [*model.graph.node, *made.nodes]
    nodes = [NodeProto.FromString(node.SerializeToString(deterministic=True)) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(made.weights)
