"""Classes that are ruled out (logits of minus infinity): value and gradient against float64 numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekd.distill.losses.logits import kd, soft_cross_entropy
from edgekd.distill.losses.sequence import generalized_jsd
from edgekd.distill.losses.transformers import cosine_embedding, hidden_mse

RNG = np.random.default_rng(5)
S, T = RNG.normal(scale=2.0, size=(2, 4, 6))
NEVER = np.zeros((4, 6), bool)
NEVER[:, 5] = True  # a vocabulary that is padded
NEVER[1, 2] = True
Loss = Callable[[Tensor, Tensor], Tensor]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Over the classes with p > 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0.0).sum(axis=-1)


def np_kd(s: np.ndarray, t: np.ndarray) -> float:
    return float(9.0 * kl(softmax(t / 3), softmax(s / 3)).mean())


def np_soft(s: np.ndarray, t: np.ndarray) -> float:
    p, q = softmax(t), softmax(s)
    return float(-np.where(p > 0, p * np.log(np.where(p > 0, q, 1.0)), 0.0).sum(axis=-1).mean())


def np_jsd(beta: float, s: np.ndarray, t: np.ndarray) -> float:
    q, p = softmax(s), softmax(t)
    if beta in (0.0, 1.0):
        return float((kl(p, q) if beta == 0 else kl(q, p)).mean())
    m = (1 - beta) * q + beta * p
    return float((beta * kl(p, m) + (1 - beta) * kl(q, m)).mean())


CASES: dict[str, tuple[Loss, Callable[[np.ndarray, np.ndarray], float]]] = {
    "kd": (partial(kd, temperature=3.0), np_kd),
    "soft_cross_entropy": (soft_cross_entropy, np_soft),
    **{
        f"generalized_jsd {beta}": (partial(generalized_jsd, beta=beta), partial(np_jsd, beta))
        for beta in (0.0, 0.3, 1.0)
    },
}
# Who rules them out; the reverse divergence is infinite where the student hopes for what the teacher rules out.
WHO = [
    (name, who) for name in CASES for who in ("both", "teacher") if (name, who) != ("generalized_jsd 1.0", "teacher")
]


@pytest.mark.parametrize(("name", "who"), WHO)
def test_value_and_gradient(name: str, who: str) -> None:
    loss, expected = CASES[name]
    s = np.where(NEVER, -np.inf, S) if who == "both" else S
    t = np.where(NEVER, -np.inf, T)
    student = torch.from_numpy(s).requires_grad_()
    value = loss(student, torch.from_numpy(t))
    assert value.item() == pytest.approx(expected(s, t), rel=1e-10)
    value.backward()
    assert student.grad is not None
    for row in range(4):
        for column in range(6):
            if np.isneginf(s[row, column]):
                assert student.grad[row, column] == 0
                continue
            up, down = s.copy(), s.copy()
            up[row, column] += 1e-5
            down[row, column] -= 1e-5
            slope = (expected(up, t) - expected(down, t)) / 2e-5
            assert student.grad[row, column].item() == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("name", list(CASES))
def test_what_only_one_side_rules_out_is_infinite_as_the_formula_says(name: str) -> None:
    loss, expected = CASES[name]
    never = np.where(NEVER, -np.inf, S)
    s, t = (S, np.where(NEVER, -np.inf, T)) if name.endswith("1.0") else (never, T)
    with np.errstate(divide="ignore"):
        assert loss(torch.from_numpy(s), torch.from_numpy(t)).item() == pytest.approx(expected(s, t))


@pytest.mark.parametrize("loss", [kd, generalized_jsd, hidden_mse, cosine_embedding])
def test_nan_where_the_mask_is_false_stays_there(loss: Callable[..., Tensor]) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    clean = values.clone().requires_grad_()
    loss(clean, teacher, mask=mask).backward()
    dirty = values.masked_fill(~mask[..., None], float("nan")).requires_grad_()
    loss(dirty, teacher.masked_fill(~mask[..., None], float("nan")), mask=mask).backward()
    assert clean.grad is not None
    assert dirty.grad is not None
    assert torch.equal(clean.grad, dirty.grad)
    assert float(clean.grad.abs().sum()) > 0


@pytest.mark.parametrize("is_masked", [False, True])
def test_tokens_over_a_vocabulary_that_no_cache_holds(is_masked: bool) -> None:
    # Computed in parts, the last of which is a short one.
    shape = (3, 23, 4000)
    mask = RNG.random(shape[:2]) < 0.7 if is_masked else np.ones(shape[:2], bool)
    s, t = RNG.normal(scale=2.0, size=(2, *shape))
    t[..., 3990:] = -np.inf
    t[0, 0, 7] = s[0, 0, 7] = -np.inf
    p, q = softmax(t / 3), softmax(s / 3)
    expected = 9.0 * kl(p, q)[mask].mean()
    slope = 3.0 * (q - p) * mask[..., None] / mask.sum()
    dirty = [torch.from_numpy(np.where(mask[..., None], values, np.nan)) for values in (s, t)]
    student = (
        dirty[0].transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    )  # in no order that is taken as given
    value = kd(student, dirty[1], temperature=3.0, mask=torch.from_numpy(mask) if is_masked else None)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    value.backward()
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), slope, atol=1e-12)
