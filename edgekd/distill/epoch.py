"""One epoch: the loop that everything else is built around. It waits for the device only every few steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgekd.distill.averaging import Average
from edgekd.distill.batches import Batches
from edgekd.distill.distribution import WHOLE, Division
from edgekd.distill.evaluation import Named, named
from edgekd.distill.execution import autocast, in_layout
from edgekd.distill.labelled import LABELLED_ROWS
from edgekd.distill.ledger import Ledger, gradient_norms
from edgekd.distill.optimization import lr_factor
from edgekd.distill.programme import Phase
from edgekd.distill.randomness import CommonDraws, reseed
from edgekd.distill.taps import Taps, widened
from edgekd.distill.teachers import Teacher
from edgekd.errors import UsageError

# Values stay on the device until so many steps are done: looking at each would stall a GPU.
CHECK_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """What does not change from step to step.

    clip_norm         the most that the gradient of all weights may measure
    division          how batches are dealt out to processes and micro-batches
    teacher_bfloat16  whether teachers that are modules compute under autocast too; what they say is float32 again
    """

    schedule: str
    warmup_epochs: int
    device: torch.device
    layout: torch.memory_format
    bfloat16: bool
    clip_norm: float | None = None
    division: Division = WHOLE
    teacher_bfloat16: bool = False


@dataclass(frozen=True)
class Pupil:
    """What changes with every step: the student, what looks into it, and what remembers.

    after_step  called after each step of the optimizer
    """

    student: nn.Module
    taps: Taps
    optimizer: Optimizer
    average: Average | None
    after_step: Callable[[], None]


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


def train_epoch(
    pupil: Pupil,
    teacher: Teacher | None,
    phase: Phase,
    batches: Batches,
    plan: Plan,
    *,
    epoch: int,
    seed: int,
    measure: bool,
    report: Callable[[int, float], None],
) -> Epoch:
    """Train for epoch `epoch` (from 0); `report(steps done, mean loss so far)` is called every few steps.

    `measure` takes the norms of the terms' gradients in the step in the middle (in its first micro-batch), or in the
    next one that has labels.
    """
    student, optimizer, objective = pupil.student, pupil.optimizer, phase.objective
    division, world = plan.division, plan.division.world
    steps, sizes = len(batches), batches.sizes
    first, total = phase.first * steps, phase.epochs * steps
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    teacher_taps = objective.teacher_taps
    ledger = Ledger(objective.names, world)
    networks = partial(autocast, plan.device, bfloat16=plan.bfloat16)
    reseed(seed, epoch)
    draws = None if world.is_alone else CommonDraws(plan.device)
    if world.rank > 0:
        reseed(seed, epoch, rank=world.rank)
    student.train()
    lr = phase.lr
    norms: dict[str, Tensor] | None = None
    broken: tuple[int, list[str]] | None = None
    for step, pieces in enumerate(batches.parts(epoch, division)):
        done = epoch * steps + step - first
        factor = lr_factor(plan.schedule, done, total_steps=total, warmup_steps=plan.warmup_epochs * steps)
        lr = phase.lr * factor
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        rows: list[Tensor] = []
        for raw, portion in zip(pieces, division.of(sizes[step]).portions(sizes[step], draws)):
            batch, student_out, teacher_out = _outputs(pupil, teacher, teacher_taps, raw, plan)
            is_all = None if division.count == 1 else portion
            parts = objective.parts(student_out, teacher_out, batch, done / total, is_all, networks=networks)
            if measure and norms is None and step >= steps // 2 and not rows and _shows_all(batch, division):
                norms = gradient_norms(parts, student, world)
                norms = {name: norm / portion.whole for name, norm in norms.items()}
            loss, values = objective.total(parts, student_out)
            if not loss.requires_grad:
                raise UsageError(
                    f"no term depends on a weight of the student ({', '.join(objective.names)}); tap a module that "
                    "comes after one with weights"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            rows.append(torch.stack([loss.detach().float(), *(value.float() for value in values.values())]))
        world.average_gradients(trained)
        if plan.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained, plan.clip_norm)
        optimizer.step()
        pupil.after_step()
        if pupil.average is not None:
            pupil.average.update(done)
        ledger.add(rows[0] if len(rows) == 1 else torch.stack(rows).sum(dim=0), sizes[step])
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


def _outputs(
    pupil: Pupil, teacher: Teacher | None, teacher_taps: Sequence[str], raw: Named, plan: Plan
) -> tuple[dict[str, Tensor], Named, Named]:
    """The batch where the student computes, and what student and teacher give for it."""
    batch = to_device(raw, plan)
    teacher_out: dict[str, Tensor] = {}
    if teacher is not None:
        with autocast(plan.device, bfloat16=plan.teacher_bfloat16):
            teacher_out = ask(teacher, batch, teacher_taps)
    with autocast(plan.device, bfloat16=plan.bfloat16):
        student_out = named(pupil.student(batch["x"]), "the student")
    if pupil.taps.paths:
        student_out = {**pupil.taps.read(), **student_out}
    if plan.bfloat16:  # a model may give more than tensors, and tensors of whole numbers
        student_out = {name: widened(value) for name, value in student_out.items() if isinstance(value, Tensor)}
    return batch, student_out, teacher_out


def _shows_all(batch: Named, division: Division) -> bool:
    """Whether a batch of which few samples are labelled has some that are: terms on labels are nothing without.

    Several processes measure together, at the one step that all of them know.
    """
    return not division.world.is_alone or LABELLED_ROWS not in batch or len(batch[LABELLED_ROWS]) > 0


def to_device(batch: Named, plan: Plan) -> dict[str, Tensor]:
    """The batch where the student computes, images in the layout that its convolutions like."""
    moved = {name: value.to(plan.device, non_blocking=True) for name, value in batch.items()}
    return {**moved, "x": in_layout(moved["x"], plan.layout)}


def ask(teacher: Teacher, batch: Named, taps: Sequence[str]) -> dict[str, Tensor]:
    """The teacher's tensors that the terms look at, computed without gradients and cut off from its graph."""
    with torch.inference_mode():
        given = named(teacher(batch), "the teacher")
    device = batch["x"].device
    # What was made in inference mode may not be saved for the backward pass; a copy may.
    found = {tap: widened(given[tap]).to(device) for tap in taps if tap in given}
    return {tap: value.clone() if value.is_inference() else value.detach() for tap, value in found.items()}
