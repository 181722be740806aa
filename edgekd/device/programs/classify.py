"""Classification: one of the classes is right; `top` holds the `top_k` likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.device.programs.answer import Answer
from edgekd.spec import Array


def interpret(scores_D: Array, *, labels: Sequence[str], top_k: int, threshold: float) -> Answer:
    """The class of the highest score; of equal scores the first. `threshold` means nothing here."""
    best = np.argsort(-scores_D, kind="stable")[:top_k]
    top = tuple((labels[index], float(scores_D[index])) for index in best)
    return Answer(top[0][0], int(best[0]), top[0][1], top)
