"""Postprocessing as part of the graph: probabilities, the best classes and their labels come out, or values in units.

The typed steps of `edgekd.device.postprocess` become ONNX's own operators, opset 13 or above.

Axes: N batch, D outputs (classes, labels or targets), k best classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from edgekd.device.postprocess import Denormalize, PostStep, Sigmoid, Softmax, Threshold, TopK, default_post_steps
from edgekd.errors import ModelError, RecipeError, UsageError
from edgekd.graph.clean import clean
from edgekd.graph.nodes import Nodes, copy_to_extend, free_name, put, rename_tensor, tensor_names, value_info
from edgekd.spec import TensorSpec

_TOP = 5


def with_postprocessing(
    model: ModelProto, steps: Sequence[PostStep], *, task: str, labels: Sequence[str], output: str | None = None
) -> tuple[ModelProto, tuple[TensorSpec, ...]]:
    """`model` with the steps behind its `output` (default: the first), and what stands in its place now.

    classification  probabilities (N, D); top_scores, top_indices and top_labels (N, k), best first
    multilabel      probabilities (N, D); present (N, D), bool
    regression      values (N, D), in the units of the targets
    No steps: those of the task; top_k without a step is 5, or as many classes as there are. Other outputs stay.
    """
    network = copy_to_extend(model)
    names = [value.name for value in network.graph.output]
    chosen = names[0] if output is None else output
    if chosen not in names:
        raise UsageError(f"the model has no output '{chosen}', only {', '.join(names)}")
    dims = next(value for value in network.graph.output if value.name == chosen).type.tensor_type.shape.dim
    batch: int | str = "N"
    if len(dims) == 2:
        batch = dims[0].dim_value if dims[0].HasField("dim_value") else dims[0].dim_param or "N"
    width = len(labels)
    if len(dims) != 2 or (dims[1].HasField("dim_value") and dims[1].dim_value != width):
        sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]
        raise ModelError(f"'{chosen}' is {sizes}, expected (N, {width}): one number for each label")
    if any(name.startswith("postprocess/") for name in tensor_names(network.graph)):
        raise UsageError("the model has its postprocessing inside already; leave it as it is")
    outputs = _outputs(steps, task, width, batch)
    for name in [spec.name for spec in outputs]:
        if name in tensor_names(network.graph):
            inner = free_name(network, f"postprocess/{name}")
            rename_tensor(network, name, inner)
            chosen = inner if chosen == name else chosen
    nodes = Nodes("postprocess/")
    _postprocess(nodes, steps or default_post_steps(task), chosen, task, tuple(labels))
    put(network, nodes, in_front=False)
    kept = [value for value in network.graph.output if value.name != chosen]
    del network.graph.output[:]
    network.graph.output.extend([*(value_info(spec) for spec in outputs), *kept])
    return clean(network, ir_version=network.ir_version), outputs


def _outputs(steps: Sequence[PostStep], task: str, width: int, batch: int | str) -> tuple[TensorSpec, ...]:
    if task == "classification":
        count = next((step.k for step in steps if isinstance(step, TopK)), _TOP)
        top = (batch, min(count, width))
        return (
            TensorSpec("probabilities", "float32", (batch, width)),
            TensorSpec("top_scores", "float32", top),
            TensorSpec("top_indices", "int64", top),
            TensorSpec("top_labels", "str", top),
        )
    if task == "multilabel":
        return (
            TensorSpec("probabilities", "float32", (batch, width)),
            TensorSpec("present", "bool", (batch, width)),
        )
    if task == "regression":
        return (TensorSpec("values", "float32", (batch, width)),)
    raise UsageError(f"task '{task}' has no postprocessing; expected classification, multilabel or regression")


def _postprocess(nodes: Nodes, steps: Sequence[PostStep], source: str, task: str, labels: tuple[str, ...]) -> None:
    name = "values" if task == "regression" else "probabilities"
    value, threshold, count = source, 0.5, _TOP
    for step in steps:
        if isinstance(step, Softmax):
            if not isinstance(step.temperature, float | int):
                raise RecipeError("softmax: the temperature is not calibrated yet; run the recipe, which fills it in")
            value = nodes.add("Div", value, nodes.number(step.temperature)) if step.temperature != 1 else value
            value = nodes.add("Softmax", value, attributes={"axis": -1})
        elif isinstance(step, Sigmoid):
            value = nodes.add("Sigmoid", value)
        elif isinstance(step, Denormalize):
            value = nodes.add("Mul", value, nodes.constant(np.array(step.std, np.float32)))
            value = nodes.add("Add", value, nodes.constant(np.array(step.mean, np.float32)))
        elif isinstance(step, Threshold):
            threshold = step.value
        elif isinstance(step, TopK):
            count = step.k
    nodes.add("Identity", value, into=name)
    if task == "multilabel":
        nodes.add("GreaterOrEqual", name, nodes.number(threshold), into="present")
    if task == "classification":
        top = nodes.add("TopK", name, nodes.whole(min(count, len(labels))), outputs=2, attributes={"axis": -1})
        nodes.add("Identity", top, into="top_scores")
        nodes.add("Identity", f"{top}/1", into="top_indices")
        nodes.add("Gather", nodes.texts(labels), "top_indices", into="top_labels")
