"""Read and write ONNX files: one file, no trace of the build machine, the same bytes when built twice.

Exporters and quantizers leave stack traces with absolute paths, stale shapes and unused declarations in a graph
(153 kB on a 1.6 MB model, seen with torch 2.13). `clean` removes what no runtime reads and nothing else: the
numbers that the graph computes stay the same, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from edgekd.errors import ModelError
from edgekd.files import write_bytes
from edgekd.graph.external import MAX_BYTES, is_external, read_external, refuse_external
from edgekd.graph.operators import refuse_unknown
from edgekd.graph.traversal import all_nodes, function_nodes, graphs, graphs_of_main, sort_nodes, subgraphs, tensors
from edgekd.version import __version__

MAX_IR = 13  # of onnxruntime 1.31
# Marks that onnxruntime's tools leave about their own work.
_TOOL_MARKS = frozenset({"onnx.infer", "onnx.quant.pre_process"})
# The IR version that introduced an element type; every type that is not named is older than all IR versions in use.
_IR_OF_TYPE = {
    "FLOAT8E4M3FN": 9,
    "FLOAT8E4M3FNUZ": 9,
    "FLOAT8E5M2": 9,
    "FLOAT8E5M2FNUZ": 9,
    "UINT4": 10,
    "INT4": 10,
    "FLOAT4E2M1": 11,
    "FLOAT8E8M0": 12,
    "UINT2": 13,
    "INT2": 13,
}


def load_model(source: str | os.PathLike[str] | bytes) -> ModelProto:
    """The model in an ONNX file (or in its bytes), checked: parsed, whole, and valid by onnx's own checker.

    Weights that lie in files beside it are put inside the model: a bundle hashes and carries one file. Raises
    `ModelError` for a missing file, one of more than 2 GB (before it is read), anything that is not ONNX, an operator
    that its opset lacks, an invalid graph, and weights that are not where they are said to be, or not in its folder.
    """
    data, name = _read(source)
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{name} is not an ONNX file ({len(data)} bytes, {error}); expected a whole .onnx file: "
            "was it cut short, or is it another format?"
        ) from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelError(f"{name} holds no graph with outputs; expected an ONNX model: was it cut short?")
    if not _is_text(model):
        raise ModelError(f"{name} holds names that are not UTF-8 text; expected a whole ONNX model: is it damaged?")
    _check_types(model, name)
    if isinstance(source, bytes):
        refuse_external(model, name)
    elif any(map(is_external, tensors(model))):
        read_external(model, Path(source))
    refuse_unknown(model, name)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, TypeError, RuntimeError) as error:
        # Mutated files make the checker raise more than its own error: text that is not UTF-8, sizes that overflow.
        raise ModelError(
            f"{name} is not a valid ONNX model: {_first_line(error)}; expected a graph that onnx.checker accepts: "
            "export it again"
        ) from error
    return model


def save_model(model: ModelProto, path: str | os.PathLike[str]) -> Path:
    """Write `model` to one file, atomically; equal models give equal bytes. Raises `ModelError` above 2 GB."""
    size = model.ByteSize()
    if size > MAX_BYTES:
        raise ModelError(
            f"the model for {path} has {size} bytes, but one ONNX file holds at most {MAX_BYTES}; "
            "use a smaller student or a quantized variant"
        )
    return write_bytes(path, model.SerializeToString(deterministic=True))


def clean(model: ModelProto, *, ir_version: int = 8, metadata: Mapping[str, str] | None = None) -> ModelProto:
    """A copy of `model` without traces of the build machine, at `ir_version`. What it computes is unchanged.

    Removed: documentation texts, metadata of nodes and tensors, shapes of inner tensors (runtimes infer them, and
    stale ones are wrong), inputs that only repeat an initializer, unused initializers, functions and opset
    declarations. Initializers are sorted by name, because quantizers emit them in the order of a set, and a node
    stands after those whose outputs it reads.
    `metadata` replaces the model's own key-value pairs; None keeps them, less the marks of tools.

    Raises `ModelError` when the graph holds what `ir_version` cannot (4-bit tensors need IR 10), or external data.
    """
    refuse_external(model, "the model")
    _check_types(model, "the model")
    _check_ir_version(model, ir_version)
    result = ModelProto()
    result.CopyFrom(model)
    pairs = {prop.key: prop.value for prop in model.metadata_props if prop.key not in _TOOL_MARKS}
    del result.metadata_props[:]
    for key, value in sorted((pairs if metadata is None else metadata).items()):
        result.metadata_props.add(key=key, value=value)
    result.ir_version = ir_version
    result.producer_name, result.producer_version = "edgekd", __version__
    result.ClearField("doc_string")
    result.ClearField("training_info")
    for graph in graphs(result):
        _clean_graph(graph)
        sort_nodes(graph)
    result.graph.name = "main"
    _drop_unused_functions(result)
    for function in result.functions:
        for field in ("doc_string", "metadata_props", "value_info"):
            _clear(function, field)
        for node in function.node:
            _clean_node(node)
    _drop_unused_opsets(result)
    return result


def _clear(message: FunctionProto | GraphProto | NodeProto | TensorProto | onnx.ValueInfoProto, field: str) -> None:
    # onnx before 1.17 has no metadata on these messages; there is nothing to clear then.
    if field in message.DESCRIPTOR.fields_by_name:
        message.ClearField(field)


def _clean_node(node: NodeProto) -> None:
    for field in ("doc_string", "metadata_props", "device_configurations"):
        _clear(node, field)
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        if attribute.type == AttributeProto.TENSOR:
            _clean_tensor(attribute.t)


def _clean_tensor(tensor: TensorProto) -> None:
    for field in ("doc_string", "metadata_props"):
        _clear(tensor, field)


def _clean_graph(graph: GraphProto) -> None:
    for field in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
        _clear(graph, field)
    for node in graph.node:
        _clean_node(node)
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    del graph.input[:]
    graph.input.extend(inputs)
    for value in (*graph.input, *graph.output):
        for field in ("doc_string", "metadata_props"):
            _clear(value, field)
    used = _used_names(graph)
    kept = sorted((tensor for tensor in graph.initializer if tensor.name in used), key=lambda tensor: tensor.name)
    for tensor in kept:
        _clean_tensor(tensor)
    copies = [TensorProto.FromString(tensor.SerializeToString(deterministic=True)) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _used_names(graph: GraphProto) -> set[str]:
    """Names that nodes of `graph`, or of graphs inside it, read, and the graph's outputs."""
    used = {value.name for value in graph.output}
    for node in graph.node:
        used.update(node.input)
        for inner in subgraphs(node):
            used |= _used_names(inner)
    return used


def _drop_unused_functions(model: ModelProto) -> None:
    by_key = {(function.domain, function.name): function for function in model.functions}
    reached: set[tuple[str, str]] = set()
    pending = [(node.domain, node.op_type) for graph in graphs_of_main(model) for node in graph.node]
    while pending:
        key = pending.pop()
        if key in by_key and key not in reached:
            reached.add(key)
            pending.extend((node.domain, node.op_type) for node in function_nodes(by_key[key]))
    kept = [function for function in model.functions if (function.domain, function.name) in reached]
    copies = [FunctionProto.FromString(function.SerializeToString(deterministic=True)) for function in kept]
    del model.functions[:]
    model.functions.extend(copies)


def _drop_unused_opsets(model: ModelProto) -> None:
    used = {_domain(node.domain) for node in all_nodes(model)} | {""}
    kept = sorted({(_domain(item.domain), item.version) for item in model.opset_import if _domain(item.domain) in used})
    del model.opset_import[:]
    for domain, version in kept:
        model.opset_import.add(domain=domain, version=version)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _check_types(model: ModelProto, where: str) -> None:
    known = TensorProto.DataType.values()
    types = [(tensor.name, tensor.data_type) for tensor in tensors(model)]
    for value in (*model.graph.input, *model.graph.output):
        types.append((value.name, value.type.tensor_type.elem_type))
    for name, number in types:
        if number not in known:
            raise ModelError(
                f"tensor '{name}' of {where} has the element type {number}, which onnx {onnx.__version__} does not "
                "know; is the file damaged, or written for a newer onnx?"
            )


def least_ir_version(model: ModelProto) -> int:
    """The lowest IR version that has every element type of `model`."""
    kinds = (TensorProto.DataType.Name(tensor.data_type) for tensor in tensors(model))
    return max((_IR_OF_TYPE.get(kind, 3) for kind in kinds), default=3)


def _check_ir_version(model: ModelProto, ir_version: int) -> None:
    for tensor in tensors(model):
        name = TensorProto.DataType.Name(tensor.data_type)
        needed = _IR_OF_TYPE.get(name, 0)
        if needed > ir_version:
            raise ModelError(
                f"tensor '{tensor.name}' is {name}, which needs IR {needed}, "
                f"but IR {ir_version} was asked for; ask for IR {needed} (newer runtimes only) or another precision"
            )
    for function in model.functions:
        if "overload" in function.DESCRIPTOR.fields_by_name and function.overload and ir_version < 10:
            raise ModelError(
                f"function '{function.name}' has overloads, which need IR 10, but IR {ir_version} was asked for; "
                "ask for IR 10 (newer runtimes only)"
            )


def _is_text(message: Message) -> bool:
    """Whether every string field holds text: protobuf hands out `bytes` where a string is not UTF-8."""
    for descriptor, value in message.ListFields():
        if descriptor.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue
        for item in [value] if isinstance(value, (str, bytes, Message)) else value:
            if isinstance(item, bytes) or (isinstance(item, Message) and not _is_text(item)):
                return False
    return True


def _read(source: str | os.PathLike[str] | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "the given model"
    path = Path(source)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(
                f"{path} has {size:,} bytes, but one ONNX file holds at most {MAX_BYTES:,}; expected a model whose "
                "larger weights lie in files beside it, or a smaller one"
            )
        return path.read_bytes(), str(path)
    except FileNotFoundError as error:
        raise ModelError(f"there is no file {path}; expected an ONNX model: check the path") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; expected an ONNX file that you may read") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
