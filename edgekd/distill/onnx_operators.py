"""ONNX operators as torch computes them, with gradients: what `edgekd.distill.onnx_module` runs a graph with.

Of each operator what exporters and edgekd's own passes write, from opset 13 on. Sizes and indices (Shape, Gather of
it, ...) are int64 tensors on the CPU, as in onnxruntime. https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from edgekd.errors import ModelError

Attributes = Mapping[str, Any]
Inputs = Sequence[Tensor | None]
Operator = Callable[[Attributes, list[Any]], Any]

_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


def _conv(attributes: Attributes, x: list[Any]) -> Tensor:
    signal, weight, bias = x[0], x[1], x[2] if len(x) > 2 else None
    spatial = weight.dim() - 2
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}.get(spatial)
    if function is None:
        raise ModelError(f"Conv over {spatial} axes cannot be trained; expected 1 to 3")
    signal, padding = _padded(signal, attributes, spatial)
    return function(
        signal,
        weight,
        bias,
        attributes.get("strides", [1] * spatial),
        padding,
        attributes.get("dilations", [1] * spatial),
        attributes.get("group", 1),
    )


def _padded(signal: Tensor, attributes: Attributes, spatial: int, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """The signal and the padding that torch's operator still has to add: the same on both sides."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ModelError("auto_pad = SAME depends on the size of the input; export the model with explicit pads")
    pads = list(attributes.get("pads", [0] * 2 * spatial))
    before, after = pads[:spatial], pads[spatial:]
    if before == after:
        return signal, before
    both = [size for pair in zip(reversed(before), reversed(after)) for size in pair]
    return F.pad(signal, both, value=value), [0] * spatial


def _gemm(attributes: Attributes, x: list[Any]) -> Tensor:
    a = x[0].T if attributes.get("transA", 0) else x[0]
    b = x[1].T if attributes.get("transB", 0) else x[1]
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    bias = x[2] if len(x) > 2 else None
    if alpha == beta == 1.0 and bias is not None and bias.dim() == 1:
        return torch.addmm(bias, a, b)
    product: Tensor = alpha * (a @ b)
    return product if bias is None else product + beta * bias


def _max_pool(attributes: Attributes, x: list[Any]) -> Tensor:
    spatial = x[0].dim() - 2
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[spatial]
    signal, padding = _padded(x[0], attributes, spatial, value=-math.inf)
    return function(
        signal,
        attributes["kernel_shape"],
        attributes.get("strides", [1] * spatial),
        padding,
        attributes.get("dilations", [1] * spatial),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _average_pool(attributes: Attributes, x: list[Any]) -> Tensor:
    spatial = x[0].dim() - 2
    pads = attributes.get("pads", [0] * 2 * spatial)
    if pads[:spatial] != pads[spatial:]:
        raise ModelError("AveragePool with other padding on one side than on the other cannot be trained")
    function: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[spatial]
    pooled: Tensor = function(
        x[0],
        attributes["kernel_shape"],
        attributes.get("strides", [1] * spatial),
        pads[:spatial],
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )
    return pooled


def _global_average_pool(attributes: Attributes, x: list[Any]) -> Tensor:
    return x[0].mean(dim=tuple(range(2, x[0].dim())), keepdim=True)  # type: ignore[no-any-return]


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def reduce(attributes: Attributes, x: list[Any]) -> Tensor:
        axes = attributes.get("axes") or ([] if len(x) < 2 or x[1] is None else x[1].tolist())
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x[0]  # type: ignore[no-any-return]
        return function(x[0], dim=axes or tuple(range(x[0].dim())), keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _reshape(attributes: Attributes, x: list[Any]) -> Tensor:
    sizes = x[1].tolist()
    if not attributes.get("allowzero", 0):
        sizes = [x[0].shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x[0].reshape(sizes)  # type: ignore[no-any-return]


def _flatten(attributes: Attributes, x: list[Any]) -> Tensor:
    axis = attributes.get("axis", 1) % (x[0].dim() + 1)
    return x[0].reshape(math.prod(x[0].shape[:axis]), -1)  # type: ignore[no-any-return]


def _squeeze(attributes: Attributes, x: list[Any]) -> Tensor:
    return x[0].squeeze() if len(x) < 2 else x[0].squeeze(tuple(x[1].tolist()))  # type: ignore[no-any-return]


def _unsqueeze(attributes: Attributes, x: list[Any]) -> Tensor:
    axes, value = x[1].tolist(), x[0]
    rank = value.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = value.unsqueeze(axis)
    return value  # type: ignore[no-any-return]


def _transpose(attributes: Attributes, x: list[Any]) -> Tensor:
    return x[0].permute(attributes.get("perm", list(reversed(range(x[0].dim())))))  # type: ignore[no-any-return]


def _slice(attributes: Attributes, x: list[Any]) -> Tensor:
    value, starts, ends = x[0], x[1].tolist(), x[2].tolist()
    axes = x[3].tolist() if len(x) > 3 and x[3] is not None else list(range(len(starts)))
    steps = x[4].tolist() if len(x) > 4 else [1] * len(starts)
    index: list[Any] = [slice(None)] * value.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps):
        if step < 1:
            raise ModelError("Slice backwards cannot be trained; expected steps from 1")
        index[axis] = slice(start, min(end, value.shape[axis]), step)  # "to the end" is a huge number
    return value[tuple(index)]  # type: ignore[no-any-return]


def _gather(attributes: Attributes, x: list[Any]) -> Tensor:
    axis, indices = attributes.get("axis", 0) % x[0].dim(), x[1].to(x[0].device)
    indices = torch.where(indices < 0, indices + x[0].shape[axis], indices)
    taken: Tensor = x[0].index_select(axis, indices.reshape(-1))
    return taken.reshape(*x[0].shape[:axis], *indices.shape, *x[0].shape[axis + 1 :])


def _split(attributes: Attributes, x: list[Any]) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if len(x) > 1 and x[1] is not None:
        return tuple(x[0].split(x[1].tolist(), dim=axis))
    return tuple(x[0].split(math.ceil(x[0].shape[axis] / attributes["num_outputs"]), dim=axis))


def _concat(attributes: Attributes, x: list[Any]) -> Tensor:
    return torch.cat(x, dim=attributes["axis"])


def _expand(attributes: Attributes, x: list[Any]) -> Tensor:
    shape = torch.broadcast_shapes(x[0].shape, x[1].tolist())  # type: ignore[no-untyped-call]
    return x[0].expand(shape)  # type: ignore[no-any-return]


def _cast(attributes: Attributes, x: list[Any]) -> Tensor:
    if attributes["to"] not in _TYPES:
        raise ModelError(f"Cast to {TensorProto.DataType.Name(attributes['to'])} cannot be trained")
    return x[0].to(_TYPES[attributes["to"]])  # type: ignore[no-any-return]


def _clip(attributes: Attributes, x: list[Any]) -> Tensor:
    low, high = (x[index] if len(x) > index else None for index in (1, 2))
    return torch.clamp(x[0], min=low, max=high)


def _pad(attributes: Attributes, x: list[Any]) -> Tensor:
    if attributes.get("mode", b"constant") != b"constant" or len(x) > 3:
        raise ModelError("Pad other than with a constant on all axes cannot be trained")
    pads = x[1].tolist()
    half = len(pads) // 2
    both = [size for pair in zip(reversed(pads[:half]), reversed(pads[half:])) for size in pair]
    return F.pad(x[0], both, value=float(x[2]) if len(x) > 2 and x[2] is not None else 0.0)


def _layer_norm(attributes: Attributes, x: list[Any]) -> Tensor:
    axis = attributes.get("axis", -1) % x[0].dim()
    shape = x[0].shape[axis:]
    bias = x[2] if len(x) > 2 else None
    return F.layer_norm(x[0], shape, x[1], bias, attributes.get("epsilon", 1e-5))


def _batch_norm(attributes: Attributes, x: list[Any]) -> Tensor:
    signal, scale, bias, mean, var = x
    return F.batch_norm(signal, mean, var, scale, bias, training=False, eps=attributes.get("epsilon", 1e-5))


def _softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda attributes, x: function(x[0], dim=attributes.get("axis", -1))


def _shape(attributes: Attributes, x: list[Any]) -> Tensor:
    return torch.tensor(list(x[0].shape))[attributes.get("start", 0) : attributes.get("end", None)]


def _prelu(attributes: Attributes, x: list[Any]) -> Tensor:
    return torch.where(x[0] < 0, x[0] * x[1], x[0])


def _div(attributes: Attributes, x: list[Any]) -> Tensor:
    mode = None if x[0].is_floating_point() else "trunc"
    return torch.div(x[0], x[1], rounding_mode=mode)


def _gelu(attributes: Attributes, x: list[Any]) -> Tensor:
    return F.gelu(x[0], approximate=attributes.get("approximate", b"none").decode())


def _same(function: Callable[..., Tensor]) -> Operator:
    """An operator without attributes that torch has too."""
    return lambda attributes, x: function(*x)


OPERATORS: dict[str, Operator] = {
    "Abs": _same(torch.abs),
    "Add": _same(torch.add),
    "And": _same(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Dropout": lambda attributes, x: x[0],
    "Elu": lambda attributes, x: F.elu(x[0], attributes.get("alpha", 1.0)),
    "Equal": _same(torch.eq),
    "Erf": _same(torch.erf),
    "Exp": _same(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "HardSigmoid": lambda attributes, x: torch.clamp(
        attributes.get("alpha", 0.2) * x[0] + attributes.get("beta", 0.5), 0.0, 1.0
    ),
    "HardSwish": _same(F.hardswish),
    "Identity": lambda attributes, x: x[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda attributes, x: F.leaky_relu(x[0], attributes.get("alpha", 0.01)),
    "Log": _same(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _same(torch.matmul),
    "Max": _same(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _same(torch.minimum),
    "Mul": _same(torch.mul),
    "Neg": _same(torch.neg),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _same(torch.pow),
    "Reciprocal": _same(torch.reciprocal),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _same(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _same(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Split": _split,
    "Sqrt": _same(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _same(torch.sub),
    "Tanh": _same(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    # A mask that is a constant of the graph stays on the CPU.
    "Where": lambda attributes, x: torch.where(x[0].to(x[1].device), x[1], x[2]),
}
