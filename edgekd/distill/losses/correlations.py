"""Losses on logits that compare correlations instead of values. Shape suffixes: N batch, C classes, H W space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.losses.shapes import check_rank, check_same_shape, check_temperature, constant, precise


def dist(
    student_NC: Tensor, teacher_NC: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """One minus the Pearson correlation of the probabilities, within samples and within classes.

        beta * T^2 * (1 - mean_n r(p_n., q_n.))  +  gamma * T^2 * (1 - mean_c r(p_.c, q_.c))

    p and q are softmax(. / T) of teacher and student; r is the cosine of the centred vectors with 1e-8 added to the
    product of the norms. Segmentation logits (N, C, H, W) count as N*H*W samples, and then without the T^2.

    Huang, You, Wang, Qian and Xu, "Knowledge Distillation from A Stronger Teacher", 2022, arXiv:2205.10536.
    """
    check_rank(student_NC, "student logits", 2, 4)
    check_same_shape(student_NC, teacher_NC)
    check_temperature(temperature)
    scale = temperature**2
    if student_NC.dim() == 4:
        student_NC, teacher_NC = _pixels(student_NC), _pixels(teacher_NC)
        scale = 1.0
    q_NC = F.softmax(precise(student_NC) / temperature, dim=-1)
    p_NC = F.softmax(constant(teacher_NC) / temperature, dim=-1)
    within_samples = 1.0 - _pearson(q_NC, p_NC).mean()
    within_classes = 1.0 - _pearson(q_NC.T, p_NC.T).mean()
    return scale * (beta * within_samples + gamma * within_classes)


def class_correlation(student_NC: Tensor, teacher_NC: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Squared difference of the class-by-class Gram matrices of the probabilities, divided by C; no T^2.

        1/C sum_ij ((P_t^T P_t - P_s^T P_s)_ij)^2,   P = softmax(. / T), (N, C)

    Jin, Wang and Lin, "Multi-level Logit Distillation", CVPR 2023 (its class level).
    """
    p_s_NC, p_t_NC = _probabilities(student_NC, teacher_NC, temperature)
    with _full_precision(student_NC):
        difference_CC = p_t_NC.T @ p_t_NC - p_s_NC.T @ p_s_NC
        return difference_CC.square().sum() / student_NC.shape[1]


def batch_correlation(student_NC: Tensor, teacher_NC: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Squared difference of the sample-by-sample Gram matrices of the probabilities, divided by N; no T^2.

        1/N sum_ij ((P_t P_t^T - P_s P_s^T)_ij)^2,   P = softmax(. / T), (N, C)

    Jin, Wang and Lin, "Multi-level Logit Distillation", CVPR 2023 (its batch level).
    """
    p_s_NC, p_t_NC = _probabilities(student_NC, teacher_NC, temperature)
    with _full_precision(student_NC):
        difference_NN = p_t_NC @ p_t_NC.T - p_s_NC @ p_s_NC.T
        return difference_NN.square().sum() / student_NC.shape[0]


def _probabilities(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_rank(student_NC, "student logits", 2)
    check_same_shape(student_NC, teacher_NC)
    check_temperature(temperature)
    p_s_NC = F.softmax(precise(student_NC) / temperature, dim=-1)
    return p_s_NC, F.softmax(constant(teacher_NC) / temperature, dim=-1)


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast switched off: it would compute matrix products of float32 tensors in bfloat16."""
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def _pixels(logits_NCHW: Tensor) -> Tensor:
    return logits_NCHW.permute(0, 2, 3, 1).reshape(-1, logits_NCHW.shape[1])


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of the rows of two matrices."""
    a = a - a.mean(dim=1, keepdim=True)
    b = b - b.mean(dim=1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(dim=1) / (norms + 1e-8)
