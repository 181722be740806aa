"""Operators that cannot be used: unknown ones, by name and with what to take instead, and those that draw lots."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator

import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from edgekd.errors import ModelError
from edgekd.graph.traversal import all_nodes, graphs

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_ONNX = ("", "ai.onnx")
# Operators that are asked for often and that onnx has under another name, or not at all.
_ALTERNATIVES = {
    "Upsample": "Resize",
    "Scatter": "ScatterElements",
    "ATen": "tensor operations that torch.onnx.export knows",
    "SiLU": "Mul with Sigmoid",
    "Swish": "Mul with Sigmoid",
    "GroupNorm": "Reshape and InstanceNormalization",
    "RMSNorm": "RMSNormalization (opset 23), or Mul, ReduceMean, Sqrt and Div",
    "ScaledDotProductAttention": "Attention (opset 23), or MatMul, Softmax and MatMul",
    "Linear": "Gemm, or MatMul and Add",
}


def label(node: NodeProto) -> str:
    """How a node is called in texts: its name and its operator."""
    kind = node.op_type if node.domain in _ONNX else f"{node.domain}.{node.op_type}"
    return f"'{node.name or node.output[0] if node.output else node.name}' ({kind})"


def refuse_unknown(model: ModelProto, name: str) -> None:
    """Raise `ModelError` for the first operator of ONNX's own domain that the model's opset does not have."""
    own = {(function.domain, function.name) for function in model.functions}
    opset = next((item.version for item in model.opset_import if item.domain in _ONNX), 1)
    for node in all_nodes(model):
        if node.domain not in _ONNX or (node.domain, node.op_type) in own:
            continue
        versions = _versions().get(node.op_type)
        known = versions is not None and onnx.defs.has(node.op_type, opset, "")
        if not known or onnx.defs.get_schema(node.op_type, opset, "").deprecated:
            raise ModelError(
                f"{name}: node {label(node)} is not an operator of opset {opset}; {_instead(node.op_type, opset)}"
            )


def foreign_advice(domain: str, op_type: str) -> str:
    """What to do about an operator of a domain that a runtime does not know."""
    if domain == "com.microsoft":
        return "it is onnxruntime's own: run the file there, or make it again without fused or quantized operators"
    base = _ALTERNATIVES.get(op_type) or _near(op_type)
    instead = f", such as {base}" if base else ""
    return f"write it with ONNX's own operators{instead}, or as a function inside the model"


def random_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes whose output is another one each time."""
    constants = {tensor.name: tensor for graph in graphs(model) for tensor in graph.initializer}

    def trains(node: NodeProto) -> bool:
        flag = constants.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
        return flag is not None and bool(numpy_helper.to_array(flag).any())

    return [node for node in all_nodes(model) if node.domain in _ONNX and (node.op_type in _RANDOM or trains(node))]


def refuse_random(model: ModelProto, name: str) -> None:
    """Raise `ModelError` for a model that answers differently each time: nothing can be compared with it."""
    for node in random_nodes(model):
        raise ModelError(
            f"{name}: node {label(node)} draws random numbers, so that no two answers are equal; expected a graph that "
            "answers the same twice: export the model in eval mode, or make the noise an input"
        )


@functools.lru_cache(maxsize=1)
def _versions() -> dict[str, tuple[int, ...]]:
    """Operator of ONNX's own domain -> opsets that brought or changed it."""
    found: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in _ONNX:
            found.setdefault(schema.name, []).append(schema.since_version)
    return {name: tuple(sorted(versions)) for name, versions in found.items()}


def _instead(op_type: str, opset: int) -> str:
    if op_type in _ALTERNATIVES:
        return f"use {_ALTERNATIVES[op_type]} instead"
    versions = _versions().get(op_type)
    if versions and versions[0] > opset:
        return f"opset {versions[0]} brought it: export the model with that one, or compose it of older operators"
    if versions:
        return "it was removed from ONNX: export the model again with a current exporter"
    close = _near(op_type)
    hint = f"did you mean {close}? " if close else ""
    return f"{hint}Write it with ONNX's own operators, or as a function inside the model"


def _near(op_type: str) -> str:
    return next(iter(difflib.get_close_matches(op_type, _names(), n=1, cutoff=0.7)), "")


def _names() -> Iterator[str]:
    return iter(sorted(_versions()))
