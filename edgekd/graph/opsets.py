"""The opset of a graph: read, and lowered to what a target's runtime loads."""

from __future__ import annotations

import onnx
from onnx import AttributeProto, ModelProto, version_converter

from edgekd.errors import AnswerIsNo
from edgekd.graph.targets import Target
from edgekd.graph.traversal import all_nodes


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators that the graph asks for."""
    return int(next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1))


def at_target(model: ModelProto, target: Target | None) -> ModelProto:
    """`model` at an opset that `target` loads: as it is where that holds, else converted down by onnx.

    Raises `AnswerIsNo` where an operator has no older form; what was converted must be proven like any other graph.
    """
    if target is None or opset_of(model) <= target.max_opset:
        return model
    source = ModelProto()
    source.CopyFrom(model)
    for node in all_nodes(source):
        # The converter keeps the default of an attribute that older reductions do not have.
        kept = [item for item in node.attribute if item.name != "noop_with_empty_axes" or item.i]
        copies = [AttributeProto.FromString(item.SerializeToString(deterministic=True)) for item in kept]
        del node.attribute[:]
        node.attribute.extend(copies)
    try:
        lowered = version_converter.convert_version(source, target.max_opset)
        onnx.checker.check_model(lowered)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AnswerIsNo(
            f"the target '{target.name}' loads opset {target.max_opset} at most, and the graph of opset "
            f"{opset_of(model)} cannot be lowered to it: {first}; update the device's runtime and its target file, or "
            "replace that operator in the model"
        ) from error
    return lowered
