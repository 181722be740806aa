"""How good the answers are beyond one number: further metrics, every class beside the reference, the worst samples.

Definitions are those of torchmetrics 1.9, in numpy, so that figures can be compared with anybody's training log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.device.differences import holm, p_of_interval
from edgekd.device.metrics import drop_points
from edgekd.device.postprocess import PostStep, apply_post, as_judged, default_post_steps
from edgekd.spec import Array

WORST = 10
BINS = 15
# Sums of rows that are probabilities, after rounding to float32.
ONE = 1e-3

Floats = NDArray[np.float64]


def top_k_accuracy(scores_NC: Array, y_N: Array, k: int) -> float:
    """The share of samples whose class is among the k highest scores (of equal ones, the first).

    torchmetrics: MulticlassAccuracy(top_k=k, average="micro").
    """
    own_N1 = np.take_along_axis(scores_NC, y_N[:, np.newaxis], axis=1)
    before = np.arange(scores_NC.shape[1]) < y_N[:, np.newaxis]
    rank_N = (scores_NC > own_N1).sum(axis=1) + ((scores_NC == own_N1) & before).sum(axis=1)
    return float((rank_N < k).mean())


def f1_macro(found_NL: Array, true_NL: Array, *, absent: float | None = None) -> float:
    """The mean over labels of F1 = 2 tp / (2 tp + fp + fn), from boolean (N, labels).

    A label that is neither there nor found counts as `absent`, or not at all where that is None.
    torchmetrics: MulticlassF1Score(average="macro"), and with absent=0 MultilabelF1Score(average="macro").
    """
    tp_L = (found_NL & true_NL).sum(axis=0)
    all_L = found_NL.sum(axis=0) + true_NL.sum(axis=0)
    f1_L = 2 * tp_L / np.maximum(all_L, 1)
    if absent is not None:
        return float(np.where(all_L > 0, f1_L, absent).mean())
    return float(f1_L[all_L > 0].mean())


def calibration_error(probabilities_NC: Array, y_N: Array, *, bins: int = BINS) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, weighted over bins of the confidence.

        sum_b n_b / N * |accuracy_b - confidence_b|,   bins [i / B, (i + 1) / B), and one of its own for exactly 1

    torchmetrics: MulticlassCalibrationError(n_bins=bins, norm="l1").
    Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.
    """
    confidence_N = probabilities_NC.max(axis=1).astype(np.float64)
    right_N = (probabilities_NC.argmax(axis=1) == y_N).astype(np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1).astype(np.float32)
    bin_N = np.searchsorted(edges, confidence_N.astype(np.float32), side="right") - 1
    gaps = np.bincount(bin_N, right_N - confidence_N, minlength=bins + 1)
    return float(np.abs(gaps).sum() / len(y_N))


def regression_errors(found_ND: Array, true_ND: Array) -> dict[str, float]:
    """Mean absolute, root mean squared and largest error over all samples and targets, in the units of the targets.

    torchmetrics: MeanAbsoluteError, MeanSquaredError(squared=False), MinMaxMetric has none for the largest.
    """
    errors = np.abs(found_ND.astype(np.float64) - true_ND)
    return {
        "mae": float(errors.mean()),
        "rmse": float(np.sqrt((errors**2).mean())),
        "max_error": float(errors.max()),
    }


def further_metrics(task: str, outputs_ND: Array, y: Array, steps: Sequence[PostStep]) -> dict[str, float]:
    """What the task has beyond its one metric; shares are on a 0..1 scale."""
    scores, threshold = as_judged(task, steps, outputs_ND)
    if task == "classification":
        classes = np.arange(outputs_ND.shape[1])
        found, true = scores.argmax(axis=1)[:, np.newaxis] == classes, y[:, np.newaxis] == classes
        told = {"f1_macro": f1_macro(found, true)}
        if len(classes) > 5:
            told["top5"] = top_k_accuracy(scores, y, 5)
        probabilities = probabilities_of(outputs_ND, steps)
        if probabilities is not None:
            told["calibration_error"] = calibration_error(probabilities, y)
        return told
    if task == "multilabel":
        return {"f1_macro": f1_macro(scores >= threshold, y > 0, absent=0.0)}
    return regression_errors(scores, y)


def class_numbers(y: Array, outputs_NC: Array) -> NDArray[np.int64] | None:
    """y as class numbers; None where some are none that the model has, so that nothing can be said of classes."""
    numbers = y.astype(np.int64)
    fit = (numbers == y).all() and (numbers >= 0).all() and (numbers < outputs_NC.shape[1]).all()
    return numbers if fit else None


def per_class(
    y_N: Array, own_NK: Floats, reference_NK: Floats | None, labels: Sequence[str], *, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Each class that has samples: how many, accuracy, that of the reference, and the paired drop with its p-value.

    `own_NK` and `reference_NK` are `metrics.contributions` of a classification. p is adjusted (Holm) for the number of
    classes: among many, some drop by chance.
    """
    rows: list[dict[str, Any]] = []
    p_values = []
    for number in np.unique(y_N):
        here = y_N == number
        own = own_NK[here]
        row: dict[str, Any] = {"label": _name(int(number), labels), "n": len(own), "accuracy": float(own.mean())}
        if reference_NK is not None:
            theirs = reference_NK[here]

            def interval_at(level: float, theirs: Floats = theirs, own: Floats = own) -> tuple[float, float]:
                found = drop_points("classification", theirs, own, confidence=level)
                return found.low, found.high

            row["reference"] = float(theirs.mean())
            row["drop_points"] = drop_points("classification", theirs, own, confidence=confidence).to_json()
            p_values.append(p_of_interval(interval_at))
        rows.append(row)
    for row, p in zip(rows, holm(p_values)):
        row["p"] = p
    return rows


def worst_samples(
    task: str,
    outputs_ND: Array,
    y: Array,
    steps: Sequence[PostStep],
    labels: Sequence[str],
    reference_ND: Array | None = None,
    *,
    count: int = WORST,
) -> list[dict[str, Any]]:
    """The samples with the largest loss, worst first: their place in the data, what is true and what was said.

    classification  by the probability of the true class; `reference` is what the reference says
    multilabel      by the sum of the errors of the probabilities
    regression      by the sum of the errors, each in standard deviations of its target
    """
    scores, _ = as_judged(task, steps, outputs_ND)
    if task == "classification":
        probabilities = probabilities_of(outputs_ND, steps)
        sure = outputs_ND if probabilities is None else probabilities
        own = np.take_along_axis(sure, y[:, np.newaxis], axis=1)[:, 0].astype(np.float64)
        loss = -own if probabilities is not None else sure.max(axis=1) - own
    else:
        errors = np.abs(scores.astype(np.float64) - y)
        spread = y.std(axis=0, dtype=np.float64) if task == "regression" else np.ones(y.shape[1])
        loss = (errors / np.where(spread > 0, spread, 1.0)).sum(axis=1)
    rows = []
    for index in np.argsort(-loss, kind="stable")[:count]:
        row: dict[str, Any] = {"sample": int(index), "loss": float(loss[index])}
        if task == "classification":
            row |= {"label": _name(int(y[index]), labels), "predicted": _name(int(scores[index].argmax()), labels)}
            row["probability"] = None if probabilities is None else float(own[index])
            if reference_ND is not None:
                row["reference"] = _name(int(reference_ND[index].argmax()), labels)
        else:
            row |= {"target": y[index].tolist(), "predicted": [float(value) for value in scores[index]]}
        rows.append(row)
    return rows


def probabilities_of(outputs_NC: Array, steps: Sequence[PostStep]) -> Array | None:
    """The class probabilities; None where the steps (which may leave it to the graph) do not give any."""
    values = apply_post(tuple(steps) or default_post_steps("classification"), outputs_NC)
    is_share = (values >= 0).all() and (np.abs(values.sum(axis=1) - 1) < ONE).all()
    return values if is_share else None


def _name(number: int, labels: Sequence[str]) -> str:
    return labels[number] if number < len(labels) else str(number)
