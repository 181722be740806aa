"""Losses of networks that learn against or beside each other. Scores (N, 1): above 0 reads "from the teacher"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.labelled import MASK_OF_CLASSES
from edgekd.distill.losses.shapes import check_labels, check_same_shape, constant, precise
from edgekd.errors import UsageError


def discriminator_loss(teacher_score: Tensor, student_score: Tensor) -> Tensor:
    """BCE(D(teacher), 1) + BCE(D(student), 0): what the discriminator minimizes. Gradients reach both scores."""
    return F.softplus(-precise(teacher_score)).mean() + F.softplus(precise(student_score)).mean()


def generator_loss(student_score: Tensor) -> Tensor:
    """BCE(D(student), 1): what the student minimizes to be taken for the teacher (non-saturating).

    Goodfellow et al., "Generative Adversarial Networks", 2014, arXiv:1406.2661. (One of the articles on distillation
    prints the labels the other way round.)
    """
    return F.softplus(-precise(student_score)).mean()


def adversarial(student_score: Tensor, teacher_score: Tensor, *, cut_student_score: Tensor) -> Tensor:
    """`generator_loss` of the student plus `discriminator_loss`: both players in one step.

    The scores come from the adapter `discriminator`: `student_score` through frozen weights of the discriminator, so
    that only the student learns from it, `cut_student_score` cut off from the student, so that only the discriminator
    does.
    """
    return generator_loss(student_score) + discriminator_loss(teacher_score, cut_student_score)


def mutual(student_NC: Tensor, peer_logits: Sequence[Tensor]) -> Tensor:
    """Mean over the peers of KL(softmax(peer) || softmax(student)), T = 1, batch mean; peers are constants.

    Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning", 2017, arXiv:1706.00384.
    """
    if not peer_logits:
        raise UsageError("found no peers, expected at least one")
    log_q_NC = F.log_softmax(precise(student_NC), dim=1)
    divergences = []
    for peer_NC in peer_logits:
        check_same_shape(student_NC, peer_NC)
        log_p_NC = F.log_softmax(constant(peer_NC), dim=1)
        divergences.append(F.kl_div(log_q_NC, log_p_NC, reduction="batchmean", log_target=True))
    return torch.stack(divergences).mean()


def mutual_learning(
    student_NC: Tensor, labels_N: Tensor, *, peer_logits: Sequence[Tensor], labelled: Tensor | None = None
) -> Tensor:
    """A cohort that learns at once: `mutual` of the student, plus each peer's own cross-entropy and `mutual`.

    The student's cross-entropy is a term of its own. `peer_logits` come from the adapter `peers`, which trains them.

    labelled  (N,) what the cross-entropy of each sample counts, 0 for those without a label (theirs is -1), of which
              the cohort learns by `mutual` alone. None: each counts 1
    """
    check_labels(student_NC, labels_N)
    loss = mutual(student_NC, peer_logits)
    cohort = [student_NC, *peer_logits]
    for index, peer_NC in enumerate(cohort[1:], start=1):
        others = [logits for place, logits in enumerate(cohort) if place != index]
        if labelled is None:
            supervised = F.cross_entropy(precise(peer_NC), labels_N)
        else:
            each_N = F.cross_entropy(precise(peer_NC), labels_N, reduction="none", ignore_index=MASK_OF_CLASSES)
            supervised = (each_N * labelled).mean()
        loss = loss + supervised + mutual(peer_NC, others)
    return loss
