"""Samples of which some have no label that may be used: what a loss on labels makes of them.

A batch then holds "labelled", (N,) float32: 1 / (share of labelled samples in the training set) for those with a label
and 0 for the others, whose "y" is no label at all (-1, or NaN), so that nobody can learn from it by mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Named = Mapping[str, Tensor]

LABELLED = "labelled"
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
    value: Callable[[Named, Named, Named], Tensor], student: Named, teacher: Named, batch: Named
) -> Tensor:
    """The loss `value(student, teacher, batch)` of the labelled rows, as their part of the batch.

    It is weighted by (labelled rows) / (rows) / (share in the training set): so its mean over batches is the mean
    over all labelled samples, however they are spread over batches, processes and micro-batches.
    """
    weight_N = batch[LABELLED]
    # On a GPU this waits for the device: how many rows there are decides the shapes.
    rows = weight_N.nonzero()[:, 0]
    if len(rows) == 0:
        return sum((tensor.float().sum() * 0.0 for tensor in student.values()), weight_N.new_zeros(()))
    size = len(weight_N)

    def chosen(named: Named) -> dict[str, Tensor]:
        return {
            name: tensor.index_select(0, rows) if tensor.dim() and len(tensor) == size else tensor
            for name, tensor in named.items()
        }

    own = {name: tensor for name, tensor in batch.items() if name != LABELLED}
    return value(chosen(student), chosen(teacher), chosen(own)) * weight_N.mean()
