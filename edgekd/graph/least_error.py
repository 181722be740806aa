"""The range whose 8-bit steps lose the least of what was seen: a search over a grid, exact for every value.

    least over (low, high) of  sum_x (x - round_to_steps(x))^2

Batch by batch, without keeping activations: of sorted values, those that round to one step are neighbours, and their
squared error comes from sums before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.spec import Array

# Shares of the whole range, from all of it to a 64th: a few huge values may not cost everything else its steps.
_SHARES = np.geomspace(1.0, 1.0 / 64, 97)
# Where both ends are free, the pairs of these.
_FEWER_SHARES = np.geomspace(1.0, 1.0 / 64, 25)
_STEPS = 255


@dataclass
class RangeSearch:
    """Ranges that may be taken, and the squared error of each over all values so far.

    low, high       (C,) the ends
    scale           (C,) size of a step
    first           (C,) the lowest count of steps; there are `num_levels` counts from there on
    squared_error   (C,)
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    scale: NDArray[np.float64]
    first: NDArray[np.float64]
    num_levels: int
    squared_error: NDArray[np.float64]

    def add(self, values: Array) -> None:
        """Count the error of these values, of any shape."""
        ordered = np.sort(values, axis=None).astype(np.float64)
        if not self.scale.any() or not ordered.size:
            return
        zero = np.zeros(1)
        sums = np.concatenate([zero, np.cumsum(ordered)])
        squares = np.concatenate([zero, np.cumsum(ordered**2)])
        for index, (scale, first) in enumerate(zip(self.scale, self.first)):
            levels = (first + np.arange(self.num_levels)) * scale
            cuts = np.searchsorted(ordered, levels[:-1] + scale / 2)
            ends = np.concatenate([[0], cuts, [ordered.size]])
            counts, totals = np.diff(ends), np.diff(sums[ends])
            # The squares of all values are the same for every range, and added once.
            self.squared_error[index] += squares[-1] - 2 * (levels @ totals) + (levels**2) @ counts

    def best(self) -> tuple[float, float]:
        """The range of the least error; of equals the widest."""
        index = int(np.argmin(self.squared_error))
        return float(self.low[index]), float(self.high[index])


def least_error_range(low: float, high: float, *, symmetric: bool) -> RangeSearch:
    """The search within `low` <= 0 <= `high`, which is the whole range that was seen.

    Steps are those that `onnxruntime.quantization.quant_utils.compute_scale_zp` makes of a range: 255 from low to
    high with zero among them, or 254 (-127 to 127) around zero where `symmetric`.
    """
    if symmetric:
        highs = max(-low, high) * _SHARES
        return _search(-highs, highs, highs / 127, np.full(len(highs), -127.0), 255)
    if low == 0.0 or high == 0.0:
        lows, highs = low * _SHARES, high * _SHARES
    else:
        lows, highs = (axis.reshape(-1) for axis in np.meshgrid(low * _FEWER_SHARES, high * _FEWER_SHARES))
    scale = (highs - lows) / _STEPS
    with np.errstate(invalid="ignore"):
        first = np.where(scale > 0, np.round(lows / np.where(scale > 0, scale, 1.0)), 0.0)
    return _search(lows, highs, scale, first, _STEPS + 1)


def _search(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    scale: NDArray[np.float64],
    first: NDArray[np.float64],
    num_levels: int,
) -> RangeSearch:
    return RangeSearch(low, high, scale, first, num_levels, np.zeros(len(scale)))
