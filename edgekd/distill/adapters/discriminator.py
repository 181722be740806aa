"""The discriminator of adversarial distillation: tells the teacher's tensors from the student's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.func import functional_call

from edgekd.errors import UsageError


class Discriminator(nn.Module):
    """Scores (N, 1) of tensors (N, ...) of one shape: above 0 reads "from the teacher".

    Both players learn in the same step. The student is scored twice: once through frozen copies of the weights, so
    that its gradient reaches the student only, and once cut off from the student, so that it reaches the
    discriminator only.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
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
        fooled_N1: Tensor = functional_call(self.net, frozen, (student.float(),))
        return fooled_N1, self.net(teacher.float()), {"cut_student_score": self.net(student.detach().float())}


def discriminator(
    student_shape: Sequence[int],
    teacher_shape: Sequence[int],
    *,
    student_module: object = None,
    teacher_module: object = None,
    num_samples: int | None = None,
    hidden: int = 64,
) -> nn.Module:
    """A `Discriminator` with two hidden layers. Raises `UsageError` when the tensors have different shapes.

    Goodfellow et al., "Generative Adversarial Networks", 2014, arXiv:1406.2661; on logits: Xu, Hsu and Huang,
    "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional Adversarial
    Networks", 2017, arXiv:1709.00513.
    """
    if tuple(student_shape) != tuple(teacher_shape):
        raise UsageError(
            f"the discriminator compares tensors of one shape, found {list(student_shape)} of the student and "
            f"{list(teacher_shape)} of the teacher; tap logits, or layers of the same width and size"
        )
    return Discriminator(math.prod(student_shape), hidden)
