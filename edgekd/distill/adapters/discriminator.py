"""The discriminator of adversarial distillation: tells the teacher's tensors from the student's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from edgekd.distill.adapters.widths import bridge
from edgekd.errors import UsageError


class Discriminator(nn.Module):
    """Scores (N, 1) of tensors (N, ...): above 0 reads "from the teacher".

    Both players learn in the same step. The student is scored twice: once through frozen copies of the weights, so
    that its gradient reaches the student only, and once cut off from the student, so that it reaches the
    discriminator only. What brings the student to the teacher's width plays on the student's side.

    size  (H, W) of maps, to which larger ones are pooled
    """

    def __init__(self, project: nn.Module, width: int, hidden: int, *, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.project = project
        self.size = size
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def forward(
        self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(score of the student for the student, score of the teacher, {score of the student for this module})."""
        frozen = {name: value.detach() for name, value in self.net.named_parameters()}
        own = self._sized(self.project(student.float()))
        fooled_N1: Tensor = functional_call(self.net, frozen, (own,))
        return fooled_N1, self.net(self._sized(teacher.float())), {"cut_student_score": self.net(own.detach())}

    def _sized(self, x: Tensor) -> Tensor:
        return x if self.size is None or tuple(x.shape[2:]) == self.size else F.adaptive_avg_pool2d(x, self.size)


def discriminator(
    student_shape: Sequence[int],
    teacher_shape: Sequence[int],
    *,
    student_module: object = None,
    teacher_module: object = None,
    num_samples: int | None = None,
    hidden: int = 64,
) -> nn.Module:
    """A `Discriminator` with two hidden layers. Other widths: as `auto`; of maps the larger is pooled to the smaller.

    Raises `UsageError` for tensors of different rank, and for (L, D) of different L.

    Goodfellow et al., "Generative Adversarial Networks", 2014, arXiv:1406.2661; on logits: Xu, Hsu and Huang,
    "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional Adversarial
    Networks", 2017, arXiv:1709.00513.
    """
    are_maps = len(student_shape) == len(teacher_shape) == 3
    if len(student_shape) != len(teacher_shape) or not (are_maps or student_shape[:-1] == teacher_shape[:-1]):
        raise UsageError(
            f"the discriminator compares tensors of one kind, found {list(student_shape)} of the student and "
            f"{list(teacher_shape)} of the teacher; tap logits, or maps (K, H, W), or vectors of both"
        )
    size = None
    if are_maps:
        size = min(student_shape[1], teacher_shape[1]), min(student_shape[2], teacher_shape[2])
    width = teacher_shape[0] * math.prod(size) if size else math.prod(teacher_shape)
    return Discriminator(bridge(student_shape, teacher_shape), width, hidden, size=size)
