"""Learning from the k most likely classes or tokens of a teacher: what an endpoint tells, or a cache keeps.

Shape suffixes: N batch, L tokens, C classes, K the teacher's k. "..." is (N,) or (N, L).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.losses.shapes import check_rank, check_temperature, constant, masked_mean, precise
from edgekd.errors import UsageError

# A bucket's probability is at least this, so that its logarithm stays finite.
LEAST = 1e-8


def topk_cross_entropy(student_NC: Tensor, teacher_indices_NK: Tensor, teacher_probabilities_NK: Tensor) -> Tensor:
    """Cross-entropy, batch mean, with a teacher's top-k at T = 1; what remains is spread over the other classes.

    -1/N sum_n [sum_k p_nk log q_n,idx(k) + (1 - sum_k p_nk) / (C - K) * sum over the others of log q_nc]
    """
    check_rank(student_NC, "student logits", 2)
    _check_topk(student_NC, teacher_indices_NK, teacher_probabilities_NK)
    log_q_NC = F.log_softmax(precise(student_NC), dim=1)
    p_NK = constant(teacher_probabilities_NK)
    log_q_NK = log_q_NC.gather(1, teacher_indices_NK)
    told_N = (p_NK * log_q_NK).sum(dim=1)
    others = student_NC.shape[1] - p_NK.shape[1]
    if others == 0:
        return -told_N.mean()
    rest_N = (1.0 - p_NK.sum(dim=1)).clamp(min=0.0) / others
    return -(told_N + rest_N * (log_q_NC.sum(dim=1) - log_q_NK.sum(dim=1))).mean()


def topk_kd(
    student_NC: Tensor,
    teacher_indices_NK: Tensor,
    teacher_log_probabilities_NK: Tensor,
    *,
    temperature: float = 1.0,
    missing: Literal["zero", "uniform"] = "zero",
    mask: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence from a teacher's top-k to the student's full softmax at the same ids.

        T^2 * mean over rows (or unmasked tokens) of sum_k p_k log(p_k / q_idx(k)),   p_k from (teacher's p_k)^(1/T)

    missing  "zero": p is divided by its sum over the k. "uniform": one more bucket holds the rest, (1 - sum p)^(1/T)
             before all k + 1 are divided by their sum; the student's is 1 - the sum of its softmax(s / T) at the ids,
             both at least 1e-8
    mask     (N, L), true = counts, for tokens (N, L, C)
    """
    check_rank(student_NC, "student logits", 2, 3)
    check_temperature(temperature)
    _check_topk(student_NC, teacher_indices_NK, teacher_log_probabilities_NK)
    if missing not in ("zero", "uniform"):
        raise UsageError(f"found missing = '{missing}', expected 'zero' or 'uniform'")
    log_t = constant(teacher_log_probabilities_NK)
    log_q = F.log_softmax(precise(student_NC) / temperature, dim=-1).gather(-1, teacher_indices_NK)
    scaled = log_t / temperature
    if missing == "uniform":
        rest = (1.0 - log_t.exp().sum(dim=-1, keepdim=True)).clamp(min=LEAST)
        scaled = torch.cat([scaled, rest.log() / temperature], dim=-1)
        log_rest_q = (1.0 - log_q.exp().sum(dim=-1, keepdim=True)).clamp(min=LEAST).log()
        log_q = torch.cat([log_q, log_rest_q], dim=-1)
    log_p = F.log_softmax(scaled, dim=-1)
    # From p, not log p: a probability of 0 (a hard label) adds nothing, where 0 * -inf would be NaN.
    divergence = F.kl_div(log_q, log_p.exp(), reduction="none").sum(dim=-1)
    return temperature**2 * masked_mean(divergence, mask)


def _check_topk(student: Tensor, indices: Tensor, values: Tensor) -> None:
    if indices.shape != values.shape or indices.shape[:-1] != student.shape[:-1] or indices.is_floating_point():
        raise UsageError(
            f"found {list(indices.shape)} indices of {indices.dtype} and {list(values.shape)} probabilities for logits "
            f"of {list(student.shape)}, expected as many of both: k whole numbers per row of logits"
        )
    if indices.shape[-1] > student.shape[-1]:
        raise UsageError(
            f"found the {indices.shape[-1]} most likely of {student.shape[-1]} classes; do both models end in the same "
            "classes?"
        )
