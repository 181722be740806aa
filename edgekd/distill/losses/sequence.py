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
    counted,
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
    Classes that both rule out (logits of minus infinity: a vocabulary that is padded) add nothing; one that only the
    teacher rules out makes the reverse divergence infinite, one that only the student rules out the forward one.

    Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist and Bachem, "On-Policy Distillation of Language Models: Learning
    from Self-Generated Mistakes", 2023, arXiv:2306.13649.
    """
    check_rank(student_NLC, "student logits", 2, 3)
    check_same_shape(student_NLC, teacher_NLC)
    check_temperature(temperature)
    if not 0.0 <= beta <= 1.0:
        raise UsageError(f"found beta = {beta}, expected 0 (forward) to 1 (reverse)")
    log_s = F.log_softmax(counted(precise(student_NLC), mask) / temperature, dim=-1)
    log_t = F.log_softmax(counted(constant(teacher_NLC), mask) / temperature, dim=-1)
    if beta == 0.0:
        divergence = _kl(log_t, log_s)
    elif beta == 1.0:
        divergence = _kl(log_s, log_t)
    else:
        # The gradient of logaddexp is NaN where both are minus infinity; there m is not looked at.
        nowhere = torch.isneginf(log_s) & torch.isneginf(log_t)
        s_share, t_share = log_s.masked_fill(nowhere, 0.0), log_t.masked_fill(nowhere, 0.0)
        log_m = torch.logaddexp(s_share + math.log1p(-beta), t_share + math.log(beta))
        divergence = beta * _kl(log_t, log_m) + (1.0 - beta) * _kl(log_s, log_m)
    return masked_mean(divergence, mask)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum_c p (log p - log q); a class of p = 0 adds neither value nor gradient, whatever q is there."""
    nothing = torch.isneginf(log_p)
    log_p, log_q = log_p.masked_fill(nothing, 0.0), log_q.masked_fill(nothing, 0.0)
    return (log_p.exp() * (log_p - log_q)).masked_fill(nothing, 0.0).sum(dim=-1)
