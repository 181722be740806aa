"""Augmentation of raw batches, before the arithmetic steps: a pure function of (seed, epoch, sample id).

Each function takes a batch (N, ...), the strength from the recipe and one 64-bit word per sample, and returns a new
batch of the same shape and dtype. What a sample becomes does not depend on the batch that it stands in.

Texts (N, T) of token ids have augmentations of their own (`edgekd.distill.replacement`), which take the words of the
vocabulary besides.

Which axes are which: (N, H, W, C) of any type and (N, H, W) of bytes are images; (N, L, C) of floats is a series
along L. A vector (N, D) has no neighbours: it can be scaled and get noise, not shifted or flipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgekd.device.tokens import is_ids
from edgekd.distill.randomness import Words, key, normals, uniforms, words
from edgekd.distill.replacement import Substitutes, replace_random, replace_similar
from edgekd.errors import RecipeError, nearest
from edgekd.spec import Array

Augment = Mapping[str, float | bool]


def shift(x: Array, pixels: float, words_N: Words) -> Array:
    """Move each image by -pixels..pixels along both axes, each series along its length; what comes in is 0."""
    reach = int(pixels)
    offsets = np.floor(uniforms(words_N, 2) * (2 * reach + 1)).astype(np.intp)
    num = len(x)
    if _num_axes(x) == 1:
        rows = np.pad(x, [(0, 0), (reach, reach), (0, 0)])
        windows = sliding_window_view(rows, x.shape[1:], axis=(1, 2))
        late: Array = windows[np.arange(num), offsets[:, 0], 0]
        return late
    height, width = x.shape[1:3]
    channels = math.prod(x.shape[3:])
    padded = np.zeros((num, height + 2 * reach, width + 2 * reach, channels), x.dtype)
    padded[:, reach : reach + height, reach : reach + width] = x.reshape(num, height, width, channels)
    # A row of pixels with its channels is one axis: long runs of bytes to copy.
    rows = padded.reshape(num, height + 2 * reach, -1)
    windows = sliding_window_view(rows, (height, width * channels), axis=(1, 2))
    moved: Array = windows[np.arange(num), offsets[:, 0], offsets[:, 1] * channels]
    return moved.reshape(x.shape)


def flip(x: Array, on: float, words_N: Words) -> Array:
    """Mirror about half of the images, left and right exchanged."""
    chosen = uniforms(words_N, 1)[:, 0] < 0.5
    out = x.copy()
    out[chosen] = x[chosen][:, :, ::-1]
    return out


def scale(x: Array, fraction: float, words_N: Words) -> Array:
    """Multiply all values of a sample by one number between 1 - fraction and 1 + fraction: gain, brightness."""
    factors = (1.0 + fraction * (2.0 * uniforms(words_N, 1) - 1.0)).astype(np.float32)
    return _as_before(x, x * factors.reshape(-1, *(1,) * (x.ndim - 1)))


def noise(x: Array, std: float, words_N: Words) -> Array:
    """Add normal noise of standard deviation `std`, in the unit of the raw values (0..255 for bytes)."""
    drawn = normals(words_N, math.prod(x.shape[1:])).reshape(x.shape)
    return _as_before(x, x + np.float32(std) * drawn)


# In the order in which they are applied. The position of a name in it belongs to its random stream: append only.
AUGMENTATIONS: dict[str, Callable[[Array, float, Words], Array]] = {
    "shift": shift,
    "flip": flip,
    "scale": scale,
    "noise": noise,
}

# Those of texts, whose streams come behind the others'.
OF_TEXTS: dict[str, Callable[[NDArray[np.int32], float, Words, Substitutes], NDArray[np.int32]]] = {
    "replace_random": replace_random,
    "replace_similar": replace_similar,
}
_TEXT_STREAMS = 1000


def check_augment(augment: Augment, x: Array, substitutes: Substitutes | None = None) -> dict[str, float]:
    """The augmentations that are switched on, checked against the raw samples `x` (N, ...).

    Raises `RecipeError` for an unknown name, a value out of range, or one that these samples cannot have.
    """
    active: dict[str, float] = {}
    fitting = OF_TEXTS if is_ids(x) else AUGMENTATIONS
    for name, value in augment.items():
        place = f"data.augment.{name}"
        if name not in AUGMENTATIONS and name not in OF_TEXTS:
            raise RecipeError(f"data.augment: unknown key '{name}'. {nearest(name, fitting)}")
        if name not in fitting:
            kind = "texts" if is_ids(x) else "no texts"
            raise RecipeError(f"{place}: the samples are {kind}, which have {', '.join(fitting)}; remove it")
        if name in OF_TEXTS:
            _check_share(name, place, value, substitutes)
        elif name == "flip":
            if not isinstance(value, bool):
                raise RecipeError(f"{place}: found {value!r}, expected true or false")
            if value and _num_axes(x) < 2:
                raise RecipeError(f"{place}: found samples of shape {list(x.shape[1:])}, only images can be flipped")
        else:
            _check_strength(name, place, value, x)
        if value:
            active[name] = float(value)
    return active


def augment_batch(
    x: Array,
    ids_N: NDArray[np.int64],
    active: Mapping[str, float],
    *,
    seed: int,
    epoch: int,
    substitutes: Substitutes | None = None,
) -> Array:
    """Apply the `active` augmentations (from `check_augment`) to raw samples `x` with their ids."""
    if substitutes is not None:
        for stream, (name, change) in enumerate(OF_TEXTS.items(), start=_TEXT_STREAMS):
            if name in active:
                x = change(x, active[name], words(key(seed, epoch, 2, stream), ids_N), substitutes)
    for stream, (name, function) in enumerate(AUGMENTATIONS.items()):
        if name in active:
            x = function(x, active[name], words(key(seed, epoch, 2, stream), ids_N))
    return x


def _check_share(name: str, place: str, value: float, substitutes: Substitutes | None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise RecipeError(f"{place}: found {value!r}, expected the share of the words that are replaced, 0 to 1")
    if value and (substitutes is None or (name == "replace_similar" and substitutes.similar is None)):
        raise RecipeError(
            f"{place}: which words are alike is known of an hf: teacher only, by its table of embeddings; take one as "
            "teacher.model, or replace_random"
        )


def _check_strength(name: str, place: str, value: float, x: Array) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise RecipeError(f"{place}: found {value!r}, expected a number from 0")
    if name == "scale" and value >= 1:
        raise RecipeError(f"{place}: found {value!r}, expected a fraction below 1")
    if name == "shift" and value:
        axes = x.shape[1 : 1 + _num_axes(x)]
        if not axes:
            raise RecipeError(
                f"{place}: found samples of shape {list(x.shape[1:])}, only images and series can be shifted"
            )
        if value != int(value) or value >= min(axes):
            raise RecipeError(f"{place}: found {value!r}, expected whole pixels below the size {list(axes)}")


def _num_axes(x: Array) -> int:
    """How many axes after the first are space or time: 2 for images, 1 for series, 0 for vectors."""
    if x.ndim == 4 or (x.ndim == 3 and x.dtype == np.uint8):
        return 2
    return 1 if x.ndim == 3 else 0


def _as_before(x: Array, changed: Array) -> Array:
    if x.dtype == np.uint8:
        return np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return changed.astype(x.dtype, copy=False)
