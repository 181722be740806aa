"""What all losses share: checks of shapes with the text a user needs, and enough precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from edgekd.errors import UsageError


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise `UsageError` unless both logits have the same shape."""
    if student.shape != teacher.shape:
        raise UsageError(
            f"student logits are {list(student.shape)} but teacher logits are {list(teacher.shape)}; do both models "
            "end in the same classes?"
        )


def check_rank(tensor: Tensor, what: str, *ranks: int) -> None:
    """Raise `UsageError` unless `tensor` has one of the `ranks` dimensions."""
    if tensor.dim() not in ranks:
        expected = " or ".join({2: "(N, C)", 3: "(N, L, C)", 4: "(N, C, H, W)"}[rank] for rank in ranks)
        raise UsageError(f"{what} have the shape {list(tensor.shape)}, expected {expected}")


def check_labels(student_NC: Tensor, labels_N: Tensor) -> None:
    """Raise `UsageError` unless there is one whole number per row of logits."""
    if labels_N.shape != student_NC.shape[:1] or labels_N.is_floating_point():
        raise UsageError(
            f"labels are {list(labels_N.shape)} of {labels_N.dtype}, expected {list(student_NC.shape[:1])} whole "
            "numbers, one class per row of logits"
        )


def check_targets(student: Tensor, targets: Tensor) -> None:
    """Raise `UsageError` unless the targets have the shape of the outputs."""
    if student.shape != targets.shape:
        raise UsageError(
            f"student outputs are {list(student.shape)} but targets are {list(targets.shape)}; expected one output "
            "per target"
        )


def check_temperature(temperature: float) -> None:
    """Raise `UsageError` unless the temperature is above 0."""
    if not temperature > 0:
        raise UsageError(f"found temperature = {temperature}, expected a number above 0")


def precise(tensor: Tensor) -> Tensor:
    """float32 for anything narrower (bfloat16 autocast); float32 and float64 stay."""
    return tensor if tensor.dtype.itemsize >= 4 and tensor.is_floating_point() else tensor.float()


def constant(teacher: Tensor) -> Tensor:
    """The teacher's tensor, precise and without gradient."""
    return precise(teacher.detach())


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the values where the mask is true; 0 when it is true nowhere."""
    if mask is None:
        return values.mean()
    if mask.shape != values.shape:
        raise UsageError(f"the mask is {list(mask.shape)}, expected {list(values.shape)}: one value per row of logits")
    counts = mask.to(dtype=torch.bool, device=values.device)
    # torch.where, not a product: a masked row may hold NaN and must not spread it.
    return torch.where(counts, values, values.new_zeros(())).sum() / counts.sum().clamp(min=1)


def counted(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Rows (..., D) with zeros where the mask (...) is false: what stands there reaches neither value nor gradient."""
    if mask is None or mask.shape != rows.shape[:-1]:
        return rows  # a mask of another shape is named by `masked_mean`
    counts = mask.to(dtype=torch.bool, device=rows.device)
    return rows.masked_fill(~counts[..., None], 0.0)


Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def in_full_precision(loss: Loss) -> Loss:
    """Computed with autocast switched off, which would take products of float32 matrices in bfloat16."""

    @functools.wraps(loss)
    def run(*args: Any, **kwargs: Any) -> Tensor:
        given = (*args, *kwargs.values())
        values = (item for value in given for item in (value if isinstance(value, (list, tuple)) else (value,)))
        device = next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return loss(*args, **kwargs)

    return cast(Loss, run)
