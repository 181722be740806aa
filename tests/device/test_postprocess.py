"""Postprocessing: formulas at their edges, and the round trip through JSON."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekd.device.postprocess import (
    Denormalize,
    Sigmoid,
    Softmax,
    Threshold,
    apply_post,
    as_judged,
    default_post_steps,
    parse_post_steps,
    post_steps_to_json,
    threshold_of,
    without_units,
)
from edgekd.errors import DataError, RecipeError, UsageError

LOGITS = arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32))


@given(LOGITS, st.floats(0.1, 20))
def test_softmax_gives_probabilities_in_the_order_of_the_logits(logits, temperature):
    found = apply_post([Softmax(temperature)], logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    ordered = np.take_along_axis(found, logits.argsort(axis=1), axis=1)
    assert (np.diff(ordered, axis=1) >= 0).all()


def test_softmax_by_value():
    found = apply_post([Softmax(2.0)], np.float32([[2 * np.log(3), 0.0]]))
    np.testing.assert_allclose(found, [[0.75, 0.25]], rtol=1e-6)
    assert apply_post([Softmax()], np.float32([[1e30, -1e30]])).tolist() == [[1, 0]]


@given(LOGITS)
def test_sigmoid_is_symmetric_and_never_overflows(logits):
    found = apply_post([Sigmoid()], logits)
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found + apply_post([Sigmoid()], -logits), 1, rtol=1e-6)


def test_sigmoid_by_value():
    np.testing.assert_allclose(apply_post([Sigmoid()], np.float32([[np.log(3), 0]])), [[0.75, 0.5]], rtol=1e-6)


def test_denormalize_goes_back_to_the_units():
    outputs = np.float32([[0.0, 1.0], [-1.0, 2.0]])
    found = apply_post([Denormalize((10.0, 100.0), (2.0, 5.0))], outputs)
    assert found.tolist() == [[10, 105], [8, 110]]
    with pytest.raises(DataError, match="denormalize: 3 mean and 1 std for 2 outputs; expected one, or one per output"):
        apply_post([Denormalize((1.0, 2.0, 3.0), (1.0,))], outputs)


def test_threshold_marks_and_changes_nothing():
    outputs = np.float32([[0.1, 0.9]])
    np.testing.assert_array_equal(apply_post([Threshold(0.3)], outputs), outputs)
    assert threshold_of([Sigmoid(), Threshold(0.3)]) == 0.3
    assert threshold_of([Sigmoid()]) == 0.5


def test_the_input_is_not_changed():
    outputs = np.float32([[1.0, 2.0]])
    apply_post([Softmax(), Denormalize((1.0,), (2.0,))], outputs)
    assert outputs.tolist() == [[1, 2]]


def test_defaults_by_task():
    assert default_post_steps("classification") == (Softmax(),)
    assert default_post_steps("multilabel") == (Sigmoid(), Threshold(0.5))
    assert default_post_steps("regression", mean=np.float32([1, 2]), std=[3, 4]) == (Denormalize((1, 2), (3, 4)),)
    assert default_post_steps("regression") == ()
    with pytest.raises(UsageError, match=r"unknown task 'regresion'\. Did you mean 'regression'"):
        default_post_steps("regresion")


def test_json_round_trip():
    steps = (Softmax(3.0), Sigmoid(), Denormalize((1.0, 2.0), (3.0, 4.0)), Threshold(0.25))
    plain = post_steps_to_json(steps)
    assert plain[2] == {"op": "denormalize", "mean": [1.0, 2.0], "std": [3.0, 4.0]}
    assert parse_post_steps(plain) == steps


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ({"op": "softmx"}, r"postprocess\.steps\[0\]: unknown op 'softmx'\. Did you mean 'softmax'\?"),
        ({"op": "softmax", "temprature": 2}, r"\(softmax\): unknown key 'temprature'\. Did you mean 'temperature'\?"),
        ({"op": "softmax", "temperature": 0}, r"found temperature = 0, expected a temperature above 0"),
        ({"op": "softmax", "temperature": "1"}, r"found temperature = '1', expected a temperature above 0"),
        ({"op": "threshold", "value": float("nan")}, r"found value = nan, expected a finite number"),
        ({"op": "threshold", "value": True}, r"found value = True, expected a finite number"),
        ({"op": "denormalize", "mean": 1.0}, r"found mean = 1\.0, expected a list of finite numbers"),
        ({"op": "denormalize", "std": []}, r"found std = \(\), expected a list of finite numbers"),
        ({}, r"unknown op None"),
    ],
)
def test_refusals(step, text):
    with pytest.raises(RecipeError, match=text):
        parse_post_steps([step])


@given(arrays(np.float32, (4, 2), elements=st.floats(-1e3, 1e3, width=32)))
def test_targets_without_their_units_get_them_back(targets):
    steps = [Denormalize((5.0, -20.0), (30.0, 0.5)), Denormalize((1.0,), (2.0,))]
    np.testing.assert_allclose(apply_post(steps, without_units(steps, targets)), targets, rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(without_units([], targets), targets)


def test_outputs_are_judged_as_the_predictor_reads_them():
    logits = np.array([[-1.0, 3.0]], np.float32)
    steps = [Sigmoid(), Threshold(0.2)]
    scores, threshold = as_judged("multilabel", steps, logits)
    assert threshold == threshold_of(steps)
    np.testing.assert_array_equal(scores, apply_post(steps, logits))
    assert as_judged("multilabel", (), logits)[1] == 0.5
    assert as_judged("classification", [Softmax()], logits)[0] is logits, "large probabilities would tie"
    np.testing.assert_array_equal(as_judged("regression", [Denormalize((1.0,), (2.0,))], logits)[0], [[-1.0, 7.0]])


def test_nothing_is_divided_by_a_deviation_of_zero():
    with pytest.raises(RecipeError, match="expected no std of 0"):
        parse_post_steps([{"op": "denormalize", "mean": [0.0], "std": [1.0, 0.0]}])
