"""Embedding: a vector for each sample; what it means is in how near it is to those of others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.device.programs.answer import Answer
from edgekd.spec import Array

FEW = 3


def interpret(scores_D: Array, *, labels: Sequence[str], top_k: int, threshold: float) -> Answer:
    """No label; `score` is the length of the vector, 1 for one that is ready to be compared."""
    return Answer(None, None, float(np.linalg.norm(scores_D)), ())


def shown(vector_D: Sequence[float]) -> str:
    """For people: how many numbers, and the first ones."""
    first = " ".join(f"{value:.4f}" for value in vector_D[:FEW])
    return f"{len(vector_D)} numbers: {first}{' ...' if len(vector_D) > FEW else ''}"
