"""Preprocessing as part of the graph: a raw image of any size goes in.

The same typed steps that drive training and numpy on the device (`edgekd.device.preprocess`) become ONNX's own
operators, opset 13 or above. Everything is float32: whole numbers up to 2^24 are exact in it, and no sum of bytes that
is made here is larger.

Axes: N batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, TensorProto, helper

from edgekd.device.preprocess import GREY_WEIGHTS, split_steps
from edgekd.errors import ModelError, RecipeError, UsageError
from edgekd.graph.clean import clean
from edgekd.graph.nodes import Nodes, branch, copy_to_extend, free_name, put, real_inputs, rename_tensor, value_info
from edgekd.graph.resizing import height_and_width, resize
from edgekd.spec import CenterCrop, Decode, Layout, Normalize, Resize, Scale, Step, TensorSpec, ToGrey, ToRgb


def raw_spec(steps: Sequence[Step], prepared: TensorSpec) -> TensorSpec:
    """What a graph with these steps inside reads, by the `prepared` samples that it reads without the spatial ones.

    `prepared` is (N, H, W, C), or any (N, ...) where no spatial step is; uint8 or float32. Height and width are
    symbolic where a step changes them, the channels where decode, to_rgb or to_grey does.
    """
    spatial = split_steps(steps)[0]
    if not spatial:
        return prepared
    if len(prepared.shape) != 4:
        raise UsageError(f"the steps work on images, but samples are {list(prepared.shape)}; expected (N, H, W, C)")
    batch, height, width, channels = prepared.shape
    if any(isinstance(step, (Resize, CenterCrop)) for step in spatial):
        height, width = "H", "W"
    if any(isinstance(step, (Decode, ToRgb, ToGrey)) for step in spatial):
        channels = "C"
    return TensorSpec(prepared.name, prepared.dtype, (batch, height, width, channels))


def preprocessing(steps: Sequence[Step], prepared: TensorSpec, *, opset: int = 18, ir_version: int = 8) -> ModelProto:
    """The steps as a model of its own: "raw" (`raw_spec`) to "ready", float32, what the network reads.

    Raises `RecipeError` where normalize still says "train", `UsageError` for samples that are no numbers of an image.
    """
    raw = raw_spec(steps, TensorSpec("raw", prepared.dtype, prepared.shape))
    nodes = Nodes("preprocess/")
    shape = _preprocess(nodes, steps, raw, prepared, into="ready")
    graph = helper.make_graph(
        nodes.nodes,
        "preprocessing",
        [value_info(raw)],
        [value_info(TensorSpec("ready", "float32", shape))],
        nodes.weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    return clean(made, ir_version=ir_version)


def with_preprocessing(model: ModelProto, steps: Sequence[Step], prepared: TensorSpec) -> ModelProto:
    """`model` (one input) with the steps in front: the input keeps its name and reads what `raw_spec` says.

    Raises `UsageError` for several inputs, `ModelError` where the steps do not end in what the network reads.
    """
    network = copy_to_extend(model)
    inputs = real_inputs(network)
    if len(inputs) != 1:
        raise UsageError(
            f"the model has the inputs {', '.join(value.name for value in inputs)}; preprocessing goes into graphs "
            "with one input: do it outside of this one"
        )
    name = inputs[0].name
    inner = free_name(network, "preprocess/ready")
    rename_tensor(network, name, inner)
    nodes = Nodes("preprocess/")
    raw = raw_spec(steps, TensorSpec(name, prepared.dtype, prepared.shape))
    shape = _preprocess(nodes, steps, raw, prepared, into=inner)
    wanted = [dim.dim_value if dim.HasField("dim_value") else None for dim in inputs[0].type.tensor_type.shape.dim]
    fits = len(shape) == len(wanted) and all(
        isinstance(found, str) or size in (None, found) for found, size in zip(shape[1:], wanted[1:])
    )
    if not fits or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(inputs[0].type.tensor_type.elem_type).lower()
        raise ModelError(
            f"the steps end in float {list(shape)}, but '{name}' reads {kind} {wanted}; check resize and layout"
        )
    if wanted and wanted[0] is not None:  # a fixed batch stays so
        raw = TensorSpec(raw.name, raw.dtype, (wanted[0], *raw.shape[1:]))
    put(network, nodes, in_front=True)
    kept = [value for value in network.graph.input if value.name != inner]
    del network.graph.input[:]
    network.graph.input.extend([value_info(raw), *kept])
    return clean(network, ir_version=network.ir_version)


def _preprocess(
    nodes: Nodes, steps: Sequence[Step], raw: TensorSpec, prepared: TensorSpec, *, into: str
) -> tuple[int | str, ...]:
    """Nodes from `raw` to `into`; the shape of that."""
    if raw.dtype not in ("uint8", "float32"):
        raise UsageError(f"samples are {raw.dtype}, expected uint8 or float32 for preprocessing in the graph")
    spatial, arithmetic = split_steps(steps)
    whole = raw.dtype == "uint8"
    value = raw.name
    if whole and spatial and isinstance(spatial[0], Decode):
        value = _over(nodes, value, spatial[0])
    if whole:
        value = nodes.add("Cast", value, attributes={"to": TensorProto.FLOAT})
    for step in spatial:
        value = _spatial(nodes, value, step, whole=whole)
    shape = prepared.shape
    if spatial and all(isinstance(size, int) for size in shape[1:]):
        # An image that is too small to be cropped fails here, and what comes after knows its shape.
        value = nodes.add("Reshape", value, nodes.whole(0, *(int(size) for size in shape[1:])))
    if len(shape) == 3 and any(isinstance(step, Layout) and step.to != "flat" for step in arithmetic):
        value, shape = nodes.add("Unsqueeze", value, nodes.whole(3)), (*shape, 1)
    for step in arithmetic:
        value, shape = _arithmetic(nodes, value, step, shape)
    nodes.add("Identity", value, into=into)
    return shape


def _over(nodes: Nodes, image: str, step: Decode) -> str:
    """Transparent images (2 or 4 channels) over the step's colour, in Pillow's whole numbers; others as they are."""
    channels = nodes.add("Gather", nodes.add("Shape", image), nodes.whole(3))
    even = nodes.add("Equal", nodes.add("Mod", channels, nodes.whole(2)), nodes.whole(0))
    condition = nodes.add("Squeeze", even, nodes.whole(0))
    spec = TensorSpec("preprocess/over", "uint8", ("N", "H", "W", "opaque"))
    blend, keep = Nodes("preprocess/over/"), Nodes("preprocess/as_is/")
    exact = blend.add("Cast", image, attributes={"to": TensorProto.FLOAT})
    last, axis = blend.whole(-1), blend.whole(3)
    colour = blend.add("Slice", exact, blend.whole(0), last, axis)
    alpha = blend.add("Slice", exact, last, blend.whole(np.iinfo(np.int64).max), axis)
    share = blend.add("Mul", alpha, blend.number(128.0))
    total = blend.add("Add", blend.add("Mul", colour, share), blend.number(128.0 * 128.0))
    if step.alpha == "white":
        rest = blend.add("Mul", blend.add("Sub", blend.number(255.0 * 128.0), share), blend.number(255.0))
        total = blend.add("Add", total, rest)
    upper = blend.add("Floor", blend.add("Div", total, blend.number(256.0)))
    total = blend.add("Floor", blend.add("Div", blend.add("Add", upper, total), blend.number(256.0)))
    total = blend.add("Floor", blend.add("Div", total, blend.number(128.0)))
    blend.add("Cast", total, into=spec.name, attributes={"to": TensorProto.UINT8})
    other = TensorSpec("preprocess/as_is", "uint8", ("N", "H", "W", "opaque"))
    keep.add("Identity", image, into=other.name)
    return nodes.add(
        "If", condition, attributes={"then_branch": branch(blend, spec), "else_branch": branch(keep, other)}
    )


def _spatial(nodes: Nodes, image: str, step: Step, *, whole: bool) -> str:
    if isinstance(step, Decode):
        return image
    if isinstance(step, (ToRgb, ToGrey)):
        three = nodes.add("Expand", image, nodes.whole(1, 1, 1, 3))
        if isinstance(step, ToRgb):
            return three
        # Three equal channels give themselves: the weights add up to 65536.
        weights_C1 = np.array(GREY_WEIGHTS, np.float32)[:, np.newaxis]
        luma = nodes.add("MatMul", three, nodes.constant(weights_C1 if whole else weights_C1 / 65536))
        if not whole:
            return luma
        rounded = nodes.add("Div", nodes.add("Add", luma, nodes.number(0x8000)), nodes.number(65536.0))
        return nodes.add("Floor", rounded)
    if isinstance(step, Resize):
        return resize(nodes, image, step, whole=whole)
    if isinstance(step, CenterCrop):
        sizes = nodes.whole(*step.size)
        spare = nodes.add("Sub", height_and_width(nodes, image), sizes)
        half = nodes.add("Div", nodes.add("Cast", spare, attributes={"to": TensorProto.FLOAT}), nodes.number(2.0))
        # Round sends halves to even, as Python's round does.
        start = nodes.add("Cast", nodes.add("Round", half), attributes={"to": TensorProto.INT64})
        return nodes.add("Slice", image, start, nodes.add("Add", start, sizes), nodes.whole(1, 2))
    raise RecipeError(f"'{step.op}' is not a spatial step; expected decode, to_rgb, to_grey, resize or center_crop")


def _arithmetic(
    nodes: Nodes, value: str, step: Step, shape: tuple[int | str, ...]
) -> tuple[str, tuple[int | str, ...]]:
    if isinstance(step, Scale):
        return nodes.add("Mul", value, nodes.number(step.factor)), shape
    if isinstance(step, Normalize):
        if isinstance(step.mean, str) or isinstance(step.std, str):
            raise RecipeError('normalize: "train" stands where numbers were expected; run the recipe, which fills them')
        centred = nodes.add("Sub", value, nodes.constant(np.array(step.mean, np.float32)))
        return nodes.add("Div", centred, nodes.constant(np.array(step.std, np.float32))), shape
    if not isinstance(step, Layout):
        raise RecipeError(f"'{step.op}' is not an arithmetic step; expected scale, normalize or layout")
    if step.to == "HWC":
        return value, shape
    if step.to == "CHW":
        if len(shape) != 4:
            raise UsageError(f"layout CHW: samples are {list(shape)}, expected images (N, H, W, C)")
        return nodes.add("Transpose", value, attributes={"perm": [0, 3, 1, 2]}), (shape[0], shape[3], *shape[1:3])
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    known = len(sizes) == len(shape) - 1
    flat = nodes.add("Reshape", value, nodes.whole(0, int(np.prod(sizes)) if known else -1))
    return flat, (shape[0], int(np.prod(sizes)) if known else "flat")
