"""Resizing in numpy: Pillow's separable filter, with its fixed-point arithmetic for uint8, so that results are equal.

Without antialias the filter keeps its width when shrinking (two taps for bilinear), as torch's interpolate and
most mobile libraries do.

Source: Pillow, src/libImaging/Resample.c and Geometry.c.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekd.spec import Array

FilterName = Literal["nearest", "bilinear", "bicubic"]
PRECISION_BITS = 22  # 32 - 8 bits of a pixel - 2 for overshoot, as in Pillow
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def resize(image_HWC: Array, height: int, width: int, *, filter: FilterName, antialias: bool = True) -> Array:
    """`image_HWC` at `height` x `width`; uint8 in gives uint8 out (as Pillow rounds), float32 gives float32."""
    if filter == "nearest":
        rows, columns = _nearest(image_HWC.shape[0], height), _nearest(image_HWC.shape[1], width)
        return np.take(np.take(image_HWC, rows, axis=0), columns, axis=1)
    # Width first, always: bytes are rounded between the two passes, so the order shows in the result. Pillow
    # turned it round in version 13 for pictures that lose much more height than width; a bundle must not
    # depend on which Pillow is installed.
    narrow = _resample(image_HWC, 1, width, filter, antialias)
    return _resample(narrow, 0, height, filter, antialias)


def _resample(image_HWC: Array, axis: int, size: int, filter: FilterName, antialias: bool) -> Array:
    if image_HWC.shape[axis] == size:
        return image_HWC
    indices_KO, weights_KO = _taps(image_HWC.shape[axis], size, filter, antialias)
    shape = list(image_HWC.shape)
    shape[axis] = size
    along = [1] * image_HWC.ndim
    along[axis] = size
    if image_HWC.dtype == np.uint8:
        scale = 1 << PRECISION_BITS
        fixed_KO = np.trunc(weights_KO * scale + np.copysign(0.5, weights_KO)).astype(np.int32)
        total = np.full(shape, scale // 2, dtype=np.int32)
        for indices_O, factors_O in zip(indices_KO, fixed_KO):
            total += np.take(image_HWC, indices_O, axis=axis) * factors_O.reshape(along)
        in_bytes: Array = np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)
        return in_bytes
    exact = np.zeros(shape, dtype=np.float64)
    for indices_O, weights_O in zip(indices_KO, weights_KO):
        exact += np.take(image_HWC, indices_O, axis=axis) * weights_O.reshape(along)
    return exact.astype(np.float32)


@functools.lru_cache(maxsize=64)
def _taps(old: int, new: int, filter: FilterName, antialias: bool) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """For each of `new` pixels the source pixels and their weights: two arrays (taps K, pixels O)."""
    scale = old / new
    stretch = max(scale, 1.0) if antialias else 1.0
    support = SUPPORT[filter] * stretch
    centres_O = (np.arange(new) + 0.5) * scale
    first_O = np.maximum(np.trunc(centres_O - support + 0.5), 0).astype(np.intp)
    last_O = np.minimum(np.trunc(centres_O + support + 0.5), old).astype(np.intp)
    taps_K = np.arange(math.ceil(support) * 2 + 1)[:, np.newaxis]
    weights_KO = _kernel((taps_K + first_O - centres_O + 0.5) / stretch, filter)
    weights_KO = np.where(taps_K < last_O - first_O, weights_KO, 0.0)
    # cumsum adds in order, as Pillow does; np.sum adds in pairs and differs in the last bit.
    weights_KO /= np.cumsum(weights_KO, axis=0)[-1]
    used = int((last_O - first_O).max())
    return np.minimum(taps_K + first_O, old - 1)[:used], weights_KO[:used]


def _kernel(x: NDArray[np.float64], filter: FilterName) -> NDArray[np.float64]:
    x = np.abs(x)
    if filter == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@functools.lru_cache(maxsize=64)
def _nearest(old: int, new: int) -> NDArray[np.intp]:
    """The source pixel of each of `new` pixels, with positions summed step by step as Pillow does."""
    steps = np.full(new, old / new)
    steps[0] /= 2
    return np.minimum(np.add.accumulate(steps).astype(np.intp), old - 1)
