"""Synthetic images and labels of robustness studies: functions of seed and number, with the statistics they promise."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.data.labels import labelled, wrong_labels
from edgekd.data.synthetic import SOURCES, synthetic_images
from edgekd.errors import DataError

IDS = np.random.default_rng(0).permutation(2000).astype(np.int64)
Y = IDS % 10


@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.parametrize("shape", [(8, 8), (12, 10, 3)])
def test_each_image_is_a_function_of_seed_and_number(source: str, shape: tuple[int, ...]) -> None:
    images = synthetic_images(source, 12, shape=shape, seed=3)
    assert images.shape == (12, *shape)
    assert images.dtype == np.uint8
    assert np.array_equal(images[:5], synthetic_images(source, 5, shape=shape, seed=3))
    assert not np.array_equal(images, synthetic_images(source, 12, shape=shape, seed=4))
    assert len(np.unique(images.reshape(12, -1), axis=0)) == 12
    assert (np.ptp(images.reshape(12, -1).astype(int), axis=1) > 30).all(), "each shows something"


def test_the_spectrum_falls() -> None:
    """As photographs do: most of the power lies in the lower half of the frequencies; that of white noise would not."""
    images = synthetic_images("spectrum", 40, shape=(32, 32, 1), seed=0)[..., 0].astype(float)
    power = (np.abs(np.fft.fft2(images - images.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None, :])
    ring = [power[(frequency >= low) & (frequency < 2 * low)].mean() for low in (1 / 32, 2 / 32, 4 / 32, 8 / 32)]
    slopes = np.diff(np.log2(ring))
    assert (slopes < -0.9).all()


def test_leaves_have_flat_colours_and_edges() -> None:
    images = synthetic_images("dead_leaves", 20, shape=(32, 32, 1), seed=0)[..., 0]
    flat = (np.diff(images.astype(int), axis=2) == 0).mean()
    assert 0.5 < flat < 0.95
    assert all(3 < len(np.unique(image)) <= 33 for image in images)


def test_what_is_no_image() -> None:
    with pytest.raises(DataError, match=r"samples are \[64\], expected \(H, W\) or \(H, W, C\)"):
        synthetic_images("mixed", 1, shape=(64,), seed=0)
    with pytest.raises(DataError, match="Did you mean 'dead_leaves'"):
        synthetic_images("dead_leafs", 1, shape=(8, 8), seed=0)


def test_wrong_labels() -> None:
    spoilt = wrong_labels(Y, IDS, 0.2, num_classes=10, seed=1)
    wrong = spoilt != Y
    assert wrong.sum() == 400
    assert set(spoilt) == set(range(10))
    steps = np.bincount((spoilt - Y)[wrong] % 10, minlength=10)
    assert steps[0] == 0
    assert steps[1:].min() > 25, "each other class is as likely"
    more = wrong_labels(Y, IDS, 0.3, num_classes=10, seed=1)
    assert np.array_equal(more[wrong], spoilt[wrong])
    order = np.argsort(IDS)
    assert np.array_equal(wrong_labels(Y[order], IDS[order], 0.2, num_classes=10, seed=1), spoilt[order])
    assert (wrong_labels(Y, IDS, 0.2, num_classes=10, seed=2) != spoilt).any()
    assert np.array_equal(wrong_labels(Y, IDS, 0.0, num_classes=10, seed=1), Y)
    assert set((wrong_labels(Y % 2, IDS, 0.5, num_classes=2, seed=1) - Y % 2)[:]) == {-1, 0, 1}


def test_labelled() -> None:
    few, more = labelled(IDS, 0.1, seed=1), labelled(IDS, 0.3, seed=1)
    assert few.sum() == 200
    assert more[few].all()
    assert not labelled(IDS, 0.0, seed=1).any()
    assert labelled(IDS, 1.0, seed=1).all()
    assert (labelled(IDS, 0.1, seed=2) != few).any()
    assert np.bincount(Y[few], minlength=10).min() > 5, "a fair draw"
    spoilt = wrong_labels(Y, IDS, 0.5, num_classes=10, seed=1) != Y
    assert abs(spoilt[more].mean() - 0.5) < 0.08, "which are wrong has nothing to do with which are seen"
