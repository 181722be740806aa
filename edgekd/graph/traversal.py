"""Walks through ONNX models: inner graphs, nodes, tensors, and the order of nodes."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from edgekd.errors import ModelError


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside the attributes of `node` (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of the graph, of its inner graphs and of its functions."""
    for graph in graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph, then every inner one, those of functions too."""
    yield model.graph
    pending: list[NodeProto] = [*model.graph.node]
    for function in model.functions:
        pending.extend(function.node)
    while pending:
        for inner in subgraphs(pending.pop()):
            yield inner
            pending.extend(inner.node)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that the model holds: initializers and attributes, dense and sparse."""
    for graph in graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from attribute.tensors


def graphs_of_main(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph and those inside it, without the functions."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        pending.extend(inner for node in graph.node for inner in subgraphs(node))


def function_nodes(function: FunctionProto) -> Iterator[NodeProto]:
    """The nodes of a function, those of graphs inside it too."""
    pending: list[NodeProto] = list(function.node)
    while pending:
        node = pending.pop()
        yield node
        pending.extend(inner_node for inner in subgraphs(node) for inner_node in inner.node)


def sort_nodes(graph: GraphProto) -> None:
    """Every node after those whose outputs it reads; otherwise in the order that it had.

    Raises `ModelError` when nodes wait for each other.
    """
    made_by = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    order: list[int] = []
    opened: set[int] = set()
    done: set[int] = set()
    for first in range(len(graph.node)):
        stack = [first]
        while stack:
            index = stack[-1]
            waits = [made_by[name] for name in reads(graph.node[index]) if name in made_by]
            missing = [] if index in done else [other for other in waits if other not in done and other != index]
            if opened.intersection(missing):
                name = graph.node[index].name or graph.node[index].op_type
                raise ModelError(
                    f"node '{name}' waits for its own result; expected a graph without circles: export it again"
                )
            if missing:
                opened.add(index)
                stack.extend(reversed(missing))
                continue
            stack.pop()
            if index not in done:
                done.add(index)
                order.append(index)
    nodes = [NodeProto.FromString(graph.node[index].SerializeToString(deterministic=True)) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def reads(node: NodeProto) -> list[str]:
    """The names that `node` reads, those inside its branches and bodies too."""
    names = list(node.input)
    for inner in subgraphs(node):
        for inner_node in inner.node:
            names += reads(inner_node)
    return names
