"""Metrics beyond top-1: against torchmetrics where it is installed, by hand everywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.device.metrics import contributions
from edgekd.device.postprocess import Denormalize, Sigmoid, Softmax, Threshold
from edgekd.device.quality import (
    calibration_error,
    class_numbers,
    f1_macro,
    further_metrics,
    per_class,
    probabilities_of,
    regression_errors,
    top_k_accuracy,
    worst_samples,
)


def outputs(seed: int, n: int = 200, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are often right, and labels; one class never occurs."""
    random = np.random.default_rng(seed)
    y = random.integers(0, classes - 1, n)
    logits = random.standard_normal((n, classes)).astype(np.float32)
    logits[np.arange(n), y] += 1.5
    return logits, y


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("seed", range(4))
def test_classification_is_that_of_torchmetrics(seed: int) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    tm = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
    logits, y = outputs(seed)
    t_logits, t_y = torch.from_numpy(logits), torch.from_numpy(y)
    found = further_metrics("classification", logits, y, ())
    probabilities = torch.softmax(t_logits, dim=1)
    expected = {
        "top5": tm.MulticlassAccuracy(7, top_k=5, average="micro")(t_logits, t_y),
        "f1_macro": tm.MulticlassF1Score(7, average="macro")(t_logits, t_y),
        "calibration_error": tm.MulticlassCalibrationError(7, n_bins=15, norm="l1")(probabilities, t_y),
    }
    assert found == pytest.approx({key: float(value) for key, value in expected.items()}, abs=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_labels_and_targets_are_those_of_torchmetrics() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    tm = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    random = np.random.default_rng(0)
    logits, y = random.standard_normal((80, 5)).astype(np.float32), random.integers(0, 2, (80, 5)).astype(np.uint8)
    y[:, 3], logits[:, 3] = 0, -5
    expected = tm.classification.MultilabelF1Score(5, average="macro")(torch.from_numpy(logits), torch.from_numpy(y))
    assert further_metrics("multilabel", logits, y, ())["f1_macro"] == pytest.approx(float(expected), abs=1e-6)
    found, true = random.standard_normal((60, 2)).astype(np.float32), random.standard_normal((60, 2)).astype(np.float32)
    errors = regression_errors(found, true)
    pair = (torch.from_numpy(found), torch.from_numpy(true))
    assert errors["mae"] == pytest.approx(float(tm.MeanAbsoluteError()(*pair)), rel=1e-5)
    assert errors["rmse"] == pytest.approx(float(tm.MeanSquaredError(squared=False)(*pair)), rel=1e-5)


def test_top_k_by_hand_and_equal_scores_count_in_their_order() -> None:
    scores = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [1.0, 1.0, 1.0]])
    y = np.array([1, 0, 2])
    assert [top_k_accuracy(scores, y, k) for k in (1, 2, 3)] == pytest.approx([0, 1 / 3, 1])
    assert top_k_accuracy(np.ones((1, 3)), np.array([0]), 1) == 1.0


@given(st.integers(0, 10**6))
def test_top_one_is_the_accuracy_and_top_all_is_one(seed: int) -> None:
    logits, y = outputs(seed, n=50)
    assert top_k_accuracy(logits, y, 1) == pytest.approx(float((logits.argmax(axis=1) == y).mean()))
    values = [top_k_accuracy(logits, y, k) for k in range(1, 8)]
    assert values == sorted(values)
    assert values[-1] == 1.0


def test_f1_by_hand() -> None:
    true = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], bool)
    found = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]], bool)
    # Class 0: tp 1, fn 1. Class 1: tp 1, fp 1. Class 2 is nowhere.
    assert f1_macro(found, true) == pytest.approx(2 / 3)
    assert f1_macro(found, true, absent=0.0) == pytest.approx(4 / 9)


def test_calibration_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [1.0, 0.0]])
    y = np.array([0, 1, 0, 0])
    # Bin of 0.9: accuracy 0.5; bin of 0.6: accuracy 1; exactly 1: right.
    assert calibration_error(probabilities, y) == pytest.approx((2 * 0.4 + 0.4) / 4)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_calibration_lies_between_zero_and_one_and_perfect_is_zero(seed: int) -> None:
    logits, y = outputs(seed, n=60)
    powers = np.exp(logits)
    assert 0 <= calibration_error(powers / powers.sum(axis=1, keepdims=True), y) <= 1
    assert calibration_error(np.eye(7)[y], y) == 0.0


def test_temperature_belongs_to_the_calibration() -> None:
    logits, y = outputs(1)
    sharp = further_metrics("classification", logits, y, (Softmax(0.2),))["calibration_error"]
    soft = further_metrics("classification", logits, y, (Softmax(1.0),))["calibration_error"]
    assert sharp > soft + 0.05


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    logits, y = outputs(0)
    assert probabilities_of(logits, (Denormalize((0.0,), (1.0,)),)) is None
    assert "calibration_error" not in further_metrics("classification", logits, y, (Denormalize((0.0,), (1.0,)),))
    shares = np.full((4, 2), 0.5, np.float32)
    found = probabilities_of(shares, (Denormalize((0.0,), (1.0,)),))
    assert found is not None, "a graph with its own softmax"


def test_every_class_beside_the_reference() -> None:
    y = np.repeat(np.arange(3), 100)
    theirs = np.ones((300, 1))
    own = theirs.copy()
    own[:30] = 0.0  # a third of class 0 is lost, and one sample of class 1
    own[100] = 0.0
    rows = per_class(y, own, theirs, ("cat", "dog", "owl"))
    assert [(row["label"], row["n"], row["accuracy"], row["reference"]) for row in rows] == [
        ("cat", 100, 0.7, 1.0),
        ("dog", 100, 0.99, 1.0),
        ("owl", 100, 1.0, 1.0),
    ]
    assert rows[0]["drop_points"]["value"] == pytest.approx(30.0)
    assert rows[0]["drop_points"]["low"] > 0
    assert rows[0]["p"] < 1e-6
    assert rows[1]["p"] > 0.3
    assert per_class(y, own, None, ())[0] == {"label": "0", "n": 100, "accuracy": 0.7}


def test_a_class_that_drops_by_chance_among_many_does_not_count() -> None:
    wrong = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        y = np.repeat(np.arange(20), 50)
        pair = [(random.random((1000, 1)) < 0.9).astype(float) for _ in range(2)]
        wrong += any(row["p"] < 0.05 for row in per_class(y, pair[0], pair[1], ()))
    assert wrong <= 5


def test_the_worst_samples_of_classes() -> None:
    logits = np.array([[5, 0], [0, 5], [0, 1], [3, 0]], np.float32)
    y = np.array([0, 0, 0, 1])
    rows = worst_samples("classification", logits, y, (), ("cat", "dog"), logits[::-1], count=3)
    assert [(row["sample"], row["label"], row["predicted"], row["reference"]) for row in rows] == [
        (1, "cat", "dog", "dog"),
        (3, "dog", "cat", "cat"),
        (2, "cat", "dog", "dog"),
    ]
    assert rows[0]["probability"] == pytest.approx(1 / (1 + np.exp(5)), rel=1e-4)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert len(worst_samples("classification", logits, y, (), ())) == 4


def test_the_worst_samples_of_labels_and_targets() -> None:
    y = np.array([[1, 0], [0, 1]], np.uint8)
    rows = worst_samples("multilabel", np.array([[4, -4], [4, -4]], np.float32), y, (Sigmoid(), Threshold()), ())
    assert [row["sample"] for row in rows] == [1, 0]
    # A miss of 5 counts more where the target hardly varies.
    targets = np.array([[0.0, 0.0], [1.0, 100.0]])
    found = np.array([[0.0, 5.0], [1.5, 100.0]])
    rows = worst_samples("regression", found, targets, (Denormalize((0.0,), (1.0,)),), ())
    assert [row["sample"] for row in rows] == [1, 0]
    assert rows[0]["target"] == [1.0, 100.0]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_labels_that_the_model_does_not_have() -> None:
    logits = np.zeros((3, 2), np.float32)
    assert class_numbers(np.array([0, 1, 2]), logits) is None
    assert class_numbers(np.array([0, -1, 1]), logits) is None
    assert class_numbers(np.array([0.0, 1.0, 0.5]), logits) is None
    assert class_numbers(np.array([0.0, 1.0, 1.0]), logits).tolist() == [0, 1, 1]


def test_contributions_are_what_the_classes_are_made_of() -> None:
    logits, y = outputs(2)
    own = contributions("classification", logits, y)
    rows = per_class(y, own, None, ())
    assert sum(row["n"] for row in rows) == len(y)
    assert sum(row["n"] * row["accuracy"] for row in rows) / len(y) == pytest.approx(float(own.mean()))
