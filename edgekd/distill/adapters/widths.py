"""Brings the student's width to the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from edgekd.errors import UsageError

Shape = Sequence[int]


class Widths(nn.Module):
    """The student's tensor through `layer`; the teacher's as it is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """(student in the teacher's width, teacher, nothing more for the loss)."""
        return self.layer(student), teacher, {}


class Each(nn.Module):
    """Each of the student's tensors through its own layer."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
        """(projected tensors, teacher, nothing more)."""
        return [layer(value) for layer, value in zip(self.layers, student)], teacher, {}


def auto(
    student_shape: Any,
    teacher_shape: Any,
    *,
    student_module: nn.Module | None = None,
    teacher_module: nn.Module | None = None,
    num_samples: int | None = None,
) -> nn.Module:
    """The smallest that fits: a 1x1 convolution for maps (K, H, W), a linear layer for (D) and (L, D).

    Lists of as many tensors get one for each pair of different widths. Sizes of maps are left to the losses. Raises
    `UsageError` for tensors of different rank.
    """
    several = [bool(shape) and not isinstance(shape[0], int) for shape in (student_shape, teacher_shape)]
    if not any(several):
        return Widths(layer_between(student_shape, teacher_shape))
    if not all(several) or len(student_shape) != len(teacher_shape):
        raise UsageError(
            f"found {_told(student_shape)} of the student and {_told(teacher_shape)} of the teacher, expected as many "
            "taps of both; adapter = 'combine' lets one layer of the student learn from several of the teacher"
        )
    return Each([bridge(s, t) for s, t in zip(student_shape, teacher_shape)])


def bridge(student_shape: Shape, teacher_shape: Shape) -> nn.Module:
    """What `auto` puts between two shapes; nothing where they have the same width already."""
    width = 0 if len(student_shape) == 3 else -1
    if len(student_shape) == len(teacher_shape) and student_shape[width] == teacher_shape[width]:
        return nn.Identity()
    return layer_between(student_shape, teacher_shape)


def layer_between(student_shape: Shape, teacher_shape: Shape) -> nn.Module:
    """What `auto` puts between two shapes."""
    if len(student_shape) != len(teacher_shape) or not 1 <= len(student_shape) <= 3:
        raise UsageError(
            f"found {list(student_shape)} of the student and {list(teacher_shape)} of the teacher: no adapter brings "
            "these together by itself; tap tensors of one kind, or name an adapter"
        )
    if len(student_shape) == 3:
        return nn.Conv2d(student_shape[0], teacher_shape[0], 1, bias=False)
    return nn.Linear(student_shape[-1], teacher_shape[-1], bias=False)


def _told(shape: Any) -> list[Any]:
    """One shape, or those of a list, as plain lists."""
    return [size if isinstance(size, int) else list(size) for size in shape]
