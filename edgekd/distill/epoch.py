"""One epoch: the loop that everything else is built around. It waits for the device only every few steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgekd.distill.batches import Batches
from edgekd.distill.evaluation import Named, named
from edgekd.distill.objective import Objective, first_non_finite
from edgekd.distill.optimization import lr_factor
from edgekd.distill.teachers import Teacher

# Values stay on the device until so many steps are done: looking at each would stall a GPU.
CHECK_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """What does not change from step to step."""

    epochs: int
    lr: float
    schedule: str
    warmup_epochs: int
    device: torch.device
    layout: torch.memory_format
    bfloat16: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Around the student's forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()


@dataclass(frozen=True)
class Epoch:
    """Means over the samples of one epoch; `broken` is (step from 1, names) where something was NaN or infinite."""

    loss: float
    terms: dict[str, float]
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
    student: nn.Module,
    teacher: Teacher | None,
    objective: Objective,
    optimizer: Optimizer,
    batches: Batches,
    plan: Plan,
    *,
    epoch: int,
    report: Callable[[int, float], None],
) -> Epoch:
    """Train for epoch `epoch` (from 0); `report(steps done, mean loss so far)` is called every few steps."""
    steps = len(batches)
    ledger = Ledger(objective.names)
    student.train()
    lr = plan.lr
    broken: tuple[int, list[str]] | None = None
    for step, raw in enumerate(batches.epoch(epoch)):
        done = epoch * steps + step
        total = plan.epochs * steps
        factor = lr_factor(plan.schedule, done, total_steps=total, warmup_steps=plan.warmup_epochs * steps)
        lr = plan.lr * factor
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = to_device(raw, plan)
        teacher_out = {} if teacher is None else ask(teacher, batch, objective.teacher_taps)
        with plan.autocast():
            student_out = named(student(batch["x"]), "the student")
        if plan.bfloat16:
            student_out = {name: value.float() for name, value in student_out.items()}
        loss, values = objective(student_out, teacher_out, batch, done / total)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        ledger.add(loss, values, len(raw["id"]))
        if (step + 1) % CHECK_STEPS == 0:
            broken = ledger.settle()
            if broken is not None:
                break
            report(done + 1, ledger.means()["loss"])
    broken = broken or ledger.settle()
    means = ledger.means()
    return Epoch(
        loss=means["loss"],
        terms={name: means[name] for name in objective.names},
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
    # A copy, because what was made in inference mode may not be saved for the backward pass.
    return {tap: given[tap].detach().to(device).clone() for tap in taps if tap in given}
