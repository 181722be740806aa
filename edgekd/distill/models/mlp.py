"""Multi-layer perceptrons: tables, sensor values, small images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from edgekd.errors import ModelError


def mlp(
    *,
    num_outputs: int,
    input_shape: Sequence[int],
    hidden: Sequence[int] = (128,),
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> nn.Module:
    """Flatten, then for each width in `hidden`: linear, batch norm (if asked), ReLU, dropout; then linear.

    (N, *input_shape) to (N, num_outputs). The classic pair for MNIST is hidden=(512, 256) as the teacher of
    hidden=(128,). Raises `ModelError` for a width below 1 or a dropout outside 0..1.
    """
    if any(not isinstance(width, int) or width < 1 for width in hidden):
        raise ModelError(f"mlp: found hidden = {list(hidden)}, expected whole numbers from 1")
    if not 0.0 <= dropout < 1.0:
        raise ModelError(f"mlp: found dropout = {dropout}, expected 0 <= dropout < 1")
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Linear(before, after))
        if batch_norm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(nn.ReLU())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))


def mlp_s(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """`mlp` with one hidden layer of 32."""
    return mlp(num_outputs=num_outputs, input_shape=input_shape, hidden=(32,))


def mlp_m(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """`mlp` with one hidden layer of 128."""
    return mlp(num_outputs=num_outputs, input_shape=input_shape, hidden=(128,))


def mlp_l(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """`mlp` with hidden layers of 256 and 128."""
    return mlp(num_outputs=num_outputs, input_shape=input_shape, hidden=(256, 128))


def mlp_teacher(
    *, num_outputs: int, input_shape: Sequence[int], hidden: Sequence[int] = (1024, 512), dropout: float = 0.2
) -> nn.Module:
    """`mlp` with batch norm and dropout, wide by default."""
    return mlp(num_outputs=num_outputs, input_shape=input_shape, hidden=hidden, dropout=dropout, batch_norm=True)
