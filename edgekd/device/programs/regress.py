"""Regression: one value per target, in the target's units; `top` holds all of them in their own order."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.device.programs.answer import Answer
from edgekd.spec import Array


def interpret(scores_D: Array, *, labels: Sequence[str], top_k: int, threshold: float) -> Answer:
    """The value of each target; label and score are those of the first. `top_k` and `threshold` mean nothing here."""
    top = tuple((label, float(value)) for label, value in zip(labels, scores_D))
    return Answer(top[0][0], 0, top[0][1], top)
