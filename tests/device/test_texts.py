"""Random texts for lack of samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekd.device.texts import (
    TextLimits,
    described,
    longest_that_runs,
    random_batches,
    random_texts,
    reads_texts,
    within,
)
from edgekd.device.worker import TIMED_TEXTS, make_feeds
from edgekd.errors import ModelError
from edgekd.spec import TensorSpec

IDS = TensorSpec("input_ids", "int64", ("N", "L"))
MASK = TensorSpec("attention_mask", "int32", ("N", "L"))
FIXED = TensorSpec("input_ids", "int64", ("N", 12))


def test_all_ids_come_and_padding_only_behind() -> None:
    limits = TextLimits(50, 20, 3, known=True)
    lengths = np.array([20, 8, 13, 9, 20])
    texts = random_texts(lengths, limits, np.random.default_rng(0))
    assert texts.shape == (5, 20)
    np.testing.assert_array_equal((texts != 3).sum(axis=1), lengths)
    assert all((row[:length] != 3).all() for row, length in zip(texts, lengths))
    assert set(texts.ravel()) == set(range(50))
    for ids in (1, 2):  # a table with next to nothing in it
        assert set(random_texts(lengths, TextLimits(ids), np.random.default_rng(0)).ravel()) <= {0, 1}


def test_which_models_read_texts() -> None:
    assert reads_texts((IDS, MASK))
    assert not reads_texts((MASK,))
    assert not reads_texts((IDS, TensorSpec("position_ids", "int64", ("N", "L"))))
    assert not reads_texts((TensorSpec("input_ids", "float32", ("N", 4)),))


def test_batches_for_timing_are_of_one_length_each_and_of_all_lengths() -> None:
    rng = np.random.default_rng(0)
    batches = random_batches((IDS, MASK), TextLimits(100, 20, known=True), batch=3, count=32, rng=rng)
    shapes = {batch["input_ids"].shape for batch in batches}
    assert {rows for rows, _ in shapes} == {3}
    assert {length for _, length in shapes} == set(range(8, 21))
    assert all(batch["attention_mask"].dtype == np.int32 and batch["attention_mask"].all() for batch in batches)
    # An axis that is a number: padded, and nothing longer.
    lengths = [
        int(one["attention_mask"].sum())
        for one in random_batches((FIXED, MASK), TextLimits(100), batch=1, count=9, rng=rng)
    ]
    assert (min(lengths), max(lengths)) == (8, 12)
    assert within((FIXED,), TextLimits(100)).longest == 12


def command(**texts: Any) -> dict[str, Any]:
    limits = {"ids": 2, "longest": 32, "pad": 0, "known": False, **texts}
    return {"batch": 2, "samples": None, "golden": None, "seed": 0, "texts": limits}


def test_a_benchmark_without_samples_times_texts_of_many_lengths() -> None:
    known = make_feeds((IDS, MASK), command(ids=1000, known=True), ())
    assert len(known) == TIMED_TEXTS
    assert max(int(feeds["input_ids"].max()) for feeds in known) > 500
    # Where nobody told how many ids there are: those that every table has.
    unknown = make_feeds((IDS,), command(), ())
    assert {feeds["input_ids"].shape[1] for feeds in unknown} == set(range(8, 33))
    assert max(int(feeds["input_ids"].max()) for feeds in unknown) == 1
    assert "ids below 1000" in described((IDS,), TextLimits(1000, known=True))
    assert "how many there are is not known here" in described((IDS,), TextLimits())
    # By another name, but the file told of its table; and a model of something else.
    other = TensorSpec("words", "int64", ("N", "L"))
    assert make_feeds((other,), command(ids=9, known=True), ())[0].keys() == {"words"}
    assert [one["words"].shape for one in make_feeds((other,), command(), ())] == [(2, 1)]


@pytest.mark.parametrize(("most", "found"), [(40, 32), (20, 16), (1, 1), (0, None)])
def test_as_long_as_the_model_takes(most: int, found: int | None) -> None:
    def run(feeds: Any) -> None:
        if feeds["input_ids"].shape[1] > most:
            raise ModelError("too long")

    assert longest_that_runs(run, (IDS,), TextLimits(), (ModelError,)) == found
