"""Several teachers as one. Shape suffixes: N batch, C classes, K teachers. The results are constants: no gradient.

A specialist has outputs for some of the classes only. It knows how these share the probability among them, and nothing
of the others nor of how likely all of its own are: that the other teachers say, and where no other does, the sample is
one of its classes. So its level (a constant added to its logits, a factor of its probabilities) is whatever agrees with
the others. One that agrees with a teacher of all classes changes nothing of what that one says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.answers import NOTHING
from edgekd.distill.losses.shapes import check_temperature, constant
from edgekd.errors import UsageError

Weights = Sequence[float] | Tensor
# Of the largest singular value: what is less is rounding, of a direction in which the levels are free.
_FREE = 1e-10


def mean_logits(
    teachers_NC: Sequence[Tensor], *, weights: Weights | None = None, known_KC: Tensor | None = None
) -> Tensor:
    """Weighted mean (N, C) of the logits of K teachers.

        z_c = mean of z_kc + a_k over those who know c,   sum_c (z_kc + a_k) = sum_c z_c over the classes that k knows

    weights   None: even; K numbers; or a tensor (N, K) with a weight per sample (each teacher for its own domain).
              They are divided by their sum. Raises `UsageError` for a negative weight or a sum of 0.
    known_KC  bool, the classes that each teacher knows; what it says of others is not read. None: all, and every level
              a_k is 0. It is 0 in the mean over those who know all, or over all teachers of the sample if none does.
              A class that no teacher of the sample knows is ruled out

    These are the least squares: of all z and a they make sum_k w_k sum_c (z_c - z_kc - a_k)^2 smallest.
    """
    stacked_NKC = _stack(teachers_NC)
    weights_NK = _normalized(weights, stacked_NKC)
    if known_KC is None or bool(known_KC.all()):
        return (stacked_NKC * weights_NK[..., None]).sum(dim=1)
    known_KC = known_KC.to(stacked_NKC.device)
    logits_NKC = stacked_NKC.double().masked_fill(~known_KC, 0.0)
    counts_NKC, share_NKC = _counted(weights_NK, known_KC)
    mean_N1C = (share_NKC * logits_NKC).sum(dim=1, keepdim=True)
    # The levels from the condition on their sums, z_c put into it.
    system_NKK = torch.diag_embed(counts_NKC.sum(dim=2)) - counts_NKC @ share_NKC.mT
    missing_NK = (counts_NKC * (mean_N1C - logits_NKC)).sum(dim=2)
    level_NK: Tensor = (torch.linalg.pinv(system_NKK, rtol=_FREE, hermitian=True) @ missing_NK[..., None])[..., 0]
    whole_NK = weights_NK.double() * known_KC.all(dim=1)
    whole_NK = torch.where(whole_NK.sum(dim=1, keepdim=True) > 0, whole_NK, weights_NK.double())
    level_NK = level_NK - (whole_NK * level_NK).sum(dim=1, keepdim=True) / whole_NK.sum(dim=1, keepdim=True)
    mean_NC = (share_NKC * (logits_NKC + level_NK[..., None])).sum(dim=1)
    return mean_NC.masked_fill(counts_NKC.sum(dim=1) == 0, NOTHING).to(stacked_NKC.dtype)


def mean_probabilities(
    teachers_NC: Sequence[Tensor],
    *,
    temperature: float = 1.0,
    weights: Weights | None = None,
    known_KC: Tensor | None = None,
) -> Tensor:
    """Pseudo-logits (N, C) whose softmax at `temperature` is the weighted mean of the teachers' softmax there.

        T * log(mean_k softmax(teacher_k / T))

    Usable wherever logits are: `kd` at the same temperature sees exactly the mean of the probabilities. Weights and
    classes that are known as in `mean_logits`; where not all teachers know all classes, that softmax is

        q_c = mean of m_k p_kc over those who know c,   m_k = sum_c q_c over the classes that k knows

    with p_k the softmax over the classes that k knows. It is what a Gibbs sampler ends in that draws a teacher by
    weight, and by that one's p_k another of the classes that it knows.
    """
    check_temperature(temperature)
    stacked_NKC = _stack(teachers_NC)
    weights_NK = _normalized(weights, stacked_NKC)
    if known_KC is None or bool(known_KC.all()):
        # A weight of 0 becomes -inf, which logsumexp leaves out.
        log_p_NKC = F.log_softmax(stacked_NKC / temperature, dim=-1) + weights_NK[..., None].log()
        return temperature * torch.logsumexp(log_p_NKC, dim=1)
    known_KC = known_KC.to(stacked_NKC.device)
    log_p_NKC = F.log_softmax((stacked_NKC.double() / temperature).masked_fill(~known_KC, -torch.inf), dim=-1)
    _, share_NKC = _counted(weights_NK, known_KC)
    given_NKC = share_NKC * log_p_NKC.exp()
    # The masses from the condition on them, q_c put into it, and from the sum of all q_c.
    one_KK = torch.eye(len(known_KC), dtype=given_NKC.dtype, device=given_NKC.device)
    system_NKK = one_KK - known_KC.double() @ given_NKC.mT
    system_NLK = torch.cat([system_NKK, given_NKC.sum(dim=2)[:, None]], dim=1)
    mass_NK = torch.linalg.pinv(system_NLK, rtol=_FREE)[..., -1].clamp(min=0.0)
    log_q_NC = torch.logsumexp(log_p_NKC + share_NKC.log() + mass_NK.log()[..., None], dim=1)
    return (temperature * log_q_NC).clamp(min=NOTHING).to(stacked_NKC.dtype)


def _counted(weights_NK: Tensor, known_KC: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K, C) what each teacher counts for each class, and which share of all of them that is; 0 where none does."""
    counts_NKC = weights_NK.double()[..., None] * known_KC
    return counts_NKC, torch.nan_to_num(counts_NKC / counts_NKC.sum(dim=1, keepdim=True))


def _stack(teachers_NC: Sequence[Tensor]) -> Tensor:
    if not teachers_NC:
        raise UsageError("found no teachers, expected at least one")
    shapes = [list(teacher.shape) for teacher in teachers_NC]
    if len(shapes[0]) != 2 or any(shape != shapes[0] for shape in shapes):
        raise UsageError(
            f"teacher logits are {shapes}, expected the same (N, C) from all; do all end in the same classes?"
        )
    return torch.stack([constant(teacher) for teacher in teachers_NC], dim=1)


def _normalized(weights: Weights | None, stacked_NKC: Tensor) -> Tensor:
    """Weights (N or 1, K) that sum to 1 in each row."""
    num_samples, num_teachers = stacked_NKC.shape[:2]
    if weights is None:
        return stacked_NKC.new_full((1, num_teachers), 1.0 / num_teachers)
    weights_NK = torch.as_tensor(weights, dtype=stacked_NKC.dtype, device=stacked_NKC.device).detach()
    if weights_NK.dim() == 1:
        weights_NK = weights_NK[None]
    if weights_NK.shape not in ((1, num_teachers), (num_samples, num_teachers)):
        raise UsageError(
            f"weights of the teachers are {list(weights_NK.shape)}, expected {num_teachers} numbers or "
            f"{[num_samples, num_teachers]}"
        )
    total_N1 = weights_NK.sum(dim=1, keepdim=True)
    # A GPU would have to wait for the answer.
    is_near = weights_NK.device.type == "cpu"
    if is_near and (bool((weights_NK < 0).any()) or not bool((total_N1 > 0).all())):
        raise UsageError("weights of the teachers must be 0 or more, with a sum above 0 for every sample")
    return weights_NK / total_N1
