"""What an ONNX graph's names stand for while it is read as integers: bytes, weights, and results not yet rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgekd.device.integer import Bounds, Layer, Tensor
from edgekd.errors import ModelError
from edgekd.spec import Array

ADVICE = "quantize it with: edgekd quantize MODEL.onnx OUT.onnx --config int8_static, and look with: edgekd inspect"


@dataclass(frozen=True)
class Bytes:
    """A tensor of the program, seen with a shape (without the batch axis)."""

    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """Integers w that stand for (w - zero_point) * steps."""

    values: Array
    steps: NDArray[np.float32]
    zero_point: Array
    axis: int


@dataclass(frozen=True)
class Pending:
    """A float result that a QuantizeLinear has yet to turn into bytes.

    finish(step, zero_point, bounds) gives the layer; low and high are what a ReLU or a Clip left
    """

    shape: tuple[int, ...]
    finish: Callable[[Tensor, int, Bounds], Layer]
    as_float: Callable[[], Layer] | None = None
    low: float = -math.inf
    high: float = math.inf


Value = Bytes | Weight | Pending


@dataclass
class Reading:
    """What was read so far."""

    constants: dict[str, Array]
    values: dict[str, Value] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    def add(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def quantized(reading: Reading, node: NodeProto, at: int) -> Bytes:
    value = reading.values.get(node.input[at])
    if not isinstance(value, Bytes):
        raise ModelError(f"{node.op_type} computes in float ('{node.input[at]}' is not quantized); {ADVICE}")
    return value


def constant_weight(reading: Reading, node: NodeProto, at: int) -> Weight:
    value = reading.values.get(node.input[at])
    if not isinstance(value, Weight):
        raise ModelError(f"the weights '{node.input[at]}' of {node.op_type} are not quantized constants; {ADVICE}")
    return value


def int8_weights(weight: Weight, of_output: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The weights less their zero points, which must fit into int8, and one step per output."""
    num = weight.values.shape[of_output]
    if len(weight.steps) not in (1, num) or (len(weight.steps) > 1 and weight.axis != of_output):
        raise ModelError(f"found {len(weight.steps)} scales of weights for {num} outputs, expected one, or one each")
    along = [1] * weight.values.ndim
    along[of_output] = -1
    zeros = np.broadcast_to(weight.zero_point.astype(np.int32), (num,) if len(weight.zero_point) in (1, num) else (0,))
    values = weight.values.astype(np.int32) - zeros.reshape(along)
    if values.min(initial=0) < -128 or values.max(initial=0) > 127:
        raise ModelError(f"weights from {values.min()} to {values.max()} do not fit into int8; quantize with int8_u8s8")
    return values.astype(np.int8), np.broadcast_to(weight.steps, (num,)).astype(np.float32)


def scale_of(reading: Reading, node: NodeProto) -> tuple[float, int]:
    """Step and zero point of an activation, as of bytes: int8 is moved up by 128."""
    names = [name for name in node.input[1:] if name]
    if any(name not in reading.constants for name in names) or not names:
        raise ModelError(f"the scale of '{node.input[0]}' is no constant: dynamic quantization; {ADVICE}")
    step = reading.constants[names[0]]
    zero_point = reading.constants[names[1]] if len(names) > 1 else np.zeros((), np.uint8)
    if step.size != 1 or zero_point.dtype not in (np.uint8, np.int8):
        raise ModelError(f"'{node.input[0]}' has {step.size} scales of {zero_point.dtype}, expected one of 8 bits")
    return float(step.reshape(())), int(zero_point.reshape(())) + (128 if zero_point.dtype == np.int8 else 0)


def bounds_of(pending: Pending, step: float, zero_point: int) -> Bounds:
    """Where clipping before rounding ends: the same as clipping the bytes, since rounding keeps the order."""

    def place(limit: float) -> int:
        if math.isinf(limit):
            return 0 if limit < 0 else 255
        steps = np.rint(np.float32(limit) / np.float32(step))
        return int(np.clip(steps + zero_point, 0, 255))

    return Bounds(place(pending.low), place(pending.high))


def pads_of(options: Mapping[str, Any], num: int) -> tuple[list[int], list[int]]:
    if options.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ModelError(f"auto_pad {options['auto_pad'].decode()}: expected the padding in numbers; export it again")
    pads = [int(item) for item in options.get("pads", [0] * (2 * num))]
    return pads[:num], pads[num:]


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of a vector, a sequence (C, L) or an image; more axes are one of length 1 and those."""
    sides = [side for side in shape]
    while len(sides) > 3 and 1 in sides[1:]:
        sides.pop(sides.index(1, 1))
    if len(sides) > 3:
        raise ModelError(f"found a tensor of {shape}, expected at most channels, height and width")
    if len(sides) == 2:
        return sides[0], 1, sides[1]
    return sides[0], sides[1] if len(sides) > 1 else 1, sides[2] if len(sides) > 2 else 1
