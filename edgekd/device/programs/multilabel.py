"""Multilabel: any number of labels are present; `top` holds all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.device.programs.answer import Answer
from edgekd.spec import Array


def interpret(scores_D: Array, *, labels: Sequence[str], top_k: int, threshold: float) -> Answer:
    """Every label whose score reaches `threshold`, best first; `top_k` does not cut them off.

    With none present, label and index are None and `top` is empty; `score` is the highest score in any case.
    """
    order = np.argsort(-scores_D, kind="stable")
    present = [int(index) for index in order if scores_D[index] >= threshold]
    top = tuple((labels[index], float(scores_D[index])) for index in present)
    highest = float(scores_D[order[0]])
    return Answer(top[0][0], present[0], highest, top) if present else Answer(None, None, highest, ())
