"""Mixup and cutmix: every sample is blended with a partner, and so are their labels.

    x = ratio * own + (1 - ratio) * partner's          mixup: of each value
                                                       cutmix: a box of the image is the partner's
    y = ratio * own + (1 - ratio) * partner's          classes become shares (N, C)

Partner, ratio and box are a pure function of (seed, view, sample), whatever the batch: a teacher's answer to a mixed
sample may be kept like any other. The ratio is drawn from Beta(alpha, alpha).

Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2017, arXiv:1710.09412.
Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019,
arXiv:1905.04899.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.randomness import Words, key, normals, uniforms, words
from edgekd.errors import UsageError

# Rounds of rejection: each accepts more than 95 % of its draws, so that one in 10^10 is taken unexamined.
_ROUNDS = 8


@dataclass(frozen=True)
class Mixing:
    """`mixup` and `cutmix` are the alphas of their ratios, 0 is off; with both, half of the samples get each.

    num_classes  for whole numbers as labels; None leaves labels and targets that are numbers already

    Raises `UsageError` for a negative alpha.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    num_classes: int | None = None

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not (math.isfinite(alpha) and alpha >= 0):
                raise UsageError(f"found {name} = {alpha}, expected a number from 0 (off), such as 0.2 or 1.0")

    @property
    def is_on(self) -> bool:
        """Whether samples are mixed at all."""
        return self.mixup > 0 or self.cutmix > 0


def partners(ids_N: NDArray[np.int64], *, seed: int, view: int) -> NDArray[np.intp]:
    """(N,) for each position of a split its partner's: a permutation of them, another one in every view."""
    return np.argsort(words(key(seed, view, 4, 0), ids_N), kind="stable")


def mix(
    own: dict[str, Tensor], partner: dict[str, Tensor], mixing: Mixing, *, seed: int, view: int, axes: tuple[int, int]
) -> dict[str, Tensor]:
    """The batch `own` blended with the samples `partner`; "partner" (their ids) and "ratio" (own share) come with it.

    axes  those of height and width, for cutmix
    """
    ids_N = own["id"].numpy()

    def draw(stream: int) -> Words:
        return words(key(seed, view, 4, stream), ids_N)

    x, other = own["x"], partner["x"]
    ratio_N = np.ones(len(ids_N))
    cuts_N = np.full(len(ids_N), mixing.cutmix > 0)
    if mixing.mixup and mixing.cutmix:
        cuts_N = uniforms(draw(1), 1)[:, 0] < 0.5
    if mixing.mixup:
        blends_N = beta(draw(2), draw(3), mixing.mixup)
        ratio_N = np.where(cuts_N, ratio_N, blends_N)
    share = torch.from_numpy(ratio_N.astype(np.float32)).reshape(-1, *(1,) * (x.dim() - 1))
    x = torch.lerp(other, x, share) if mixing.mixup else x
    if mixing.cutmix:
        box, kept_N = boxes(beta(draw(5), draw(6), mixing.cutmix), draw(7), x.shape[axes[0]], x.shape[axes[1]])
        box &= cuts_N[:, None, None]
        shape = [len(ids_N), *(1,) * (x.dim() - 1)]
        shape[axes[0]], shape[axes[1]] = box.shape[1:]
        x = torch.where(torch.from_numpy(box).reshape(shape), other, x)
        ratio_N = np.where(cuts_N, kept_N, ratio_N)
    ratio = torch.from_numpy(ratio_N.astype(np.float32))
    y, other_y = own["y"], partner["y"]
    if mixing.num_classes is not None:
        y, other_y = F.one_hot(y, mixing.num_classes).float(), F.one_hot(other_y, mixing.num_classes).float()
    y = torch.lerp(other_y, y, ratio.reshape(-1, *(1,) * (y.dim() - 1)))
    return {**own, "x": x, "y": y, "partner": partner["id"], "ratio": ratio}


def beta(first_N: Words, second_N: Words, alpha: float) -> NDArray[np.float64]:
    """(N,) draws from Beta(alpha, alpha), each from its own two words: g1 / (g1 + g2) of two Gamma(alpha) draws."""
    difference_N = _log_gamma(second_N, alpha) - _log_gamma(first_N, alpha)
    return 1.0 / (1.0 + np.exp(np.minimum(difference_N, 700.0)))


def boxes(
    ratio_N: NDArray[np.float64], words_N: Words, height: int, width: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """(N, H, W) where the partner shows, and (N,) the share that is left of the own image.

    The box has the image's proportions and 1 - ratio of its area, around a centre that is anywhere in it; what
    reaches beyond the edge is cut off.
    """
    side_N = np.sqrt(1.0 - ratio_N)
    centre = uniforms(words_N, 2)
    spans = []
    for axis, size in enumerate((height, width)):
        middle_N, half_N = np.floor(centre[:, axis] * size), np.floor(side_N * size) / 2.0
        low_N, high_N = np.floor(middle_N - half_N), np.floor(middle_N + half_N)
        place = np.arange(size)
        spans.append((place >= low_N[:, None]) & (place < high_N[:, None]))
    box = spans[0][:, :, None] & spans[1][:, None, :]
    return box, 1.0 - box.mean(axis=(1, 2))


def _log_gamma(words_N: Words, alpha: float) -> NDArray[np.float64]:
    """Logarithms of draws from Gamma(alpha).

    Marsaglia and Tsang, "A simple method for generating gamma variables", 2000, for alpha + 1, times u^(1 / alpha).
    As logarithms, because for a small alpha the draws themselves are too small for a float.
    """
    d = alpha + 2.0 / 3.0
    x = normals(words_N, _ROUNDS).astype(np.float64)
    u = uniforms(~words_N, _ROUNDS + 1) + 2.0**-54
    v = np.maximum(1.0 + x / math.sqrt(9.0 * d), 1e-9) ** 3
    accepted = np.log(u[:, :-1]) < 0.5 * x * x + d * (1.0 - v + np.log(v))
    chosen = np.take_along_axis(v, accepted.argmax(axis=1)[:, None], axis=1)[:, 0]
    result: NDArray[np.float64] = np.log(d * chosen) + np.log(u[:, -1]) / alpha
    return result
