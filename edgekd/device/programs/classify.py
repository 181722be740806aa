"""Classification: one of the classes is right; `top` holds the `top_k` likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekd.device.programs.answer import Answer
from edgekd.spec import Array


def interpret(scores_D: Array, *, labels: Sequence[str], top_k: int, threshold: float) -> Answer:
    """The class of the highest score; of equal scores the first. `threshold` means nothing here."""
    best = np.argsort(-scores_D, kind="stable")[:top_k]
    top = tuple((labels[index], float(scores_D[index])) for index in best)
    return Answer(top[0][0], int(best[0]), top[0][1], top, normalized_entropy(scores_D))


def normalized_entropy(scores_D: Array) -> float | None:
    """-sum p log p over log D: 0 where one class is sure, 1 where all are alike; None for what is no
    probability."""
    exact = scores_D.astype(np.float64)
    if len(exact) < 2 or exact.min() < 0 or abs(exact.sum() - 1.0) > 1e-3:
        return None
    positive = exact[exact > 0]
    return float(max(0.0, -(positive * np.log(positive)).sum() / math.log(len(exact))))
