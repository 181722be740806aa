"""Curriculum and trust: against numpy in float64, at their ends, and by what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.losses.logits import cross_entropy, kd
from edgekd.distill.losses.selection import (
    EASE,
    curriculum_cross_entropy,
    curriculum_kd,
    easiest,
    trusted_cross_entropy,
    trusted_kd,
)
from edgekd.errors import UsageError


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(0, 5, (12,), generator=generator)


def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return logs


def divergences(student: Tensor, teacher: Tensor, temperature: float) -> NDArray[np.float64]:
    log_p = log_softmax(teacher.detach().numpy() / temperature)
    log_q = log_softmax(student.detach().numpy() / temperature)
    values: NDArray[np.float64] = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return values


@pytest.mark.parametrize("by", EASE)
def test_a_share_of_one_is_the_plain_loss(by: str, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = batch
    torch.testing.assert_close(
        curriculum_kd(student, teacher, labels, by=by, temperature=3.0), kd(student, teacher, temperature=3.0)
    )
    torch.testing.assert_close(
        curriculum_cross_entropy(student, teacher, labels, by=by), cross_entropy(student, labels)
    )


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.75])
def test_the_easiest_come_first(share: float, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = batch
    log_p = log_softmax(teacher.numpy())
    ordered = np.sort(np.exp(log_p), axis=1)
    ease = {
        "confidence": ordered[:, -1],
        "margin": ordered[:, -1] - ordered[:, -2],
        "loss": log_p[np.arange(12), labels.numpy()],
    }
    count = max(1, round(share * 12))
    for by, values in ease.items():
        chosen = np.argsort(-values)[:count]
        mask = easiest(teacher, labels, share=share, by=by)
        assert set(mask.nonzero().flatten().tolist()) == set(chosen.tolist())
        expected = divergences(student, teacher, 2.0)[chosen].mean()
        found = curriculum_kd(student, teacher, labels, share=share, by=by, temperature=2.0)
        assert found.item() == pytest.approx(expected, rel=1e-12)


def test_trust_by_value(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = batch
    trust = np.exp(log_softmax(teacher.numpy()))[np.arange(12), labels.numpy()]
    expected = (trust * divergences(student, teacher, 4.0)).sum() / trust.sum()
    assert trusted_kd(student, teacher, labels).item() == pytest.approx(expected, rel=1e-12)
    losses = -log_softmax(student.detach().numpy())[np.arange(12), labels.numpy()]
    expected = (trust * losses).sum() / trust.sum()
    assert trusted_cross_entropy(student, teacher, labels).item() == pytest.approx(expected, rel=1e-12)


def test_a_teacher_that_rules_a_label_out_does_not_teach_it() -> None:
    teacher = torch.tensor([[30.0, 0.0], [30.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 5.0]], requires_grad=True)
    trusted_kd(student, teacher, torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad[0].abs().sum() > 0.1
    assert student.grad[1].abs().sum() < 1e-9


@pytest.mark.parametrize("loss", [curriculum_kd, trusted_kd])
def test_zero_at_equality_and_the_teacher_gets_no_gradient(loss: object, batch: tuple[Tensor, Tensor, Tensor]) -> None:
    _, teacher, labels = batch
    both = teacher.clone().requires_grad_()
    value = loss(both, both, labels)  # type: ignore[operator]
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    other = (teacher + 1.0).requires_grad_()
    loss(both, other, labels).backward()  # type: ignore[operator]
    assert other.grad is None


def test_gradients(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = batch
    for loss in (curriculum_kd, trusted_kd):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, teacher, labels), (student,))
    assert torch.autograd.gradcheck(lambda x: curriculum_cross_entropy(x, teacher, labels, share=0.5), (student,))


def test_bfloat16_is_computed_in_float32(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = batch
    narrow = trusted_kd(student.bfloat16(), teacher.bfloat16(), labels)
    assert narrow.dtype is torch.float32
    assert narrow.item() == pytest.approx(trusted_kd(student, teacher, labels).item(), rel=0.05)


def test_mistakes(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, labels = batch
    with pytest.raises(UsageError, match="share = 0"):
        curriculum_kd(student, teacher, labels, share=0.0)
    with pytest.raises(UsageError, match=r"confidance.*Did you mean 'confidence'"):
        curriculum_kd(student, teacher, labels, by="confidance")
    with pytest.raises(UsageError, match="teacher logits"):
        trusted_kd(student, teacher[:, :4], labels)
