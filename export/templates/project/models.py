"""Your own teacher and student: functions that return a plain torch.nn.Module.

A function gets `num_outputs` and `input_shape` (without the batch axis) where its signature names them, and what
`args` in the recipe says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn


def teacher(*, num_outputs: int, input_shape: Sequence[int], width: int = 128) -> nn.Module:
    """Two wide hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, num_outputs),
    )


def student(*, num_outputs: int, input_shape: Sequence[int], width: int = 32) -> nn.Module:
    """One narrow hidden layer: what will run on the device."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.ReLU(), nn.Linear(width, num_outputs)
    )
