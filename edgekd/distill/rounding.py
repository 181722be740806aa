"""Rounding to the steps of a learned scale, as a graph with QuantizeLinear does it, with gradients.

Esser et al., "Learned Step Size Quantization", 2019, arXiv:1902.08153 (the gradient of a scale); Jain et al., "Trained
Quantization Thresholds", 2019, arXiv:1903.08066 (the logarithm of a scale is learned: it stays positive, and a step of
Adam changes every scale by the same share).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.spec import Array

_LEAST_STEP = 2.0**-60
# Of the numbers that an int32 holds, the largest that a float32 holds too.
_MOST_STEPS_OF_BIAS = 2**31 - 128


class _Rounding(torch.autograd.Function):
    """s * clamp(round(x / s), low, high); straight through where x is in range.

    The gradient of s is round(x/s) - x/s where x is in range, and the bound where it is not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = x / scale
        whole = steps.round().clamp_(low, high)
        ctx.save_for_backward(steps, whole)
        ctx.low, ctx.high, ctx.shape = low, high, scale.shape
        return whole * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        steps, whole = ctx.saved_tensors
        inside = (steps >= ctx.low) & (steps <= ctx.high)
        of_x = gradient * inside if ctx.needs_input_grad[0] else None
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = (gradient * torch.where(inside, whole - steps, whole)).sum_to_size(ctx.shape)
        return of_x, of_scale, None, None


class Scale(nn.Module):
    """The size of a step, () or (channels,), of which the logarithm to base 2 is learned."""

    def __init__(self, steps: Array) -> None:
        super().__init__()
        self.log2 = nn.Parameter(torch.tensor(np.maximum(steps, _LEAST_STEP), dtype=torch.float32).log2())

    def forward(self) -> Tensor:
        """The scale itself."""
        return self.log2.exp2()


class Rounded(nn.Module):
    """A value rounded to `low` to `high` steps of a scale that it may share with others."""

    def __init__(self, scale: Scale, *, low: int, high: int) -> None:
        super().__init__()
        self.scale, self.low, self.high = scale, low, high

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        rounded: Tensor = _Rounding.apply(x, self.scale(), self.low, self.high)  # type: ignore[no-untyped-call]
        return rounded


class RoundedWeight(nn.Module):
    """A trained weight, rounded per tensor or per channel of `axis`."""

    def __init__(self, values: Array, scale: Scale, *, low: int, high: int, axis: int | None) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.from_numpy(values.copy()))
        self.scale, self.low, self.high = scale, low, high
        self.shape = [-1 if index == axis else 1 for index in range(values.ndim)] if axis is not None else []

    def forward(self) -> Tensor:
        """The weight as the graph computes with it."""
        rounded: Tensor = _Rounding.apply(self.values, self._steps(), self.low, self.high)  # type: ignore[no-untyped-call]
        return rounded

    def counts(self) -> Tensor:
        """How many steps each number is: what the graph stores."""
        counts: Tensor = (self.values / self._steps()).round().clamp(self.low, self.high)
        return counts

    def _steps(self) -> Tensor:
        steps: Tensor = self.scale().reshape(self.shape)
        return steps


class RoundedBias(nn.Module):
    """A trained bias of whole steps of the layer's sums: scale of the input times scale(s) of the weight."""

    def __init__(self, values: Array, of_input: Scale, of_weight: Scale) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.from_numpy(values.copy()))
        self.of_input, self.of_weight = of_input, of_weight

    def forward(self) -> Tensor:
        """The bias as the graph computes with it."""
        most = _MOST_STEPS_OF_BIAS
        rounded: Tensor = _Rounding.apply(self.values, self.steps().detach(), -most, most)  # type: ignore[no-untyped-call]
        return rounded

    def counts(self) -> Tensor:
        """How many steps each number is: what the graph stores as int32."""
        counts: Tensor = (self.values / self.steps()).round().clamp(-_MOST_STEPS_OF_BIAS, _MOST_STEPS_OF_BIAS)
        return counts

    def steps(self) -> Tensor:
        """Its scale, () or (channels,)."""
        steps: Tensor = self.of_input() * self.of_weight()
        return steps
