"""Samples of which some have no label that may be used: what a loss on labels makes of them.

A batch then holds "labelled", (N,) float32: 1 / (share of labelled samples in the training set) for those with a label
and 0 for the others, whose "y" is no label at all (-1, or NaN), so that nobody can learn from it by mistake; and
"labelled_rows", (M,) int64: which rows those with a label are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LABELLED = "labelled"
LABELLED_ROWS = "labelled_rows"
MASK_OF_CLASSES = -1


def weights_of(labelled_N: NDArray[np.bool_]) -> Tensor:
    """(N,) what the loss of each sample counts: as much in all as that of N samples."""
    found = int(labelled_N.sum())
    return torch.from_numpy(labelled_N.astype(np.float32)) * (len(labelled_N) / max(found, 1))


def hidden(y: Tensor, labelled_N: Tensor) -> Tensor:
    """The labels without those that may not be seen."""
    nothing = float("nan") if y.is_floating_point() else MASK_OF_CLASSES
    return y.masked_fill((labelled_N == 0).reshape(-1, *(1,) * (y.dim() - 1)), nothing)


def labelled_only(
    value: Callable[[dict[str, Any]], Tensor], arguments: Mapping[str, Any], batch: Mapping[str, Tensor]
) -> Tensor:
    """The loss `value(arguments)` of the labelled rows, as their part of the batch.

    arguments  tensors, or lists of them, of which those that are N long have a row for each sample
    batch      with "labelled" and, unless it was put together from several, "labelled_rows"

    It is weighted by (labelled rows) / (rows) / (share in the training set): so its mean over batches is the mean
    over all labelled samples, however they are spread over batches, processes and micro-batches.
    """
    weight_N = batch[LABELLED]
    # How many rows there are decides the shapes: a GPU that is asked for them keeps the training waiting.
    rows = batch[LABELLED_ROWS] if LABELLED_ROWS in batch else weight_N.nonzero()[:, 0]
    if len(rows) == 0:
        tensors = [tensor for argument in arguments.values() for tensor in _tensors(argument) if tensor.requires_grad]
        return sum((tensor.float().sum() * 0.0 for tensor in tensors), weight_N.new_zeros(()))

    def chosen(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return [chosen(item) for item in argument]
        is_of_rows = isinstance(argument, Tensor) and argument.dim() > 0 and len(argument) == len(weight_N)
        return argument.index_select(0, rows) if is_of_rows else argument

    return value({name: chosen(argument) for name, argument in arguments.items()}) * weight_N.mean()


def _tensors(argument: Any) -> list[Tensor]:
    items = argument if isinstance(argument, (list, tuple)) else [argument]
    return [item for item in items if isinstance(item, Tensor)]
