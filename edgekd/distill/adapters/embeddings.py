"""Adapters of embeddings: projections, unit length, several layers into one, and CRD's memories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distill.adapters.widths import Each, Shape, Widths, bridge
from edgekd.errors import UsageError

Batch = Mapping[str, Tensor]
Given = tuple[Any, Any, dict[str, Any]]
MEMORY_BYTES = 4 << 30


def linear(
    student_shape: Any,
    teacher_shape: Any,
    *,
    student_module: object = None,
    teacher_module: object = None,
    num_samples: int | None = None,
    shared: bool = False,
) -> nn.Module:
    """A linear layer on the last axis, with bias, from the student's width to the teacher's: TinyBERT's projection.

    Lists of layers get one each, or, `shared`, one for all. Jiao et al., 2019, arXiv:1909.10351.
    """
    if student_shape and isinstance(student_shape[0], int):
        return Widths(nn.Linear(student_shape[-1], teacher_shape[-1]))
    if len(student_shape) != len(teacher_shape):
        raise UsageError(f"found {len(student_shape)} and {len(teacher_shape)} layers; tap as many on both sides")
    first = nn.Linear(student_shape[0][-1], teacher_shape[0][-1])
    return Each([first if shared else nn.Linear(s[-1], t[-1]) for s, t in zip(student_shape, teacher_shape)])


class Unit(nn.Module):
    """Both divided by their L2 norms per sample."""

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Given:
        """(unit student, unit teacher, nothing more)."""
        return F.normalize(student.flatten(1), dim=1), F.normalize(teacher.flatten(1), dim=1), {}


def unit(
    student_shape: Shape,
    teacher_shape: Shape,
    *,
    student_module: object = None,
    teacher_module: object = None,
    num_samples: int | None = None,
) -> nn.Module:
    """L2 normalization, for `correlation_congruence`. No weights."""
    return Unit()


class Combine(nn.Module):
    """Several of the teacher's layers into the one that the student learns from: mean, or learned softmax weights."""

    def __init__(self, project: nn.Module, layers: int, *, learned: bool) -> None:
        super().__init__()
        self.project = project
        self.weights = nn.Parameter(torch.zeros(layers)) if learned else None

    def forward(self, student: Tensor, teacher: list[Tensor], batch: Batch) -> Given:
        """(student in the teacher's width, the combined teacher, nothing more)."""
        stacked = torch.stack(teacher)
        own = self.project(student)
        if self.weights is None:
            return own, stacked.mean(dim=0), {}
        mixed = torch.tensordot(self.weights.softmax(dim=0).to(stacked.dtype), stacked, dims=1)
        if own.shape != mixed.shape:
            raise UsageError(
                f"learned weights need equal shapes, found {list(own.shape)} of the student and {list(mixed.shape)} of "
                "the teacher; take weights = 'mean', or taps of one size"
            )
        # Losses hold the teacher constant. With the weights on the student's side, value and gradient are the same
        # for every loss of the difference.
        return own - (mixed - mixed.detach()), mixed.detach(), {}


def combine(
    student_shape: Shape,
    teacher_shape: Sequence[Shape],
    *,
    student_module: object = None,
    teacher_module: object = None,
    num_samples: int | None = None,
    weights: Literal["mean", "learned"] = "mean",
) -> nn.Module:
    """One layer of the student learns from several of the teacher, all of one shape. Other widths: as `auto`.

    Learned weights are for losses of the difference (hint, hidden_mse), and may settle on the layer that is easiest
    to imitate.
    """
    if (
        not teacher_shape
        or isinstance(teacher_shape[0], int)
        or (student_shape and not isinstance(student_shape[0], int))
    ):
        raise UsageError("the adapter 'combine' takes one tap of the student and a list of the teacher's")
    if any(tuple(shape) != tuple(teacher_shape[0]) for shape in teacher_shape):
        raise UsageError(f"found {[list(shape) for shape in teacher_shape]} of the teacher, expected one shape")
    if weights not in ("mean", "learned"):
        raise UsageError(f"found weights = '{weights}', expected 'mean' or 'learned'")
    return Combine(bridge(student_shape, teacher_shape[0]), len(teacher_shape), learned=weights == "learned")


class ContrastiveMemory(nn.Module):
    """CRD: unit embeddings of both against memories of all samples, by noise contrastive estimation.

    Gives what the loss `contrastive` takes: for each sample the scores (N, 1 + negatives), exp(v . memory / T) / Z,
    of its own place in the other side's memory (first) and of places drawn at random. Z is a constant that the first
    batch sets (its mean score times the number of samples). The memories follow with a momentum; they and Z lie in the
    checkpoint, and the draws come from torch's generator, which every epoch reseeds.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    z: Tensor

    def __init__(
        self,
        student: int,
        teacher: int,
        *,
        samples: int,
        width: int,
        negatives: int,
        temperature: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.embed_student = nn.Linear(student, width)
        self.embed_teacher = nn.Linear(teacher, width)
        self.samples, self.negatives = samples, negatives
        self.temperature, self.momentum = temperature, momentum
        reach = 1.0 / math.sqrt(width / 3.0)
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, (torch.rand(samples, width) * 2.0 - 1.0) * reach)
        self.register_buffer("z", torch.zeros(2))

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Given:
        """(scores of the student, scores of the teacher, {"num_samples": of the memories})."""
        # exp(v . memory / 0.07) makes of the rounding of bfloat16 errors of several percent.
        with torch.autocast(student.device.type, enabled=False):
            return self._compare(student, teacher, batch["index"])

    def _compare(self, student: Tensor, teacher: Tensor, index_N: Tensor) -> Given:
        s_ND = F.normalize(self.embed_student(student.float().flatten(1)), dim=1)
        t_ND = F.normalize(self.embed_teacher(teacher.float().flatten(1)), dim=1)
        drawn = torch.randint(self.samples, (len(index_N), self.negatives), device=index_N.device)
        places_NK = torch.cat([index_N[:, None], drawn], dim=1)
        s_NK = self._scores(s_ND, self.teacher_memory[places_NK])
        t_NK = self._scores(t_ND, self.student_memory[places_NK])
        with torch.no_grad():
            first = torch.stack([s_NK.mean(), t_NK.mean()]) * self.samples
            # No look at the value: a GPU would wait for it.
            self.z.copy_(torch.where(self.z > 0, self.z, first))
        if self.training and torch.is_grad_enabled():
            self._follow(self.student_memory, index_N, s_ND.detach())
            self._follow(self.teacher_memory, index_N, t_ND.detach())
        return s_NK / self.z[0], t_NK / self.z[1], {"num_samples": self.samples}

    def _scores(self, v_ND: Tensor, memory_NKD: Tensor) -> Tensor:
        return torch.exp(torch.bmm(memory_NKD, v_ND[:, :, None])[:, :, 0] / self.temperature)

    def _follow(self, memory: Tensor, index_N: Tensor, v_ND: Tensor) -> None:
        moved_ND = self.momentum * memory[index_N] + (1.0 - self.momentum) * v_ND
        memory[index_N] = F.normalize(moved_ND, dim=1)


def contrastive_memory(
    student_shape: Shape,
    teacher_shape: Shape,
    *,
    student_module: object = None,
    teacher_module: object = None,
    num_samples: int | None = None,
    width: int = 128,
    negatives: int = 1024,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> nn.Module:
    """CRD's memories for the loss `contrastive`. Tian, Krishnan and Isola, "Contrastive Representation Distillation",
    2019, arXiv:1910.10699 (there 16384 negatives)."""
    if num_samples is None:
        raise UsageError("the adapter 'contrastive_memory' remembers every sample: it needs their number")
    if 2 * 4 * num_samples * width > MEMORY_BYTES:
        raise UsageError(
            f"memories of {num_samples} samples of width {width} take more than {MEMORY_BYTES >> 30} GiB; take a "
            "smaller width"
        )
    return ContrastiveMemory(
        math.prod(student_shape),
        math.prod(teacher_shape),
        samples=num_samples,
        width=width,
        negatives=negatives,
        temperature=temperature,
        momentum=momentum,
    )
