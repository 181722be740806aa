"""What a black box says: every kind becomes what the losses learn from, and rubbish is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgekd.distill.answers import classes_of, dense_logits, read_answers, with_logits
from edgekd.errors import DataError
from edgekd.spec import Task

NAMES = ("ant", "bee", "cat", "dog")
IDS = np.array([70, 71, 72], np.int64)


def read(task: Task = "classification", **raw: Any) -> dict[str, np.ndarray]:
    arrays = {name: np.array(value) for name, value in raw.items()}
    return read_answers(arrays, IDS, labels=NAMES, task=task, where="it")


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


LOGITS = np.random.default_rng(0).normal(size=(3, 4)) * 3
P = softmax(LOGITS)


def test_logits_stay() -> None:
    assert np.array_equal(read(logits=LOGITS)["logits"], LOGITS.astype(np.float32))
    assert read(logits=LOGITS)["logits"].dtype == np.float32
    assert np.array_equal(read("regression", logits=LOGITS)["logits"], LOGITS.astype(np.float32))
    assert read(logits=LOGITS, classes=NAMES)["logits"].shape == (3, 4)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_the_width_says_whose_classes_the_columns_are(kind: str) -> None:
    own = ("dog", "ant")
    assert classes_of({kind: P}, NAMES, own, where="it") == NAMES
    assert classes_of({kind: P[:, :2]}, NAMES, own, where="it") == own
    assert classes_of({kind: P[:, :2]}, NAMES, (), where="it") == NAMES, "which then refuses it"
    with pytest.raises(DataError) as caught:
        classes_of({kind: P[:, :3]}, NAMES, own, where="it")
    assert str(caught.value) == (
        "it gives 3 numbers for each sample, expected 4, one for each label of the data, or 2, one for each of its "
        "own: 'dog', 'ant'"
    )


def test_a_top_k_and_labels_are_of_all_classes() -> None:
    for raw in ({"labels": np.array([1])}, {"topk_indices": P[:, :2], "topk_probabilities": P[:, :2]}):
        assert classes_of(raw, NAMES, ("dog", "ant"), where="it") == NAMES


def test_probabilities_become_logits_of_the_same_softmax() -> None:
    np.testing.assert_allclose(softmax(read(probabilities=P)["logits"].astype(np.float64)), P, rtol=1e-5)
    np.testing.assert_allclose(softmax(read(probabilities=P.round(2))["logits"].astype(np.float64)), P, atol=0.011)
    zero = read(probabilities=[[1, 0, 0, 0]] * 3)["logits"]
    assert np.isfinite(zero).all()
    np.testing.assert_allclose(softmax(zero), [[1, 0, 0, 0]] * 3, atol=1e-30)


def test_probabilities_of_several_labels_become_logits_of_the_same_sigmoid() -> None:
    p = np.array([[0.1, 0.9, 0.5, 0.0], [1.0, 0.2, 0.3, 0.4], [0.6, 0.6, 0.6, 0.6]])
    logits = read("multilabel", probabilities=p)["logits"].astype(np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), p, atol=1e-6)


@pytest.mark.parametrize("kind", ["topk_probabilities", "topk_log_probabilities"])
def test_a_top_k(kind: str) -> None:
    indices = np.argsort(-P, axis=1)[:, :2]
    p = np.take_along_axis(P, indices, axis=1)
    found = read(topk_indices=indices, **{kind: p if kind == "topk_probabilities" else np.log(p)})
    assert np.array_equal(found["topk_indices"], indices)
    np.testing.assert_allclose(found["topk_log_probabilities"], np.log(p), rtol=1e-5)
    named = with_logits({name: torch.from_numpy(value) for name, value in found.items()}, 4)
    np.testing.assert_allclose(named["topk_probabilities"].numpy(), p, rtol=1e-5)
    expected = np.repeat((1 - p.sum(axis=1, keepdims=True)) / 2, 4, axis=1)
    np.put_along_axis(expected, indices, p, axis=1)
    np.testing.assert_allclose(softmax(named["logits"].double().numpy()), expected, rtol=1e-4)


@pytest.mark.parametrize("labels", [[2, 0, 3], ["cat", "ant", "dog"], [2.0, 0.0, 3.0]])
def test_labels_are_a_top_1(labels: list[Any]) -> None:
    found = read(labels=labels)
    assert found["topk_indices"].tolist() == [[2], [0], [3]]
    assert found["topk_log_probabilities"].tolist() == [[0.0]] * 3
    named = with_logits({name: torch.from_numpy(value) for name, value in found.items()}, 4)
    assert torch.equal(torch.softmax(named["logits"] / 20, dim=1), torch.eye(4)[[2, 0, 3]])


def test_a_top_k_of_all_classes_leaves_nothing() -> None:
    p = torch.tensor([[0.25, 0.75]])
    assert torch.allclose(dense_logits(torch.tensor([[1, 0]]), p.log(), 2), p.flip(1).log())


NAN = [[0.0, 1.0, 2.0, float("nan")], *LOGITS[1:].tolist()]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, "gives nothing; expected one of: logits, probabilities, labels, or topk_indices with topk_prob"),
        ({"logits": LOGITS, "labels": [0, 1, 2]}, "gives labels, logits; expected one of"),
        ({"topk_indices": [[0]] * 3}, "gives topk_indices; expected one of"),
        ({"logits": LOGITS[:2]}, r"gives logits [2, 4], expected 3 rows, one for each sample"),
        ({"logits": LOGITS[:, :3]}, r"gives logits [3, 3] of float64, expected numbers [3, 4]"),
        ({"logits": [["a"] * 4] * 3}, r"gives logits [3, 4] of <U1, expected numbers [3, 4]"),
        ({"logits": NAN}, "gives logits that are NaN or infinite, for 1 of 3 samples, with the ids 70; correct"),
        ({"probabilities": LOGITS}, "gives probabilities below 0 or above 1 (are they logits?), for"),
        ({"probabilities": P / 2}, "gives probabilities that sum to 0.5 instead of 1, for 3 of 3 samples"),
        ({"labels": [0, 4, 1]}, "gives labels that are no class from 0 to 3, for 1 of 3 samples, with the ids 71"),
        ({"labels": [0, 1.5, 1]}, "gives labels that are no class from 0 to 3"),
        ({"labels": [0, -1, 1]}, "gives labels that are no class from 0 to 3"),
        ({"labels": ["ant", "cow", "bee"]}, "labels that are no class, such as 'cow' (known: 'ant', 'bee',"),
        ({"labels": [[0], [1], [2]]}, "gives labels [3, 1], expected one class per sample, [3]"),
        ({"topk_indices": [[0, 0]] * 3, "topk_probabilities": [[0.5, 0.2]] * 3}, "the same class twice in a top-k"),
        ({"topk_indices": [[0, 9]] * 3, "topk_probabilities": [[0.5, 0.2]] * 3}, "topk_indices that are no class from"),
        ({"topk_indices": [[0, 1]] * 3, "topk_probabilities": [[0.9, 0.9]] * 3}, "with probabilities that sum to 1.8"),
        ({"topk_indices": [[0, 1]] * 3, "topk_probabilities": [[5.0, 2.0]] * 3}, "below 0 or above 1"),
        ({"topk_indices": [[0, 1]] * 3, "topk_log_probabilities": [[5.0, 2.0]] * 3}, "a top-k with probabilities that"),
        ({"topk_indices": [[0, 1]] * 3, "topk_probabilities": [[0.5]] * 3}, "gives topk_probabilities [3, 1] of"),
        ({"logits": LOGITS, "classes": ["bee", "ant", "cat", "dog"]}, "another order: output 0 is 'bee' there"),
        ({"logits": LOGITS, "classes": ["ant", "bee", "cow"]}, "knows 3 classes and the data 4; only there: 'cow'"),
    ],
)  # fmt: skip
def test_rubbish_is_named(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        read(**raw)
    assert str(caught.value).startswith("it ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("task", "raw", "expected"),
    [
        ("regression", {"probabilities": P}, "gives probabilities, but task = 'regression'; expected logits"),
        (
            "multilabel",
            {"labels": [0, 1, 2]},
            "gives labels, but task = 'multilabel'; expected logits or probabilities",
        ),
    ],
)
def test_what_does_not_speak_for_the_task(task: Task, raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read(task, **raw)
