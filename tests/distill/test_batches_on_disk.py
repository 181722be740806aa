"""Batches of samples that lie on the disk: those of memory, one made ahead, and no more memory for more samples."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.distill import batches
from edgekd.distill.ahead import ahead
from edgekd.distill.batches import Batches
from edgekd.errors import DataError
from edgekd.rows import DiskRows
from edgekd.spec import Layout, Scale, Split

STEPS = (Scale(), Layout("CHW"))


def split_of(folder: Path, count: int, *, side: int = 8) -> Split:
    """Images of noise, in a file."""
    rng = np.random.default_rng(0)
    np.save(folder / f"{count}.npy", rng.integers(0, 256, (count, side, side, 1), dtype=np.uint8))
    mapped = np.load(folder / f"{count}.npy", mmap_mode="r")
    rows = DiskRows(np.asarray(mapped), np.zeros((count, 16), np.uint8), np.arange(count))
    return Split(rows, rng.integers(0, 3, count), np.arange(count) + 50)


@pytest.mark.parametrize("augment", [None, {"shift": 2, "flip": True}])
def test_they_are_the_batches_of_the_same_samples_in_memory(
    augment: dict[str, float] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "READY_BYTES", 0)
    split = split_of(tmp_path, 101)
    found, expected = (
        Batches(s, STEPS, batch_size=20, seed=3, augment=augment)
        for s in (split, Split(split.x[:], split.y, split.ids))
    )
    for epoch in range(2):
        for one, other in zip(found.epoch(epoch), expected.epoch(epoch), strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
    for one, other in zip(found.full(first=1, every=2), expected.full(first=1, every=2), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    taken = Batches(split.take(np.array([5, 3])), STEPS, batch_size=2, augment=augment)
    assert next(taken.full())["id"].tolist() == [55, 53]


def test_memory_does_not_grow_with_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of 0.4 MB and one of 13 MB; what is held per sample are its id, label and place."""
    monkeypatch.setattr(batches, "READY_BYTES", 0)
    peaks = []
    for count in (100, 3200):
        split = split_of(tmp_path, count, side=64)
        tracemalloc.start()
        loader = Batches(split, STEPS, batch_size=16, augment={"shift": 1})
        assert sum(len(batch["x"]) for batch in loader.epoch(0)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3200 * 200, peaks


def test_one_is_made_ahead_and_no_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(6):
            made.append(number)
            yield number

    seen = []
    for number in ahead(items()):
        seen.append(number)
        assert len(made) <= number + 2
    assert seen == list(range(6))


def test_what_is_raised_ahead_is_raised_in_its_turn_and_no_thread_stays() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise DataError("the disk is gone")

    before = threading.active_count()
    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(DataError, match="the disk is gone"):
        next(found)
    left_early = ahead(iter(range(100)))
    assert next(left_early) == 0
    left_early.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
