"""Encoded images to arrays. Pillow decodes, and does nothing else: every later step is our own numpy."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekd.errors import DataError, MissingExtra
from edgekd.spec import Array, Decode

if TYPE_CHECKING:
    from PIL import Image

# What Pillow's decoders raise on damaged files, seen by fuzzing; OSError holds UnidentifiedImageError.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)
_GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I")


def decode_image(raw: str | os.PathLike[str] | bytes, step: Decode) -> Array:
    """The image at a path, or in bytes, as uint8 (H, W, 3), or (H, W, 1) when it is stored in grey.

    EXIF orientation is applied where the step says so, transparency is composed over the step's colour, 16-bit
    grey keeps its upper byte, of an animation the first picture is taken.
    Raises `DataError` that names the file (missing, empty, damaged, too large), `MissingExtra` without Pillow.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("pillow", "image", purpose="decoding images") from error

    name = "the encoded image" if isinstance(raw, bytes) else os.fspath(raw)
    data = raw if isinstance(raw, bytes) else _read(Path(raw))
    if not data:
        raise DataError(f"{name} is empty (0 bytes), expected an image; remove or replace it")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image) if step.exif else image
            return _as_array(upright, step)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} is too large to decode safely ({error}); scale it down first") from error
    except UnidentifiedImageError as error:  # its own text names an object in memory
        raise DataError(f"{name} cannot be decoded as an image (no known format); remove or replace it") from error
    except _DAMAGED as error:
        raise DataError(f"{name} cannot be decoded as an image ({error}); remove or replace it") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror}; check the path") from error


def _as_array(image: Image.Image, step: Decode) -> Array:
    from PIL import Image

    grey = image.mode in _GREY
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return (np.clip(wide, 0, 65535) >> 8).astype(np.uint8)[..., np.newaxis]
    if image.mode == "F":
        raise ValueError("32-bit floating point pixels have no fixed range; convert the image to 8 bit")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        opaque = 255 if step.alpha == "white" else 0
        below = Image.new("RGBA", image.size, (opaque, opaque, opaque, 255))
        image = Image.alpha_composite(below, image.convert("RGBA"))
    array: Array = np.array(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    return array[..., np.newaxis] if grey else array
