"""A quantized student in integers, as the C code computes it: the reference that the code is compared with, bit by bit.

Activations are bytes, weights int8, sums int32; a sum becomes a byte again by one float32 multiplication, rounded with
ties to even. onnxruntime's integer kernels do the same, so that labels agree with it.

Axes: N batch, C channels, H height, W width. A vector has the shape (C, 1, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.spec import Array

Pair: TypeAlias = tuple[int, int]
Shape: TypeAlias = tuple[int, int, int]
LOWEST, HIGHEST = 0, 255
CHUNK = 64  # samples at a time: what lies under a kernel takes nine times the memory of what it reads


@dataclass(frozen=True)
class Tensor:
    """Bytes q that stand for (q - zero_point) * step, in the order C, H, W."""

    shape: Shape
    step: float
    zero_point: int

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass(frozen=True)
class Bounds:
    """What a byte may be: narrower than 0..255 where a ReLU or a Clip follows."""

    low: int = LOWEST
    high: int = HIGHEST


@dataclass(frozen=True)
class Quantize:
    """The model's float input as bytes; `rows` and `columns` where the matrix (rows, columns) is turned round."""

    target: int
    rows: int = 1
    columns: int = 1


@dataclass(frozen=True)
class Convolution:
    """A sum of products per output, padded with zeros; a linear layer is one of 1 x 1 over a picture of 1 x 1.

    in_shape      (C, H, W) in which the source's bytes are read
    weights       (C out, C in / groups, KH, KW) int8
    bias          (C out,) int32, in steps of the sum
    multipliers   (C out,) float32, from a step of the sum to one of the target, or to the float output
    target        None: the model's float output
    """

    source: int
    target: int | None
    in_shape: Shape
    out_shape: Shape
    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    multipliers: NDArray[np.float32]
    strides: Pair = (1, 1)
    pads: Pair = (0, 0)
    dilations: Pair = (1, 1)
    groups: int = 1
    bounds: Bounds = Bounds()


@dataclass(frozen=True)
class Pool:
    """The largest or the mean byte under a window; the mean counts padding as zeros."""

    source: int
    target: int
    in_shape: Shape
    out_shape: Shape
    kind: Literal["max", "mean"]
    kernel: Pair
    multiplier: np.float32
    strides: Pair = (1, 1)
    pads: Pair = (0, 0)
    bounds: Bounds = Bounds()


@dataclass(frozen=True)
class Add:
    """The sum of two tensors of one shape; one source twice with a second multiplier of 0 is a change of steps."""

    sources: Pair
    target: int
    multipliers: tuple[np.float32, np.float32]
    bounds: Bounds = Bounds()


@dataclass(frozen=True)
class Dequantize:
    """Bytes as the model's float output."""

    source: int


Layer: TypeAlias = Quantize | Convolution | Pool | Add | Dequantize


@dataclass(frozen=True)
class IntegerProgram:
    """Layers in the order in which they run, and the tensors between them.

    num_inputs, num_outputs   floats of one sample, in the order of the ONNX model's axes
    """

    num_inputs: int
    num_outputs: int
    tensors: tuple[Tensor, ...]
    layers: tuple[Layer, ...]

    @property
    def num_weights(self) -> int:
        """How many int8 weights."""
        return sum(layer.weights.size for layer in self.layers if isinstance(layer, Convolution))

    @property
    def constant_bytes(self) -> int:
        """What weights, biases and multipliers take in flash, without the code."""
        return sum(
            layer.weights.nbytes + layer.bias.nbytes + layer.multipliers.nbytes
            for layer in self.layers
            if isinstance(layer, Convolution)
        )


def run(program: IntegerProgram, inputs: Array) -> NDArray[np.float32]:
    """The model's output (N, num_outputs) for its preprocessed float inputs (N, ...).

    Raises `DataError` for inputs of another size, or that hold NaN or infinity: the C code refuses these too.
    """
    flat_NI = np.asarray(inputs, np.float32).reshape(len(inputs), -1)
    if flat_NI.shape[1] != program.num_inputs:
        raise DataError(f"found {flat_NI.shape[1]} numbers per sample, expected {program.num_inputs}")
    if not np.isfinite(flat_NI).all():
        raise DataError("found NaN or infinity in the input; check the sensor or the preprocessing")
    parts = [_run(program, flat_NI[start : start + CHUNK]) for start in range(0, len(flat_NI), CHUNK)]
    return np.concatenate([np.empty((0, program.num_outputs), np.float32), *parts])


def _run(program: IntegerProgram, flat_NI: NDArray[np.float32]) -> Array:
    values: dict[int, Array] = {}
    result: Array = flat_NI
    for layer in program.layers:
        if isinstance(layer, Quantize):
            values[layer.target] = _quantize(layer, program.tensors[layer.target], flat_NI)
            continue
        if isinstance(layer, Add):
            left, right = (_shifted(program, source, values) for source in layer.sources)
            scaled = left * layer.multipliers[0] + right * layer.multipliers[1]
        elif isinstance(layer, Dequantize):
            scaled = _shifted(program, layer.source, values) * np.float32(program.tensors[layer.source].step)
        elif isinstance(layer, Pool):
            shifted = _shifted(program, layer.source, values).reshape(-1, *layer.in_shape)
            scaled = _pool(layer, shifted) * layer.multiplier
        else:
            shifted = _shifted(program, layer.source, values).reshape(-1, *layer.in_shape)
            sums = _convolve(layer, shifted)
            scaled = sums.astype(np.float32) * layer.multipliers[:, np.newaxis, np.newaxis]
        target = None if isinstance(layer, Dequantize) else layer.target
        if target is None or isinstance(layer, Dequantize):
            result = scaled.reshape(len(scaled), -1)
        else:
            values[target] = _to_bytes(scaled, program.tensors[target], layer.bounds)
    return result


def _shifted(program: IntegerProgram, source: int, values: dict[int, Array]) -> NDArray[np.float32]:
    """Bytes less their zero point: whole numbers from -255 to 255, exact in float32."""
    exact: NDArray[np.float32] = values[source].astype(np.float32) - np.float32(program.tensors[source].zero_point)
    return exact


def largest_sum(layer: Convolution, zero_point: int) -> int:
    """The largest magnitude that a sum can reach: below 2**31, or int32 would overflow."""
    reach = max(zero_point, HIGHEST - zero_point)
    weights_OK = np.abs(layer.weights.astype(np.int64)).reshape(len(layer.weights), -1)
    return int((weights_OK.sum(axis=1) * reach + np.abs(layer.bias.astype(np.int64))).max(initial=0))


def quantize_inputs(program: IntegerProgram, inputs: Array) -> NDArray[np.uint8]:
    """The bytes (N, num_inputs) that the first layer makes of preprocessed float inputs, in the order of its tensor."""
    layer = next(layer for layer in program.layers if isinstance(layer, Quantize))
    flat_NI = np.asarray(inputs, np.float32).reshape(len(inputs), -1)
    return _quantize(layer, program.tensors[layer.target], flat_NI).reshape(len(flat_NI), -1)


def _quantize(layer: Quantize, tensor: Tensor, flat_NI: NDArray[np.float32]) -> Array:
    if layer.rows > 1 and layer.columns > 1:
        flat_NI = flat_NI.reshape(-1, layer.rows, layer.columns).swapaxes(1, 2)
    with np.errstate(over="ignore"):  # an infinite count of steps ends at the last byte
        scaled = flat_NI / np.float32(tensor.step)
    return _to_bytes(scaled, tensor, Bounds()).reshape(-1, *tensor.shape)


def _to_bytes(scaled: Array, tensor: Tensor, bounds: Bounds) -> Array:
    """Counts of steps, in float32, as bytes: np.rint sends ties to even."""
    low, high = bounds.low - tensor.zero_point, bounds.high - tensor.zero_point
    whole = np.rint(np.clip(scaled, np.float32(low), np.float32(high))).astype(np.int32)
    in_bytes: Array = (whole + tensor.zero_point).astype(np.uint8)
    return in_bytes


def _convolve(layer: Convolution, shifted_NCHW: NDArray[np.float32]) -> NDArray[np.int32]:
    """Exact int32 sums. Computed in float64, whose 53 bits hold them all, since that is what BLAS is fast at."""
    channels_out, channels_in, *kernel = layer.weights.shape
    num, per_group, size = len(shifted_NCHW), channels_out // layer.groups, layer.out_shape[1:]
    windows = _windows(shifted_NCHW, (kernel[0], kernel[1]), layer.strides, layer.pads, layer.dilations, size, 0.0)
    sums = np.empty((num, channels_out, size[0] * size[1]))
    for group in range(layer.groups):
        inside = windows[:, group * channels_in : (group + 1) * channels_in].reshape(num, -1, size[0] * size[1])
        chosen = slice(group * per_group, (group + 1) * per_group)
        sums[:, chosen] = layer.weights[chosen].reshape(per_group, -1).astype(np.float64) @ inside
    sums += layer.bias.astype(np.float64)[:, np.newaxis]
    return sums.astype(np.int32).reshape(num, *layer.out_shape)


def _pool(layer: Pool, shifted_NCHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest whole number under each window, or their sum: below 2**24 and so exact."""
    fill = -np.inf if layer.kind == "max" else 0.0
    windows = _windows(shifted_NCHW, layer.kernel, layer.strides, layer.pads, (1, 1), layer.out_shape[1:], fill)
    pooled: Array = windows.max(axis=2) if layer.kind == "max" else windows.sum(axis=2)
    exact: NDArray[np.float32] = pooled.astype(np.float32)
    return exact


def _windows(
    values_NCHW: Array, kernel: Pair, strides: Pair, pads: Pair, dilations: Pair, size: Pair, fill: float
) -> Array:
    """What lies under the kernel at each output: (N, C, KH * KW, OH, OW)."""
    num, channels, height, width = values_NCHW.shape
    below = max(0, (size[0] - 1) * strides[0] + (kernel[0] - 1) * dilations[0] + 1 - pads[0] - height)
    right = max(0, (size[1] - 1) * strides[1] + (kernel[1] - 1) * dilations[1] + 1 - pads[1] - width)
    padded = np.pad(values_NCHW, ((0, 0), (0, 0), (pads[0], below), (pads[1], right)), constant_values=fill)
    windows = np.empty((num, channels, kernel[0] * kernel[1], *size))
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            top, left = row * dilations[0], column * dilations[1]
            windows[:, :, row * kernel[1] + column] = padded[
                :,
                :,
                top : top + (size[0] - 1) * strides[0] + 1 : strides[0],
                left : left + (size[1] - 1) * strides[1] + 1 : strides[1],
            ]
    return windows
