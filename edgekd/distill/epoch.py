"""One epoch: the loop that everything else is built around. It waits for the device only every few steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgekd.distill.averaging import Average
from edgekd.distill.batches import Batches
from edgekd.distill.evaluation import Named, named
from edgekd.distill.objective import first_non_finite, gradient_norms
from edgekd.distill.optimization import lr_factor
from edgekd.distill.programme import Phase
from edgekd.distill.taps import Taps
from edgekd.distill.teachers import Teacher
from edgekd.errors import UsageError

# Values stay on the device until so many steps are done: looking at each would stall a GPU.
CHECK_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """What does not change from step to step. `clip_norm`: the most that the gradient of all weights may measure."""

    schedule: str
    warmup_epochs: int
    device: torch.device
    layout: torch.memory_format
    bfloat16: bool
    clip_norm: float | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """Around the student's forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()


@dataclass(frozen=True)
class Pupil:
    """What changes with every step: the student, what looks into it, and what remembers."""

    student: nn.Module
    taps: Taps
    optimizer: Optimizer
    average: Average | None


@dataclass(frozen=True)
class Epoch:
    """Means over the samples of one epoch; `broken` is (step from 1, names) where something was NaN or infinite.

    gradients  the norm of each term's gradient on the student's weights in one step, or None
    """

    loss: float
    terms: dict[str, float]
    gradients: dict[str, float] | None
    samples: int
    lr: float
    broken: tuple[int, list[str]] | None


class Ledger:
    """Adds up what the terms gave, without waiting for the device until `settle`."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = ("loss", *names)
        self._rows: list[Tensor] = []
        self._counts: list[int] = []
        self._sums = torch.zeros(len(self._names), dtype=torch.float64)
        self._steps = 0
        self.samples = 0

    def add(self, loss: Tensor, values: Mapping[str, Tensor], samples: int) -> None:
        """The loss and the terms' values of one step."""
        self._rows.append(torch.stack([loss.detach().float(), *(value.float() for value in values.values())]))
        self._counts.append(samples)

    def settle(self) -> tuple[int, list[str]] | None:
        """Book the steps since the last call; (step from 1, names) of the first that was not finite."""
        if not self._rows:
            return None
        table = torch.stack(self._rows).cpu().double()
        bad = first_non_finite(self._names, table)
        if bad is not None:
            return self._steps + bad[0] + 1, bad[1]
        self._sums += (table * torch.tensor(self._counts, dtype=torch.float64)[:, None]).sum(dim=0)
        self._steps += len(self._rows)
        self.samples += sum(self._counts)
        self._rows, self._counts = [], []
        return None

    def means(self) -> dict[str, float]:
        """Mean per sample of what was booked: "loss", then each term."""
        return {name: float(value) / max(self.samples, 1) for name, value in zip(self._names, self._sums.tolist())}


def train_epoch(
    pupil: Pupil,
    teacher: Teacher | None,
    phase: Phase,
    batches: Batches,
    plan: Plan,
    *,
    epoch: int,
    measure: bool,
    report: Callable[[int, float], None],
) -> Epoch:
    """Train for epoch `epoch` (from 0); `report(steps done, mean loss so far)` is called every few steps.

    `measure` takes the norms of the terms' gradients in the step in the middle.
    """
    student, optimizer, objective = pupil.student, pupil.optimizer, phase.objective
    steps = len(batches)
    first, total = phase.first * steps, phase.epochs * steps
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    looks_inside = pupil.taps.paths
    teacher_taps = objective.teacher_taps
    ledger = Ledger(objective.names)
    student.train()
    lr = phase.lr
    norms: dict[str, Tensor] | None = None
    broken: tuple[int, list[str]] | None = None
    for step, raw in enumerate(batches.epoch(epoch)):
        done = epoch * steps + step - first
        factor = lr_factor(plan.schedule, done, total_steps=total, warmup_steps=plan.warmup_epochs * steps)
        lr = phase.lr * factor
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = to_device(raw, plan)
        teacher_out = {} if teacher is None else ask(teacher, batch, teacher_taps)
        with plan.autocast():
            student_out = named(student(batch["x"]), "the student")
        if looks_inside:
            student_out = {**pupil.taps.read(), **student_out}
        if plan.bfloat16:
            student_out = {name: value.float() for name, value in student_out.items()}
        parts = objective.parts(student_out, teacher_out, batch, done / total)
        if measure and step == steps // 2:
            norms = gradient_norms(parts, student)
        loss, values = objective.total(parts, student_out)
        if not loss.requires_grad:
            raise UsageError(
                f"no term depends on a weight of the student ({', '.join(objective.names)}); tap a module that "
                "comes after one with weights"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if plan.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained, plan.clip_norm)
        optimizer.step()
        if pupil.average is not None:
            pupil.average.update(done)
        ledger.add(loss, values, len(raw["id"]))
        if (step + 1) % CHECK_STEPS == 0:
            broken = ledger.settle()
            if broken is not None:
                break
            report(epoch * steps + step + 1, ledger.means()["loss"])
    broken = broken or ledger.settle()
    means = ledger.means()
    return Epoch(
        loss=means["loss"],
        terms={name: means[name] for name in objective.names},
        gradients=None if norms is None else {name: float(norms.get(name, 0.0)) for name in objective.names},
        samples=ledger.samples,
        lr=lr,
        broken=broken,
    )


def to_device(batch: Named, plan: Plan) -> dict[str, Tensor]:
    """The batch where the student computes, images in the layout that its convolutions like."""
    moved = {name: value.to(plan.device, non_blocking=True) for name, value in batch.items()}
    if plan.layout is torch.channels_last and moved["x"].dim() == 4:
        moved["x"] = moved["x"].contiguous(memory_format=torch.channels_last)
    return moved


def ask(teacher: Teacher, batch: Named, taps: Sequence[str]) -> dict[str, Tensor]:
    """The teacher's tensors that the terms look at, computed without gradients and cut off from its graph."""
    with torch.inference_mode():
        given = named(teacher(batch), "the teacher")
    device = batch["x"].device
    # What was made in inference mode may not be saved for the backward pass; a copy may.
    found = {tap: given[tap].to(device) for tap in taps if tap in given}
    return {tap: value.clone() if value.is_inference() else value.detach() for tap, value in found.items()}
