"""A graph with QuantizeLinear and DequantizeLinear as something to be trained: its points, and how numbers go back in.

The points are read off the graph that `Int8Static` makes, so that what is trained has the nodes of what was only
calibrated: the same kernels, and nothing to convert. Weights of 4 bits are INT4 tensors with a Cast to int8 behind
them: onnxruntime folds that Cast when it loads the file, which takes half the bytes and runs on the kernels for int8.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgekd.errors import AnswerIsNo, ModelError, UsageError
from edgekd.graph import quantizers
from edgekd.graph.clean import clean, load_model
from edgekd.graph.quantization import Int8QAT, Int8Static, quantize
from edgekd.spec import Array

# onnxruntime.quantization.quant_utils.TENSOR_NAME_QUANT_SUFFIX
_SUFFIX = "_quantized"
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
# INT4 tensors came with opset 21, which IR 10 goes with.
_INT4_OPSET, _INT4_IR = 21, 10
_MOST_OF_4_BITS = 7


@dataclass(frozen=True)
class Point:
    """Where numbers are rounded to steps of a scale: `low` to `high` of them.

    scale       name of the scale; points with the same one share it
    steps       the scale as calibrated: () or (channels,), float32
    zero_point  what is added to the count of steps; the same for all channels, and never trained
    axis        of the channels; None: one scale for the whole tensor
    """

    scale: str
    steps: Array
    low: int
    high: int
    zero_point: int = 0
    axis: int | None = None


@dataclass(frozen=True)
class Bias:
    """A bias of whole steps: those of the layer's input times those of its weight."""

    values: Array
    scale: str
    of_input: str
    of_weight: str


@dataclass(frozen=True)
class QdqGraph:
    """A calibrated graph and the float numbers that it was made of.

    activations  scale name -> point, where the input of a QuantizeLinear is rounded
    weights      name of the whole numbers -> (float weights, point); `biases` likewise
    """

    model: ModelProto
    config: Int8QAT
    activations: Mapping[str, Point]
    weights: Mapping[str, tuple[Array, Point]]
    biases: Mapping[str, Bias]


def calibrated(
    model: str | os.PathLike[str] | bytes | ModelProto,
    config: Int8QAT,
    *,
    calibration: Mapping[str, Array] | Iterable[Mapping[str, Array]],
) -> QdqGraph:
    """The float `model` as `Int8Static` makes it with the same scheme, its points and float numbers.

    Raises what `edgekd.graph.quantize` raises, and `UsageError` for 4-bit weights that are unsigned.
    """
    if config.weight_bits not in (4, 8):
        raise UsageError(f"Int8QAT: weight_bits is {config.weight_bits!r}; expected 4 or 8")
    if config.weight_bits == 4 and config.weight != "int8":
        raise UsageError("Int8QAT: 4-bit weights are signed; expected weight = 'int8'")
    source = model if isinstance(model, ModelProto) else load_model(model)
    ready = clean(quantizers.raise_opset(clean(source, ir_version=max(source.ir_version, 8))))
    static = Int8Static(config.activation, config.weight, config.per_channel, config.calibration, fuse=False)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        path = Path(folder) / "static.onnx"
        quantize(ready, path, static, calibration=calibration)
        graph = load_model(path)
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantizers.fold(ready).graph.initializer}
    return _read(graph, config, floats)


def written(graph: QdqGraph, scales: Mapping[str, Array], integers: Mapping[str, Array]) -> ModelProto:
    """The graph with these scales (by name) and these counts of steps (by the name of weights and biases)."""
    shifts = {name: point.zero_point for name, (_, point) in graph.weights.items()}
    model = ModelProto.FromString(graph.model.SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            tensor.CopyFrom(numpy_helper.from_array(scales[tensor.name].astype(np.float32), tensor.name))
        elif tensor.name in integers:
            whole = integers[tensor.name].astype(np.int64) + shifts.get(tensor.name, 0)
            dtype = numpy_helper.to_array(tensor).dtype
            tensor.CopyFrom(numpy_helper.from_array(whole.astype(dtype), tensor.name))
    four = [name for name, (_, point) in graph.weights.items() if point.high == _MOST_OF_4_BITS]
    return _with_four_bits(model, four) if four else clean(model)


def _read(model: ModelProto, config: Int8QAT, floats: Mapping[str, Array]) -> QdqGraph:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    activations: dict[str, Point] = {}
    weights: dict[str, tuple[Array, Point]] = {}
    biases: dict[str, Bias] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            steps, zero = _step(node, constants)
            low, high = _LIMITS[zero.dtype.name]
            shift = int(zero)
            activations[node.input[1]] = Point(node.input[1], steps, low - shift, high - shift, shift)
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            name = node.input[0]
            if constants[name].dtype == np.int32:
                # So fine that nothing is lost: the tool renames biases that layers share.
                values = constants[name] * constants[node.input[1]]
                of_input, of_weight = _layer_of(node, model, made_by)
                biases[name] = Bias(values.astype(np.float32), node.input[1], of_input, of_weight)
                continue
            values = _float_of(name, floats)
            steps, zero = _step(node, constants)
            low, high = _LIMITS[constants[name].dtype.name]
            axis = next((item.i for item in node.attribute if item.name == "axis"), 1) if steps.ndim else None
            shift = int(zero.reshape(-1)[0])
            low, high = low - shift, high - shift
            # Vectors that are added or multiplied are no weights of a matrix: there is nothing to save.
            if config.weight_bits == 4 and values.ndim > 1 and shift == 0:
                low, high = -_MOST_OF_4_BITS, _MOST_OF_4_BITS
                steps = least_error_steps(values, most=high, axis=axis)
            weights[name] = (values, Point(node.input[1], steps, low, high, shift, axis))
    if not weights:
        raise AnswerIsNo("Int8QAT found no quantized weights to train; keep the float32 model")
    return QdqGraph(model, config, activations, weights, biases)


def least_error_steps(values: Array, *, most: int, axis: int | None) -> Array:
    """The scale for -`most` to `most` steps with the least squared error: per channel of `axis`, or () for all."""
    rows = values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    largest = np.maximum(np.abs(rows).max(axis=1), 1e-8)
    best = np.full(len(rows), np.inf)
    steps = largest / most
    for share in np.linspace(0.3, 1.0, 71):
        trial = share * largest / most
        rounded = np.clip(np.round(rows / trial[:, None]), -most, most) * trial[:, None]
        error = np.square(rows - rounded).sum(axis=1)
        steps = np.where(error < best, trial, steps)
        best = np.minimum(error, best)
    found: Array = steps.astype(np.float32)
    return found.reshape(()) if axis is None else found


def _step(node: NodeProto, constants: Mapping[str, Array]) -> tuple[Array, Array]:
    """Scale and zero point of a node."""
    missing = [name for name in node.input[1:] if name not in constants]
    if missing or len(node.input) < 3:
        raise ModelError(f"{node.op_type} '{node.name}' has no constant scale and zero point; it cannot be trained")
    return constants[node.input[1]], constants[node.input[2]]


def _float_of(name: str, floats: Mapping[str, Array]) -> Array:
    original = name.removesuffix(_SUFFIX)
    if original not in floats:
        raise ModelError(
            f"the float numbers of '{name}' are not in the model: expected a tensor '{original}'. Is the model "
            "quantized already? Give the float32 one"
        )
    values: Array = floats[original].astype(np.float32)
    return values


def _layer_of(bias: NodeProto, model: ModelProto, made_by: Mapping[str, NodeProto]) -> tuple[str, str]:
    """The names of the scales of the layer that adds this bias: of its input and of its weight."""
    for node in model.graph.node:
        if len(node.input) > 2 and node.input[2] == bias.output[0]:
            signal, weight = (made_by.get(name) for name in node.input[:2])
            if signal is not None and weight is not None and len(signal.input) > 1 < len(weight.input):
                return signal.input[1], weight.input[1]
    raise ModelError(f"the bias '{bias.input[0]}' belongs to no quantized layer; it cannot be trained")


def _with_four_bits(model: ModelProto, names: list[str]) -> ModelProto:
    """The same graph with the tensors `names`, which hold -8 to 7, as INT4 and a Cast behind each."""
    if quantizers.opset_of(model) < _INT4_OPSET:
        with quantizers.silence():
            model = onnx.version_converter.convert_version(model, _INT4_OPSET)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.name in names:
            values, name = numpy_helper.to_array(tensor), tensor.name
            nibbles = np.append(values.reshape(-1), np.zeros(values.size % 2, np.int8)).astype(np.uint8) & 15
            packed = (nibbles[0::2] | nibbles[1::2] << 4).tobytes()  # the first of two in the lower half of a byte
            stored = f"{name}_int4"
            tensor.CopyFrom(onnx.helper.make_tensor(stored, TensorProto.INT4, values.shape, packed, raw=True))
            graph.node.append(onnx.helper.make_node("Cast", [stored], [name], to=TensorProto.INT8))
    return clean(model, ir_version=max(model.ir_version, _INT4_IR))
