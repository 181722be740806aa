"""All epochs of one training: each is reseeded, trained, validated and checkpointed; or it diverged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.device.metrics import METRIC, contributions, score
from edgekd.distill.averaging import Average
from edgekd.distill.batches import Batches
from edgekd.distill.checkpoint import Checkpoint, Record, RunFiles, State
from edgekd.distill.distribution import World
from edgekd.distill.epoch import Epoch, Plan, Pupil, train_epoch
from edgekd.distill.evaluation import outputs_of
from edgekd.distill.modules import evaluating, is_compiled
from edgekd.distill.objective import Objective
from edgekd.distill.optimization import build_optimizer
from edgekd.distill.passes import passes_per_sample
from edgekd.distill.programme import Phase
from edgekd.distill.taps import Taps
from edgekd.distill.teachers import Teacher, tapped
from edgekd.distill.trackers import Log
from edgekd.errors import Diverged
from edgekd.spec import Dataset

# The norms of the terms' gradients cost a backward pass for each term: once in so many steps they cost nothing.
MEASURE_STEPS = 200

# (text, steps done, steps in all, figures worth showing)
Progress = Callable[[str, int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Run:
    """One training: what it trains, on what, how, and who hears of it.

    objective    with its adapters; `phases` learn parts of it, one after the other
    teacher      None: nobody is asked
    own_outputs  what the student gives by itself, without taps
    example      a small batch, as the loop sees them
    ema          decay of the average of the weights, which is what counts where there is one
    patience     epochs of the last phase without a better score until it ends; None: never
    keep         which epoch's weights the student ends with: KEEP
    """

    student: nn.Module
    teacher: Teacher | None
    data: Dataset
    objective: Objective
    phases: tuple[Phase, ...]
    train: Batches
    val: Batches
    plan: Plan
    optimizer: str
    weight_decay: float
    own_outputs: frozenset[str]
    example: Mapping[str, Tensor]
    ema: float | None
    patience: int | None
    keep: str
    files: RunFiles | None
    checkpoint_epochs: int
    seed: int
    log: Log
    progress: Progress
    clock: Callable[[], float]


def fresh(run: Run, record: Record) -> Checkpoint:
    """The checkpoint before the first epoch; it is not written."""
    state = _snapshot(run.student)
    return Checkpoint(record, state, state, adapters=_snapshot(run.objective.modules), average=None, optimizer={})


def continued(checkpoint: Checkpoint, world: World) -> Checkpoint:
    """The checkpoint as these processes go on from it; the record says so when they are another number than before."""
    record = checkpoint.record
    if record.processes == world.size:
        return checkpoint
    before = f"{record.processes} process{'es' if record.processes > 1 else ''}"
    note = (
        f"epochs up to {len(record.history)} were trained by {before}, those after it by {world.size}: sums round in "
        "another order and dropout draws others, so the weights are not the bytes of an uninterrupted training"
    )
    record = dataclasses.replace(record, processes=world.size, warnings=(*record.warnings, note))
    return dataclasses.replace(checkpoint, record=record)


def train_phases(run: Run, start: Checkpoint) -> Record:
    """Train from `start` to the last epoch of the last phase; the student ends with the weights to keep.

    All processes go on from where process 0 starts.
    """
    start = run.plan.division.world.share(start)
    run.student.load_state_dict(start.student)
    run.objective.modules.load_state_dict(start.adapters)
    record, best_state = start.record, start.best_student
    for phase in run.phases:
        if len(record.history) < phase.end:
            record, best_state = _train_phase(run, phase, start, record, best_state)
    run.student.load_state_dict(best_state)
    return record


def _train_phase(run: Run, phase: Phase, start: Checkpoint, record: Record, best_state: State) -> tuple[Record, State]:
    """The record and the best weights after `phase`, which goes on where `start` is if that lies within it."""
    student, objective, files = run.student, phase.objective, run.files
    teacher = run.teacher if objective.teacher_terms else None
    steps, epochs = len(run.train), run.phases[-1].end
    adapters, world = objective.modules, run.plan.division.world
    # Each process has made its own statistics of batch norm.
    buffers = [*student.buffers(), *run.objective.modules.buffers()]
    optimizer = build_optimizer(
        run.optimizer, student.parameters(), adapters.parameters(), lr=phase.lr, weight_decay=run.weight_decay
    )
    average = None if run.ema is None else Average(student, run.ema)
    if phase.first < len(start.record.history):
        decay = [group["weight_decay"] for group in optimizer.param_groups]
        optimizer.load_state_dict(start.optimizer)
        for group, weight_decay in zip(optimizer.param_groups, decay):
            group["weight_decay"] = weight_decay  # may have been lowered after a divergence
        if average is not None and start.average is not None:
            average.load_state_dict(start.average)
    every = math.ceil(MEASURE_STEPS / steps)
    with ExitStack() as stack:
        hooked = [tap for tap in objective.student_taps if tap not in run.own_outputs]
        taps = Taps(student, hooked)
        if is_compiled(student):  # code that was compiled does not see hooks come and go
            stack.enter_context(taps)
        if teacher is not None:
            stack.enter_context(tapped(teacher, objective.teacher_taps, run.example))
        # Adapters follow the student through all stages, also those without their terms.
        pupil = Pupil(student, taps, optimizer, average, run.objective.after_step)
        for epoch in range(len(record.history), phase.end):
            if _is_over(run, phase, record):
                break
            text = f"epoch {epoch + 1}/{epochs}" if phase.name is None else f"{phase.name}, epoch {epoch + 1}/{epochs}"

            def report(done: int, loss: float, text: str = text) -> None:
                run.progress(text, done, steps * epochs, {"loss": loss})

            started = run.clock()
            measure = (epoch - phase.first) % every == 0 and not is_compiled(student)
            # Not while it is validated: what nobody reads would be computed and kept.
            with nullcontext() if is_compiled(student) else taps:
                result = train_epoch(
                    pupil,
                    teacher,
                    phase,
                    run.train,
                    run.plan,
                    epoch=epoch,
                    seed=run.seed,
                    measure=measure,
                    report=report,
                )
            world.broadcast(buffers)
            if result.broken is not None or not all(world.collect(_is_finite(student))):
                student.load_state_dict(best_state)
                saved = max(len(start.record.history), epoch // run.checkpoint_epochs * run.checkpoint_epochs)
                raise _diverged(run, phase, result, epoch=epoch, saved=saved)
            with nullcontext() if average is None else average.applied():
                val = _validate(run)
                taps.clear()
                record = _after(record, run, phase, result, epoch=epoch, val=val, seconds=run.clock() - started)
                if record.best_epoch == epoch + 1:
                    best_state = _snapshot(student)
            run.log(record.history)
            if files is not None and ((epoch + 1) % run.checkpoint_epochs == 0 or epoch + 1 == epochs):
                mean = None if average is None else average.state_dict()
                states = (student.state_dict(), best_state, run.objective.modules.state_dict(), mean)
                files.save(Checkpoint(record, *states, optimizer.state_dict()))
            figures = {"loss": result.loss} if val is None else {"loss": result.loss, METRIC[run.data.task]: val}
            run.progress(text, (epoch + 1) * steps, steps * epochs, figures)
    return record, best_state


def _is_over(run: Run, phase: Phase, record: Record) -> bool:
    """Whether the last phase has not become better for too long. As good as before is not better."""
    scores = [item["val"] for item in record.history[phase.first :]]
    if run.patience is None or phase is not run.phases[-1] or not scores:
        return False
    known = [-math.inf if value is None else value for value in scores]
    return len(known) - 1 - known.index(max(known)) >= run.patience


def _after(
    record: Record, run: Run, phase: Phase, result: Epoch, *, epoch: int, val: float | None, seconds: float
) -> Record:
    """The record with one more epoch."""
    item = {
        "epoch": epoch + 1,
        "stage": phase.name,
        "lr": result.lr,
        "loss": result.loss,
        "terms": result.terms,
        "gradients": result.gradients,
        "val": val,
        "seconds": seconds,
    }
    if result.gradients is not None:
        texts = phase.objective.negligible(result.gradients, of="gradient")
    else:  # a loss may be large and hardly move: it only stands in for what cannot be measured
        texts = phase.objective.negligible(result.terms) if is_compiled(run.student) else {}
    negligible = [
        f"{text} (seen in epoch {epoch + 1})"
        for name, text in texts.items()
        if not any(known.startswith(f"term '{name}' ") for known in record.warnings)
    ]
    is_better = epoch == phase.first or record.best is None or (val is not None and val >= record.best)
    is_better = is_better or run.keep == "last"
    passes = 0 if run.teacher is None or not phase.objective.teacher_terms else passes_per_sample(run.teacher)
    return dataclasses.replace(
        record,
        history=(*record.history, item),
        best_epoch=epoch + 1 if is_better else record.best_epoch,
        best=val if is_better else record.best,
        seconds=record.seconds + seconds,
        images_seen=record.images_seen + result.samples,
        teacher_passes=record.teacher_passes + result.samples * passes,
        warnings=(*record.warnings, *negligible),
    )


def _validate(run: Run) -> float | None:
    world = run.plan.division.world
    with evaluating(run.student):
        own = outputs_of(run.student, run.val.full(first=world.rank, every=world.size), run.plan.device)
    sizes = [len(range(rank, len(run.val.ids), world.size)) for rank in range(world.size)]
    outputs = world.gather(torch.from_numpy(own), sizes).numpy()
    value = float(score(run.data.task, contributions(run.data.task, outputs, run.data.val.y)))
    return value if math.isfinite(value) else None


def _diverged(run: Run, phase: Phase, result: Epoch, *, epoch: int, saved: int) -> Diverged:
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
        run.files.mark_diverged({"epoch": epoch + 1, "step": step, "terms": terms, "lr": phase.lr})
    cures = f"a lower lr (such as {phase.lr / 10:g}), more warmup_epochs"
    if terms:
        cures += f" or a lower weight of '{terms[0]}'"
    return Diverged(
        f"training diverged: {what} became NaN or infinite in epoch {epoch + 1}, step {step} of {steps} "
        f"(lr = {phase.lr:g}); {kept}. Take {cures}, then run the same command again; with the same settings it "
        "would diverge again"
    )


def _snapshot(module: nn.Module) -> State:
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def _is_finite(module: nn.Module) -> bool:
    weights = [torch.isfinite(value).all() for value in module.parameters()]
    # A buffer may be infinite on purpose: a causal mask is.
    kept = [~torch.isnan(value).any() for value in module.buffers() if value.is_floating_point()]
    return bool(torch.stack([*weights, *kept]).all())
