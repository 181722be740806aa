"""Teachers that grow with the student: peers that learn at the same time, and the average of the student itself."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgekd.distill.taps import widened
from edgekd.errors import UsageError


class Peers(nn.Module):
    """Gives the peers' logits for the batch: {"peer_logits": [(N, C), ...]}. They are trained with the student."""

    holds_networks = True

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, student: Tensor, teacher: object, batch: Mapping[str, Tensor]) -> tuple[Tensor, object, Mapping]:  # type: ignore[type-arg]
        """(student, teacher, the peers' logits)."""
        return student, teacher, {"peer_logits": [_logits(member, batch["x"]) for member in self.members]}


def peers(
    student_shape: object,
    teacher_shape: object,
    *,
    student_module: nn.Module | None = None,
    teacher_module: object = None,
    num_samples: int | None = None,
    count: int = 1,
) -> nn.Module:
    """`count` copies of the student, each with initial weights of its own.

    Every part draws them with its `reset_parameters`, and a model that has `_init_weights(part)`, as those of
    transformers do, with that. A part that has neither begins with the student's.

    Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning", 2017, arXiv:1706.00384.
    """
    if count < 1:
        raise UsageError(f"found count = {count} peers, expected at least 1")
    if student_module is None:
        raise UsageError("peers are copies of the student: tap its 'logits'")
    members = [copy.deepcopy(student_module) for _ in range(count)]
    for member in members:
        _draw_anew(member)
    return Peers(members)


@torch.no_grad()
def _draw_anew(network: nn.Module) -> None:
    """Initial weights as the network's own code draws them, from torch's generator."""
    for part in reversed(list(network.modules())):  # what holds others has the last word on how these are drawn
        # torch's own attention has the name with a line in front.
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
    for part in network.modules():
        draw = getattr(part, "_init_weights", None)
        if callable(draw) and len(inspect.signature(draw).parameters) == 1:
            part.apply(draw)


class AverageTeacher(nn.Module):
    """Gives as the teacher's tensor the logits of a slow copy of the student, whose weights follow after each step."""

    holds_networks = True

    def __init__(self, student: nn.Module, decay: float) -> None:
        super().__init__()
        self.slow = copy.deepcopy(student).requires_grad_(requires_grad=False)
        self.decay = decay
        # Not a part of this module: its weights belong to the student.
        self._student = (student,)

    def forward(self, student: Tensor, teacher: object, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Mapping]:  # type: ignore[type-arg]
        """(student, logits of the slow copy, nothing more)."""
        self.slow.eval()
        with torch.no_grad():
            return student, _logits(self.slow, batch["x"]), {}

    @torch.no_grad()
    def after_step(self) -> None:
        """Follow the student, whose weights have just changed."""
        student = self._student[0]
        for weight, fast in zip(self.slow.parameters(), student.parameters()):
            weight.lerp_(fast, 1.0 - self.decay)
        for buffer, own in zip(self.slow.buffers(), student.buffers()):  # batch norm's are an average already
            buffer.copy_(own)


def average_teacher(
    student_shape: object,
    teacher_shape: object,
    *,
    student_module: nn.Module | None = None,
    teacher_module: object = None,
    num_samples: int | None = None,
    decay: float = 0.99,
) -> nn.Module:
    """Self-distillation: the student learns from the exponential moving average of its own weights.

    Tarvainen and Valpola, "Mean teachers are better role models", 2017, arXiv:1703.01780.
    """
    if not 0.0 <= decay < 1.0:
        raise UsageError(f"found decay = {decay}, expected 0 <= decay < 1")
    if student_module is None:
        raise UsageError("the average teacher is a copy of the student: tap its 'logits'")
    return AverageTeacher(student_module, decay)


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    """What the network says, in float32 whatever it computes in."""
    answer = network(x)
    return widened(answer["logits"] if isinstance(answer, Mapping) else answer)
