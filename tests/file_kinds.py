"""Files of every kind of PNG and JPEG, for readers that decode themselves."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from odd_images import encoded, picture
from PIL import Image

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png(samples_HWC: np.ndarray, *, depth: int, interlaced: bool = False, key: bytes = b"", exif: int = 0) -> bytes:
    """A PNG of any depth, which Pillow reads but does not write; lines take turns with the five filters."""
    height, width, channels = samples_HWC.shape
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    raw = b"".join(_lines(samples_HWC[y::dy, x::dx], depth) for x, y, dx, dy in passes)
    head = struct.pack(">IIBBBBB", width, height, depth, COLOUR_TYPES[channels], 0, 0, interlaced)
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HHI", exif, 0, 0)
    packed = zlib.compress(raw)
    half = len(packed) // 2
    parts = [(b"IHDR", head), (b"tRNS", key), (b"eXIf", tiff if exif else b""), (b"IDAT", packed[:half])]
    parts += [(b"IDAT", packed[half:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts if part[1] or part[0] == b"IEND")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _words(values: np.ndarray) -> bytes:
    return values.astype(">u2").tobytes()


def _lines(samples_HWC: np.ndarray, depth: int) -> bytes:
    if samples_HWC.size == 0:
        return b""
    step = max(1, samples_HWC.shape[2] * depth // 8)
    above, packed = None, b""
    for row, line in enumerate(samples_HWC.reshape(len(samples_HWC), -1)):
        if depth == 16:
            own = line.astype(">u2").tobytes()
        else:
            bits = np.unpackbits(line.astype(np.uint8)[:, np.newaxis], axis=1)[:, 8 - depth :]
            own = np.packbits(bits.ravel()).tobytes()
        now = np.frombuffer(own, np.uint8).astype(np.int64)
        up = np.zeros_like(now) if above is None else above
        left, corner = (np.concatenate([np.zeros(step, np.int64), array])[: len(now)] for array in (now, up))
        guess = left + up - corner
        a, b, c = abs(guess - left), abs(guess - up), abs(guess - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
        predicted = (0 * now, left, up, (left + up) // 2, paeth)[row % 5]
        packed += bytes([row % 5]) + ((now - predicted) % 256).astype(np.uint8).tobytes()
        above = now
    return packed


def kinds() -> dict[str, bytes]:
    """Files by what they are."""
    colours, grey = Image.fromarray(picture(37, 53, 3)), Image.fromarray(picture(41, 29, 1)[..., 0])
    wide = np.random.default_rng(1).integers(0, 65536, (11, 13, 4)).astype(np.uint16)
    few = {depth: picture(9, 14, 1)[..., :1] >> (8 - depth) for depth in (1, 2, 4)}
    return {
        "jpeg, progressive": encoded(colours, "JPEG", progressive=True, quality=90),
        "jpeg, 4:4:4": encoded(colours, "JPEG", subsampling=0, quality=97),
        "jpeg, 4:2:2": encoded(colours, "JPEG", subsampling=1),
        "jpeg, restarts": encoded(colours, "JPEG", restart_marker_blocks=3, quality=30),
        "jpeg, rgb": encoded(colours, "JPEG", keep_rgb=True),
        "jpeg, grey": encoded(grey, "JPEG"),
        "jpeg, grey, progressive": encoded(grey, "JPEG", progressive=True),
        "jpeg, two columns": encoded(Image.fromarray(picture(5, 2, 3)), "JPEG"),
        "jpeg, five columns": encoded(Image.fromarray(picture(3, 5, 3)), "JPEG"),
        "jpeg, one pixel": encoded(Image.fromarray(picture(1, 1, 3)), "JPEG"),
        "jpeg, larger": encoded(Image.fromarray(picture(301, 415, 3)), "JPEG", progressive=True, quality=60),
        "png": encoded(colours, "PNG"),
        "palette, one transparent": encoded(colours.quantize(16), "PNG", transparency=3),
        "palette, transparent": encoded(colours.quantize(16), "PNG", transparency=bytes(range(0, 160, 10))),
        "grey, 16 bit": png(wide[..., :1], depth=16),
        "grey and alpha, 16 bit": png(wide[..., :2], depth=16),
        "rgb, 16 bit": png(wide[..., :3], depth=16),
        "rgba, 16 bit": png(wide, depth=16),
        "rgb, interlaced": png(picture(19, 21, 3), depth=8, interlaced=True),
        "grey, interlaced, tiny": png(picture(2, 3, 1), depth=8, interlaced=True),
        "rgba, 16 bit, interlaced": png(wide, depth=16, interlaced=True),
        "png, turned": png(picture(19, 21, 3), depth=8, exif=6),
        "rgb, one colour transparent": png(picture(4, 5, 3), depth=8, key=_words(picture(4, 5, 3)[1, 2])),
        "grey, one transparent": png(picture(4, 5, 1), depth=8, key=_words(picture(4, 5, 1)[1, 2])),
        **{f"grey, {depth} bit": png(samples, depth=depth) for depth, samples in few.items()},
        **{f"grey, {depth} bit, Adam7": png(samples, depth=depth, interlaced=True) for depth, samples in few.items()},
        "grey, 1 bit, white transparent": png(few[1], depth=1, key=b"\0\1"),
    }
