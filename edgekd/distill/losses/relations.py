"""Losses on how the samples of a batch lie to each other. Embeddings (N, D); the widths of both may differ.

Teacher tensors are constants; everything is computed in float32 at least. Other tensors are flattened to (N, D).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edgekd.distill.losses.shapes import constant, in_full_precision, precise
from edgekd.errors import UsageError

# Beyond so many samples the N^3 angles are computed in pieces of so many rows.
CHUNK = 256


@in_full_precision
def rkd_distance(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Smooth L1 (beta = 1) of the pairwise distances, each divided by the mean of its positive ones; mean over N*N.

    Park, Kim, Lu and Cho, "Relational Knowledge Distillation", 2019, arXiv:1904.05068.
    """
    s_ND, t_ND = _embeddings(student_ND, teacher_ND)
    return F.smooth_l1_loss(_relative_distances(s_ND), _relative_distances(t_ND))


@in_full_precision
def rkd_angle(student_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    """Smooth L1 (beta = 1) of the cosines of the angles at j between i and k; mean over all N^3 triples.

    Beyond `CHUNK` samples in pieces, with the same result; the backward pass computes each piece again instead of
    keeping all N^3. Park et al., 2019, arXiv:1904.05068.
    """
    s_ND, t_ND = (_within_span(x_ND) for x_ND in _embeddings(student_ND, teacher_ND))
    num = len(s_ND)
    if num <= CHUNK:
        return _angle_errors(s_ND, t_ND, 0, num) / num**3
    total = s_ND.new_zeros(())
    rows = max(1, CHUNK**3 // num**2)
    for start in range(0, num, rows):
        errors = checkpoint(
            _angle_errors, s_ND, t_ND, start, start + rows, use_reentrant=False, preserve_rng_state=False
        )
        total = total + errors
    return total / num**3


def rkd(student_ND: Tensor, teacher_ND: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """distance_weight * `rkd_distance` + angle_weight * `rkd_angle`."""
    distance = rkd_distance(student_ND, teacher_ND)
    return distance_weight * distance + angle_weight * rkd_angle(student_ND, teacher_ND)


@in_full_precision
def pkt(student_ND: Tensor, teacher_ND: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Which samples are near: mean over N*N of t * log((t + eps) / (s + eps)).

    s, t: cosine similarity, (x + 1) / 2, rows divided by their sums. Passalis and Tefas, "Learning Deep
    Representations with Probabilistic Knowledge Transfer", 2018, arXiv:1803.10837.
    """
    s_ND, t_ND = _embeddings(student_ND, teacher_ND)
    s_NN, t_NN = _neighbours(s_ND), _neighbours(t_ND)
    return (t_NN * ((t_NN + eps) / (s_NN + eps)).log()).mean()


@in_full_precision
def correlation_congruence(student_ND: Tensor, teacher_ND: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """||K_s - K_t||_F / N^2 (the norm, not its square), K an RBF kernel as a Taylor series of the given order:

        K_ij = exp(-2 gamma) * sum over p = 0..order of (2 gamma)^p / p! * (e_i . e_j)^p

    Embeddings are L2-normalized by the caller: the adapter `unit` does it. Peng, Jin, Liu, Zhou, Wu, Liu, Li and
    Zhang, "Correlation Congruence for Knowledge Distillation", 2019, arXiv:1904.01802.
    """
    if order < 0 or gamma <= 0:
        raise UsageError(f"found gamma = {gamma}, order = {order}; expected gamma above 0 and a whole order from 0")
    s_ND, t_ND = _embeddings(student_ND, teacher_ND)
    difference_NN = _taylor(s_ND, gamma, order) - _taylor(t_ND, gamma, order)
    # At equality the norm has a corner; 0 is one of its slopes there.
    squared = difference_NN.square().sum()
    norm = torch.where(squared > 0, squared, squared.new_ones(())).sqrt()
    return torch.where(squared > 0, norm, squared) / len(s_ND) ** 2


def _embeddings(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise UsageError(
            f"found {list(student.shape)} of the student and {list(teacher.shape)} of the teacher; expected "
            "embeddings (N, D) of the same samples"
        )
    return precise(student).flatten(1), constant(teacher).flatten(1)


def _within_span(x_ND: Tensor) -> Tensor:
    """The same points turned into the N axes that they span, where D is more: N^2 * N numbers in place of N^2 * D.

    Angles do not see rotations, and their gradient lies in the span, so the axes are constants.
    """
    if x_ND.shape[1] <= len(x_ND):
        return x_ND
    axes_DN: Tensor = torch.linalg.qr(x_ND.detach().T).Q
    return x_ND @ axes_DN


def _relative_distances(x_ND: Tensor) -> Tensor:
    """Euclidean distances (N, N), zero diagonal, divided by the mean of the positive ones."""
    # About their mean, which moves no distance: the products then lose least of the differences.
    x_ND = x_ND - x_ND.mean(dim=0)
    square_N = x_ND.square().sum(dim=1)
    squared_NN = (square_N[:, None] + square_N[None, :] - 2.0 * x_ND @ x_ND.T).clamp(min=0.0)
    off = ~torch.eye(len(x_ND), dtype=torch.bool, device=x_ND.device)
    positive_NN = off & (squared_NN > 0)
    # The square root has an infinite slope at 0: it is not taken there.
    distances_NN = torch.where(positive_NN, squared_NN, squared_NN.new_ones(())).sqrt() * positive_NN
    mean = distances_NN.sum() / positive_NN.sum().clamp(min=1)
    return distances_NN / mean.clamp(min=torch.finfo(mean.dtype).tiny)


def _angle_errors(s_ND: Tensor, t_ND: Tensor, start: int, stop: int) -> Tensor:
    corners = slice(start, stop)
    return F.smooth_l1_loss(_angles(s_ND, corners), _angles(t_ND, corners), reduction="sum")


def _angles(x_ND: Tensor, corners: slice) -> Tensor:
    """Cosines (J, N, N) between x_i - x_j and x_k - x_j for the corners j."""
    difference_JND = x_ND[None, :, :] - x_ND[corners, None, :]
    unit_JND = F.normalize(difference_JND, dim=2)
    return torch.bmm(unit_JND, unit_JND.transpose(1, 2))


def _neighbours(x_ND: Tensor) -> Tensor:
    unit_ND = F.normalize(x_ND, dim=1)
    similar_NN = (unit_ND @ unit_ND.T + 1.0) / 2.0
    return similar_NN / similar_NN.sum(dim=1, keepdim=True)


def _taylor(x_ND: Tensor, gamma: float, order: int) -> Tensor:
    product_NN = x_ND @ x_ND.T
    series = [(2.0 * gamma) ** p / math.factorial(p) * product_NN.pow(p) for p in range(order + 1)]
    return math.exp(-2.0 * gamma) * torch.stack(series).sum(dim=0)


@in_full_precision
def contrastive(student_scores_NK: Tensor, teacher_scores_NK: Tensor, *, num_samples: int, eps: float = 1e-7) -> Tensor:
    """CRD: noise contrastive estimation of which place of the memory belongs to the sample, summed over both sides.

        -(1/N) sum_n [log(P_n0 / (P_n0 + m/M + eps)) + sum over k = 1..m of log((m/M) / (P_nk + m/M + eps))]

    P are scores (N, 1 + m), the right place first, m negatives out of M samples. They come from the adapter
    `contrastive_memory`, whose projection of the teacher learns as well. Tian et al., 2019, arXiv:1910.10699.
    """
    if student_scores_NK.dim() != 2 or student_scores_NK.shape != teacher_scores_NK.shape or num_samples < 1:
        raise UsageError(
            f"found scores {list(student_scores_NK.shape)} of the student and {list(teacher_scores_NK.shape)} of the "
            f"teacher among {num_samples} samples; expected both (N, 1 + negatives), as 'contrastive_memory' gives them"
        )
    return _estimation(precise(student_scores_NK), num_samples, eps) + _estimation(
        precise(teacher_scores_NK), num_samples, eps
    )


def _estimation(scores_NK: Tensor, num_samples: int, eps: float) -> Tensor:
    noise = (scores_NK.shape[1] - 1) / num_samples
    right_N, wrong_NM = scores_NK[:, 0], scores_NK[:, 1:]
    found = (right_N / (right_N + noise + eps)).log().sum()
    rejected = (noise / (wrong_NM + noise + eps)).log().sum()
    return -(found + rejected) / len(scores_NK)
