"""Images that nobody took: each a pure function of (source, seed, number), for students that see nothing else.

A teacher answers to anything, and its answers to noise with the statistics of images teach much of what it knows.
`dead_leaves` (shapes that cover one another, as photographs of a forest floor do) and `spectrum` (noise whose spectrum
falls as that of photographs) follow Baradad, Wulff, Wang, Isola and Torralba, "Learning to See by Looking at Noise",
2021, arXiv:2106.05963; `strokes` are curves of a pen on a plain ground, for scans and drawings. `mixed` takes one of
these after the other, and half of its images have a box out of another one pasted in, as CutMix does (Yun et al., 2019,
arXiv:1905.04899).

Axes: H height, W width, C channels. Pixels are bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError, nearest
from edgekd.spec import Array

Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]
Draw = Callable[[np.random.Generator, Shape], NDArray[np.float64]]

MIXED = "mixed"
LEAVES = 32
# The spectra of photographs fall as 1 / f^alpha with alpha about 1 (of the amplitude); these are around it.
ALPHA = (0.5, 3.0)


def synthetic_images(source: str, count: int, *, shape: tuple[int, ...], seed: int) -> Pixels:
    """`count` images of one sample's `shape`, (H, W, C) or (H, W).

    Raises `DataError` for another shape, and for a source that is not in `SOURCES`.
    """
    if source not in SOURCES:
        raise DataError(f"transfer.source: found '{source}'. {nearest(source, SOURCES)}")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise DataError(f"synthetic images were asked for, but samples are {list(shape)}, expected (H, W) or (H, W, C)")
    whole = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
    images = np.empty((count, *whole), np.uint8)
    for number in range(count):
        images[number] = _image(source, number, whole, np.random.default_rng([seed, number]))
    return images.reshape(count, *shape)


def dead_leaves(rng: np.random.Generator, shape: Shape) -> NDArray[np.float64]:
    """Discs, rectangles and triangles of any colour over one another; the density of their radius falls as 1 / r^3."""
    height, width, channels = shape
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.broadcast_to(rng.random(channels), shape).copy()
    size = max(height, width)
    low, high = max(1.0, size / 20), size / 2
    radii = (low**-2 + rng.random(LEAVES) * (high**-2 - low**-2)) ** -0.5
    places, turns, forms = rng.random((LEAVES, 2)), rng.random(LEAVES) * 2 * np.pi, rng.integers(0, 3, LEAVES)
    ratios, colours = 0.3 + 0.7 * rng.random(LEAVES), rng.random((LEAVES, channels))
    for radius, (top, left), turn, form, ratio, colour in zip(radii, places, turns, forms, ratios, colours):
        down, right = y - top * height, x - left * width
        u, v = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
        if form == 0:
            inside = u * u + v * v <= radius * radius
        elif form == 1:
            inside = (abs(u) <= radius) & (abs(v) <= radius * ratio)
        else:
            inside = (v >= -radius / 2) & (v <= radius - 1.7 * abs(u))
        image[inside] = colour
    return image


def spectrum(rng: np.random.Generator, shape: Shape) -> NDArray[np.float64]:
    """Random phases, amplitudes 1 / f^alpha with an alpha of the image's own; channels that share some of it."""
    height, width, channels = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf  # no mean
    amplitude = frequency ** -rng.uniform(*ALPHA)
    white = rng.standard_normal((channels, height, width))
    fields = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(height, width))
    mixing = np.eye(channels) * 0.5 + rng.random((channels, channels))
    image: NDArray[np.float64] = np.einsum("ij,jhw->hwi", mixing, fields)
    low, high = image.min(), image.max()
    contrast = rng.uniform(0.5, 1.0)
    image = (image - low) / max(high - low, 1e-12) * contrast
    return image + rng.uniform(0.0, 1.0 - contrast)


def strokes(rng: np.random.Generator, shape: Shape) -> NDArray[np.float64]:
    """One to four quadratic curves of a soft pen, mostly bright on a dark ground."""
    height, width, channels = shape
    y, x = np.mgrid[:height, :width] + 0.5
    ink = np.zeros((height, width))
    part = np.linspace(0.0, 1.0, 2 * max(height, width))[:, None]
    thickness = rng.uniform(0.03, 0.12) * max(height, width)
    start = rng.uniform(0.1, 0.9, 2)
    for _ in range(rng.integers(1, 5)):
        middle, end = rng.uniform(0.0, 1.0, (2, 2))
        points = ((1 - part) ** 2 * start + 2 * part * (1 - part) * middle + part**2 * end) * (height, width)
        distance = np.hypot(y[..., None] - points[:, 0], x[..., None] - points[:, 1]).min(axis=-1)
        ink = np.maximum(ink, np.clip(1.0 + (thickness - distance) / 1.5, 0.0, 1.0))
        start = end if rng.random() < 0.7 else rng.uniform(0.1, 0.9, 2)
    ground, colour = rng.uniform(0.0, 0.2, channels), rng.uniform(0.7, 1.0, channels)
    if rng.random() < 0.1:
        ground, colour = colour, ground
    return ground + ink[..., None] * (colour - ground)


SOURCES: dict[str, Draw | None] = {
    "dead_leaves": dead_leaves,
    "spectrum": spectrum,
    "strokes": strokes,
    MIXED: None,
}
_DRAWS: tuple[Draw, ...] = (strokes, dead_leaves, spectrum)


def _image(source: str, number: int, shape: Shape, rng: np.random.Generator) -> Pixels:
    draw = SOURCES[source]
    if draw is not None:
        return _bytes(draw(rng, shape))
    image = _DRAWS[number % len(_DRAWS)](rng, shape)
    if rng.random() < 0.5:
        other = _DRAWS[rng.integers(len(_DRAWS))](rng, shape)
        side = np.sqrt(1.0 - rng.random())
        (top, left), (height, width) = rng.random(2), shape[:2]
        rows, columns = max(1, round(height * side)), max(1, round(width * side))
        above, before = int(top * (height - rows + 1)), int(left * (width - columns + 1))
        box = (slice(above, above + rows), slice(before, before + columns))
        image[box] = other[box]
    return _bytes(image)


def _bytes(image: Array) -> Pixels:
    pixels: Pixels = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    return pixels
