"""Losses for several labels per sample and for numbers. Shape suffixes: N batch, L labels, D targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.losses.shapes import (
    check_rank,
    check_same_shape,
    check_targets,
    check_temperature,
    constant,
    precise,
)
from edgekd.errors import UsageError


def binary_cross_entropy(student_NL: Tensor, targets_NL: Tensor) -> Tensor:
    """Cross-entropy of each label on its own, mean over all N*L elements.

        -mean(y log sigmoid(student) + (1 - y) log(1 - sigmoid(student)))

    `targets_NL` holds 0 and 1 of any type, or probabilities.
    """
    check_targets(student_NL, targets_NL)
    s_NL = precise(student_NL)
    return F.binary_cross_entropy_with_logits(s_NL, targets_NL.to(s_NL.dtype))


def multilabel_kd(student_NL: Tensor, teacher_NL: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Binary Kullback-Leibler divergence of each label on its own, mean over all N*L elements.

        T^2 * mean(p log(p / q) + (1 - p) log((1 - p) / (1 - q)))

    with p = sigmoid(teacher / T) and q = sigmoid(student / T). Zero at equality. The mean is over elements so that it
    stands beside `binary_cross_entropy` on the same scale.

    Each label is a two-class case of `kd`: Hinton et al., 2015, arXiv:1503.02531.
    """
    check_same_shape(student_NL, teacher_NL)
    check_temperature(temperature)
    s_NL = precise(student_NL) / temperature
    t_NL = constant(teacher_NL) / temperature
    p_NL = torch.sigmoid(t_NL)
    # log(1 - sigmoid(x)) = logsigmoid(-x), exact where sigmoid(x) rounds to 1.
    on = p_NL * (F.logsigmoid(t_NL) - F.logsigmoid(s_NL))
    off = torch.sigmoid(-t_NL) * (F.logsigmoid(-t_NL) - F.logsigmoid(-s_NL))
    return temperature**2 * (on + off).mean()


def mean_squared_error(student_ND: Tensor, targets_ND: Tensor) -> Tensor:
    """Mean over all N*D elements of (student - target)^2."""
    check_targets(student_ND, targets_ND)
    s_ND = precise(student_ND)
    return (s_ND - targets_ND.to(s_ND.dtype)).square().mean()


def regression_kd(
    student_ND: Tensor, teacher_ND: Tensor, targets_ND: Tensor | None = None, *, margin: float | None = None
) -> Tensor:
    """Mean over all N*D elements of (student - teacher)^2, optionally bounded by the teacher's own error.

    With a margin (and the targets) a sample counts only while the student is not better than the teacher by it:

        |student - target|^2 + margin > |teacher - target|^2      (squared distances of one sample)

    so that a good student is not pulled back to a worse teacher. The mean is still over all N*D elements. Without a
    margin the targets are not looked at.

    The bound: Chen, Choi, Yu, Han and Chandraker, "Learning Efficient Object Detection Models with Knowledge
    Distillation", NIPS 2017, equation 4 (there it bounds the error to the target; here the pull to the teacher).
    """
    check_rank(student_ND, "student outputs", 2)
    check_same_shape(student_ND, teacher_ND)
    s_ND, t_ND = precise(student_ND), constant(teacher_ND)
    error_ND = (s_ND - t_ND).square()
    if margin is None:
        return error_ND.mean()
    if targets_ND is None:
        raise UsageError("regression_kd with a margin needs the targets, found none")
    check_targets(student_ND, targets_ND)
    y_ND = targets_ND.to(s_ND.dtype)
    student_N = (s_ND.detach() - y_ND).square().sum(dim=1)
    teacher_N = (t_ND - y_ND).square().sum(dim=1)
    return (error_ND * (student_N + margin > teacher_N)[:, None]).mean()
