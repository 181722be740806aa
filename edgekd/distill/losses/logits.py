"""Losses on logits. Shape suffixes: N batch, C classes; "..." may be (N,) or, for tokens, (N, L).

Logits are scores before the softmax, never probabilities. Teacher tensors are constants. Softmax and logarithms are
computed in float32 at least, under bfloat16 autocast too. Every function returns a scalar tensor, except `standardize`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgekd.distill.losses.shapes import (
    check_labels,
    check_rank,
    check_same_shape,
    check_temperature,
    constant,
    masked_mean,
    precise,
)
from edgekd.errors import UsageError

# So few classes do not fill a vector of the CPU.
_FEW = 32
# So many values stay in the cache of a CPU's core while several steps look at them.
_CACHED = 1 << 17


def cross_entropy(student_NC: Tensor, labels_N: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the true classes, batch mean.

        -1/N sum_n sum_c q_nc log softmax(student)_nc,   q = (1 - eps) onehot(label) + eps / C

    Labels of mixed samples are shares of the classes (N, C) in place of onehot(label): for a share r of y1 and 1 - r
    of y2 that is r * CE(y1) + (1 - r) * CE(y2).

    Smoothing: Szegedy et al., "Rethinking the Inception Architecture", 2015, arXiv:1512.00567.
    """
    check_rank(student_NC, "student logits", 2)
    if not (labels_N.is_floating_point() and labels_N.shape == student_NC.shape):
        check_labels(student_NC, labels_N)
    if not 0.0 <= label_smoothing < 1.0:
        raise UsageError(f"found label_smoothing = {label_smoothing}, expected 0 <= label_smoothing < 1")
    return F.cross_entropy(precise(student_NC), labels_N, label_smoothing=label_smoothing)


def kd(student_NC: Tensor, teacher_NC: Tensor, *, temperature: float = 4.0, mask: Tensor | None = None) -> Tensor:
    """Softened Kullback-Leibler divergence from the teacher to the student.

        T^2 * mean_n sum_c p_c log(p_c / q_c),   p = softmax(teacher / T),   q = softmax(student / T)

    T^2 keeps the size of the gradient when T changes. Zero when both give the same probabilities.
    Tokens: (N, L, C) with a mask (N, L), true = counts, averaged over the tokens that count.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531. (Batch mean, not
    the mean over N*C elements that `F.kl_div` gives by default.)
    """
    check_rank(student_NC, "student logits", 2, 3)
    check_same_shape(student_NC, teacher_NC)
    check_temperature(temperature)
    divergence: Tensor = _Softened.apply(precise(student_NC), constant(teacher_NC), float(temperature), mask)  # type: ignore[no-untyped-call]
    return divergence


class _Softened(torch.autograd.Function):
    """`kd` with its gradient in closed form, T (q - p) / N: half the time of what autograd makes of a small batch.

    Tokens over a vocabulary are many megabytes, which a CPU goes through in parts that stay in its cache.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
        if student.device.type == "cpu" and student.numel() > _CACHED:
            divergences, difference = _divergence_in_parts(student, teacher, temperature)
        else:
            divergences, difference = _divergence(student, teacher, temperature)
        ctx.temperature = temperature
        if mask is None:
            ctx.count = divergences.numel()
            loss: Tensor = divergences.sum() * (temperature**2 / ctx.count)
        else:
            loss = masked_mean(divergences, mask) * temperature**2
            counts = mask.to(dtype=torch.bool, device=student.device)
            ctx.count = counts.sum().clamp(min=1)
            # Not a product: a masked row may hold NaN, which must not spread.
            difference.masked_fill_(~counts[..., None], 0.0)
        ctx.save_for_backward(difference)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * (gradient * ctx.temperature / ctx.count), None, None, None


def _divergence(
    student: Tensor, teacher: Tensor, temperature: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """KL(p || q) of each row (...), and q - p (..., C), in `out` where that is given.

    A class that the teacher rules out (a logit of minus infinity) adds nothing, whatever the student says of it.
    """
    log_q = _log_softmax(student / temperature)
    log_p = _log_softmax(teacher / temperature)
    p = log_p.exp()
    terms = log_p.sub_(log_q).mul_(p)
    # Looking is cheap on a CPU, and there is hardly ever something to mend.
    if student.device.type != "cpu" or not math.isfinite(terms.sum()):
        terms = torch.where(p != 0, terms, p)  # not "> 0": a NaN has to stay one
    log_q.exp_()
    return terms.sum(dim=-1), log_q.sub_(p) if out is None else torch.sub(log_q, p, out=out)


def _divergence_in_parts(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    rows = max(1, _CACHED // student.shape[-1])
    student_RC, teacher_RC = student.flatten(end_dim=-2), teacher.flatten(end_dim=-2)
    difference_RC = torch.empty_like(student_RC, memory_format=torch.contiguous_format)
    divergences = []
    for start in range(0, len(student_RC), rows):
        part = slice(start, start + rows)
        divergences.append(_divergence(student_RC[part], teacher_RC[part], temperature, difference_RC[part])[0])
    return torch.cat(divergences).view(student.shape[:-1]), difference_RC.view(student.shape)


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the last axis. For few classes torch's kernel takes a fourth of the time along the first one."""
    if logits.shape[-1] < _FEW and logits.device.type == "cpu":
        return F.log_softmax(logits.movedim(-1, 0), dim=0).movedim(0, -1)
    return F.log_softmax(logits, dim=-1)


def soft_cross_entropy(student_NC: Tensor, teacher_NC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with the teacher's probabilities, batch mean; no T^2.

        -1/N sum_n sum_c softmax(teacher / T)_nc log softmax(student / T)_nc

    Its gradient is that of `kd` / T^2; its smallest value is the teacher's entropy, not 0. A class that the teacher
    rules out (a logit of minus infinity) adds nothing, also where the student rules it out.
    """
    check_rank(student_NC, "student logits", 2)
    check_same_shape(student_NC, teacher_NC)
    check_temperature(temperature)
    log_q_NC = F.log_softmax(precise(student_NC) / temperature, dim=-1)
    p_NC = F.softmax(constant(teacher_NC) / temperature, dim=-1)
    # 0 * -inf is NaN: a class of no probability counts nothing. Not "p > 0": a NaN has to stay one.
    return -torch.where(p_NC != 0, p_NC * log_q_NC, p_NC).sum(dim=-1).mean()


def logit_mse(student_NC: Tensor, teacher_NC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean over all elements of (student / T - teacher / T)^2; no T^2.

    Ba and Caruana, "Do Deep Nets Really Need to be Deep?", 2013, arXiv:1312.6184 (there with T = 1).
    """
    check_same_shape(student_NC, teacher_NC)
    check_temperature(temperature)
    return ((precise(student_NC) - constant(teacher_NC)) / temperature).square().mean()


def dkd(
    student_NC: Tensor,
    teacher_NC: Tensor,
    labels_N: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled distillation: how sure the teacher is, and how it ranks the wrong classes, weighted apart.

        alpha * T^2 KL([p_y, 1 - p_y] || [q_y, 1 - q_y])  +  beta * T^2 KL(p over c != y || q over c != y)

    Both batch means; the second renormalizes the softmax over the classes that are not the label.
    With beta = 1 - p_y per sample the sum is `kd`. Raises `UsageError` for a single class.

    Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", 2022, arXiv:2203.08679. (The authors' code
    masks the label with -1000 instead of leaving it out; here it is left out.)
    """
    check_rank(student_NC, "student logits", 2)
    check_same_shape(student_NC, teacher_NC)
    check_labels(student_NC, labels_N)
    check_temperature(temperature)
    if student_NC.shape[1] < 2:
        raise UsageError("dkd needs at least 2 classes: with one there is nothing beside the target")
    target_log_q, other_log_q = _decoupled(precise(student_NC) / temperature, labels_N)
    target_log_p, other_log_p = _decoupled(constant(teacher_NC) / temperature, labels_N)
    target = F.kl_div(target_log_q, target_log_p, reduction="batchmean", log_target=True)
    other = F.kl_div(other_log_q, other_log_p, reduction="batchmean", log_target=True)
    return temperature**2 * (alpha * target + beta * other)


def standardize(logits_NC: Tensor) -> Tensor:
    """Each row (x - mean) / (1e-7 + std), std unbiased. The same shape; gradients flow.

    Sun, Ren, Li, Wang and Cao, "Logit Standardization in Knowledge Distillation", 2024, arXiv:2403.01427.
    """
    x = precise(logits_NC)
    if x.shape[-1] < 2:
        raise UsageError(f"logits are {list(x.shape)}: standardizing a row needs at least 2 classes")
    return (x - x.mean(dim=-1, keepdim=True)) / (1e-7 + x.std(dim=-1, keepdim=True))


def logit_standardized_kd(student_NC: Tensor, teacher_NC: Tensor, *, temperature: float = 2.0) -> Tensor:
    """`kd` of both logits after `standardize`: the student need not match the teacher's scale, only its shape.

    Sun et al., 2024, arXiv:2403.01427.
    """
    check_same_shape(student_NC, teacher_NC)
    return kd(standardize(student_NC), standardize(constant(teacher_NC)), temperature=temperature)


def multi_temperature_kd(
    student_NC: Tensor, teacher_NC: Tensor, *, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)
) -> Tensor:
    """Sum of `kd` over the temperatures.

    Jin, Wang and Lin, "Multi-level Logit Distillation", CVPR 2023 (its instance level).
    """
    if not temperatures:
        raise UsageError("found no temperatures, expected a list such as [2, 3, 4, 5, 6]")
    return torch.stack([kd(student_NC, teacher_NC, temperature=float(T)) for T in temperatures]).sum()


def teacher_free(
    student_NC: Tensor,
    labels_N: Tensor,
    *,
    alpha: float = 0.1,
    temperature: float = 20.0,
    correct_probability: float = 0.99,
) -> Tensor:
    """Distillation from a virtual teacher that is right with probability `correct_probability`.

        (1 - alpha) * CE  +  alpha * mean over all N*C elements of KL(softmax(u / T) || softmax(student))

    u are the virtual teacher's probabilities (the rest even over the other classes); the softmax is taken over them
    and the student has no temperature, as in the authors' code; no T^2.

    Yuan, Tay, Li, Wang and Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", 2019,
    arXiv:1909.11723 (Tf-KD_reg).
    """
    check_rank(student_NC, "student logits", 2)
    check_labels(student_NC, labels_N)
    check_temperature(temperature)
    num_classes = student_NC.shape[1]
    if num_classes < 2:
        raise UsageError("teacher_free needs at least 2 classes")
    s_NC = precise(student_NC)
    u_NC = torch.full_like(s_NC, (1.0 - correct_probability) / (num_classes - 1)).detach()
    u_NC = u_NC.scatter(1, labels_N[:, None], correct_probability)
    log_q_NC = F.log_softmax(s_NC, dim=-1)
    log_p_NC = F.log_softmax(u_NC / temperature, dim=-1)
    virtual = F.kl_div(log_q_NC, log_p_NC, reduction="none", log_target=True).mean()
    return (1.0 - alpha) * F.cross_entropy(s_NC, labels_N) + alpha * virtual


def _decoupled(logits_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities (N, 2) of the label and of everything else, and (N, C - 1) among the others alone."""
    # By place, not by a mask of booleans: a GPU would have to say how many are true.
    place = torch.arange(logits_NC.shape[1] - 1, device=logits_NC.device)[None]
    others_NC = logits_NC.gather(1, place + (place >= labels_N[:, None]))
    label_N = logits_NC.gather(1, labels_N[:, None])[:, 0]
    # From logits, not from 1 - p: exact even where p rounds to 1.
    pair_N2 = torch.stack([label_N, torch.logsumexp(others_NC, dim=-1)], dim=-1)
    return F.log_softmax(pair_N2, dim=-1), F.log_softmax(others_NC, dim=-1)
