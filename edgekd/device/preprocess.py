"""From a raw sample to what the model reads: the one function that training, calibration, benchmark and predict call.

Spatial steps (decode, to_rgb, to_grey, resize, center_crop; for texts tokenize) work on one sample and come first;
arithmetic steps (scale, normalize, layout; trim) are vectorized over a batch. Data sets keep samples between the two,
so that augmentation sees bytes and the arithmetic is paid once per batch.

Ids of tokens are the only samples of whole numbers beside bytes: int32 where they are kept, int64 where a model reads.

Axes: N batch, H height, W width, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekd.device.images import decode_image
from edgekd.device.resampling import resize
from edgekd.device.tokens import encode, is_ids
from edgekd.errors import DataError, RecipeError
from edgekd.spec import (
    Array,
    CenterCrop,
    Decode,
    Layout,
    Normalize,
    Resize,
    Scale,
    Step,
    ToGrey,
    Tokenize,
    ToRgb,
    Trim,
)

Raw: TypeAlias = str | os.PathLike[str] | bytes | Array
"""One sample: the path of an image, the bytes of an encoded image, a text, or an array."""

SPATIAL: tuple[type[Step], ...] = (Decode, ToRgb, ToGrey, Resize, CenterCrop, Tokenize)
MAX_SIDE = 16384
GREY_WEIGHTS = (19595, 38470, 7471)  # ITU-R 601-2 luma in 1/65536, the integers of Pillow's mode L


def split_steps(steps: Iterable[Step]) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """`(spatial, arithmetic)`, each in order.

    Raises `RecipeError` when an arithmetic step stands before a spatial one, or decode is not the first step.
    """
    spatial: list[Step] = []
    arithmetic: list[Step] = []
    steps = tuple(steps)
    reads_text = any(isinstance(step, Tokenize) for step in steps)
    for step in steps:
        if reads_text is not isinstance(step, (Tokenize, Trim)):
            why = "stands beside 'tokenize': texts take tokenize, then trim" if reads_text else "needs 'tokenize' first"
            raise RecipeError(f"preprocess.steps: '{step.op}' {why}")
        if not isinstance(step, SPATIAL):
            arithmetic.append(step)
            continue
        if arithmetic:
            raise RecipeError(
                f"preprocess.steps: '{step.op}' stands after '{arithmetic[-1].op}'; expected decode, to_rgb, to_grey, "
                f"resize and center_crop before scale, normalize and layout. Move '{step.op}' up"
            )
        if isinstance(step, Decode) and spatial:
            raise RecipeError(f"preprocess.steps: 'decode' stands after '{spatial[-1].op}'; move it to the first place")
        if isinstance(step, Tokenize) and spatial:
            raise RecipeError("preprocess.steps: found 'tokenize' twice, expected it once")
        spatial.append(step)
    return tuple(spatial), tuple(arithmetic)


def prepare(spatial_steps: Sequence[Step], raw: Raw) -> Array:
    """One raw sample through the spatial steps: uint8 or float32, (H, W, C) for images.

    uint8 stays uint8 (resize rounds as Pillow does), every other number becomes float32. A 2-D array gets a
    channel axis when there is a spatial step, and decode composes an array with transparency as it does a file.
    Texts become int32 ids. Raises `DataError` when the sample does not fit the steps.
    """
    if spatial_steps and isinstance(spatial_steps[0], Tokenize):
        return encode(spatial_steps[0], raw)
    if isinstance(raw, (str, bytes, os.PathLike)):
        if not spatial_steps or not isinstance(spatial_steps[0], Decode):
            found = "encoded bytes" if isinstance(raw, bytes) else f"the path {os.fspath(raw)}"
            raise DataError(
                f"found {found}, expected an array: this preprocessing has no decode step. "
                "Pass a numpy array, or put {op = 'decode'} first in preprocess.steps"
            )
        sample = decode_image(raw, spatial_steps[0])
    else:
        sample = _as_numbers(raw)
    if not spatial_steps:
        return sample
    image_HWC = _as_image(sample)
    for step in spatial_steps:
        image_HWC = _apply_spatial(step, image_HWC)
    return np.ascontiguousarray(image_HWC)


def apply_arithmetic(arithmetic_steps: Iterable[Step], batch: Array) -> Array:
    """A batch (N, ...) of prepared samples through the arithmetic steps: float32 (ids: int64), C-contiguous.

    The result of a sample does not depend on the batch that it is in, but for the padding of a text. (N, H, W) gets a
    channel axis when a layout step names channels. The input is not changed; it is returned itself only when nothing
    is to be done. Raises `DataError` when the shape does not fit a step, `RecipeError` when normalize still reads
    "train".
    """
    steps = tuple(arithmetic_steps)
    if batch.ndim == 0:
        raise DataError("found a single number, expected a batch (N, ...); stack the samples first")
    if is_ids(batch) and all(isinstance(step, Trim) for step in steps):
        return _trim(steps, batch)
    if batch.ndim == 3 and any(isinstance(step, Layout) and step.to != "flat" for step in steps):
        batch = batch[..., np.newaxis]
    result: NDArray[np.float32] = batch.astype(np.float32, copy=False)
    for step in steps:
        if isinstance(step, Scale):
            result = result * np.float32(step.factor)
        elif isinstance(step, Normalize):
            result = _normalize(step, result)
        elif isinstance(step, Layout):
            result = _lay_out(step, result)
        else:
            raise RecipeError(
                f"'{step.op}' is not an arithmetic step for {batch.dtype}; expected scale, normalize or layout (of the "
                "ids of texts: trim)"
            )
    return np.ascontiguousarray(result)


def as_fed(arithmetic_steps: Sequence[Step], batch: Array, dtype: str) -> Array:
    """A batch of prepared samples as a model's input of that dtype reads it.

    Bytes stay bytes where no step is left and the graph reads them. Raises `DataError` for other numbers then, which
    would be cut off.
    """
    if not arithmetic_steps and batch.dtype.name == dtype:
        return np.ascontiguousarray(batch)
    if dtype == "uint8":
        raise DataError(f"found samples of {batch.dtype}, but the model reads uint8; pass images as bytes, 0 to 255")
    return apply_arithmetic(arithmetic_steps, batch).astype(dtype, copy=False)


def preprocess(steps: Iterable[Step], raw: Raw) -> Array:
    """One raw sample as the model reads it: float32 (ids of a text: int64), without the batch axis."""
    spatial, arithmetic = split_steps(steps)
    result: Array = apply_arithmetic(arithmetic, prepare(spatial, raw)[np.newaxis])[0]
    return result


def _trim(steps: Sequence[Step], ids_NT: Array) -> NDArray[np.int64]:
    """Ids as models read them; with a trim step only as many columns as the longest text needs, at least one."""
    for step in steps:
        if not isinstance(step, Trim) or step.pad is None:
            raise RecipeError(
                f"'{step.op}' cannot work on {ids_NT.dtype}: texts take trim (with its pad) and nothing else"
            )
        used = np.flatnonzero((ids_NT != step.pad).any(axis=0))
        ids_NT = ids_NT[:, : used[-1] + 1 if len(used) else 1]
    return np.ascontiguousarray(ids_NT, dtype=np.int64)


def _as_numbers(raw: Array) -> Array:
    array = np.asarray(raw)
    if array.dtype.kind not in "buif":
        raise DataError(f"found an array of {array.dtype}, expected uint8 or floating point numbers")
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"found an array of shape {array.shape}, expected at least one number on at least one axis")
    return array if array.dtype == np.uint8 else array.astype(np.float32, copy=False)


def _as_image(array: Array) -> Array:
    if array.ndim == 2:
        return array[..., np.newaxis]
    if array.ndim != 3:
        raise DataError(f"found an array of shape {array.shape}, expected an image (H, W) or (H, W, C)")
    return array


def _apply_spatial(step: Step, image_HWC: Array) -> Array:
    channels = image_HWC.shape[2]
    if isinstance(step, Decode):
        transparent = image_HWC.dtype == np.uint8 and channels in (2, 4)
        return _over(image_HWC, step) if transparent else image_HWC
    if isinstance(step, (ToRgb, ToGrey)):
        if channels not in (1, 3):
            raise DataError(f"{step.op}: found {channels} channels (shape {image_HWC.shape}), expected 1 or 3")
        if isinstance(step, ToRgb):
            return image_HWC if channels == 3 else np.repeat(image_HWC, 3, axis=2)
        return image_HWC if channels == 1 else _grey(image_HWC)
    if isinstance(step, Resize):
        height, width = _target_size(step, image_HWC.shape)
        return resize(image_HWC, height, width, filter=step.filter, antialias=step.antialias)
    if isinstance(step, CenterCrop):
        return _crop(step, image_HWC)
    raise RecipeError(f"'{step.op}' is not a spatial step; expected decode, to_rgb, to_grey, resize or center_crop")


def _over(image_HWC: Array, step: Decode) -> Array:
    """An image with transparency (grey or colours, alpha last) over the step's colour, in Pillow's whole numbers.

    Source: Pillow, src/libImaging/AlphaComposite.c.
    """
    colour, alpha = image_HWC[..., :-1].astype(np.int32), image_HWC[..., -1:].astype(np.int32)
    below = 255 if step.alpha == "white" else 0
    total = colour * alpha * 128 + below * (255 - alpha) * 128 + 0x80 * 128
    return ((((total >> 8) + total) >> 8) >> 7).astype(np.uint8)


def _grey(image_HWC: Array) -> Array:
    if image_HWC.dtype == np.uint8:
        luma = image_HWC.astype(np.int32) @ np.array(GREY_WEIGHTS, np.int32)
        return ((luma + 0x8000) >> 16).astype(np.uint8)[..., np.newaxis]
    weights = np.array(GREY_WEIGHTS, np.float64) / 65536
    return (image_HWC.astype(np.float64) @ weights).astype(np.float32)[..., np.newaxis]


def _target_size(step: Resize, shape: tuple[int, ...]) -> tuple[int, int]:
    if isinstance(step.size, tuple):
        return step.size
    height, width = shape[:2]
    short, long = min(height, width), max(height, width)
    longer = step.size * long // short
    if longer > MAX_SIDE:
        raise DataError(
            f"resize: an image of {height} x {width} with its shorter side at {step.size} would be {longer} pixels "
            f"long, expected at most {MAX_SIDE}; crop it first or give size = [height, width]"
        )
    return (step.size, longer) if height <= width else (longer, step.size)


def _crop(step: CenterCrop, image_HWC: Array) -> Array:
    height, width = step.size
    if image_HWC.shape[0] < height or image_HWC.shape[1] < width:
        raise DataError(
            f"center_crop: found an image of {image_HWC.shape[0]} x {image_HWC.shape[1]}, expected at least "
            f"{height} x {width}; put a resize step before it"
        )
    # round() sends halves to even: the same pixels as torchvision's CenterCrop.
    top, left = round((image_HWC.shape[0] - height) / 2), round((image_HWC.shape[1] - width) / 2)
    return image_HWC[top : top + height, left : left + width]


def _normalize(step: Normalize, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    if isinstance(step.mean, str) or isinstance(step.std, str):
        raise RecipeError('normalize: "train" stands where numbers were expected; run the recipe, which fills them in')
    mean, std = np.array(step.mean, np.float32), np.array(step.std, np.float32)
    if not {len(mean), len(std)} <= {1, batch.shape[-1]}:
        raise DataError(
            f"normalize: {len(mean)} mean and {len(std)} std for a last axis of {batch.shape[-1]} "
            f"(batch {batch.shape}); expected one, or one per channel. "
            "normalize works on the last axis: put it before layout"
        )
    result: NDArray[np.float32] = (batch - mean) / std
    return result


def _lay_out(step: Layout, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    if step.to == "flat":
        return batch.reshape(len(batch), int(np.prod(batch.shape[1:])))
    if batch.ndim != 4:
        raise DataError(f"layout {step.to}: found a batch of shape {batch.shape}, expected images (N, H, W, C)")
    return batch.transpose(0, 3, 1, 2) if step.to == "CHW" else batch
