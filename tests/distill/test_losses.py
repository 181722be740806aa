"""Losses: by value against float64 numpy written here from the formulas, by property, by finite differences."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.distill.losses import ADAPTER_OF, LOSSES, find_loss
from edgekd.distill.losses.correlations import batch_correlation, class_correlation, dist
from edgekd.distill.losses.ensembles import mean_logits, mean_probabilities
from edgekd.distill.losses.logits import (
    cross_entropy,
    dkd,
    kd,
    logit_mse,
    logit_standardized_kd,
    multi_temperature_kd,
    soft_cross_entropy,
    standardize,
    teacher_free,
)
from edgekd.distill.losses.targets import binary_cross_entropy, mean_squared_error, multilabel_kd, regression_kd
from edgekd.errors import ModelError, UsageError

N, C = 6, 5
RNG = np.random.default_rng(3)
S = RNG.normal(scale=3.0, size=(N, C))
T = RNG.normal(scale=3.0, size=(N, C))
Y = np.array([0, 1, 2, 3, 4, 0])
B = (RNG.random((N, C)) < 0.4).astype(np.float64)


# ---- the formulas once more, in numpy ----


def np_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


def np_sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def np_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(axis=-1)


def np_kd(s: np.ndarray, t: np.ndarray, temperature: float) -> float:
    return float(temperature**2 * np_kl(np_softmax(t / temperature), np_softmax(s / temperature)).mean())


def np_standardize(x: np.ndarray) -> np.ndarray:
    rows = [
        (row - sum(row) / len(row)) / (1e-7 + np.sqrt(((row - row.mean()) ** 2).sum() / (len(row) - 1))) for row in x
    ]
    return np.array(rows)


def np_dkd(s: np.ndarray, t: np.ndarray, y: np.ndarray, alpha: float, beta: float, temperature: float) -> float:
    total = 0.0
    for row_s, row_t, label in zip(s / temperature, t / temperature, y):
        p, q = np_softmax(row_t), np_softmax(row_s)
        pair = np_kl(np.array([p[label], 1 - p[label]]), np.array([q[label], 1 - q[label]]))
        others = np_kl(np_softmax(np.delete(row_t, label)), np_softmax(np.delete(row_s, label)))
        total += alpha * pair + beta * others
    return temperature**2 * total / len(s)


def np_pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b) + 1e-8))


def np_dist(s: np.ndarray, t: np.ndarray, beta: float, gamma: float, temperature: float) -> float:
    p, q = np_softmax(t / temperature), np_softmax(s / temperature)
    rows = np.mean([np_pearson(p[n], q[n]) for n in range(p.shape[0])])
    columns = np.mean([np_pearson(p[:, c], q[:, c]) for c in range(p.shape[1])])
    return float(beta * (1 - rows) + gamma * (1 - columns))


def np_teacher_free(s: np.ndarray, y: np.ndarray, alpha: float, temperature: float, correct: float) -> float:
    q = np_softmax(s)
    u = np.full(s.shape, (1 - correct) / (s.shape[1] - 1))
    u[np.arange(len(y)), y] = correct
    ce = -np.log(q[np.arange(len(y)), y]).mean()
    return float((1 - alpha) * ce + alpha * np_kl(np_softmax(u / temperature), q).sum() / s.size)


def np_smoothed(s: np.ndarray, y: np.ndarray, eps: float) -> float:
    target = np.full(s.shape, eps / s.shape[1])
    target[np.arange(len(y)), y] += 1 - eps
    return float(-(target * np.log(np_softmax(s))).sum() / len(s))


def np_multilabel_kd(s: np.ndarray, t: np.ndarray, temperature: float) -> float:
    p, q = np_sigmoid(t / temperature), np_sigmoid(s / temperature)
    return float(temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())


def np_bounded(s: np.ndarray, t: np.ndarray, y: np.ndarray, margin: float) -> float:
    total = 0.0
    for row_s, row_t, row_y in zip(s, t, y):
        if ((row_s - row_y) ** 2).sum() + margin > ((row_t - row_y) ** 2).sum():
            total += ((row_s - row_t) ** 2).sum()
    return total / s.size


def pt(x: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(x, dtype=dtype if x.dtype.kind == "f" else torch.int64)


# name, torch value, numpy value; s, t, y, b are tensors of one dtype.
Case = tuple[str, Callable[..., torch.Tensor], float]
CASES: list[Case] = [
    ("cross_entropy", lambda s, t, y, b: cross_entropy(s, y), np_smoothed(S, Y, 0.0)),
    ("label_smoothing", lambda s, t, y, b: cross_entropy(s, y, label_smoothing=0.1), np_smoothed(S, Y, 0.1)),
    ("kd", lambda s, t, y, b: kd(s, t), np_kd(S, T, 4.0)),
    ("kd_cold", lambda s, t, y, b: kd(s, t, temperature=0.5), np_kd(S, T, 0.5)),
    (
        "soft_cross_entropy",
        lambda s, t, y, b: soft_cross_entropy(s, t, temperature=2.0),
        float(-(np_softmax(T / 2) * np.log(np_softmax(S / 2))).sum() / N),
    ),
    ("logit_mse", lambda s, t, y, b: logit_mse(s, t, temperature=2.0), float(((S / 2 - T / 2) ** 2).sum() / (N * C))),
    ("dkd", lambda s, t, y, b: dkd(s, t, y), np_dkd(S, T, Y, 1.0, 8.0, 4.0)),
    (
        "dkd_options",
        lambda s, t, y, b: dkd(s, t, y, alpha=0.3, beta=2.0, temperature=1.0),
        np_dkd(S, T, Y, 0.3, 2.0, 1.0),
    ),
    (
        "dkd_standardized",
        lambda s, t, y, b: dkd(standardize(s), standardize(t), y),
        np_dkd(np_standardize(S), np_standardize(T), Y, 1.0, 8.0, 4.0),
    ),
    ("dist", lambda s, t, y, b: dist(s, t), np_dist(S, T, 1.0, 1.0, 1.0)),
    (
        "dist_options",
        lambda s, t, y, b: dist(s, t, beta=2.0, gamma=0.5, temperature=4.0),
        16 * np_dist(S, T, 2.0, 0.5, 4.0),
    ),
    (
        "logit_standardized_kd",
        lambda s, t, y, b: logit_standardized_kd(s, t),
        np_kd(np_standardize(S), np_standardize(T), 2.0),
    ),
    (
        "class_correlation",
        lambda s, t, y, b: class_correlation(s, t),
        float(((np_softmax(T / 4).T @ np_softmax(T / 4) - np_softmax(S / 4).T @ np_softmax(S / 4)) ** 2).sum() / C),
    ),
    (
        "batch_correlation",
        lambda s, t, y, b: batch_correlation(s, t),
        float(((np_softmax(T / 4) @ np_softmax(T / 4).T - np_softmax(S / 4) @ np_softmax(S / 4).T) ** 2).sum() / N),
    ),
    (
        "multi_temperature_kd",
        lambda s, t, y, b: multi_temperature_kd(s, t),
        sum(np_kd(S, T, x) for x in (2, 3, 4, 5, 6)),
    ),
    ("teacher_free", lambda s, t, y, b: teacher_free(s, y), np_teacher_free(S, Y, 0.1, 20.0, 0.99)),
    (
        "teacher_free_options",
        lambda s, t, y, b: teacher_free(s, y, alpha=0.6, temperature=2.0, correct_probability=0.8),
        np_teacher_free(S, Y, 0.6, 2.0, 0.8),
    ),
    (
        "binary_cross_entropy",
        lambda s, t, y, b: binary_cross_entropy(s, b),
        float(-(B * np.log(np_sigmoid(S)) + (1 - B) * np.log(1 - np_sigmoid(S))).mean()),
    ),
    ("multilabel_kd", lambda s, t, y, b: multilabel_kd(s, t, temperature=3.0), np_multilabel_kd(S, T, 3.0)),
    ("mean_squared_error", lambda s, t, y, b: mean_squared_error(s, t), float(((S - T) ** 2).mean())),
    ("regression_kd", lambda s, t, y, b: regression_kd(s, t), float(((S - T) ** 2).mean())),
    ("regression_kd_bounded", lambda s, t, y, b: regression_kd(s, t, b, margin=2.0), np_bounded(S, T, B, 2.0)),
]
IDS = [name for name, _, _ in CASES]


@pytest.mark.parametrize(("name", "loss", "expected"), CASES, ids=IDS)
def test_value_in_float64_and_float32(name: str, loss: Callable[..., torch.Tensor], expected: float) -> None:
    value = loss(pt(S), pt(T), pt(Y), pt(B))
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(expected, rel=1e-11)
    single = loss(pt(S, torch.float32), pt(T, torch.float32), pt(Y), pt(B, torch.float32))
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=3e-5)


@pytest.mark.parametrize(("name", "loss", "expected"), CASES, ids=IDS)
def test_gradient_against_finite_differences(name: str, loss: Callable[..., torch.Tensor], expected: float) -> None:
    assert torch.autograd.gradcheck(lambda s: loss(s, pt(T), pt(Y), pt(B)), pt(S).requires_grad_())


@pytest.mark.parametrize(("name", "loss", "expected"), CASES, ids=IDS)
def test_teacher_gets_no_gradient(name: str, loss: Callable[..., torch.Tensor], expected: float) -> None:
    student, teacher = pt(S).requires_grad_(), pt(T).requires_grad_()
    # mean_squared_error has targets where the others have a teacher.
    loss(student, teacher.detach() if name == "mean_squared_error" else teacher, pt(Y), pt(B)).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None


@pytest.mark.parametrize(("name", "loss", "expected"), CASES, ids=IDS)
def test_bfloat16_autocast_computes_in_float32(name: str, loss: Callable[..., torch.Tensor], expected: float) -> None:
    """The logits come in bfloat16, as a linear layer gives them; the loss of those very numbers must be exact."""
    student, teacher, flags = (pt(x).bfloat16() for x in (S, T, B))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, pt(Y), flags)
    assert value.dtype == torch.float32
    exact = loss(student.double(), teacher.double(), pt(Y), flags.double())
    assert float(value) == pytest.approx(float(exact), rel=3e-5)


def test_gradient_through_autocast_matches_float32() -> None:
    """From the layer's weights on, where autocast sits in training; bfloat16 has 8 bits of mantissa."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(7, C), torch.randn(N, 7)
    gradients = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = layer(x)
            loss = kd(logits, pt(T, torch.float32)) + batch_correlation(logits, pt(T, torch.float32))
        loss.backward()
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    assert torch.allclose(gradients[0], gradients[1], atol=0.03 * float(gradients[0].abs().max()))


# ---- properties ----

DIVERGENCES = [
    "kd",
    "kd_cold",
    "logit_mse",
    "dkd",
    "dkd_standardized",
    "logit_standardized_kd",
    "class_correlation",
    "batch_correlation",
    "multi_temperature_kd",
    "multilabel_kd",
    "mean_squared_error",
    "regression_kd",
    "regression_kd_bounded",
]
LOSS_BY_ID = {name: loss for name, loss, _ in CASES}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    loss = LOSS_BY_ID[name]
    assert float(loss(pt(S), pt(S), pt(Y), pt(B))) == pytest.approx(0.0, abs=1e-12)
    assert float(loss(pt(S), pt(T), pt(Y), pt(B))) > 1e-4


def test_dist_is_zero_at_equality_up_to_its_epsilon() -> None:
    assert float(dist(pt(S), pt(S))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["kd", "soft_cross_entropy", "dkd", "multi_temperature_kd", "logit_standardized_kd"])
def test_gradient_vanishes_where_the_student_equals_the_teacher(name: str) -> None:
    student = pt(T).requires_grad_()
    LOSS_BY_ID[name](student, pt(T), pt(Y), pt(B)).backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-9


@pytest.mark.parametrize(
    "name",
    [
        "cross_entropy",
        "kd",
        "soft_cross_entropy",
        "dkd",
        "dist",
        "logit_standardized_kd",
        "class_correlation",
        "batch_correlation",
        "multi_temperature_kd",
        "teacher_free",
    ],
)
def test_a_constant_added_to_a_row_of_logits_changes_nothing(name: str) -> None:
    loss, shift = LOSS_BY_ID[name], torch.linspace(-5.0, 5.0, N, dtype=torch.float64)[:, None]
    before = loss(pt(S), pt(T), pt(Y), pt(B))
    after = loss(pt(S) + shift, pt(T) - 2 * shift, pt(Y), pt(B))
    assert float(after) == pytest.approx(float(before), rel=1e-6)


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "batch_correlation", "soft_cross_entropy"])
def test_order_of_the_samples_does_not_matter(name: str) -> None:
    loss, order = LOSS_BY_ID[name], torch.tensor([3, 1, 5, 0, 2, 4])
    before = loss(pt(S), pt(T), pt(Y), pt(B))
    after = loss(pt(S)[order], pt(T)[order], pt(Y)[order], pt(B)[order])
    assert float(after) == pytest.approx(float(before), rel=1e-12)


def test_logit_standardized_kd_ignores_the_scale_of_either_side() -> None:
    before = float(logit_standardized_kd(pt(S), pt(T)))
    assert float(logit_standardized_kd(7.0 * pt(S), 0.2 * pt(T))) == pytest.approx(before, rel=1e-5)


def test_dist_ignores_a_linear_change_of_the_probabilities() -> None:
    mixed = torch.log(0.5 * torch.softmax(pt(T), dim=-1) + 0.5 / C)
    assert float(dist(mixed, pt(T))) == pytest.approx(0.0, abs=1e-6)


def test_temperature_squared_keeps_the_size_of_the_gradient() -> None:
    """At high temperature the gradient of kd tends to that of half the squared difference of centred logits / C."""

    def gradient(temperature: float) -> torch.Tensor:
        student = pt(S).requires_grad_()
        kd(student, pt(T), temperature=temperature).backward()
        assert student.grad is not None
        return student.grad

    limit = (pt(S) - pt(S).mean(dim=1, keepdim=True) - pt(T) + pt(T).mean(dim=1, keepdim=True)) / (N * C)
    assert torch.allclose(gradient(1000.0), limit, rtol=2e-2, atol=1e-4)
    assert float(gradient(1000.0).norm() / gradient(2000.0).norm()) == pytest.approx(1.0, abs=0.01)


def test_soft_cross_entropy_is_kd_plus_the_entropy_of_the_teacher() -> None:
    p = np_softmax(T)
    entropy = float(-(p * np.log(p)).sum() / N)
    assert float(soft_cross_entropy(pt(S), pt(T))) == pytest.approx(float(kd(pt(S), pt(T), temperature=1.0)) + entropy)


def test_dkd_with_the_coupled_weight_is_kd() -> None:
    """KD = TCKD + (1 - p_y) NCKD for one sample (equation 7 of the article)."""
    s, t, y = pt(S[:1]), pt(T[:1]), pt(Y[:1])
    coupled = 1 - float(torch.softmax(t / 4, dim=-1)[0, Y[0]])
    assert float(dkd(s, t, y, alpha=1.0, beta=coupled)) == pytest.approx(float(kd(s, t)), rel=1e-10)


def test_dkd_is_exact_for_a_teacher_that_is_quite_sure() -> None:
    """1 - p_y rounds to 0 in float32 here; its logarithm must not."""
    t = torch.zeros(1, C)
    t[0, 0] = 200.0
    s = pt(S[:1], torch.float32).requires_grad_()
    value = dkd(s, t, torch.tensor([0]), temperature=1.0)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("name", IDS)
def test_huge_logits_stay_finite(name: str, scale: float) -> None:
    student = (pt(S, torch.float32) * scale).requires_grad_()
    value = LOSS_BY_ID[name](student, pt(T, torch.float32) * scale, pt(Y), pt(B, torch.float32))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


def test_masked_tokens_do_not_count() -> None:
    s, t = RNG.normal(size=(2, 3, C)), RNG.normal(size=(2, 3, C))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    counted = [(s[n, i], t[n, i]) for n, i in ((0, 0), (0, 1), (1, 0))]
    expected = np_kd(np.array([a for a, _ in counted]), np.array([b for _, b in counted]), 2.0)
    assert float(kd(pt(s), pt(t), temperature=2.0, mask=mask)) == pytest.approx(expected, rel=1e-11)
    assert float(kd(pt(s), pt(t), temperature=2.0, mask=mask.bool())) == pytest.approx(expected, rel=1e-11)
    # What a padded position holds is nobody's business, NaN included.
    t[0, 2] = np.nan
    assert float(kd(pt(s), pt(t), temperature=2.0, mask=mask)) == pytest.approx(expected, rel=1e-11)
    assert float(kd(pt(s), pt(s), mask=torch.zeros(2, 3))) == 0.0
    everything = kd(pt(s), pt(s[::-1].copy()), temperature=2.0)
    assert float(everything) == pytest.approx(float(kd(pt(s), pt(s[::-1].copy()), temperature=2.0, mask=mask * 0 + 1)))


def test_dist_of_segmentation_logits_is_over_pixels_without_t_squared() -> None:
    s, t = RNG.normal(size=(2, C, 3, 4)), RNG.normal(size=(2, C, 3, 4))
    rows = [np.array([x[n, :, h, w] for n in range(2) for h in range(3) for w in range(4)]) for x in (s, t)]
    assert float(dist(pt(s), pt(t), temperature=4.0)) == pytest.approx(np_dist(rows[0], rows[1], 1.0, 1.0, 4.0))


def test_standardized_rows_have_mean_zero_and_unbiased_std_one() -> None:
    x = standardize(pt(S) * 17 + 3)
    assert torch.allclose(x.mean(dim=1), torch.zeros(N, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(x.std(dim=1, unbiased=True), torch.ones(N, dtype=torch.float64), atol=1e-6)
    assert torch.isfinite(standardize(torch.ones(2, C))).all()


def test_regression_kd_lets_go_of_a_student_that_beats_the_teacher_by_the_margin() -> None:
    target = torch.zeros(1, 2)
    student, teacher = torch.tensor([[0.1, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert float(regression_kd(student, teacher, target, margin=0.0)) == 0.0
    assert float(regression_kd(student, teacher, target, margin=1.98)) == 0.0
    assert float(regression_kd(student, teacher, target, margin=2.0)) == pytest.approx((0.81 + 1.0) / 2)


# ---- ensembles ----


def test_mean_logits_by_value() -> None:
    third = RNG.normal(size=(N, C))
    got = mean_logits([pt(S), pt(T), pt(third)])
    np.testing.assert_allclose(got.numpy(), (S + T + third) / 3, rtol=1e-12)
    got = mean_logits([pt(S), pt(T)], weights=[3.0, 1.0])
    np.testing.assert_allclose(got.numpy(), 0.75 * S + 0.25 * T, rtol=1e-12)


def test_a_weight_per_sample_gives_each_teacher_its_own_domain() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.0, 2.0]] * (N // 2))
    for combined in (mean_logits([pt(S), pt(T)], weights=weights), mean_probabilities([pt(S), pt(T)], weights=weights)):
        p = np_softmax(combined.numpy())
        np.testing.assert_allclose(p[0::2], np_softmax(S[0::2]), rtol=1e-9)
        np.testing.assert_allclose(p[1::2], np_softmax(T[1::2]), rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mean_probabilities_are_logits_of_the_mean(temperature: float) -> None:
    got = mean_probabilities([pt(S), pt(T)], temperature=temperature)
    expected = (np_softmax(S / temperature) + np_softmax(T / temperature)) / 2
    np.testing.assert_allclose(np_softmax(got.numpy() / temperature), expected, rtol=1e-10)


def test_one_teacher_is_its_own_ensemble_and_takes_no_gradient() -> None:
    teacher = pt(T).requires_grad_()
    assert torch.equal(mean_logits([teacher]), pt(T))
    assert not mean_logits([teacher]).requires_grad
    assert float(kd(pt(S), mean_probabilities([teacher], temperature=4.0))) == pytest.approx(np_kd(S, T, 4.0))


# Which classes each of three teachers knows: all, and two specialists that share one class; and what they count for
# each sample, among them samples that one of them, or no teacher of all classes, judges.
KNOWN = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]], bool)
COUNTS = np.array(
    [[1.0, 1.0, 1.0], [0.5, 3.0, 0.2], [1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
)
THREE = 3.0 * np.random.default_rng(5).normal(size=(3, len(COUNTS), 5))


def merged(mean, logits: np.ndarray = THREE, **options) -> np.ndarray:
    return mean([pt(z) for z in logits], weights=pt(COUNTS), known_KC=torch.from_numpy(KNOWN), **options).numpy()


def spoken_of(counts: np.ndarray) -> np.ndarray:
    """The classes that a teacher with a weight knows."""
    return (counts[:, None] * KNOWN).sum(axis=0) > 0


def test_specialists_are_averaged_where_all_agree_best() -> None:
    """By an independent way: the least squares over the mean and over a level for each teacher, row by row."""
    got = merged(mean_logits)
    for z_KC, counts, row in zip(THREE.transpose(1, 0, 2), COUNTS, got):
        equations, told = [], []
        for k, c in zip(*np.nonzero(KNOWN * (counts[:, None] > 0))):
            equation = np.zeros(8)
            equation[c], equation[5 + k] = 1.0, -1.0
            equations.append(np.sqrt(counts[k]) * equation)
            told.append(np.sqrt(counts[k]) * z_KC[k, c])
        best = np.linalg.lstsq(np.array(equations), np.array(told), rcond=None)[0][:5]
        spoken = spoken_of(counts)
        np.testing.assert_allclose(np.ptp((row - best)[spoken]), 0.0, atol=1e-9)
        assert (row[~spoken] == -1e4).all(), "nobody knows these: ruled out"


def test_the_level_of_a_mean_is_that_of_the_teachers_of_all_classes() -> None:
    """Losses that compare logits themselves see it; with teachers of all classes alone nothing is levelled."""
    got = merged(mean_logits)
    np.testing.assert_allclose(got[5], THREE[0, 5], rtol=1e-12)
    np.testing.assert_allclose(got[2, [0, 4]], THREE[0, 2, [0, 4]], rtol=1e-12)
    whole = torch.ones(3, 5, dtype=torch.bool)
    plain = mean_logits([pt(z) for z in THREE], weights=pt(COUNTS))
    assert torch.equal(mean_logits([pt(z) for z in THREE], weights=pt(COUNTS), known_KC=whole), plain)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_probabilities_of_specialists_are_what_a_gibbs_sampler_ends_in(temperature: float) -> None:
    """By an independent way: its chain over the classes, gone through many times."""
    got = np_softmax(merged(mean_probabilities, temperature=temperature) / temperature)
    for z_KC, counts, row in zip(THREE.transpose(1, 0, 2), COUNTS / COUNTS.sum(axis=1, keepdims=True), got):
        chain = np.zeros((5, 5))
        for k, known in enumerate(KNOWN):
            p = np.where(known, np_softmax(np.where(known, z_KC[k], -np.inf) / temperature), 0.0)
            chain += counts[k] * np.where(known[:, None], p, np.eye(5))
        spoken = spoken_of(counts)
        q = spoken / spoken.sum()
        for _ in range(5000):
            q = q @ chain
        np.testing.assert_allclose(row, q, atol=1e-9)


def test_beside_a_teacher_of_all_classes_a_specialist_divides_what_that_one_gives_its_classes() -> None:
    own = [1, 2, 3]
    p, own_p = np_softmax(THREE[0, 2] / 2), np_softmax(THREE[2, 2, own] / 2)
    expected = p.copy()
    expected[own] = (1 * p[own] + 2 * own_p * p[own].sum()) / 3
    np.testing.assert_allclose(np_softmax(merged(mean_probabilities, temperature=2.0)[2] / 2), expected, rtol=1e-10)
    z, own_z = THREE[0, 2], THREE[2, 2, own]
    expected = z.copy()
    expected[own] = (1 * z[own] + 2 * (own_z - own_z.mean() + z[own].mean())) / 3
    np.testing.assert_allclose(merged(mean_logits)[2], expected, rtol=1e-10)


@pytest.mark.parametrize("mean", [mean_logits, mean_probabilities])
def test_a_specialist_of_the_same_opinion_changes_nothing_and_its_level_means_nothing(mean) -> None:
    same = np.stack([THREE[0], THREE[0] + 7.0, np.where(KNOWN[2], THREE[0], np.nan)])
    heard = COUNTS[:, 0] > 0
    np.testing.assert_allclose(np_softmax(merged(mean, same)[heard]), np_softmax(THREE[0, heard]), rtol=1e-9)
    shifted = THREE + np.array([0.0, 50.0, -3.0])[:, None, None]
    np.testing.assert_allclose(np_softmax(merged(mean, shifted)), np_softmax(merged(mean)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mean", [mean_logits, mean_probabilities])
def test_alone_a_specialist_rules_the_other_classes_out(mean) -> None:
    row = merged(mean)[4]
    assert row[[0, 4]].tolist() == [-1e4, -1e4], "and no infinity, which some losses cannot take"
    np.testing.assert_allclose(
        np_softmax(row), np.append(0.0, np.append(np_softmax(THREE[2, 4, 1:4]), 0.0)), atol=1e-12
    )
    student = pt(S[:1, :1] * np.ones((1, 5)) + np.arange(5.0)).requires_grad_()
    loss = kd(student, pt(row[None]), temperature=4.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    narrow = mean([pt(z, torch.float32) for z in THREE], weights=pt(COUNTS), known_KC=torch.from_numpy(KNOWN))
    assert narrow.dtype == torch.float32
    np.testing.assert_allclose(narrow.numpy(), merged(mean), rtol=1e-5, atol=1e-5)


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: kd(torch.zeros(2, 3), torch.zeros(2, 4)),
            "student logits are [2, 3] but teacher logits are [2, 4]; do both models end in the same classes?",
        ),
        (lambda: kd(torch.zeros(3), torch.zeros(3)), "student logits have the shape [3], expected (N, C) or (N, L, C)"),
        (lambda: kd(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0), "found temperature = 0, expected a number"),
        (
            lambda: kd(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), mask=torch.ones(2)),
            "the mask is [2], expected [2, 4]: one value per row of logits",
        ),
        (
            lambda: cross_entropy(torch.zeros(2, 3), torch.zeros(3).long()),
            "labels are [3] of torch.int64, expected [2]",
        ),
        (
            lambda: cross_entropy(torch.zeros(2, 3), torch.zeros(2)),
            "labels are [2] of torch.float32, expected [2] whole",
        ),
        (lambda: cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), label_smoothing=1.0), "label_smoothing = 1.0"),
        (lambda: dkd(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2).long()), "dkd needs at least 2 classes"),
        (lambda: teacher_free(torch.zeros(2, 1), torch.zeros(2).long()), "teacher_free needs at least 2 classes"),
        (lambda: standardize(torch.zeros(2, 1)), "standardizing a row needs at least 2 classes"),
        (
            lambda: multi_temperature_kd(torch.zeros(2, 3), torch.zeros(2, 3), temperatures=[]),
            "found no temperatures, expected a list such as",
        ),
        (
            lambda: mean_squared_error(torch.zeros(2, 1), torch.zeros(2)),
            "student outputs are [2, 1] but targets are [2]; expected one output per target",
        ),
        (
            lambda: regression_kd(torch.zeros(2, 1), torch.zeros(2, 1), margin=0.1),
            "regression_kd with a margin needs the targets, found none",
        ),
        (lambda: mean_logits([]), "found no teachers, expected at least one"),
        (
            lambda: mean_logits([torch.zeros(2, 3), torch.zeros(2, 4)]),
            "teacher logits are [[2, 3], [2, 4]], expected the same (N, C) from all",
        ),
        (
            lambda: mean_logits([torch.zeros(2, 3)], weights=[1.0, 2.0]),
            "weights of the teachers are [1, 2], expected 1 numbers or [2, 1]",
        ),
        (
            lambda: mean_logits([torch.zeros(2, 3)] * 2, weights=[0.0, 0.0]),
            "must be 0 or more, with a sum above 0 for every sample",
        ),
        (lambda: mean_probabilities([torch.zeros(2, 3)] * 2, weights=[2.0, -1.0]), "must be 0 or more"),
        (lambda: find_loss("kdd"), "unknown loss 'kdd'. Did you mean 'kd'? Known: activation_boundary"),
    ],
)
def test_errors_say_what_was_found_and_expected(call: Callable[[], object], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert text in str(caught.value)


# ---- the table ----


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_in_the_table_is_found_and_names_what_it_needs(name: str) -> None:
    parameters = inspect.signature(find_loss(name)).parameters
    leading = [p for p, value in parameters.items() if value.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert leading[0].startswith("student")
    assert all(p.startswith(("teacher", "labels", "targets")) for p in leading[1:])
    if name not in ADAPTER_OF:
        for value in list(parameters.values())[len(leading) :]:
            assert value.default is not inspect.Parameter.empty
    documented = inspect.getdoc(find_loss(name))
    assert documented is not None


def test_a_loss_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "my_losses.py").write_text("def twice(student, teacher):\n    return 2 * (student - teacher).mean()\n")
    loss = find_loss("my_losses:twice", search_path=tmp_path)
    assert float(loss(torch.ones(2), torch.zeros(2))) == 2.0
    with pytest.raises(ModelError, match=r"the module my_losses has no 'thrice'\. Did you mean 'twice'\?"):
        find_loss("my_losses:thrice", search_path=tmp_path)
