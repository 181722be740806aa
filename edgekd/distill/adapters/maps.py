"""Adapters of feature maps (K, H, W): what FitNets, OFD, AB, VID, factor transfer and ReviewKD put beside a student."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distill.adapters.widths import Shape, Widths
from edgekd.distill.losses.features import overhaul_margin
from edgekd.distill.losses.shapes import precise
from edgekd.errors import UsageError

Batch = Mapping[str, Tensor]
Given = tuple[Any, Any, dict[str, Any]]


def regressor(
    student_shape: Shape,
    teacher_shape: Shape,
    *,
    student_module: nn.Module | None = None,
    teacher_module: nn.Module | None = None,
    num_samples: int | None = None,
) -> nn.Module:
    """FitNets' regressor: 1x1 convolution, batch norm, ReLU, from the student's channels to the teacher's.

    Romero et al., 2014, arXiv:1412.6550.
    """
    before, after = _channels(student_shape, teacher_shape)
    return Widths(nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()))


def connector(
    student_shape: Shape,
    teacher_shape: Shape,
    *,
    student_module: nn.Module | None = None,
    teacher_module: nn.Module | None = None,
    num_samples: int | None = None,
) -> nn.Module:
    """1x1 convolution and batch norm, for losses on values before the ReLU (activation boundaries).

    Heo et al., 2018, arXiv:1811.03233.
    """
    return Widths(_connector(*_channels(student_shape, teacher_shape)))


class Overhaul(nn.Module):
    """The student through a connector; the teacher as it is; the margins of the teacher's channels."""

    margin: Tensor

    def __init__(self, layer: nn.Module, margin_K: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("margin", margin_K)

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Given:
        """(student, teacher, {"margin": (K,)})."""
        return self.layer(student), teacher, {"margin": self.margin}


def overhaul(
    student_shape: Shape,
    teacher_shape: Shape,
    *,
    student_module: nn.Module | None = None,
    teacher_module: nn.Module | None = None,
    num_samples: int | None = None,
) -> nn.Module:
    """OFD's connector. The teacher's tap must be a batch norm, whose weights give the margins: before its ReLU.

    Heo et al., 2019, arXiv:1904.01866.
    """
    if not isinstance(teacher_module, nn.BatchNorm2d):
        kind = "nothing" if teacher_module is None else f"a {type(teacher_module).__name__}"
        raise UsageError(
            f"the adapter 'overhaul' found {kind} at the teacher's tap, expected a BatchNorm2d (the one before the "
            "ReLU): `edgekd taps` lists them"
        )
    return Overhaul(_connector(*_channels(student_shape, teacher_shape)), overhaul_margin(teacher_module))


class Vid(nn.Module):
    """Predicts the teacher's map: its mean by a small network, its variance one number per channel."""

    def __init__(self, before: int, after: int, *, init_variance: float, eps: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(before, after, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(after, after, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(after, after, 1, bias=False),
        )
        # softplus(rho) + eps is the variance.
        self.rho = nn.Parameter(torch.full((after,), math.log(math.expm1(init_variance - eps))))

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Given:
        """(mu, teacher, {"rho": (K,)})."""
        return self.mean(student), teacher, {"rho": self.rho}


def vid(
    student_shape: Shape,
    teacher_shape: Shape,
    *,
    student_module: nn.Module | None = None,
    teacher_module: nn.Module | None = None,
    num_samples: int | None = None,
    init_variance: float = 5.0,
) -> nn.Module:
    """The variational predictor of `variational_information`. Ahn et al., 2019, arXiv:1904.05835."""
    if init_variance <= 1e-5:
        raise UsageError(f"found init_variance = {init_variance}, expected a number above 1e-5")
    return Vid(*_channels(student_shape, teacher_shape), init_variance=init_variance, eps=1e-5)


class Factor(nn.Module):
    """Paraphraser of the teacher and translator of the student, to factors of the same width.

    The paraphraser is trained beside the student to reconstruct the teacher's map: its error is part of no gradient
    of the student.
    """

    def __init__(self, before: int, teacher: int, factors: int) -> None:
        super().__init__()
        self.translator = _factors(before, factors)
        self.paraphraser = _factors(teacher, factors)
        self.decoder = _factors(factors, teacher)

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Given:
        """(factors of the student, factors of the teacher, {"reconstruction": how far the decoder is off})."""
        factors = self.paraphraser(teacher)
        off = (precise(self.decoder(factors)) - precise(teacher)).square().mean()
        return self.translator(student), factors, {"reconstruction": off}


def factor(
    student_shape: Shape,
    teacher_shape: Shape,
    *,
    student_module: nn.Module | None = None,
    teacher_module: nn.Module | None = None,
    num_samples: int | None = None,
    rate: float = 0.5,
) -> nn.Module:
    """Factors of `rate` times the teacher's channels. Kim, Park and Kwak, 2018, arXiv:1802.04977.

    (There the paraphraser is trained before; here at the same time.)
    """
    if not 0.0 < rate <= 4.0:
        raise UsageError(f"found rate = {rate}, expected a part of the teacher's channels above 0")
    before, after = _channels(student_shape, teacher_shape)
    return Factor(before, after, max(1, round(rate * after)))


class Review(nn.Module):
    """ReviewKD's attention based fusion: deeper maps of the student flow back into shallower ones.

    Maps come from shallow to deep. From the deepest on: 1x1 convolution to `width`, fused with what came from below
    (brought to its size) by two learned attention maps, 3x3 convolution to the teacher's channels.
    """

    def __init__(self, before: Sequence[int], after: Sequence[int], width: int) -> None:
        super().__init__()
        self.enter = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)) for channels in before
        )
        self.attend = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in before[1:])
        self.leave = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
            for channels in after
        )

    def forward(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Given:
        """(fused maps of the student, the teacher's, nothing more)."""
        fused: list[Tensor] = []
        below: Tensor | None = None
        for level in reversed(range(len(student))):
            x = self.enter[level](student[level])
            if below is not None:
                below = F.interpolate(below, x.shape[2:], mode="nearest")
                weights = self.attend[level](torch.cat([x, below], dim=1)).sigmoid()
                x = x * weights[:, :1] + below * weights[:, 1:]
            below = x
            # The teacher's size, before the 3x3 convolution looks around.
            sized = x if x.shape[2:] == teacher[level].shape[2:] else F.interpolate(x, teacher[level].shape[2:])
            fused.append(self.leave[level](sized))
        return fused[::-1], teacher, {}


def review(
    student_shape: Sequence[Shape],
    teacher_shape: Sequence[Shape],
    *,
    student_module: object = None,
    teacher_module: object = None,
    num_samples: int | None = None,
    width: int = 64,
) -> nn.Module:
    """The fusion for `hierarchical_context`: taps are lists of as many maps on both sides, from shallow to deep.

    Chen et al., 2021, arXiv:2104.09044.
    """
    several = [bool(shape) and not isinstance(shape[0], int) for shape in (student_shape, teacher_shape)]
    if not all(several) or len(student_shape) != len(teacher_shape):
        raise UsageError(
            "the adapter 'review' takes as many maps of the student as of the teacher, from shallow to deep; give "
            'lists: student_tap = ["0", "1"], teacher_tap = ["layer1", "layer2"]'
        )
    pairs = [_channels(s, t) for s, t in zip(student_shape, teacher_shape)]
    return Review([before for before, _ in pairs], [after for _, after in pairs], width)


def _channels(student_shape: Shape, teacher_shape: Shape) -> tuple[int, int]:
    if len(student_shape) != 3 or len(teacher_shape) != 3:
        raise UsageError(
            f"found {list(student_shape)} of the student and {list(teacher_shape)} of the teacher, expected feature "
            "maps (K, H, W): tap convolutions"
        )
    return student_shape[0], teacher_shape[0]


def _connector(before: int, after: int) -> nn.Module:
    convolution = nn.Conv2d(before, after, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


def _factors(before: int, after: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inner, outer in ((before, before), (before, after), (after, after)):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)
