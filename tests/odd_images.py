"""Pictures of every odd kind, and preprocessing of every kind: what all apps must read alike."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(height: int, width: int, channels: int, *, seed: int = 0) -> np.ndarray:
    """Smooth colours with noise, as photographs have: uint8 (H, W, C)."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(x / (3 + at) + at) * np.cos(y / (5 - at)) for at in range(channels)]
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, channels))
    return np.clip(np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def images() -> dict[str, bytes]:
    """Files by what is odd about them."""
    colours, grey = Image.fromarray(picture(37, 53, 3)), Image.fromarray(picture(41, 29, 1)[..., 0])
    exif = Image.Exif()
    made = {
        "jpeg": encoded(colours, "JPEG"),
        "grey": encoded(grey, "PNG"),
        "rgba": encoded(Image.fromarray(picture(31, 47, 4)), "PNG"),
        "grey and alpha": encoded(Image.merge("LA", (grey, grey.transpose(Image.Transpose.FLIP_TOP_BOTTOM))), "PNG"),
        "16 bit": encoded(Image.fromarray(picture(23, 19, 1)[..., 0].astype(np.uint16) * 257), "PNG"),
        "palette": encoded(colours.quantize(16), "PNG"),
        "palette, transparent": encoded(colours.quantize(16), "GIF", transparency=3),
        "one bit": encoded(grey.convert("1"), "PNG"),
        "cmyk": encoded(colours.convert("CMYK"), "JPEG"),
        "one pixel": encoded(Image.fromarray(picture(1, 1, 3)), "PNG"),
        "wide": encoded(Image.fromarray(picture(3, 400, 3)), "PNG"),
    }
    for turn in range(1, 9):
        exif[0x0112] = turn
        made[f"exif {turn}"] = encoded(colours, "JPEG", exif=exif)
    return made


STEP_LISTS = {
    "grey bilinear": [{"op": "decode"}, {"op": "to_grey"}, {"op": "resize", "size": [16, 12]}, {"op": "scale"}],
    "white, short side": [
        {"op": "decode", "alpha": "white"},
        {"op": "to_rgb"},
        {"op": "resize", "size": 9, "filter": "bicubic"},
        {"op": "center_crop", "size": [8, 7]},
        {"op": "scale"},
        {"op": "normalize", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
        {"op": "layout"},
    ],
    "nearest": [
        {"op": "decode", "exif": False},
        {"op": "to_rgb"},
        {"op": "resize", "size": [5, 6], "filter": "nearest"},
        {"op": "layout", "to": "flat"},
    ],
    "no antialias": [
        {"op": "decode"},
        {"op": "to_rgb"},
        {"op": "resize", "size": [11, 90], "antialias": False},
        {"op": "scale", "factor": 0.01},
        {"op": "layout", "to": "HWC"},
    ],
}
