"""Which sample goes where: a pure function of the sample ids, the labels and the seed.

Neither the order of the file system nor the number of the other samples' classes matters, and every split is in
a shuffled order of its own, so that its first n samples are a fair draw (calibration and quick trials take those).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgekd.spec import Array, Task

Positions = NDArray[np.intp]


def shuffled(ids: NDArray[np.int64], *, seed: int) -> Positions:
    """Positions of `ids` in an order that depends on the ids and the seed only."""
    return np.lexsort((ids, _mix(ids.astype(np.uint64) + _mix(np.array([seed], np.uint64)))))


def split_positions(
    ids: NDArray[np.int64], y: Array, task: Task, *, fractions: Mapping[str, float], seed: int
) -> dict[str, Positions]:
    """Positions of "train" and of every split that `fractions` names.

    Classification: each class is divided by the same fractions, and a class of three or more samples is in every
    split. Other tasks: the samples as a whole are.
    """
    order = shuffled(ids, seed=seed)
    groups = [order]
    if task == "classification":
        groups = [order[y[order] == label] for label in np.unique(y)]
    parts: dict[str, list[Positions]] = {name: [] for name in ("train", *fractions)}
    for group in groups:
        start = 0
        for name, fraction in fractions.items():
            # One sample is left for each split that comes after this one, train among them.
            room = len(group) - start - (len(fractions) - list(fractions).index(name))
            size = min(max(round(len(group) * fraction), 1), max(room, 0))
            parts[name].append(group[start : start + size])
            start += size
        parts["train"].append(group[start:])
    joined = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    return {name: positions[shuffled(ids[positions], seed=seed)] for name, positions in joined.items()}


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): near numbers become far ones, one to one."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
