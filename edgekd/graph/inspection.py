"""What an ONNX file holds, what it costs, and what it takes to run it: read from the file, nothing is run."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, inliner, numpy_helper

from edgekd.graph.clean import load_model
from edgekd.graph.operators import foreign_advice, label, random_nodes
from edgekd.graph.traversal import all_nodes, subgraphs, tensors
from edgekd.graph.verification import Precision
from edgekd.spec import TensorSpec

# onnxruntime release -> newest opset and IR version that it loads. Each line from 1.15 on was measured by loading
# one-node models in that release; 1.14 and older are of its own table (docs/Versioning.md).
_RELEASES: tuple[tuple[str, int, int], ...] = (
    ("1.3", 12, 6),
    ("1.6", 13, 7),
    ("1.8", 14, 7),
    ("1.9", 15, 8),
    ("1.11", 16, 8),
    ("1.12", 17, 8),
    ("1.14", 18, 8),
    ("1.15", 19, 9),
    ("1.17", 20, 9),
    ("1.18", 21, 10),
    ("1.21", 22, 10),
    ("1.23", 23, 11),
    ("1.24", 25, 13),
    ("1.31", 26, 13),
)
# Operators of onnxruntime itself that edgekd writes, and the release that brought them.
_OWN_OPERATORS = {"MatMulNBits": "1.17"}
_WEIGHT_TYPES = frozenset(
    {"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2"}
)
_FLOATS = ("FLOAT", "FLOAT16", "DOUBLE")
# Which inputs of an operator are scales and zero points: part of the encoding of a weight, no parameters.
_ENCODING_INPUTS: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "MatMulNBits": (2, 3),
}
# Operators of onnxruntime itself that give what has the shape of their first input.
_ELEMENTWISE = (
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "BiasGelu",
    "FastGelu",
    "Gelu",
    "QuickGelu",
)
_PRODUCTS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "MatMul", "Gemm", "MatMulInteger", "QLinearMatMul")


@dataclass(frozen=True)
class Inspection:
    """A file's contents.

    ops          operator -> how often, most frequent first; inner graphs and functions included
    macs         multiplications of matrix products and convolutions for one sample (symbolic axes at 1); None where
                 a shape is not known before it runs
    parameters   numbers in weights; scales and zero points of quantized ones are not counted
    size_bytes   of the file; weights in files beside it are counted
    precision    "float32", "float16", "int8" or "int4": the smallest that layers compute with
    min_runtime  runtime -> oldest release that loads the file; empty where none is known
    problems     what stands in the way of running it elsewhere, one sentence each
    """

    ops: Mapping[str, int]
    macs: int | None
    parameters: int
    precision: Precision
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size_bytes: int
    min_runtime: Mapping[str, str]
    metadata: Mapping[str, str]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values under the same names."""

        def plain(spec: TensorSpec) -> dict[str, Any]:
            return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}

        return {
            "ops": dict(self.ops),
            "macs": self.macs,
            "parameters": self.parameters,
            "precision": self.precision,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "inputs": [plain(spec) for spec in self.inputs],
            "outputs": [plain(spec) for spec in self.outputs],
            "size_bytes": self.size_bytes,
            "min_runtime": dict(self.min_runtime),
            "metadata": dict(self.metadata),
            "problems": list(self.problems),
        }


def inspect(source: str | os.PathLike[str] | bytes) -> Inspection:
    """Read an ONNX file or its bytes. Raises `ModelError` when it is none (see `clean.load_model`)."""
    model = load_model(source)
    ops = Counter(_title(node) for node in all_nodes(model))
    domains = {item.domain: item.version for item in model.opset_import}
    opset = domains.get("", domains.get("ai.onnx", 1))
    macs, problems = _count_macs(model)
    oldest = min_onnxruntime(opset, model.ir_version, ops)
    if oldest is None:
        newest = _RELEASES[-1]
        problems.append(
            f"opset {opset} with IR {model.ir_version} is newer than what onnxruntime {newest[0]} loads "
            f"(opset {newest[1]}, IR {newest[2]}); export it with --opset 18 --ir-version 8"
        )
    foreign = sorted({node.domain for node in all_nodes(model)} - {"", "ai.onnx"} - {f.domain for f in model.functions})
    for domain in foreign:
        who = "onnxruntime's own" if domain == "com.microsoft" else "not part of ONNX"
        problems.append(f"needs operators of the domain {domain}, which are {who}: other runtimes cannot load the file")
    problems += _foreign_operators(model)
    problems += [
        f"node {label(node)} draws random numbers: no two answers are equal; export the model in eval mode"
        for node in random_nodes(model)
    ]
    problems += _not_finite(model)
    fixed = [value.name for value in _real_inputs(model) if _has_fixed_batch(value)]
    if fixed:
        problems.append(f"the first axis of the input {', '.join(fixed)} is fixed: the model takes no other batch size")
    return Inspection(
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        macs=macs,
        parameters=_count_parameters(model),
        precision=_precision(model),
        opset=opset,
        ir_version=model.ir_version,
        inputs=tuple(_spec(value) for value in _real_inputs(model)),
        outputs=tuple(_spec(value) for value in model.graph.output),
        size_bytes=len(source) if isinstance(source, bytes) else max(Path(source).stat().st_size, model.ByteSize()),
        min_runtime={} if oldest is None else {"onnxruntime": oldest},
        metadata={prop.key: prop.value for prop in model.metadata_props},
        problems=tuple(problems),
    )


def min_onnxruntime(opset: int, ir_version: int, ops: Mapping[str, int] | None = None) -> str | None:
    """The oldest onnxruntime release known to load such a model; None when none is. `ops` as `Inspection.ops`."""
    fitting = [name for name, max_opset, max_ir in _RELEASES if opset <= max_opset and ir_version <= max_ir]
    needed = [_OWN_OPERATORS[op.split(".")[-1]] for op in ops or {} if op.split(".")[-1] in _OWN_OPERATORS]
    return max([fitting[0], *needed], key=_release) if fitting else None


def _release(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("."))


def _title(node: NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _real_inputs(model: ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _has_fixed_batch(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 0 and dims[0].HasField("dim_value")


def _foreign_operators(model: ModelProto) -> list[str]:
    """Operators of domains that are neither ONNX's, nor onnxruntime's, nor of the model's own functions."""
    own = {(function.domain, function.name) for function in model.functions}
    known = {"", "ai.onnx", "com.microsoft", "ai.onnx.ml"}
    found = {
        (node.domain, node.op_type): node
        for node in all_nodes(model)
        if node.domain not in known and (node.domain, node.op_type) not in own
    }
    return [
        f"node {label(node)} is an operator that no runtime here knows: {foreign_advice(*key)}"
        for key, node in sorted(found.items())
    ]


def _not_finite(model: ModelProto) -> list[str]:
    problems = []
    for tensor in tensors(model):
        if TensorProto.DataType.Name(tensor.data_type) not in _FLOATS or not tensor.name:
            continue
        values = numpy_helper.to_array(tensor)
        bad = int(np.count_nonzero(np.isnan(values)))
        if bad:
            problems.append(
                f"the weight '{tensor.name}' holds {bad} NaN of {values.size} numbers: did training diverge?"
            )
    return problems


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim)
    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, str(value.type.WhichOneof("value")), shape)
    name = TensorProto.DataType.Name(tensor.elem_type)
    known = {"FLOAT": "float32", "DOUBLE": "float64", "STRING": "str"}
    return TensorSpec(value.name, known.get(name, name.lower()), shape)


def _count_parameters(model: ModelProto) -> int:
    encoding: set[str] = set()
    packed: dict[str, int] = {}
    measured = {n.output[1] for n in all_nodes(model) if n.op_type == "DynamicQuantizeLinear" and len(n.output) > 1}
    for node in all_nodes(model):
        places = _ENCODING_INPUTS.get(node.op_type, ())
        encoding.update(node.input[place] for place in places if place < len(node.input))
        if node.op_type == "Mul" and measured & set(node.input):
            encoding.update(node.input)  # scale of the activation times scale of the weight
        if node.op_type == "MatMulNBits" and len(node.input) > 1:
            packed[node.input[1]] = math.prod(_matrix_sizes(node))
    count = 0
    for graph in (model.graph, *(inner for node in all_nodes(model) for inner in subgraphs(node))):
        for tensor in _weights(graph):
            if tensor.name in packed:
                count += packed[tensor.name]
            elif tensor.name not in encoding and TensorProto.DataType.Name(tensor.data_type) in _WEIGHT_TYPES:
                count += math.prod(tensor.dims) if tensor.dims else 0
    return count


def _weights(graph: GraphProto) -> list[TensorProto]:
    """Initializers, and Constant nodes under the name of their output."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                named = TensorProto()
                named.CopyFrom(attribute.t)
                named.name = node.output[0]
                found.append(named)
    return found


def _precision(model: ModelProto) -> Precision:
    ops = {node.op_type for node in all_nodes(model)}
    if "MatMulNBits" in ops:
        return "int4"
    if ops & {"DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"}:
        return "int8"
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in _weights(model.graph))
    return "float16" if halves else "float32"


def _count_macs(model: ModelProto) -> tuple[int | None, list[str]]:
    """Multiplications of the main graph for one sample, and what could not be counted."""
    single = _at_batch_one(model)
    shapes = _shapes(single)
    total, unknown = 0, []
    for node in single.graph.node:
        if node.op_type in _PRODUCTS:
            macs = _macs_of(node, shapes)
            if macs is None:
                unknown.append(node.name or node.op_type)
            else:
                total += macs
    problems = []
    if unknown:
        problems.append(f"MACs are not known: the shapes around '{unknown[0]}' depend on the data or were not inferred")
    inner = (graph for node in single.graph.node for graph in subgraphs(node))
    if any(node.op_type in _PRODUCTS for graph in inner for node in graph.node):
        problems.append("MACs count the main graph only; branches and loops hold more")
    return (None if unknown else total), problems


def _at_batch_one(model: ModelProto) -> ModelProto:
    """A copy whose symbolic axes are 1, without functions, and with MatMulNBits as the MatMul that it stands for."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    for value in copy.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    for index, node in enumerate(list(copy.graph.node)):
        if node.op_type == "MatMulNBits":
            weight, kind = f"edgekd_weight_{index}", TensorProto.FLOAT
            copy.graph.input.append(helper.make_tensor_value_info(weight, kind, _matrix_sizes(node)))
            node.CopyFrom(helper.make_node("MatMul", [node.input[0], weight], list(node.output), name=node.name))
        elif node.domain == "com.microsoft" and node.op_type in _ELEMENTWISE:
            whole = [name for name in node.output if name]
            node.CopyFrom(helper.make_node("Sum", [node.input[0]], whole[:1], name=node.name))
            copy.graph.node.extend(helper.make_node("Sum", whole[:1], [name]) for name in whole[1:])
    return copy


def _matrix_sizes(node: NodeProto) -> list[int]:
    """K and N of a MatMulNBits: the rows and columns of the weight before it was packed."""
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return [sizes.get("K", 0), sizes.get("N", 0)]


def _shapes(model: ModelProto) -> dict[str, list[int]]:
    """Name -> shape of every tensor whose shape is known."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model  # a graph that runs may still defeat inference; what is not known is said
    shapes = {tensor.name: list(tensor.dims) for tensor in _weights(inferred.graph)}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes.setdefault(value.name, [dim.dim_value for dim in tensor.shape.dim])
    return shapes


def _macs_of(node: NodeProto, shapes: Mapping[str, list[int]]) -> int | None:
    second = node.input[3 if node.op_type.startswith("QLinear") else 1]
    left, right, out = shapes.get(node.input[0]), shapes.get(second), shapes.get(node.output[0])
    if left is None or right is None or out is None:
        return None
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if "Conv" in node.op_type:
        return math.prod(out) * math.prod(right[1:])
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(out) * left[0 if transposed else 1]
    return math.prod(out) * left[-1]
