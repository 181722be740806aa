"""What a program says about one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgekd.spec import Array


@dataclass(frozen=True)
class Answer:
    """The best label with its index and score, and (label, score) pairs, best first.

    `label` and `index` are None only where a multilabel model finds no label present. `uncertainty` is known for
    probabilities of classes: 0 where one is sure, 1 where all are alike.
    """

    label: str | None
    index: int | None
    score: float
    top: tuple[tuple[str, float], ...]
    uncertainty: float | None = None


class Program(Protocol):
    """Turns the postprocessed outputs of one sample (D,) into an answer."""

    def __call__(self, scores_D: Array, *, labels: Sequence[str], top_k: int, threshold: float) -> Answer:
        """`labels` names the D outputs; `top_k` is at least 1; `threshold` says from where a label is present."""
        ...
