"""Which samples a student learns from: easy ones first, and those in which its teacher can be trusted.

Shape suffixes: N batch, C classes. Teacher tensors are constants.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.losses.shapes import (
    check_labels,
    check_rank,
    check_same_shape,
    check_temperature,
    constant,
    precise,
)
from edgekd.errors import UsageError, nearest


def _confidence(teacher_NC: Tensor, labels_N: Tensor) -> Tensor:
    return F.softmax(teacher_NC, dim=1).max(dim=1).values


def _margin(teacher_NC: Tensor, labels_N: Tensor) -> Tensor:
    first_second_N2 = F.softmax(teacher_NC, dim=1).topk(2, dim=1).values
    return first_second_N2[:, 0] - first_second_N2[:, 1]


def _loss(teacher_NC: Tensor, labels_N: Tensor) -> Tensor:
    return -F.cross_entropy(teacher_NC, labels_N, reduction="none")


# How easy the teacher finds each sample (N,): its highest probability, how far that is above the second, or how little
# it loses against the label.
EASE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"confidence": _confidence, "margin": _margin, "loss": _loss}


def easiest(teacher_NC: Tensor, labels_N: Tensor | None, *, share: float, by: str = "confidence") -> Tensor:
    """Mask (N,) of the part `share` of the batch, at least one sample, that the teacher finds easiest.

    The labels are looked at by "loss" only.

    With a share that a schedule raises to 1 this is a curriculum (Bengio, Louradour, Collobert and Weston, "Curriculum
    Learning", ICML 2009) whose order is the teacher's, taken batch by batch.
    """
    check_rank(teacher_NC, "teacher logits", 2)
    if by not in EASE:
        raise UsageError(f"unknown measure by = '{by}'. {nearest(by, EASE)}")
    if labels_N is None:
        if by == "loss":
            raise UsageError('by = "loss" needs the labels, found none')
        labels_N = constant(teacher_NC).argmax(dim=1)
    check_labels(teacher_NC, labels_N)
    if not 0.0 < share <= 1.0:
        raise UsageError(f"found share = {share}, expected a part of the batch above 0, at most 1")
    ease_N = EASE[by](constant(teacher_NC), labels_N)
    count = max(1, round(share * len(ease_N)))
    mask_N = torch.zeros_like(ease_N, dtype=torch.bool)
    return mask_N.scatter(0, ease_N.topk(count).indices, value=True)


def curriculum_kd(
    student_NC: Tensor,
    teacher_NC: Tensor,
    labels_N: Tensor | None = None,
    *,
    share: float = 1.0,
    by: str = "confidence",
    temperature: float = 4.0,
) -> Tensor:
    """`kd` over the samples that are `easiest`: T^2 * mean over them of KL(softmax(t/T) || softmax(s/T))."""
    divergence_N = _divergence(student_NC, teacher_NC, temperature)
    return _mean(divergence_N, easiest(teacher_NC, labels_N, share=share, by=by).to(divergence_N.dtype))


def curriculum_cross_entropy(
    student_NC: Tensor,
    teacher_NC: Tensor,
    labels_N: Tensor,
    *,
    share: float = 1.0,
    by: str = "confidence",
) -> Tensor:
    """Cross-entropy with the labels, mean over the samples that are `easiest` for the teacher."""
    check_labels(student_NC, labels_N)
    losses_N = F.cross_entropy(precise(student_NC), labels_N, reduction="none")
    return _mean(losses_N, easiest(teacher_NC, labels_N, share=share, by=by).to(losses_N.dtype))


def trusted_kd(student_NC: Tensor, teacher_NC: Tensor, labels_N: Tensor, *, temperature: float = 4.0) -> Tensor:
    """`kd` in which each sample counts by how much the label trusts the teacher.

        T^2 * sum_n w_n KL_n / sum_n w_n,   w_n = softmax(teacher)_n at the label

    For a teacher that is wrong on some samples: a weight of 1 where it is sure of the label, 0 where it rules it out.
    The idea of confidence-aware weights is that of Zhang, Chen and Wang, "Confidence-Aware Multi-Teacher Knowledge
    Distillation", 2021, arXiv:2201.00007, here for the samples of one teacher.
    """
    check_labels(student_NC, labels_N)
    divergence_N = _divergence(student_NC, teacher_NC, temperature)
    trust_N = F.softmax(constant(teacher_NC), dim=1).gather(1, labels_N[:, None])[:, 0]
    return _mean(divergence_N, trust_N)


def trusted_cross_entropy(student_NC: Tensor, teacher_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy in which each label counts by how much the teacher trusts it: for labels that may be wrong.

    sum_n w_n CE_n / sum_n w_n,   w_n = softmax(teacher)_n at the label
    """
    check_labels(student_NC, labels_N)
    check_same_shape(student_NC, teacher_NC)
    trust_N = F.softmax(constant(teacher_NC), dim=1).gather(1, labels_N[:, None])[:, 0]
    return _mean(F.cross_entropy(precise(student_NC), labels_N, reduction="none"), trust_N)


def _divergence(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """T^2 KL (N,)."""
    check_rank(student_NC, "student logits", 2)
    check_same_shape(student_NC, teacher_NC)
    check_temperature(temperature)
    log_q_NC = F.log_softmax(precise(student_NC) / temperature, dim=1)
    log_p_NC = F.log_softmax(constant(teacher_NC) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q_NC, log_p_NC, reduction="none", log_target=True).sum(dim=1)


def _mean(values_N: Tensor, weights_N: Tensor) -> Tensor:
    return (values_N * weights_N).sum() / weights_N.sum().clamp(min=torch.finfo(weights_N.dtype).tiny)
