"""Attention as one operator: onnxruntime's own fusion does not know the nodes that torch's exporter writes.

What is looked for, for queries, keys and values x Wq + bq, x Wk + bk, x Wv + bv of shape (N, L, D):

    Reshape (N, L, heads, D / heads) -> Transpose          of each
    MatMul(queries, keys) -> Mul or Div by a constant -> Add(bias of the mask) -> Softmax
    MatMul(., values) -> Transpose -> Reshape (N, L, D)

It becomes `MultiHeadAttention` of the domain com.microsoft, which reads the three tensors (N, L, D) and, per text,
which keys count: the bias of a padding mask is the same for every head and query.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgekd.graph.traversal import reads

DOMAIN = "com.microsoft"
HEADS_APART = [0, 2, 1, 3]
KEYS_TURNED = [0, 2, 3, 1]
# A bias below this takes a key out: exporters write -10000 or the lowest float, and 0 for a key that counts.
TAKEN_OUT = -1000.0


@dataclass(frozen=True)
class _Attention:
    """One attention: its inputs (N, L, D), the bias of its mask (None: all keys count), and the node that ends it."""

    query: str
    key: str
    value: str
    mask: str | None
    heads: int
    scale: float
    last: NodeProto


def fuse_attention(model: ModelProto) -> int:
    """Join what is found, in place; how many there were."""
    graph = model.graph
    found = _find(graph)
    if not found:
        return 0
    masks: dict[str, str] = {}
    ends = {item.last.output[0]: item for item in found}
    nodes: list[NodeProto] = []
    for node in graph.node:
        item = ends.get(node.output[0])
        if item is None:
            nodes.append(node)
            continue
        if item.mask is not None and item.mask not in masks:
            nodes += _counted_keys(graph, item.mask)
            masks[item.mask] = f"{item.mask}_keys"
        mask = "" if item.mask is None else masks[item.mask]
        nodes.append(
            helper.make_node(
                "MultiHeadAttention",
                [item.query, item.key, item.value, "", *([mask] if mask else [])],
                [node.output[0]],
                f"{node.output[0]}_attention",
                domain=DOMAIN,
                num_heads=item.heads,
                scale=item.scale,
            )
        )
    del graph.node[:]
    graph.node.extend(_read_by_somebody(nodes, {value.name for value in graph.output}))
    # onnxruntime warns about tensors that nobody reads.
    used = {name for node in graph.node for name in reads(node)} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if all(item.domain != DOMAIN for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(found)


def _read_by_somebody(nodes: list[NodeProto], wanted: set[str]) -> list[NodeProto]:
    """Those of the nodes (each after what it reads) that the tensors `wanted` depend on."""
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted = wanted.union(reads(node))
    return kept[::-1]


def _counted_keys(graph: GraphProto, mask: str) -> list[NodeProto]:
    """From the bias (N, 1, 1 or L, L) to (N, L) int32, 1 for a key that counts."""
    axes, limit = f"{mask}_axes", f"{mask}_limit"
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2], np.int64), axes))
    graph.initializer.append(numpy_helper.from_array(np.array(TAKEN_OUT, np.float32), limit))
    return [
        helper.make_node("ReduceMax", [mask, axes], [f"{mask}_NL"], f"{mask}_reduce", keepdims=0),
        helper.make_node("Greater", [f"{mask}_NL", limit], [f"{mask}_counts"], f"{mask}_greater"),
        helper.make_node("Cast", [f"{mask}_counts"], [f"{mask}_keys"], f"{mask}_cast", to=TensorProto.INT32),
    ]


def _find(graph: GraphProto) -> list[_Attention]:
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in reads(node))
    outputs = {value.name for value in graph.output}

    def source(name: str, kind: str) -> NodeProto | None:
        """The node of that kind that makes `name`, if nobody else reads it."""
        node = made_by.get(name)
        fits = node is not None and node.op_type == kind and readers[name] == 1 and name not in outputs
        return node if fits else None

    def apart(name: str, order: list[int]) -> str | None:
        """The tensor (N, L, D) whose heads were taken apart."""
        turned = source(name, "Transpose")
        if turned is None or _order(turned) != order:
            return None
        shaped = source(turned.input[0], "Reshape")
        return None if shaped is None else shaped.input[0]

    def width(name: str) -> int | None:
        """D of a tensor (N, L, D) that a bias was added to."""
        node = made_by.get(name)
        sizes = [constants[item].dims for item in (() if node is None else node.input) if item in constants]
        return (
            int(sizes[0][-1]) if node is not None and node.op_type == "Add" and sizes and len(sizes[0]) == 1 else None
        )

    found = []
    for node in graph.node:
        if node.op_type != "Softmax" or readers[node.output[0]] != 1 or node.output[0] in outputs:
            continue
        product = next(
            (item for item in graph.node if item.op_type == "MatMul" and item.input[0] == node.output[0]), None
        )
        value = None if product is None else apart(product.input[1], HEADS_APART)
        ends = [item for item in graph.node if product is not None and product.output[0] in item.input]
        if value is None or len(ends) != 1 or ends[0].op_type != "Transpose" or _order(ends[0]) != HEADS_APART:
            continue
        last = [item for item in graph.node if ends[0].output[0] in item.input]
        if len(last) != 1 or last[0].op_type != "Reshape":
            continue
        mask, scores = None, node.input[0]
        added = source(scores, "Add")
        if added is not None:
            sides = [name for name in added.input if _is_scored(made_by.get(name))]
            if len(sides) != 1:
                continue
            scores = sides[0]
            mask = next(name for name in added.input if name != scores)
        scale, scores = _scale(source(scores, "Mul") or source(scores, "Div"), constants, scores)
        multiplied = source(scores, "MatMul")
        if multiplied is None:
            continue
        query, key = apart(multiplied.input[0], HEADS_APART), apart(multiplied.input[1], KEYS_TURNED)
        wide = None if query is None else width(query)
        heads = None if wide is None else _heads(made_by, constants, multiplied.input[0], wide)
        if query is None or key is None or heads is None:
            continue
        found.append(_Attention(query, key, value, mask, heads, scale, last[0]))
    return found


def _is_scored(node: NodeProto | None) -> bool:
    return node is not None and node.op_type in ("Mul", "Div", "MatMul")


def _scale(node: NodeProto | None, constants: dict[str, TensorProto], scores: str) -> tuple[float, str]:
    """The factor of the scores, and the scores without it."""
    if node is None:
        return 1.0, scores
    constant = [name for name in node.input if name in constants]
    if len(constant) != 1 or math.prod(constants[constant[0]].dims) != 1:
        return 1.0, scores
    value = float(numpy_helper.to_array(constants[constant[0]]).reshape(()))
    rest = next(name for name in node.input if name not in constants)
    return (1.0 / value if node.op_type == "Div" else value), rest


def _heads(made_by: dict[str, NodeProto], constants: dict[str, TensorProto], name: str, wide: int) -> int | None:
    """How many heads the tensor `name` was taken apart into: the width over the last number of the shape it was given,
    or where that is -1, "what remains", the number before it."""
    shape = made_by[made_by[name].input[0]].input[1]
    joined = made_by.get(shape)
    parts = [shape] if joined is None or joined.op_type != "Concat" else list(joined.input)
    sizes: list[int] = []
    for part in reversed(parts):  # numbers that the graph computes stand before these
        if part not in constants:
            break
        sizes = [*numpy_helper.to_array(constants[part]).ravel().tolist(), *sizes]
    if not sizes:
        return None
    if sizes[-1] > 0:
        return wide // sizes[-1] if wide % sizes[-1] == 0 else None
    fits = len(sizes) > 1 and sizes[-2] > 0 and wide % sizes[-2] == 0
    return int(sizes[-2]) if fits else None


def _order(node: NodeProto) -> list[int]:
    return next((list(item.ints) for item in node.attribute if item.name == "perm"), [])
