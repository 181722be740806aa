"""Labels for studies of robustness: some of them wrong, or most of them not to be seen. Functions of ids and seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekd.data.splits import shuffled

# Each draw has an order of its own, beside that of the splits.
_WRONG, _OTHER, _SEEN = (stream << 32 for stream in (1, 2, 3))


def wrong_labels(
    y: NDArray[np.int64], ids: NDArray[np.int64], share: float, *, num_classes: int, seed: int
) -> NDArray[np.int64]:
    """The classes (N,) with `share` of them replaced by another one, each of the others equally often.

    round(share * N) labels are wrong, and those of a smaller share are among them.
    """
    chosen = shuffled(ids, seed=seed + _WRONG)[: round(share * len(ids))]
    rank = np.empty(len(ids), np.int64)
    rank[shuffled(ids, seed=seed + _OTHER)] = np.arange(len(ids))
    spoilt = y.copy()
    spoilt[chosen] = (y[chosen] + 1 + rank[chosen] % (num_classes - 1)) % num_classes
    return spoilt


def labelled(ids: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.bool_]:
    """(N,) whose labels may be used: round(share * N) of them, those of a smaller share among them."""
    seen = np.zeros(len(ids), np.bool_)
    seen[shuffled(ids, seed=seed + _SEEN)[: round(share * len(ids))]] = True
    return seen
