"""Several teachers as one. Shape suffixes: N batch, C classes, K teachers. The results are constants: no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.losses.shapes import check_temperature, constant
from edgekd.errors import UsageError

Weights = Sequence[float] | Tensor


def mean_logits(teachers_NC: Sequence[Tensor], *, weights: Weights | None = None) -> Tensor:
    """Weighted mean (N, C) of the logits of K teachers.

    weights   None: even; K numbers; or a tensor (N, K) with a weight per sample (each teacher for its own domain).
              They are divided by their sum. Raises `UsageError` for a negative weight or a sum of 0.
    """
    stacked_NKC = _stack(teachers_NC)
    weights_NK1 = _normalized(weights, stacked_NKC)[..., None]
    return (stacked_NKC * weights_NK1).sum(dim=1)


def mean_probabilities(
    teachers_NC: Sequence[Tensor], *, temperature: float = 1.0, weights: Weights | None = None
) -> Tensor:
    """Pseudo-logits (N, C) whose softmax at `temperature` is the weighted mean of the teachers' softmax there.

        T * log(mean_k softmax(teacher_k / T))

    Usable wherever logits are: `kd` at the same temperature sees exactly the mean of the probabilities. Weights as in
    `mean_logits`.
    """
    check_temperature(temperature)
    stacked_NKC = _stack(teachers_NC)
    weights_NK1 = _normalized(weights, stacked_NKC)[..., None]
    # A weight of 0 becomes -inf, which logsumexp leaves out.
    log_p_NKC = F.log_softmax(stacked_NKC / temperature, dim=-1) + weights_NK1.log()
    return temperature * torch.logsumexp(log_p_NKC, dim=1)


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
