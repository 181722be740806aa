"""`edgekd.device.resampling` as nodes of a graph: two products with matrices of the filter's weights.

The matrices are made in the graph from the size of the image, in float32. ONNX has an operator Resize with antialias,
but onnxruntime 1.31 is up to 22 of 255 grey levels off with it where a picture grows (seen with linear weights), and
other runtimes ignore the attribute.

Axes: N batch, H height, W width, C channels; J pixels of an old line, I pixels of a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from edgekd.graph.nodes import Nodes
from edgekd.spec import Resize

# Sums that end in exactly .5 are common (weights are ratios of small numbers), and the last bit of a float sum differs
# from CPU to CPU: lifted by this much, they all are rounded up, as Pillow does it.
_HALF = 0.5 + 2.0**-10


def height_and_width(nodes: Nodes, image: str) -> str:
    """(2,) int64 of an image (N, H, W, C)."""
    return nodes.add("Gather", nodes.add("Shape", image), nodes.whole(1, 2))


def resize(nodes: Nodes, image: str, step: Resize, *, whole: bool) -> str:
    """Width first, then height, with bytes (`whole`) rounded between: see `edgekd.device.resampling`."""
    old = height_and_width(nodes, image)
    if isinstance(step.size, tuple):
        new = nodes.whole(*step.size)
    else:
        shorter = nodes.add("ReduceMin", old)
        new = nodes.add("Div", nodes.add("Mul", old, nodes.whole(step.size)), shorter)
    sizes = [[nodes.add("Gather", pair, nodes.whole(place)) for place in (0, 1)] for pair in (old, new)]
    if step.filter == "nearest":
        for axis in (1, 2):
            places = _nearest(nodes, sizes[0][axis - 1], sizes[1][axis - 1])
            image = nodes.add("Gather", image, places, attributes={"axis": axis})
        return image
    value = nodes.add("Transpose", image, attributes={"perm": [0, 3, 1, 2]})
    across = nodes.add("Transpose", _weights(nodes, sizes[0][1], sizes[1][1], step), attributes={"perm": [1, 0]})
    value = _in_bytes(nodes, nodes.add("MatMul", value, across), whole)
    value = _in_bytes(nodes, nodes.add("MatMul", _weights(nodes, sizes[0][0], sizes[1][0], step), value), whole)
    return nodes.add("Transpose", value, attributes={"perm": [0, 2, 3, 1]})


def _in_bytes(nodes: Nodes, value: str, whole: bool) -> str:
    if not whole:
        return value
    rounded = nodes.add("Floor", nodes.add("Add", value, nodes.number(_HALF)))
    return nodes.add("Clip", rounded, nodes.number(0.0), nodes.number(255.0))


def _weights(nodes: Nodes, old: str, new: str, step: Resize) -> str:
    """(new, old) float32: what each pixel of the line before adds to each pixel of the line after.

    Pixel j of the old line lies (2j+1) new - (2i+1) old from the centre of pixel i of the new one, in units of
    1 / (2 new) old pixels: whole numbers, so that nothing is lost to float32 before the division.
    """
    old_J, new_I = _centres(nodes, old), _centres(nodes, new)
    apart = nodes.add(
        "Sub",
        nodes.add("Unsqueeze", nodes.add("Mul", old_J, new), nodes.whole(0)),
        nodes.add("Unsqueeze", nodes.add("Mul", new_I, old), nodes.whole(1)),
    )
    unit = nodes.add("Mul", nodes.add("Max", old, new) if step.antialias else new, nodes.whole(2))
    far = nodes.add("Cast", nodes.add("Abs", apart), attributes={"to": TensorProto.FLOAT})
    x = nodes.add("Div", far, nodes.add("Cast", unit, attributes={"to": TensorProto.FLOAT}))
    one = nodes.number(1.0)
    if step.filter == "bilinear":
        raw = nodes.add("Relu", nodes.add("Sub", one, x))
    else:
        near = _polynomial(nodes, x, (1.5, -2.5, 0.0, 1.0))
        tail = _polynomial(nodes, x, (-0.5, 2.5, -4.0, 2.0))
        outer = nodes.add("Where", nodes.add("Less", x, nodes.number(2.0)), tail, nodes.number(0.0))
        raw = nodes.add("Where", nodes.add("Less", x, one), near, outer)
    return nodes.add("Div", raw, nodes.add("ReduceSum", raw, nodes.whole(1), attributes={"keepdims": 1}))


def _centres(nodes: Nodes, size: str) -> str:
    """1, 3, 5, ...: the centres of `size` pixels, in halves of a pixel."""
    zero, one = (nodes.constant(np.array(value, np.int64)) for value in (0, 1))
    steps = nodes.add("Range", zero, nodes.add("Squeeze", size, nodes.whole(0)), one)
    return nodes.add("Add", nodes.add("Mul", steps, nodes.whole(2)), nodes.whole(1))


def _polynomial(nodes: Nodes, x: str, factors: Sequence[float]) -> str:
    value = nodes.number(factors[0])
    for factor in factors[1:]:
        value = nodes.add("Mul", value, x)
        value = nodes.add("Add", value, nodes.number(factor)) if factor else value
    return value


def _nearest(nodes: Nodes, old: str, new: str) -> str:
    """The old pixel of each new one: positions are summed step by step in float64, as Pillow does."""
    wide = {"to": TensorProto.DOUBLE}
    step = nodes.add("Div", *(nodes.add("Cast", size, attributes=wide) for size in (old, new)))
    first = nodes.add("Div", step, nodes.constant(np.array([2.0])))
    # One step too many, cut off again: onnxruntime takes an expansion to no element at all for one to one element.
    steps = nodes.add("Concat", first, nodes.add("Expand", step, new), attributes={"axis": 0})
    sums = nodes.add("CumSum", steps, nodes.constant(np.array(0, np.int64)))
    places = nodes.add("Slice", sums, nodes.whole(0), new, nodes.whole(0))
    whole = nodes.add("Cast", places, attributes={"to": TensorProto.INT64})
    return nodes.add("Min", whole, nodes.add("Sub", old, nodes.whole(1)))
