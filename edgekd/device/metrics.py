"""How good outputs are, how sure that is, and how much a candidate loses against a reference.

Everything starts from contributions: float64 (N, k), what each sample adds to the metric. From them come the
score, its interval, and paired intervals of the drop (both models saw the same samples). Outputs are what
graphs give: scores of classes, logits of labels, and targets in the same units as `y`.

classification   accuracy        k = 1    1 where the highest score is the true class
multilabel       micro F1        k = 3    true positives, false positives, false negatives
regression       mean R2         k = 3D   squared error, centred target, its square, for each of D targets
embedding        mean cosine     k = 1    cosine of the angle between the vector and the wanted one
masked_lm        log-likelihood  k = 2    its sum over the tokens behind the masks; how many these are
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import UsageError, nearest
from edgekd.spec import Array, Interval

METRIC = {
    "classification": "accuracy",
    "multilabel": "f1_micro",
    "regression": "r2",
    "embedding": "cosine",
    "masked_lm": "log_likelihood",
}
RESAMPLES = 2000
MOST_SAMPLES = 1 << 40  # nobody labels more; beyond it a drop counts as never provable

Contributions = NDArray[np.float64]


def contributions(task: str, outputs_ND: Array, y: Array, *, threshold: float = 0.0) -> Contributions:
    """What each sample adds to the metric of `task`: float64 (N, k), see above.

    `threshold` is the logit from which on a label counts as present (0 is a probability of one half).
    Raises `UsageError` when outputs and y do not fit each other, or the task has no metric.
    """
    _check_task(task)
    outputs, truth = np.asarray(outputs_ND), np.asarray(y)
    if outputs.ndim != 2 or len(outputs) == 0:
        raise UsageError(f"found outputs of shape {outputs.shape}, expected (N, D) with at least one sample")
    if task == "masked_lm":
        return outputs.astype(np.float64)
    expected = (len(outputs),) if task == "classification" else outputs.shape
    if truth.shape != expected:
        raise UsageError(f"found y of shape {truth.shape} for outputs {outputs.shape}, expected {expected} in {task}")
    if task == "classification":
        right: Contributions = (outputs.argmax(axis=1) == truth).astype(np.float64)[:, np.newaxis]
        return right
    if task == "multilabel":
        found, true = outputs >= threshold, truth > 0
        counts = [(found & true).sum(axis=1), (found & ~true).sum(axis=1), (~found & true).sum(axis=1)]
        return np.stack(counts, axis=1).astype(np.float64)
    if task == "embedding":
        found_64, wanted_64 = outputs.astype(np.float64), truth.astype(np.float64)
        lengths = np.linalg.norm(found_64, axis=1) * np.linalg.norm(wanted_64, axis=1)
        cosines: Contributions = ((found_64 * wanted_64).sum(axis=1) / np.maximum(lengths, 1e-12))[:, np.newaxis]
        return cosines
    # Centred once, so that the sum of squares does not drown in a large mean.
    centred = truth.astype(np.float64) - truth.astype(np.float64).mean(axis=0)
    return np.concatenate([(outputs.astype(np.float64) - truth) ** 2, centred, centred**2], axis=1)


def score(task: str, contributions_NK: Contributions) -> float:
    """The metric on a scale where 1 is perfect (R2 may be negative; without labels anywhere F1 is 1)."""
    _check_task(task)
    return float(_scores(task, contributions_NK.sum(axis=0)[np.newaxis], len(contributions_NK))[0])


def score_interval(task: str, contributions_NK: Contributions, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The score with its interval: Wilson's for accuracy, else a bootstrap over samples.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    value, n = score(task, contributions_NK), len(contributions_NK)
    if task != "classification":
        sums_BK = _resampled_sums(contributions_NK, seed)
        return _interval(value, _scores(task, sums_BK, n), confidence, n)
    z = _z(confidence)
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return Interval(value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)), n)


def drop_points(
    task: str,
    reference_NK: Contributions,
    candidate_NK: Contributions,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """100 * (reference - candidate) in points, paired; negative where the candidate is better.

    Accuracy: the closed-form interval of Agresti and Min, which adds half a sample to each of the four cells and
    so does not shrink to nothing when both models agree everywhere. Micro F1: a paired bootstrap to which two
    samples are added, one lost and one won, for the same reason. R2: a paired bootstrap.

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", 2005.
    """
    _check_pair(reference_NK, candidate_NK)
    n = len(reference_NK)
    value = 100.0 * (score(task, reference_NK) - score(task, candidate_NK))
    if task == "classification":
        lost, won = _disagreements(reference_NK, candidate_NK)
        low, high = _agresti_min(lost, won, n, confidence)
        return Interval(value, min(value, low), max(value, high), n)
    both_NK = np.concatenate([reference_NK, candidate_NK], axis=1)
    if task == "multilabel":
        lost_and_won = np.array([[1.0, 0, 0, 0, 0, 1.0], [0, 0, 1.0, 1.0, 0, 0]])
        both_NK = np.concatenate([both_NK, lost_and_won])
    sums_BK = _resampled_sums(both_NK, seed)
    width = reference_NK.shape[1]
    drops = _scores(task, sums_BK[:, :width], len(both_NK)) - _scores(task, sums_BK[:, width:], len(both_NK))
    return _interval(value, 100.0 * drops, confidence, n)


def needed_n(
    task: str,
    reference_NK: Contributions,
    candidate_NK: Contributions,
    limit_points: float,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> int | None:
    """How many samples would prove that the drop is at most `limit_points`, if the observed rates stay.

    None when the observed drop itself is at or above the limit: then no number of samples would.
    """
    drop = drop_points(task, reference_NK, candidate_NK, confidence=confidence, seed=seed)
    if drop.value >= limit_points:
        return None
    n = len(reference_NK)
    if task != "classification":
        # The half-width shrinks with the square root of the number of samples.
        return max(1, math.ceil(n * ((drop.high - drop.value) / (limit_points - drop.value)) ** 2))
    lost, won = _disagreements(reference_NK, candidate_NK)

    def proves(samples: int) -> bool:
        scale = samples / n
        return _agresti_min(lost * scale, won * scale, samples, confidence)[1] <= limit_points

    high = 1
    while not proves(high):
        high *= 2
        if high > MOST_SAMPLES:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return high


def agreement(task: str, a_ND: Array, b_ND: Array, *, threshold: float = 0.0) -> float | None:
    """The share of samples (classification) or labels (multilabel) that both models call alike; None otherwise."""
    if a_ND.shape != b_ND.shape or a_ND.ndim != 2 or len(a_ND) == 0:
        raise UsageError(f"found outputs of shapes {a_ND.shape} and {b_ND.shape}, expected the same (N, D)")
    if task == "classification":
        return float((a_ND.argmax(axis=1) == b_ND.argmax(axis=1)).mean())
    if task == "multilabel":
        return float(((a_ND >= threshold) == (b_ND >= threshold)).mean())
    return None


def _scores(task: str, sums_BK: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The metric of each row of summed contributions."""
    if task in ("classification", "embedding"):
        mean: NDArray[np.float64] = sums_BK[:, 0] / n
        return mean
    if task == "masked_lm":
        per_token: NDArray[np.float64] = sums_BK[:, 0] / np.maximum(sums_BK[:, 1], 1.0)
        return per_token
    if task == "multilabel":
        hits_B, mistakes_B = 2 * sums_BK[:, 0], sums_BK[:, 1] + sums_BK[:, 2]
        total_B = hits_B + mistakes_B
        return np.where(total_B > 0, hits_B / np.maximum(total_B, 1.0), 1.0)
    errors_BD, targets_BD, squares_BD = np.split(sums_BK, 3, axis=1)
    # Constant targets: 1 when they are met exactly, else 0, as scikit-learn has it.
    spread_BD = np.maximum(squares_BD - targets_BD**2 / n, 0.0)
    constant_BD = spread_BD <= 1e-12 * squares_BD.clip(min=1e-300)
    ratio_BD = errors_BD / np.where(constant_BD, 1.0, spread_BD)
    r2: NDArray[np.float64] = np.where(constant_BD, (errors_BD == 0).astype(np.float64), 1.0 - ratio_BD).mean(axis=1)
    return r2


def _resampled_sums(contributions_NK: Contributions, seed: int) -> NDArray[np.float64]:
    """Sums of contributions over `RESAMPLES` resamples of the samples, with replacement."""
    rng, n = np.random.default_rng(seed), len(contributions_NK)
    sums_BK = np.empty((RESAMPLES, contributions_NK.shape[1]))
    for row in range(RESAMPLES):
        sums_BK[row] = np.bincount(rng.integers(0, n, n), minlength=n) @ contributions_NK
    return sums_BK


def _interval(value: float, resampled_B: NDArray[np.float64], confidence: float, n: int) -> Interval:
    _z(confidence)  # checks it
    low, high = np.quantile(resampled_B, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(value, float(low)), max(value, float(high)), n)


def _agresti_min(lost: float, won: float, n: int, confidence: float) -> tuple[float, float]:
    size = n + 2
    centre = (lost - won) / size
    half = _z(confidence) * math.sqrt(lost + won + 1 - (lost - won) ** 2 / size) / size
    return 100.0 * max(-1.0, centre - half), 100.0 * min(1.0, centre + half)


def _disagreements(reference_NK: Contributions, candidate_NK: Contributions) -> tuple[int, int]:
    """How many samples only the reference gets right (lost), and only the candidate (won)."""
    right, now = reference_NK[:, 0] > 0, candidate_NK[:, 0] > 0
    return int((right & ~now).sum()), int((~right & now).sum())


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}, expected a number between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _check_task(task: str) -> None:
    if task not in METRIC:
        raise UsageError(f"the task '{task}' has no metric. {nearest(task, METRIC)}")


def _check_pair(reference_NK: Contributions, candidate_NK: Contributions) -> None:
    if reference_NK.shape != candidate_NK.shape:
        raise UsageError(
            f"found contributions of shapes {reference_NK.shape} and {candidate_NK.shape}; expected both models on "
            "the same samples"
        )
