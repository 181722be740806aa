"""Losses on what happens inside: feature maps (N, K, H, W) of student and teacher.

Shape suffixes: N batch, K channels, H W space. Teacher tensors are constants, and everything is computed in float32 at
least. Where two maps differ in size the larger one is adaptive-average-pooled to the smaller; where they differ in
channels and the loss compares channel by channel, an adapter stands between (edgekd.distill.adapters).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distill.losses.shapes import check_temperature, constant, in_full_precision, precise
from edgekd.errors import ModelError, UsageError

# Of the authors of "Knowledge Transfer via Distillation of Activation Boundaries".
_BOUNDARY_SCALE = 3.0 / 1000.0


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all elements of (student - teacher)^2; any shape, sizes of maps are brought together.

    Romero, Ballas, Kahou, Chassang, Gatta and Bengio, "FitNets: Hints for Thin Deep Nets", 2014, arXiv:1412.6550. The
    regressor is an adapter, not part of the loss.
    """
    s, t = _aligned(student, teacher)
    return (s - t).square().mean()


def attention_transfer(student_NKHW: Tensor, teacher_NKHW: Tensor, *, power: float = 2.0) -> Tensor:
    """Where both look: mean over N*H*W of (A_s - A_t)^2,  A = flatten(mean_k |f|^p) / its L2 norm per sample.

    Channels may differ. Zagoruyko and Komodakis, "Paying More Attention to Attention", 2016, arXiv:1612.03928.
    """
    s, t = _maps(student_NKHW, teacher_NKHW)
    return (_attention(s, power) - _attention(t, power)).square().mean()


@in_full_precision
def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Which samples resemble each other: (1/N^2) ||rownorm(F_t F_t^T) - rownorm(F_s F_s^T)||_F^2.

    F is (N, everything else), rows are divided by their L2 norm. Compares samples: needs no equal shapes.
    Tung and Mori, "Similarity-Preserving Knowledge Distillation", 2019, arXiv:1907.09682.
    """
    _check_batch(student, teacher)
    s_NN, t_NN = _gram(precise(student)), _gram(constant(teacher))
    return (t_NN - s_NN).square().sum() / len(s_NN) ** 2


@in_full_precision
def neuron_selectivity(student_NKHW: Tensor, teacher_NKHW: Tensor) -> Tensor:
    """Maximum mean discrepancy between the sets of channel maps, kernel (a.b)^2, maps L2-normalized over space.

        mean k(t, t) + mean k(s, s) - 2 mean k(s, t)

    Means over samples and pairs of channels; channels may differ. Huang and Wang, "Like What You Like: Knowledge
    Distill via Neuron Selectivity Transfer", 2017, arXiv:1707.01219 (polynomial kernel, d = 2, c = 0).
    """
    s, t = _maps(student_NKHW, teacher_NKHW)
    s, t = _unit(s.flatten(2)), _unit(t.flatten(2))
    return _kernel(t, t) + _kernel(s, s) - 2.0 * _kernel(s, t)


def hierarchical_context(student_NKHW: Tensor | list[Tensor], teacher_NKHW: Tensor | list[Tensor]) -> Tensor:
    """ReviewKD's HCL: the mean squared error of the maps and of both pooled to 4x4, 2x2 and 1x1.

        (MSE + 1/2 MSE(pool) + 1/4 MSE(pool) + 1/8 MSE(pool)) / sum of the weights used

    Levels not smaller than the map's height are skipped and use up no weight. Several maps (lists): the sum over them.
    Chen, Liu, Zhao and Jia, "Distilling Knowledge via Knowledge Review", 2021, arXiv:2104.09044.
    """
    if isinstance(student_NKHW, list):  # several levels, as the adapter `review` gives them
        if not isinstance(teacher_NKHW, list) or len(student_NKHW) != len(teacher_NKHW):
            raise UsageError("hierarchical_context got lists of different length; tap as many maps on both sides")
        return torch.stack([hierarchical_context(s, t) for s, t in zip(student_NKHW, teacher_NKHW)]).sum()
    if isinstance(teacher_NKHW, list):
        raise UsageError("hierarchical_context got several maps of the teacher and one of the student; tap as many")
    s, t = _aligned(student_NKHW, teacher_NKHW)
    loss, total, weight = (s - t).square().mean(), 1.0, 1.0
    for level in (4, 2, 1):
        if level >= s.shape[2]:
            continue
        weight /= 2.0
        pooled = F.adaptive_avg_pool2d(s, level) - F.adaptive_avg_pool2d(t, level)
        loss = loss + weight * pooled.square().mean()
        total += weight
    return loss / total


@in_full_precision
def fsp(student_pair: Sequence[Tensor], teacher_pair: Sequence[Tensor]) -> Tensor:
    """The flow between two layers: mean squared error of the matrices G = mean_hw(bottom_k * top_k') (N, K, K').

    Each side taps two maps [bottom, top]; the larger is pooled to the smaller.
    Yim, Joo, Bae and Kim, "A Gift from Knowledge Distillation", CVPR 2017.
    """
    s = _flow([precise(value) for value in student_pair])
    t = _flow([constant(value) for value in teacher_pair])
    if s.shape != t.shape:
        raise UsageError(
            f"fsp compares matrices of {list(s.shape[1:])} and {list(t.shape[1:])} channels; expected taps of equal "
            'widths on both sides, or adapter = "auto", which brings each map of the student to the teacher\'s width'
        )
    return (s - t).square().mean()


def factor_transfer(
    student_NKHW: Tensor,
    teacher_NKHW: Tensor,
    *,
    p1: float = 2.0,
    p2: float = 1.0,
    reconstruction: Tensor | None = None,
) -> Tensor:
    """mean |A_s - A_t|^p2 of the normalized maps A = flatten(mean_k f^p1) / its L2 norm.

    The factors come from the adapter `factor` (paraphraser and translator), with the paraphraser's own
    `reconstruction` error, which is added and teaches the student nothing. Kim, Park and Kwak, "Paraphrasing Complex
    Network: Network Compression via Factor Transfer", 2018, arXiv:1802.04977.
    """
    if p1 < 1 or p1 != int(p1) or p2 < 1:  # factors may be negative, and slopes at 0 must be finite
        raise UsageError(f"found p1 = {p1}, p2 = {p2}; expected p1 = 1, 2, 3, ... and p2 a number from 1")
    s, t = _maps(student_NKHW, teacher_NKHW)
    s, t = _unit(s.pow(p1).mean(dim=1).flatten(1)), _unit(t.pow(p1).mean(dim=1).flatten(1))
    difference = (s - t).abs()
    loss = (difference if p2 == 1.0 else difference.pow(p2)).mean()
    return loss if reconstruction is None else loss + reconstruction


def activation_boundary(student_NKHW: Tensor, teacher_NKHW: Tensor, *, margin: float = 1.0) -> Tensor:
    """On which side of zero each neuron is, before its ReLU: (1/N) times the sum of

        (s + m)^2 where s > -m and t <= 0,     (s - m)^2 where s <= m and t > 0,     times 3/1000

    Heo, Lee, Yun and Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    2018, arXiv:1811.03233.
    """
    s, t = _aligned(student_NKHW, teacher_NKHW)
    off = (s + margin).square() * ((s > -margin) & (t <= 0))
    on = (s - margin).square() * ((s <= margin) & (t > 0))
    return _BOUNDARY_SCALE * (off + on).sum() / len(s)


def overhaul_partial_l2(student_NKHW: Tensor, teacher_NKHW: Tensor, *, margin: Tensor) -> Tensor:
    """OFD's partial L2 before the ReLU: (1/N) times the sum of

        (s - m)^2 where s > m and t <= m,     (s - t)^2 where s > t and m < t <= 0,     (s - t)^2 where t > 0

    margin  (K,) or (1, K, 1, 1), negative, from `overhaul_margin`: the adapter `overhaul` adds it.
    Heo, Kim, Yun, Park, Kwak and Choi, "A Comprehensive Overhaul of Feature Distillation", 2019, arXiv:1904.01866.
    """
    s, t = _aligned(student_NKHW, teacher_NKHW)
    m = constant(margin).reshape(1, -1, *([1] * (s.dim() - 2)))
    below = (s - m).square() * ((s > m) & (t <= m))
    between = (s - t).square() * ((s > t) & (t > m) & (t <= 0))
    above = (s - t).square() * (t > 0)
    return (below + between + above).sum() / len(s)


def overhaul_margin(norm: nn.BatchNorm2d) -> Tensor:
    """E[x | x < 0] (K,) of x ~ N(bias, |weight|), what a batch norm gives: OFD's margin of its channels.

        bias - |w| phi(bias/|w|) / Phi(-bias/|w|),   -3 |w| where Phi(-bias/|w|) <= 0.001

    Raises `ModelError` for a batch norm without weight and bias.
    """
    if norm.weight is None or norm.bias is None:
        raise ModelError("the batch norm has no weight and bias (affine=False): its margin is not known")
    mean, std = norm.bias.detach().double(), norm.weight.detach().double().abs()
    ratio = mean / std
    below = 0.5 * torch.erfc(ratio / math.sqrt(2.0))
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2.0 * math.pi)
    margin = torch.where(below > 1e-3, mean - std * density / below.clamp(min=1e-3), -3.0 * std)
    return margin.to(norm.weight.dtype)


def variational_information(student_mu: Tensor, teacher: Tensor, *, rho: Tensor, eps: float = 1e-5) -> Tensor:
    """VID: how well the student predicts the teacher: mean of 0.5 * ((mu - t)^2 / var + log var).

    var = softplus(rho) + eps per channel, rho (K,). mu and rho are given by the adapter `vid`, which learns them.
    Ahn, Hu, Damianou, Lawrence and Dai, "Variational Information Distillation for Knowledge Transfer", 2019,
    arXiv:1904.05835.
    """
    s, t = _aligned(student_mu, teacher)
    variance = (F.softplus(precise(rho)) + eps).reshape(1, -1, *([1] * (s.dim() - 2)))
    return 0.5 * ((s - t).square() / variance + variance.log()).mean()


def channel_wise(student_NKHW: Tensor, teacher_NKHW: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Where each channel looks: T^2 / (N K) * sum over channels of KL(softmax_hw(t/T) || softmax_hw(s/T)).

    Shu, Liu, Gao, Yan and Shen, "Channel-wise Knowledge Distillation for Dense Prediction", 2020, arXiv:2011.13256.
    """
    check_temperature(temperature)
    s, t = _aligned_maps(student_NKHW, teacher_NKHW)
    log_q = F.log_softmax(s.flatten(2) / temperature, dim=2)
    log_p = F.log_softmax(t.flatten(2) / temperature, dim=2)
    divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return temperature**2 * divergence / (s.shape[0] * s.shape[1])


def pearson_features(student_NKHW: Tensor, teacher_NKHW: Tensor) -> Tensor:
    """MSE/2 of maps standardized per channel over N, H, W (unbiased std + 1e-6): 1 - Pearson's correlation.

    Cao, Zhang, Gao, Cheng, Chang and Zhao, "PKD: General Distillation Framework for Object Detectors via Pearson
    Correlation Coefficient", 2022, arXiv:2207.02039.
    """
    s, t = _aligned(student_NKHW, teacher_NKHW)
    return 0.5 * (_standardized(s) - _standardized(t)).square().mean()


@in_full_precision
def channel_correlation(student_NKHW: Tensor, teacher_NKHW: Tensor) -> Tensor:
    """ICKD: how channels go together: sum of (rownorm(F_s F_s^T) - rownorm(F_t F_t^T))^2 / (K * N^2).

    F is (K, H*W) of one sample: per-sample channel Grams.
    Liu, Huang, Lin, Xue, Wang, Xu and Liang, "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge
    Distillation", ICCV 2021.
    """
    s, t = (x.flatten(2) for x in _aligned_maps(student_NKHW, teacher_NKHW))
    difference = _unit(s @ s.transpose(1, 2)) - _unit(t @ t.transpose(1, 2))
    return difference.square().sum() / (s.shape[1] * s.shape[0] ** 2)


def _maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps, precise, the teacher constant, the larger one pooled to the smaller. Raises `UsageError`."""
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
        raise UsageError(
            f"found {list(student.shape)} of the student and {list(teacher.shape)} of the teacher; expected feature "
            "maps (N, K, H, W) of the same samples: tap convolutions, not what comes after pooling"
        )
    return _same_size(precise(student), constant(teacher))


def _aligned_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """As `_aligned`, for maps alone."""
    return _aligned(*_maps(student, teacher))


def _aligned(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """As `_maps`, for tensors of any rank, which must have the same shape then. Raises `UsageError`."""
    s, t = precise(student), constant(teacher)
    if s.dim() == t.dim() == 4:
        s, t = _same_size(s, t)
    if s.shape != t.shape:
        raise UsageError(
            f"found {list(student.shape)} of the student and {list(teacher.shape)} of the teacher, which this loss "
            "compares element by element; add an adapter that brings the student to the teacher's width"
        )
    return s, t


def _check_batch(student: Tensor, teacher: Tensor) -> None:
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise UsageError(
            f"found {list(student.shape)} of the student and {list(teacher.shape)} of the teacher; expected the same "
            "samples (N, ...)"
        )


def _unit(x: Tensor) -> Tensor:
    """Divided by the L2 norm of the last axis; zeros stay zeros, with zero gradient."""
    return F.normalize(x, dim=-1)


def _attention(x_NKHW: Tensor, power: float) -> Tensor:
    magnitude = x_NKHW.square() if power == 2.0 else x_NKHW.abs().pow(power)
    return _unit(magnitude.mean(dim=1).flatten(1))


def _gram(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return _unit(flat @ flat.T)


def _kernel(a_NKM: Tensor, b_NLM: Tensor) -> Tensor:
    return torch.bmm(a_NKM, b_NLM.transpose(1, 2)).square().mean()


def _flow(pair: Sequence[Tensor]) -> Tensor:
    if len(pair) != 2 or any(value.dim() != 4 or len(value) != len(pair[0]) for value in pair):
        found = [list(value.shape) for value in pair]
        raise UsageError(f"fsp looks at the flow between two maps, found {found}; tap [bottom, top] on both sides")
    bottom, top = _same_size(*pair)
    return torch.einsum("nkhw,nlhw->nkl", bottom, top) / (top.shape[2] * top.shape[3])


def _same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    a, b = (x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))
    return a, b


def _standardized(x_NKHW: Tensor) -> Tensor:
    axes = [0, *range(2, x_NKHW.dim())]
    mean = x_NKHW.mean(dim=axes, keepdim=True)
    # One value per channel (a last batch of one sample) has no unbiased deviation: it counts as 0, not as NaN.
    several = x_NKHW.numel() > x_NKHW.shape[1]
    return (x_NKHW - mean) / (x_NKHW.std(dim=axes, keepdim=True, correction=int(several)) + 1e-6)
