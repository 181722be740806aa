"""From queries and keys to attention scores: transformers gives only what comes behind the softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import UsageError


class AttentionScores(nn.Module):
    """Lists of queries and keys (B, L, D) in turn to lists of scores (B, A, L, L), for the loss `attention_mse`."""

    def __init__(self, student_heads: int, teacher_heads: int) -> None:
        super().__init__()
        self.student_heads, self.teacher_heads = student_heads, teacher_heads

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
        """(the student's scores, the teacher's, the batch's mask where it has one)."""
        mask = {"mask": batch["mask"]} if "mask" in batch else {}
        with torch.autocast(student[0].device.type, enabled=False):
            return _scores(student, self.student_heads), _scores(teacher, self.teacher_heads), mask


def attention_scores(
    student_shape: Sequence[Sequence[int]],
    teacher_shape: Sequence[Sequence[int]],
    *,
    student_module: object = None,
    teacher_module: object = None,
    num_samples: int | None = None,
    heads: int | Sequence[int] = 12,
) -> nn.Module:
    """Raw attention scores, query key^T / sqrt(D / A), before the softmax. No weights.

    Both taps name a query and a key for each layer, in turn: [q of layer 1, k of layer 1, q of layer 5, k of ...].

    heads  of both models, or [student, teacher], which have to be equal: each head of the student learns from one of
           the teacher. For another number take the loss `minilm_relation`, which makes heads of its own

    Jiao et al., "TinyBERT", 2019, arXiv:1909.10351.
    """
    own, other = (heads, heads) if isinstance(heads, int) else tuple(heads) if len(heads) == 2 else (0, 0)
    if own < 1 or own != other:
        raise UsageError(
            f"found heads = {heads}, expected one number for both models: each head of the student learns from one of "
            "the teacher. Where they have different numbers take the loss minilm_relation"
        )
    for side, shapes in (("student", student_shape), ("teacher", teacher_shape)):
        if not shapes or isinstance(shapes[0], int) or len(shapes) % 2:
            raise UsageError(
                f"the adapter 'attention_scores' takes a query and a key for each layer, found {len(shapes)} taps of "
                f"the {side}; expected a list such as [QUERY, KEY, QUERY, KEY]"
            )
        if any(len(shape) != 2 or shape[1] % own for shape in shapes):
            found = [list(shape) for shape in shapes]
            raise UsageError(f"found {found} of the {side} for {own} heads, expected (L, D), D a multiple of them")
    if len(student_shape) != len(teacher_shape):
        raise UsageError(
            f"found {len(student_shape)} taps of the student and {len(teacher_shape)} of the teacher; tap as many "
            "layers on both sides"
        )
    return AttentionScores(own, other)


def _scores(values: list[Tensor], heads: int) -> list[Tensor]:
    split = [value.float().reshape(*value.shape[:2], heads, -1).transpose(1, 2) for value in values]
    return [q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) for q, k in zip(split[::2], split[1::2])]
