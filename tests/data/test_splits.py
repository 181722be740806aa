"""Splits: a function of ids, labels and seed; fair to every class; untouched by the order of the file system."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.data.splits import shuffled, split_positions

FRACTIONS = {"val": 0.2, "test": 0.1}


@given(st.integers(1, 200), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_every_sample_is_in_exactly_one_split(count: int, classes: int, seed: int) -> None:
    ids = np.arange(count, dtype=np.int64) * 7
    y = np.arange(count) % classes
    parts = split_positions(ids, y, "classification", fractions=FRACTIONS, seed=seed)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(count))


@given(st.integers(3, 300), st.integers(0, 1000))
def test_each_class_is_shared_out_by_the_same_fractions(count: int, seed: int) -> None:
    y = np.repeat([0, 1], [count, 3])
    ids = np.arange(len(y), dtype=np.int64)
    parts = split_positions(ids, y, "classification", fractions=FRACTIONS, seed=seed)
    for name, fraction in FRACTIONS.items():
        counts = np.bincount(y[parts[name]], minlength=2)
        assert counts[0] == max(1, round(count * fraction))
        assert counts[1] == 1
    assert np.bincount(y[parts["train"]], minlength=2).min() >= 1


@given(st.permutations(range(40)), st.integers(0, 99))
def test_the_order_in_which_samples_come_does_not_matter(order: list[int], seed: int) -> None:
    ids = np.arange(40, dtype=np.int64) * 1_000_003
    y = np.arange(40) % 3
    first = split_positions(ids, y, "classification", fractions=FRACTIONS, seed=seed)
    second = split_positions(ids[order], y[order], "classification", fractions=FRACTIONS, seed=seed)
    for name, positions in first.items():
        assert list(ids[positions]) == list(ids[order][second[name]])


def test_another_seed_gives_other_splits_and_the_same_seed_the_same() -> None:
    ids = np.arange(100, dtype=np.int64)
    y = np.zeros(100)

    def val(seed: int) -> list[int]:
        return list(split_positions(ids, y, "regression", fractions=FRACTIONS, seed=seed)["val"])

    assert val(0) == val(0)
    assert val(0) != val(1)
    assert len(val(0)) == 20


def test_the_first_samples_of_a_split_are_a_fair_draw() -> None:
    ids = np.arange(10_000, dtype=np.int64)
    y = np.repeat([0, 1], 5000)
    first = split_positions(ids, y, "classification", fractions=FRACTIONS, seed=0)["train"][:1000]
    assert 450 < y[first].sum() < 550
    order = shuffled(ids, seed=0)
    assert sorted(order) == list(range(10_000))
    assert abs(np.corrcoef(order, ids)[0, 1]) < 0.05


def test_tiny_classes_stay_in_train_first() -> None:
    y = np.array([0, 1, 1])
    parts = split_positions(np.arange(3, dtype=np.int64), y, "classification", fractions=FRACTIONS, seed=0)
    assert 0 in y[parts["train"]]
    assert 1 in y[parts["train"]]
    assert len(parts["val"]) == 0


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_ids_of_any_size_work(seed: int) -> None:
    ids = np.array([0, 2**63 - 1, 5, -1], dtype=np.int64)
    assert sorted(shuffled(ids, seed=seed)) == [0, 1, 2, 3]
