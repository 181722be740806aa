"""Peers of the student in deep mutual learning: networks of the same kind that learn at the same time."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from edgekd.errors import UsageError


class Peers(nn.Module):
    """Gives the peers' logits for the batch: {"peer_logits": [(N, C), ...]}. They are trained with the student."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, student: Tensor, teacher: object, batch: Mapping[str, Tensor]) -> tuple[Tensor, object, Mapping]:  # type: ignore[type-arg]
        """(student, teacher, the peers' logits)."""
        answers = [member(batch["x"]) for member in self.members]
        return student, teacher, {"peer_logits": [a["logits"] if isinstance(a, Mapping) else a for a in answers]}


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

    Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning", 2017, arXiv:1706.00384.
    """
    if count < 1:
        raise UsageError(f"found count = {count} peers, expected at least 1")
    if student_module is None:
        raise UsageError("peers are copies of the student: tap its 'logits'")
    members = [copy.deepcopy(student_module) for _ in range(count)]
    for member in members:
        for part in member.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return Peers(members)
