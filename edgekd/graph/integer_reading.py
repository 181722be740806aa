"""A quantized ONNX graph (QuantizeLinear and DequantizeLinear around each operator) as a program of integers.

What lies between a DequantizeLinear and the next QuantizeLinear becomes one layer; ReLU and Clip become bounds of its
bytes, and what only changes the shape becomes nothing. Everything else is refused by name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgekd.device.integer import (
    Add,
    Bounds,
    Convolution,
    Dequantize,
    IntegerProgram,
    Layer,
    Pair,
    Pool,
    Quantize,
    Tensor,
    largest_sum,
)
from edgekd.errors import ModelError
from edgekd.graph.clean import load_model
from edgekd.graph.integer_values import (
    ADVICE,
    Bytes,
    Pending,
    Reading,
    Value,
    Weight,
    bounds_of,
    constant_weight,
    image_shape,
    int8_weights,
    pads_of,
    quantized,
    scale_of,
)
from edgekd.graph.rejection import find_rule

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")


def read_program(model: str | os.PathLike[str] | bytes | ModelProto) -> IntegerProgram:
    """The integer program of a statically quantized model with one input and one output.

    Raises `ModelError` for a graph that computes anything in float, has an operator that is not known here, or whose
    sums could overflow 32 bits.
    """
    proto = model if isinstance(model, ModelProto) else load_model(model)
    if find_rule(proto) is not None:
        raise ModelError(
            "the graph ends in the reject option ([export] reject), which takes exponentials, and there are integers "
            "alone here; export without it, or take another app"
        )
    graph = proto.graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ModelError(f"found {len(inputs)} inputs and {len(graph.output)} outputs, expected one of each")
    sides = [side.dim_value for side in inputs[0].type.tensor_type.shape.dim][1:]
    if not sides or any(side < 1 for side in sides):
        raise ModelError(f"the input '{inputs[0].name}' has open axes besides the batch; export it with fixed ones")
    reading = Reading(constants)
    reading.values[inputs[0].name] = Pending(tuple(sides), lambda tensor, index, bounds: _of_input(index, bounds, 1, 1))
    for node in graph.node:
        _read(reading, node)
    output = reading.values.get(graph.output[0].name)
    if (
        isinstance(output, Pending)
        and output.as_float is not None
        and (output.low, output.high) == (-math.inf, math.inf)
    ):
        reading.layers.append(output.as_float())
    elif isinstance(output, Bytes):
        reading.layers.append(Dequantize(output.index))
    else:
        raise ModelError(f"the output '{graph.output[0].name}' is no integer layer; {ADVICE}")
    for layer in reading.layers:
        if isinstance(layer, Convolution):
            found = largest_sum(layer, reading.tensors[layer.source].zero_point)
            if found >= 1 << 31:
                raise ModelError(f"a sum may reach {found}, beyond 32 bits; make the layer narrower")
    return IntegerProgram(math.prod(sides), math.prod(output.shape), tuple(reading.tensors), tuple(reading.layers))


def _read(reading: Reading, node: NodeProto) -> None:
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "Constant":
        reading.constants[node.output[0]] = numpy_helper.to_array(options["value"])
        return
    known: dict[str, Callable[[Reading, NodeProto, dict[str, Any]], Value]] = {
        "QuantizeLinear": _quantize,
        "DequantizeLinear": _dequantize,
        "Conv": _convolution,
        "Gemm": _linear,
        "MatMul": _linear,
        "Add": _add,
        "Relu": _clip,
        "Clip": _clip,
        "MaxPool": _pool,
        "AveragePool": _pool,
        "GlobalAveragePool": _mean,
        "ReduceMean": _mean,
        "Transpose": _transpose,
        **dict.fromkeys(VIEWS, _view),
    }
    if node.op_type not in known:
        raise ModelError(
            f"the operator {node.op_type} has no integer layer here, expected one of {', '.join(sorted(known))}; "
            "take an mlp, cnn, dscnn, resnet or tcn student, quantized with int8_static"
        )
    reading.values[node.output[0]] = known[node.op_type](reading, node, options)


def _quantize(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    step, zero_point = scale_of(reading, node)
    source = reading.values.get(node.input[0])
    if isinstance(source, Bytes):
        given = reading.tensors[source.index]
        if (given.step, given.zero_point) == (step, zero_point):
            return source  # the same bytes again: rounding (q - z) * s / s gives q - z
        source = _in_other_steps(reading, source)
    if not isinstance(source, Pending):
        raise ModelError(f"QuantizeLinear reads '{node.input[0]}', which no known layer makes; {ADVICE}")
    tensor = Tensor(image_shape(source.shape), step, zero_point)
    index = reading.add(tensor)
    reading.layers.append(source.finish(tensor, index, bounds_of(source, step, zero_point)))
    return Bytes(index, source.shape)


def _in_other_steps(reading: Reading, source: Bytes) -> Pending:
    """The same numbers, on the way to another scale or between bounds."""
    old = np.float32(reading.tensors[source.index].step)

    def finish(tensor: Tensor, index: int, bounds: Bounds) -> Layer:
        ratio = np.float32(old / np.float32(tensor.step))
        return Add((source.index, source.index), index, (ratio, np.float32(0)), bounds)

    return Pending(source.shape, finish)


def _dequantize(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    if node.input[0] not in reading.constants:
        source = reading.values.get(node.input[0])
        if not isinstance(source, Bytes):
            raise ModelError(f"DequantizeLinear reads '{node.input[0]}', which is no quantized tensor; {ADVICE}")
        return source
    values = reading.constants[node.input[0]]
    steps = reading.constants[node.input[1]].astype(np.float32)
    zeros = reading.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(1, np.int32)
    return Weight(values, steps.reshape(-1), zeros.reshape(-1), int(options.get("axis", 1)) % max(values.ndim, 1))


def _convolution(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    source, weight = quantized(reading, node, 0), constant_weight(reading, node, 1)
    values, steps = int8_weights(weight, 0)
    if values.ndim not in (3, 4) or len(source.shape) != values.ndim - 1:
        raise ModelError(f"Conv: weights of {values.ndim} axes over {source.shape}, expected one or two dimensions")
    flat = values.ndim == 3  # one dimension: a picture one pixel high

    def pair(name: str, default: int) -> Pair:
        given = [int(item) for item in options.get(name, [])] or [default] * (values.ndim - 2)
        return (default, given[0]) if flat else (given[0], given[1])

    kernel = values.reshape(*values.shape[:2], 1, values.shape[2]) if flat else values
    begin, end = pads_of(options, values.ndim - 2)
    pads, after = ((0, begin[0]), (0, end[0])) if flat else ((begin[0], begin[1]), (end[0], end[1]))
    strides, dilations = pair("strides", 1), pair("dilations", 1)
    in_shape = image_shape(source.shape)
    size = [
        (side + before + behind - (width - 1) * dilation - 1) // stride + 1
        for side, before, behind, width, dilation, stride in zip(
            in_shape[1:], pads, after, kernel.shape[2:], dilations, strides
        )
    ]
    shape = (values.shape[0], size[1]) if flat else (values.shape[0], size[0], size[1])
    whole = Convolution(
        source.index,
        None,
        in_shape,
        (values.shape[0], size[0], size[1]),
        kernel,
        np.zeros(len(kernel), np.int32),
        steps,
        strides,
        pads,
        dilations,
        int(options.get("group", 1)),
    )
    return _product(reading, node, source, whole, shape)


def _linear(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    source, weight = quantized(reading, node, 0), constant_weight(reading, node, 1)
    plain = options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
    if not plain or len(source.shape) != 1 or weight.values.ndim != 2:
        raise ModelError(f"{node.op_type} over {source.shape} is no linear layer (x W + b), expected one")
    of_output = 0 if options.get("transB", 0) else 1
    values, steps = int8_weights(weight, of_output)
    values_OI = values if of_output == 0 else values.T
    num, num_inputs = values_OI.shape
    if num_inputs != source.shape[0]:
        raise ModelError(f"{node.op_type}: weights for {num_inputs} inputs over {source.shape[0]}; export it again")
    kernel = np.ascontiguousarray(values_OI).reshape(num, num_inputs, 1, 1)
    bias = np.zeros(num, np.int32)
    whole = Convolution(source.index, None, (num_inputs, 1, 1), (num, 1, 1), kernel, bias, steps)
    return _product(reading, node, source, whole, (num,))


def _product(reading: Reading, node: NodeProto, source: Bytes, whole: Convolution, shape: tuple[int, ...]) -> Pending:
    """The layer with its bias, still without its target: in float32 as onnxruntime multiplies its scales."""
    into = np.float32(reading.tensors[source.index].step) * whole.multipliers
    if len(node.input) > 2 and node.input[2]:
        whole = replace(whole, bias=_bias(reading, node.input[2], into))

    def finish(tensor: Tensor, index: int, bounds: Bounds) -> Layer:
        multipliers = (into / np.float32(tensor.step)).astype(np.float32)
        return replace(whole, target=index, multipliers=multipliers, bounds=bounds)

    return Pending(shape, finish, lambda: replace(whole, multipliers=into.astype(np.float32)))


def _bias(reading: Reading, name: str, into: NDArray[np.float32]) -> NDArray[np.int32]:
    """The bias in steps of the sum."""
    given = reading.values.get(name)
    if isinstance(given, Weight) and given.values.dtype == np.int32:
        if np.allclose(given.steps, into, rtol=1e-5, atol=0):
            return given.values.reshape(-1)
        exact = given.values.reshape(-1) * given.steps.astype(np.float64)
    elif name in reading.constants:
        exact = reading.constants[name].reshape(-1).astype(np.float64)
    else:
        raise ModelError(f"the bias '{name}' is no constant, expected one; {ADVICE}")
    return np.clip(np.rint(exact / into), -(2**31), 2**31 - 1).astype(np.int32)


def _add(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    pending = reading.values.get(node.input[0])
    if isinstance(pending, Pending):
        raise ModelError(f"Add reads '{node.input[0]}', which is float; {ADVICE}")
    left, right = quantized(reading, node, 0), quantized(reading, node, 1)
    if left.shape != right.shape:
        raise ModelError(f"Add of {left.shape} and {right.shape}, expected two tensors of one shape")
    steps = [np.float32(reading.tensors[item.index].step) for item in (left, right)]

    def finish(tensor: Tensor, index: int, bounds: Bounds) -> Layer:
        ratios = (np.float32(steps[0] / np.float32(tensor.step)), np.float32(steps[1] / np.float32(tensor.step)))
        return Add((left.index, right.index), index, ratios, bounds)

    return Pending(left.shape, finish)


def _clip(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    source = reading.values.get(node.input[0])
    low, high = 0.0, math.inf
    if node.op_type == "Clip":
        limits = [reading.constants.get(name) for name in node.input[1:]]
        low = float(limits[0]) if limits and limits[0] is not None else -math.inf
        high = float(limits[1]) if len(limits) > 1 and limits[1] is not None else math.inf
    if isinstance(source, Bytes):
        source = _in_other_steps(reading, source)
    if not isinstance(source, Pending):
        raise ModelError(f"{node.op_type} reads '{node.input[0]}', which no known layer makes; {ADVICE}")
    return replace(source, low=max(source.low, low), high=min(source.high, high))


def _pool(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    source = quantized(reading, node, 0)
    kernel, strides = [int(side) for side in options["kernel_shape"]], list(options.get("strides", [1, 1]))
    begin, end = pads_of(options, len(kernel))
    kind: Literal["max", "mean"] = "max" if node.op_type == "MaxPool" else "mean"
    counted = kind == "max" or not any(begin) or options.get("count_include_pad", 0)
    plain = not options.get("ceil_mode", 0) and set(options.get("dilations", [1])) == {1} and begin == end
    if len(kernel) != 2 or len(source.shape) != 3 or not counted or not plain:
        raise ModelError(
            f"{node.op_type}: expected two dimensions, even padding that is counted, no dilation and no ceil_mode"
        )
    size = [
        (side + 2 * pad - width) // stride + 1
        for side, pad, width, stride in zip(source.shape[1:], begin, kernel, strides)
    ]
    count = 1 if kind == "max" else kernel[0] * kernel[1]
    return _pooled(
        reading,
        source,
        kind,
        ((kernel[0], kernel[1]), (int(strides[0]), int(strides[1])), (begin[0], begin[1])),
        count,
        (source.shape[0], size[0], size[1]),
    )


def _mean(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    source = quantized(reading, node, 0)
    num_axes = len(source.shape) + 1
    if node.op_type == "ReduceMean":
        given = reading.constants[node.input[1]] if len(node.input) > 1 else options.get("axes", range(num_axes))
        axes = sorted(int(axis) % num_axes for axis in np.asarray(list(given)).reshape(-1))
        if axes != list(range(2, num_axes)) or num_axes < 3:
            raise ModelError(f"ReduceMean over the axes {axes} of {num_axes}, expected all but batch and channels")
    kept = source.shape[:1] + ((1,) * (num_axes - 2) if options.get("keepdims", 1) else ())
    sides = image_shape(source.shape)[1:]
    return _pooled(reading, source, "mean", (sides, (1, 1), (0, 0)), sides[0] * sides[1], kept)


def _pooled(
    reading: Reading,
    source: Bytes,
    kind: Literal["max", "mean"],
    window: tuple[Pair, Pair, Pair],
    count: int,
    shape: tuple[int, ...],
) -> Pending:
    step = reading.tensors[source.index].step
    kernel, strides, pads = window

    def finish(tensor: Tensor, index: int, bounds: Bounds) -> Layer:
        multiplier = np.float32(step / (count * tensor.step))
        in_shape, out_shape = image_shape(source.shape), image_shape(shape)
        return Pool(source.index, index, in_shape, out_shape, kind, kernel, multiplier, strides, pads, bounds)

    return Pending(shape, finish)


def _transpose(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    source = reading.values.get(node.input[0])
    order = [int(axis) for axis in options.get("perm", [])]
    if reading.layers or not isinstance(source, Pending) or not order or order[0] != 0:
        raise ModelError(f"Transpose {order} in the middle of the model, expected it at the input only")
    # A rotation of the axes is a matrix that is turned round.
    first = order[1]
    if order[1:] != [*range(first, len(order)), *range(1, first)]:
        raise ModelError(f"Transpose {order}: expected the channels to move to the front or to the back")
    rows, columns = math.prod(source.shape[: first - 1]), math.prod(source.shape[first - 1 :])
    return Pending(
        tuple(source.shape[axis - 1] for axis in order[1:]),
        lambda tensor, index, bounds: _of_input(index, bounds, rows, columns),
    )


def _view(reading: Reading, node: NodeProto, options: dict[str, Any]) -> Value:
    source = reading.values.get(node.input[0])
    if not isinstance(source, (Bytes, Pending)):
        raise ModelError(f"{node.op_type} reads '{node.input[0]}', which no known layer makes; {ADVICE}")
    size = math.prod(source.shape)
    if node.op_type in ("Identity", "Dropout"):
        return source
    if node.op_type == "Flatten":
        return replace(source, shape=(size,))
    wanted = reading.constants.get(node.input[1]) if len(node.input) > 1 else None
    if wanted is None:
        raise ModelError(f"{node.op_type}: its shape or axes are no constant; export the model again with opset 18")
    numbers = [int(item) for item in wanted.reshape(-1)]
    if node.op_type == "Reshape":
        rest = [source.shape[at - 1] if side == 0 and at else side for at, side in enumerate(numbers)][1:]
        known = math.prod(side for side in rest if side > 0)
        return replace(source, shape=tuple(size // known if side < 0 else side for side in rest))
    shape = [0, *source.shape]  # 0 stands for the batch, which stays in front
    if node.op_type == "Squeeze":
        dropped = {axis % len(shape) for axis in numbers}
        return replace(source, shape=tuple(side for axis, side in enumerate(shape) if axis not in dropped and axis))
    for axis in sorted(axis % (len(shape) + len(numbers)) for axis in numbers):
        shape.insert(axis, 1)
    return replace(source, shape=tuple(shape[1:]))


def _of_input(index: int, bounds: Bounds, rows: int, columns: int) -> Layer:
    if bounds != Bounds():
        raise ModelError(f"the input is clipped before it is quantized; {ADVICE}")
    return Quantize(index, rows, columns)
