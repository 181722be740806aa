"""Metrics against hand-computed and scikit-learn values; intervals by value and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.device.metrics import METRIC, agreement, contributions, drop_points, needed_n, score, score_interval
from edgekd.errors import UsageError

TASKS = sorted(METRIC)


def random_problem(task, n, seed):
    rng = np.random.default_rng(seed)
    if task == "classification":
        return rng.normal(size=(n, 4)), rng.normal(size=(n, 4)), rng.integers(0, 4, n)
    if task == "multilabel":
        return rng.normal(size=(n, 3)), rng.normal(size=(n, 3)), rng.integers(0, 2, (n, 3)).astype(np.uint8)
    if task == "masked_lm":  # the same tokens are hidden from both
        asked = rng.integers(1, 9, (n, 1))
        sums = [-asked * rng.gamma(4, mean, (n, 1)) for mean in (1.0, 1.1)]
        return np.hstack([sums[0], asked]), np.hstack([sums[1], asked]), np.zeros((n, 1))
    y = rng.normal(size=(n, 2)) * [1, 50] + [1000, 0]
    return y + rng.normal(size=(n, 2)), y + 2 * rng.normal(size=(n, 2)), y


def rows(right):
    """Contributions of a classifier that is right where `right` is 1."""
    return np.array(right, np.float64)[:, np.newaxis]


def test_the_likelihood_of_masked_tokens_is_a_mean_over_tokens_not_over_texts():
    outputs = np.array([[-6.0, 3.0], [-1.0, 1.0]])
    assert score("masked_lm", contributions("masked_lm", outputs, np.zeros((2, 1)))) == -7 / 4


def test_accuracy_by_hand():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    found = contributions("classification", outputs, np.array([1, 0, 0, 0]))
    assert found.tolist() == [[1], [1], [0], [1]]
    assert score("classification", found) == 0.75


def test_scores_equal_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, r2_score

    outputs, _, y = random_problem("classification", 97, 1)
    assert score("classification", contributions("classification", outputs, y)) == accuracy_score(y, outputs.argmax(1))
    outputs, _, y = random_problem("multilabel", 97, 2)
    expected = f1_score(y, outputs >= 0, average="micro")
    assert score("multilabel", contributions("multilabel", outputs, y)) == pytest.approx(expected, abs=1e-12)
    outputs, other, y = random_problem("regression", 97, 3)
    for found in (outputs, other):
        assert score("regression", contributions("regression", found, y)) == pytest.approx(r2_score(y, found), abs=1e-9)


def test_multilabel_counts_a_label_from_the_threshold_on():
    outputs, y = np.array([[0.0, -0.1, 2.0]]), np.array([[1, 1, 0]], np.uint8)
    assert contributions("multilabel", outputs, y).tolist() == [[1, 1, 1]]
    assert contributions("multilabel", outputs, y, threshold=-0.2).tolist() == [[2, 1, 0]]
    assert contributions("multilabel", outputs, y, threshold=3.0).tolist() == [[0, 0, 2]]


def test_nothing_to_find_and_nothing_found_is_a_perfect_f1():
    assert score("multilabel", contributions("multilabel", -np.ones((3, 2)), np.zeros((3, 2), np.uint8))) == 1.0


@pytest.mark.parametrize(("predicted", "expected"), [(5.0, 1.0), (6.0, 0.0)])
def test_r2_of_constant_targets(predicted, expected):
    y = np.full((4, 1), 5.0, np.float32)
    assert score("regression", contributions("regression", np.full((4, 1), predicted), y)) == expected


def test_wilson_interval_by_value():
    # 8 of 10 at 95 %: 0.4902 to 0.9433 (Wilson 1927; the usual textbook case).
    found = score_interval("classification", rows([1] * 8 + [0] * 2))
    assert (found.value, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.4902, abs=1e-4)
    assert found.high == pytest.approx(0.9433, abs=1e-4)


def test_all_right_is_not_certainly_all_right():
    found = score_interval("classification", rows([1] * 20))
    assert found.high == 1.0
    assert found.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-5)


def test_agresti_min_interval_by_value():
    # lost 10, won 4 of 100: centre 6/102, half 1.96 * sqrt(15 - 36/102) / 102.
    reference = rows([1] * 10 + [0] * 4 + [1] * 86)
    candidate = rows([0] * 10 + [1] * 4 + [1] * 86)
    found = drop_points("classification", reference, candidate)
    half = 100 * 1.959964 * math.sqrt(15 - 36 / 102) / 102
    assert found.value == pytest.approx(6.0)
    assert found.low == pytest.approx(600 / 102 - half, abs=1e-4)
    assert found.high == pytest.approx(600 / 102 + half, abs=1e-4)


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_agreeing_everywhere_on_few_samples_proves_little(task):
    outputs, _, y = random_problem(task, 20, 4)
    own = contributions(task, outputs, y)
    few = drop_points(task, own, own)
    assert few.value == 0.0
    assert few.high > 1.0
    outputs, _, y = random_problem(task, 5000, 4)
    own = contributions(task, outputs, y)
    assert drop_points(task, own, own).high < few.high / 10


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 2**31), confidence=st.sampled_from([0.5, 0.9, 0.99]))
def test_intervals_hold_their_value_and_are_reproducible(task, n, seed, confidence):
    outputs, other, y = random_problem(task, n, seed)
    a, b = contributions(task, outputs, y), contributions(task, other, y)
    drop = drop_points(task, a, b, confidence=confidence, seed=seed)
    for found in (score_interval(task, a, confidence=confidence, seed=seed), drop):
        assert found.low <= found.value <= found.high
        assert all(map(math.isfinite, (found.low, found.value, found.high)))
        assert found.n == n
    assert drop == drop_points(task, a, b, confidence=confidence, seed=seed)
    assert drop.value == pytest.approx(100 * (score(task, a) - score(task, b)))


@pytest.mark.parametrize("task", TASKS)
def test_the_drop_turns_round_with_its_arguments_and_grows_with_confidence(task):
    outputs, other, y = random_problem(task, 200, 7)
    a, b = contributions(task, outputs, y), contributions(task, other, y)
    there, back = drop_points(task, a, b), drop_points(task, b, a)
    assert there.value == pytest.approx(-back.value)
    assert there.high == pytest.approx(-back.low, abs=1.5)
    wide, narrow = drop_points(task, a, b, confidence=0.99), drop_points(task, a, b, confidence=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("task", TASKS)
def test_the_intervals_cover_the_truth_about_as_often_as_they_say(task):
    rng = np.random.default_rng(11)
    outputs, other, y = random_problem(task, 20_000, 12)
    a, b = contributions(task, outputs, y), contributions(task, other, y)

    def pick(i):
        if task == "regression":  # these contributions are centred on the samples that they come from
            return contributions(task, outputs[i], y[i]), contributions(task, other[i], y[i])
        return a[i], b[i]

    truth = 100 * (score(task, a) - score(task, b))
    tries = 400 if task == "classification" else 40
    inside = 0
    for _ in range(tries):
        found = drop_points(task, *pick(rng.integers(0, len(y), 150)))
        inside += found.low <= truth <= found.high
    assert inside / tries >= (0.92 if task == "classification" else 0.85)


def test_pairing_sees_what_separate_intervals_cannot():
    rng = np.random.default_rng(5)
    reference = (rng.random(1000) < 0.8).astype(np.float64)
    candidate = reference.copy()
    candidate[np.flatnonzero(reference)[:20]] = 0
    drop = drop_points("classification", rows(reference), rows(candidate))
    separate = score_interval("classification", rows(reference))
    assert drop.low > 0
    assert drop.high - drop.low < 100 * (separate.high - separate.low)


def test_needed_n_is_the_smallest_number_that_proves_it():
    reference, candidate = rows([1] * 95 + [0] * 5), rows([1] * 94 + [0] * 6)
    needed = needed_n("classification", reference, candidate, 2.0)
    assert needed is not None
    assert needed > 100  # 1 point lost of 100 samples does not prove a drop of at most 2
    times = math.ceil(needed / 100)
    grown = drop_points("classification", np.tile(reference, (times, 1)), np.tile(candidate, (times, 1)))
    assert grown.high <= 2.0
    times = needed // 100 - 1
    shrunk = drop_points("classification", np.tile(reference, (times, 1)), np.tile(candidate, (times, 1)))
    assert shrunk.high > 2.0


def test_needed_n_is_none_when_the_drop_itself_is_too_large():
    reference, candidate = rows([1] * 100), rows([1] * 95 + [0] * 5)
    assert needed_n("classification", reference, candidate, 5.0) is None
    assert needed_n("classification", reference, candidate, 4.0) is None
    assert needed_n("classification", reference, candidate, 5.1) is not None


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_needed_n_of_a_bootstrap_is_about_right(task):
    outputs, _, y = random_problem(task, 400, 9)
    worse = outputs + np.random.default_rng(10).normal(size=outputs.shape) * 0.05
    a, b = contributions(task, outputs, y), contributions(task, worse, y)
    drop = drop_points(task, a, b)
    limit = drop.value + (drop.high - drop.value) / 3
    needed = needed_n(task, a, b, limit)
    assert needed == pytest.approx(9 * 400, rel=0.01)
    assert needed_n(task, a, b, drop.value) is None
    assert needed_n(task, a, b, drop.value - 0.5) is None


def test_agreement():
    a, b = np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[3.0, 1.0], [1.0, 0.0]])
    assert agreement("classification", a, b) == 0.5
    assert agreement("multilabel", a - 0.5, b - 0.5) == 0.5
    assert agreement("regression", a, b) is None
    with pytest.raises(UsageError, match=r"shapes \(2, 2\) and \(1, 2\), expected the same"):
        agreement("classification", a, b[:1])


def test_refusals_say_both_sides():
    with pytest.raises(UsageError, match=r"y of shape \(3,\) for outputs \(2, 4\), expected \(2,\) in classification"):
        contributions("classification", np.zeros((2, 4)), np.zeros(3))
    with pytest.raises(UsageError, match=r"outputs of shape \(0, 4\), expected \(N, D\)"):
        contributions("classification", np.zeros((0, 4)), np.zeros(0))
    with pytest.raises(UsageError, match=r"task 'classificaton' has no metric\. Did you mean 'classification'"):
        contributions("classificaton", np.zeros((1, 2)), np.zeros(1))
    with pytest.raises(UsageError, match=r"shapes \(3, 1\) and \(2, 1\); expected both models on the same samples"):
        drop_points("classification", rows([1, 1, 0]), rows([1, 1]))
    with pytest.raises(UsageError, match="confidence is 95, expected a number between 0 and 1"):
        score_interval("classification", rows([1]), confidence=95)
