"""One temperature, fitted on labelled samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.device.calibration import COLDEST, HOTTEST, calibrate, wants_calibration, with_temperature
from edgekd.device.postprocess import Sigmoid, Softmax, TopK, parse_post_steps
from edgekd.errors import DataError, RecipeError


def honest(n, classes, seed):
    """Logits whose softmax is the true distribution of y."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return logits.astype(np.float32), np.array([random.choice(classes, p=row) for row in shares])


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(0.3, 6.0), seed=st.integers(0, 50))
def test_it_finds_by_how_much_a_model_is_too_sure(factor, seed):
    logits, y = honest(1500, 5, seed)
    found = calibrate(logits * np.float32(factor), y)
    assert found.temperature == pytest.approx(factor, rel=0.15)
    assert found.nll[1] <= found.nll[0] + 1e-9
    if not 0.8 < factor < 1.25:
        assert found.ece[1] < found.ece[0]


def test_no_other_temperature_is_likelier():
    torch = pytest.importorskip("torch")
    logits, y = honest(300, 4, 0)
    found = calibrate(logits * 3, y)

    def nll(temperature):
        return float(torch.nn.functional.cross_entropy(torch.tensor(logits * 3 / temperature), torch.tensor(y)))

    assert found.nll == (pytest.approx(nll(1.0), rel=1e-5), pytest.approx(nll(found.temperature), rel=1e-5))
    for other in (0.97, 1.03):
        assert nll(found.temperature) <= nll(found.temperature * other)


def test_a_model_that_is_always_right_or_always_wrong_ends_at_the_bounds():
    y = np.arange(20) % 4
    right = np.eye(4, dtype=np.float32)[y] * 3
    assert calibrate(right, y).temperature == pytest.approx(COLDEST)
    assert calibrate(-right, y).temperature == pytest.approx(HOTTEST)
    assert calibrate(right, y).to_json().keys() == {
        "temperature",
        "nll_before",
        "nll_after",
        "ece_before",
        "ece_after",
        "n",
    }


def test_logits_that_are_none():
    with pytest.raises(DataError, match=r"calibration: found logits \(3, 2\) for \(4,\) classes"):
        calibrate(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(DataError, match=r"expected .* finite numbers"):
        calibrate(np.full((3, 2), np.nan), np.zeros(3))
    with pytest.raises(DataError, match="found classes 0 to 5, expected 0 to 1"):
        calibrate(np.zeros((2, 2)), np.array([0, 5]))


def test_the_word_in_a_recipe():
    steps = parse_post_steps([{"op": "softmax", "temperature": "calibrated"}, {"op": "top_k", "k": 3}])
    assert steps == (Softmax("calibrated"), TopK(3))
    assert wants_calibration(steps)
    assert with_temperature(steps, 2.0) == (Softmax(2.0), TopK(3))
    assert not wants_calibration((Softmax(), Sigmoid()))
    with pytest.raises(RecipeError, match='expected a temperature above 0, or "calibrated"'):
        parse_post_steps([{"op": "softmax", "temperature": "warm"}])
    with pytest.raises(RecipeError, match="found k = 0, expected a whole number from 1"):
        parse_post_steps([{"op": "top_k", "k": 0}])
