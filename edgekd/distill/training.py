"""All epochs of one training: each is reseeded, trained, validated and checkpointed; or it diverged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from edgekd.device.metrics import METRIC, contributions, score
from edgekd.distill.batches import Batches
from edgekd.distill.checkpoint import Checkpoint, Record, RunFiles, State
from edgekd.distill.epoch import Epoch, Plan, train_epoch
from edgekd.distill.evaluation import outputs_of
from edgekd.distill.modules import evaluating
from edgekd.distill.objective import Objective
from edgekd.distill.passes import passes_per_sample
from edgekd.distill.randomness import reseed
from edgekd.distill.teachers import EnsembleTeacher, Teacher
from edgekd.errors import Diverged
from edgekd.spec import Dataset

# (text, steps done, steps in all, figures worth showing)
Progress = Callable[[str, int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Run:
    """One training: what it trains, on what, how, and who hears of it."""

    student: nn.Module
    teachers: tuple[Teacher, ...]
    data: Dataset
    objective: Objective
    train: Batches
    val: Batches
    plan: Plan
    optimizer: Optimizer
    files: RunFiles | None
    checkpoint_epochs: int
    seed: int
    progress: Progress
    clock: Callable[[], float]


def fresh(run: Run, record: Record) -> Checkpoint:
    """The checkpoint before the first epoch; it is not written."""
    state = _snapshot(run.student)
    return Checkpoint(record, student=state, best_student=state, optimizer=run.optimizer.state_dict())


def train_epochs(run: Run, start: Checkpoint) -> Record:
    """Train from `start` to the last epoch; the student ends with the best weights."""
    student, optimizer, record = run.student, run.optimizer, start.record
    student.load_state_dict(start.student)
    if record.history:
        decay = [group["weight_decay"] for group in optimizer.param_groups]
        optimizer.load_state_dict(start.optimizer)
        for group, weight_decay in zip(optimizer.param_groups, decay):
            group["weight_decay"] = weight_decay  # may have been lowered after a divergence
    best_state = start.best_student
    teacher = run.teachers[0] if len(run.teachers) == 1 else EnsembleTeacher(run.teachers) if run.teachers else None
    steps = len(run.train)
    saved = len(record.history)
    for epoch in range(len(record.history), run.plan.epochs):
        text, total = f"epoch {epoch + 1}/{run.plan.epochs}", steps * run.plan.epochs

        def report(done: int, loss: float, text: str = text, total: int = total) -> None:
            run.progress(text, done, total, {"loss": loss})

        started = run.clock()
        reseed(run.seed, epoch)
        result = train_epoch(
            student, teacher, run.objective, optimizer, run.train, run.plan, epoch=epoch, report=report
        )
        if result.broken is not None or not _is_finite(student):
            student.load_state_dict(best_state)
            raise _diverged(run, result, epoch=epoch, saved=saved)
        val = _validate(run)
        record = _after(record, run, result, epoch=epoch, val=val, seconds=run.clock() - started)
        if record.best_epoch == epoch + 1:
            best_state = _snapshot(student)
        if run.files is not None and ((epoch + 1) % run.checkpoint_epochs == 0 or epoch + 1 == run.plan.epochs):
            run.files.save(Checkpoint(record, student.state_dict(), best_state, optimizer.state_dict()))
            saved = epoch + 1
        figures = {"loss": result.loss} if val is None else {"loss": result.loss, METRIC[run.data.task]: val}
        run.progress(text, (epoch + 1) * steps, total, figures)
    student.load_state_dict(best_state)
    return record


def _after(record: Record, run: Run, result: Epoch, *, epoch: int, val: float | None, seconds: float) -> Record:
    """The record with one more epoch."""
    item = {
        "epoch": epoch + 1,
        "lr": result.lr,
        "loss": result.loss,
        "terms": result.terms,
        "val": val,
        "seconds": seconds,
    }
    negligible = [
        f"{text} (seen in epoch {epoch + 1})"
        for name, text in run.objective.negligible(result.terms).items()
        if not any(known.startswith(f"term '{name}' ") for known in record.warnings)
    ]
    is_better = record.best is None or (val is not None and val >= record.best)
    return dataclasses.replace(
        record,
        history=(*record.history, item),
        best_epoch=epoch + 1 if is_better else record.best_epoch,
        best=val if is_better else record.best,
        seconds=record.seconds + seconds,
        images_seen=record.images_seen + result.samples,
        teacher_passes=record.teacher_passes + result.samples * sum(map(passes_per_sample, run.teachers)),
        warnings=(*record.warnings, *negligible),
    )


def _validate(run: Run) -> float | None:
    with evaluating(run.student):
        outputs = outputs_of(run.student, run.val.full(), run.plan.device)
    value = float(score(run.data.task, contributions(run.data.task, outputs, run.data.val.y)))
    return value if math.isfinite(value) else None


def _diverged(run: Run, result: Epoch, *, epoch: int, saved: int) -> Diverged:
    """The error to raise; the run folder remembers that the learning rate may change now."""
    steps = len(run.train)
    step, names = result.broken or (steps, ["weights"])
    terms = [name for name in names if name in run.objective.names]
    what = " and ".join(f"term '{name}'" for name in terms) if terms else f"the {names[0]}"
    if run.files is None:
        kept = "nothing was written, as no run_dir was given; the student holds the best weights so far"
    elif saved == 0:
        kept = f"there is no checkpoint in {run.files.folder} yet, so the next run begins anew"
    else:
        kept = f"the checkpoint of epoch {saved} in {run.files.folder} is kept, and the next run goes on from there"
        run.files.mark_diverged({"epoch": epoch + 1, "step": step, "terms": terms, "lr": run.plan.lr})
    cures = f"a lower lr (such as {run.plan.lr / 10:g}), more warmup_epochs"
    if terms:
        cures += f" or a lower weight of '{terms[0]}'"
    return Diverged(
        f"training diverged: {what} became NaN or infinite in epoch {epoch + 1}, step {step} of {steps} "
        f"(lr = {run.plan.lr:g}); {kept}. Take {cures}, then run the same command again; with the same settings it "
        "would diverge again"
    )


def _snapshot(module: nn.Module) -> State:
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def _is_finite(module: nn.Module) -> bool:
    checks = [torch.isfinite(value).all() for value in module.state_dict().values() if value.is_floating_point()]
    return bool(torch.stack(checks).all())
