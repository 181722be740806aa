"""The rule of the reject option and its threshold, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.device.rejection import HIGHEST, find_threshold, log_confidence, reject
from edgekd.errors import DataError
from edgekd.spec import Array


def random_logits(seed: int, *, count: int = 200, classes: int = 7, scale: float = 3.0) -> Array:
    return (scale * np.random.default_rng(seed).standard_normal((count, classes))).astype(np.float32)


def test_the_answer_is_the_class_exactly_where_no_other_reaches_the_threshold() -> None:
    for rejected in (0, 3, 6):
        logits = random_logits(rejected)
        shares = np.exp(logits.astype(np.float64))
        shares /= shares.sum(axis=1, keepdims=True)
        others = np.delete(shares, rejected, axis=1)
        plain = logits.argmax(axis=1)
        found = reject(logits, rejected, 0.4).argmax(axis=1)
        assert 20 < (found == rejected).sum() < 180
        assert (found == np.where(others.max(axis=1) < 0.4, rejected, plain)).all()
        np.testing.assert_allclose(np.exp(log_confidence(logits, rejected)), others.max(axis=1), rtol=1e-12)


@given(st.integers(0, 1000), st.sampled_from([0.5, 0.8, 0.95, 0.99]), st.integers(0, 6), st.floats(0.1, 30))
def test_at_least_the_share_is_kept_and_no_higher_threshold_keeps_it(
    seed: int, keep: float, rejected: int, scale: float
) -> None:
    logits = random_logits(seed, scale=scale)
    y = np.random.default_rng(seed).integers(0, 7, len(logits))
    found = find_threshold(logits, y, rejected, keep=keep)
    certain = np.exp(log_confidence(logits[y != rejected], rejected))
    assert found.n == (y != rejected).sum()
    assert found.kept >= keep
    assert found.kept == pytest.approx((certain >= found.value).mean())
    assert found.value <= HIGHEST
    if found.value < 0.99 * HIGHEST:
        above = certain[certain >= found.value].min() * 1.0000001
        assert (certain >= above).mean() < keep


def test_the_threshold_lies_between_two_samples() -> None:
    shares = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.7, 0.2, 0.1], [0.8, 0.1, 0.1], [0.1, 0.2, 0.7]])
    y = np.array([0, 0, 0, 0, 2])
    found = find_threshold(np.log(shares), y, 2, keep=0.75)
    assert found.value == pytest.approx(np.sqrt(0.5 * 0.6))
    assert (found.kept, found.n) == (0.75, 4)
    assert find_threshold(np.log(shares), y, 2, keep=0.9).value == pytest.approx(0.25), "half of the least certain"
    assert found.to_json() == {"value": found.value, "kept": 0.75, "n": 4}


def test_of_samples_that_are_alike_all_or_none_are_kept() -> None:
    shares = np.array([[0.5, 0.5]] * 2 + [[0.7, 0.3]] * 6 + [[0.9, 0.1]] * 2)
    found = find_threshold(np.log(shares), np.zeros(10, np.int64), 1, keep=0.5)
    assert (found.value, found.kept) == (pytest.approx(np.sqrt(0.5 * 0.7)), 0.8)


def test_a_model_that_is_always_certain_is_not_judged_by_rounding() -> None:
    logits = np.zeros((50, 4), np.float32)
    logits[:, 1] = np.linspace(20, 25, 50)
    found = find_threshold(logits, np.ones(50, np.int64), 0, keep=0.95)
    assert (found.value, found.kept) == (pytest.approx(HIGHEST), 1.0)
    assert (reject(logits, 0, found.value).argmax(axis=1) == 1).all()


def test_extreme_logits_give_finite_ones() -> None:
    logits = np.array([[3e38, -3e38, 0.0], [-1e5, -1e5, -1e5], [1e5, 1e5, 1e5], [90, 0, -90]], np.float32)
    found = reject(logits, 1, 0.5)
    assert np.isfinite(found).all()
    assert found.argmax(axis=1).tolist() == [0, 1, 1, 0]


def test_what_no_threshold_can_be_found_on_is_refused() -> None:
    logits = random_logits(0, count=3)
    with pytest.raises(DataError, match="found no sample of another class"):
        find_threshold(logits, np.full(3, 2), 2, keep=0.95)
    logits[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN or infinite, expected finite numbers"):
        find_threshold(logits, np.zeros(3, np.int64), 2, keep=0.95)
