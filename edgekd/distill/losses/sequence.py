"""Losses on generated sequences: logits (N, L, C) over a vocabulary of C, or rows (N, C)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.losses.shapes import (
    check_rank,
    check_same_shape,
    check_temperature,
    constant,
    masked_mean,
    precise,
)
from edgekd.errors import UsageError


def generalized_jsd(
    student_NLC: Tensor,
    teacher_NLC: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Generalized Jensen-Shannon divergence per unmasked token; no T^2.

        beta KL(t || m) + (1 - beta) KL(s || m),   m = (1 - beta) s + beta t,   s, t = softmax(. / T)

    beta = 0 is the forward divergence KL(t || s) and beta = 1 the reverse KL(s || t): special cases, since the formula
    itself tends to 0 there. A schedule over beta must know. The gradient reaches the student through m as well.

    Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist and Bachem, "On-Policy Distillation of Language Models: Learning
    from Self-Generated Mistakes", 2023, arXiv:2306.13649.
    """
    check_rank(student_NLC, "student logits", 2, 3)
    check_same_shape(student_NLC, teacher_NLC)
    check_temperature(temperature)
    if not 0.0 <= beta <= 1.0:
        raise UsageError(f"found beta = {beta}, expected 0 (forward) to 1 (reverse)")
    log_s = F.log_softmax(precise(student_NLC) / temperature, dim=-1)
    log_t = F.log_softmax(constant(teacher_NLC) / temperature, dim=-1)
    if beta == 0.0:
        divergence = _kl(log_t, log_s)
    elif beta == 1.0:
        divergence = _kl(log_s, log_t)
    else:
        log_m = torch.logaddexp(log_s + math.log1p(-beta), log_t + math.log(beta))
        divergence = beta * _kl(log_t, log_m) + (1.0 - beta) * _kl(log_s, log_m)
    return masked_mean(divergence, mask)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
