"""The engine: trains a student on an objective, with teachers or without, and survives being killed.

Everything random is a function of (seed, epoch, sample), the learning rate one of the step; so a checkpoint holds
weights, optimizer and counters only, and a training that was killed and resumed ends in the same bytes as one that
was not (on a CPU, with the same number of threads).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.device.metrics import METRIC
from edgekd.distill.augmentation import Augment
from edgekd.distill.batches import Batches
from edgekd.distill.checkpoint import Record, RunFiles
from edgekd.distill.checks import check_data, check_division, rehearse
from edgekd.distill.distribution import ALONE, Division, World
from edgekd.distill.epoch import Plan
from edgekd.distill.evaluation import BATCH, MASKED_BATCH, evaluate
from edgekd.distill.execution import choose_device, choose_precision, contained, placed, resume_threads
from edgekd.distill.identity import identities
from edgekd.distill.masking import Masking
from edgekd.distill.mixing import Mixing
from edgekd.distill.modules import has_batch_norm, synchronized
from edgekd.distill.objective import Objective
from edgekd.distill.optimization import check_optimization
from edgekd.distill.programme import Stage, check_stages, describe, phases
from edgekd.distill.replacement import Substitutes
from edgekd.distill.teachers import EnsembleTeacher, Teacher, modules_of
from edgekd.distill.trackers import check_trackers, opened
from edgekd.distill.training import Progress, Run, continued, fresh, train_phases
from edgekd.errors import UsageError, nearest
from edgekd.files import sha256_bytes
from edgekd.graph.metadata import meaning
from edgekd.spec import Array, Dataset, Step, steps_to_json

__all__ = ["Progress", "TrainResult", "distill", "evaluate"]


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    student         the module that was passed in, in eval mode, with the weights of the best epoch
    history         per epoch: epoch (from 1), stage (its name, or None), lr (of its last step), loss, terms {name: what
                    it added to the loss}, gradients {name: norm of its gradient on the student's weights in one step}
                    (None where it was not measured), val (score on validation, or None where it is undefined), seconds
    best_epoch      the epoch of the last stage with the best score on validation; a tie goes to the later one
    best, last      score of that epoch and of the last one
    images_seen     samples that the student learned from, each as often as it came
    teacher_passes  samples that went through a teacher for it, counted per teacher; remembered ones are none
    warnings        what the user should know, such as a term that hardly counts
    precision       in which numbers the forward pass computed, and why
    """

    student: nn.Module
    history: list[dict[str, Any]]
    best_epoch: int
    last: float | None
    best: float | None
    seconds: float
    images_seen: int
    teacher_passes: int
    warnings: tuple[str, ...]
    precision: str
    threads: int


def distill(
    student: nn.Module,
    teachers: Sequence[Teacher],
    data: Dataset,
    objective: Objective,
    *,
    steps: Sequence[Step] = (),
    epochs: int,
    batch_size: int = 128,
    optimizer: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    schedule: str = "cosine",
    warmup_epochs: int = 0,
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    augment: Augment | None = None,
    substitutes: Substitutes | None = None,
    views: int | None = None,
    extras: Mapping[str, Array] | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    masking: Masking | None = None,
    stages: Sequence[Stage] = (),
    ema: float | None = None,
    patience: int | None = None,
    keep: str = "best",
    clip_norm: float | None = None,
    accumulate: int = 1,
    sync_batch_norm: bool = False,
    world: World = ALONE,
    run_dir: str | PathLike[str] | None = None,
    checkpoint_epochs: int = 1,
    trackers: Sequence[str] = (),
    log_dir: str | PathLike[str] | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainResult:
    """Train `student` on `data.train`, look after each epoch at `data.val`, leave `data.test` alone.

    teachers           none, one, or several whose logits are averaged (and can be tapped one by one: "0/layer2");
                       asked only if a term wants a teacher. `run_dir` remembers who they were by their weights or
                       files; one of your own may say it with an attribute `fingerprint`, a text
    steps              the arithmetic preprocessing steps
    threads            None: as many as torch has now, or as the checkpoint was trained with
    substitutes        the words that augmentation puts in the place of others, for texts
    views              cycle through so many augmentations of each sample; None: another one in every epoch
    extras             further tensors of each training sample, which batches then hold: "mask" (N, L) says which tokens
                       count (to losses that have such a parameter), "labelled" (N,) bool whose labels may be used:
                       losses on labels leave the others out, and nobody sees those labels
    mixup, cutmix      alphas of the ratios in which samples are mixed (`edgekd.distill.mixing`); 0: not at all
    masking            hides tokens of texts, which are to be guessed in the place of labels (task masked_lm)
    stages             parts of the training with terms of their own, `epochs` long in all; none: all terms all along
    ema                decay of the average of the weights that is validated and kept in place of the last weights
    patience           end after so many epochs of the last stage without a better score on validation
    keep               end with the weights of the "best" epoch on validation, or of the "last" one
    clip_norm          the most that the gradient of all weights together may measure
    accumulate         micro-batches into which each process divides its part of a batch, to need less memory; terms
                       that compare samples then compare those within one, which the result's warnings say
    sync_batch_norm    batch norm over the batches of all processes, the adapters' too (on GPUs)
    world              the processes that train together (`edgekd.distill.distribution`), each of which calls this with
                       the same arguments; all get the same result, and process 0 writes
    run_dir            where checkpoints go, and in the end the weights with the labels and steps that they mean. A
                       training that was killed goes on from its last checkpoint, one that is finished is returned
                       as it is; None keeps everything in memory
    checkpoint_epochs  epochs between two checkpoints
    trackers           where the figures of each epoch go: csv, tensorboard, wandb, ... (`edgekd.distill.trackers`)
    log_dir            the folder of the trackers; None: `run_dir`/logs

    The names of optimizers, schedules, losses and augmentations are in the dictionaries of their modules. Global
    state of torch and the random generators are as before when this returns.

    Raises `UsageError`, `DataError` and `ModelError` before the first step when something does not fit, `Diverged`
    when the loss becomes NaN or infinite (the student then holds the best weights so far), `StageFailed` when a
    checkpoint wants another number of threads, and `StorageError` when `run_dir` cannot be written.
    """
    check_optimization(
        optimizer=optimizer,
        schedule=schedule,
        lr=lr,
        weight_decay=weight_decay,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        ema=ema,
        patience=patience,
        keep=keep,
        clip_norm=clip_norm,
    )
    check_stages(objective, stages, epochs=epochs, warmup_epochs=warmup_epochs)
    if checkpoint_epochs < 1:
        raise UsageError(f"found checkpoint_epochs = {checkpoint_epochs}, expected a whole number from 1")
    if (masking is None) == (data.task == "masked_lm"):
        raise UsageError(
            f"found task '{data.task}' and masking = {masking}; masked_lm needs one, and no other task does"
        )
    if data.task not in METRIC:
        raise UsageError(f"cannot train for the task '{data.task}'. {nearest(data.task, METRIC)}")
    check_data(data)
    check_trackers(trackers)
    if trackers and log_dir is None and run_dir is None:
        raise UsageError(f"the trackers {', '.join(trackers)} need a place: give log_dir or run_dir")
    logs = Path(run_dir or "", "logs") if log_dir is None else Path(log_dir)
    place = choose_device(device)
    steps = tuple(steps)
    mixing = Mixing(mixup, cutmix, num_classes=data.num_outputs if data.task == "classification" else None)
    train = Batches(
        data.train,
        steps,
        batch_size=batch_size,
        seed=seed,
        augment=augment,
        task=data.task,
        views=views,
        mixing=mixing,
        extras=extras,
        substitutes=substitutes,
        masking=masking,
    )
    numbers = choose_precision(precision, place, student, train.input_shape)
    asked = tuple(modules_of(teachers)) if objective.teacher_terms else ()
    chosen = {choose_precision(precision, place, module, train.input_shape).name for module in asked}
    teacher_bfloat16 = chosen == {"bfloat16"}
    division = Division(world, accumulate, least=2 if has_batch_norm(student) else 1)
    check_division(division, train, num_val=len(data.val), sync_batch_norm=sync_batch_norm, device=place)
    if masking is not None and not world.is_alone and objective.comparing_terms:
        raise UsageError(
            f"{', '.join(objective.comparing_terms)} compare samples with one another; several processes cannot put "
            "masked texts together, each of which has another number of tokens that are asked for: train on one "
            "process, or drop these terms"
        )
    writes = run_dir is not None and world.leads
    settings = {
        "data": data.sha256,
        "samples": [len(data.train), len(data.val)],
        "task": data.task,
        "steps": steps_to_json(steps),
        "augment": {**(augment or {}), **({} if substitutes is None else {"substitutes": substitutes.sha256})},
        "views": views,
        "student": {name: list(value.shape) for name, value in student.state_dict().items()},
        "num_teachers": len(teachers) if objective.teacher_terms else 0,
        **({"teachers": identities(teachers)} if writes and objective.teacher_terms else {}),
        "objective": objective.describe(),
        "stages": describe(stages),
        "stage_lr": [stage.lr for stage in stages],
        "extras": {name: sha256_bytes(np.ascontiguousarray(value).tobytes()) for name, value in (extras or {}).items()},
        "mixing": [mixup, cutmix],
        **({} if masking is None else {"masking": masking.describe()}),
        "ema": ema,
        "patience": patience,
        "keep": keep,
        "clip_norm": clip_norm,
        "accumulate": accumulate,
        "sync_batch_norm": sync_batch_norm,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup_epochs": warmup_epochs,
        "precision": numbers.name,
        "teacher_bfloat16": teacher_bfloat16,
        "device": place.type,
        "seed": seed,
        "torch": str(torch.__version__),
    }
    files = RunFiles(run_dir, settings) if run_dir is not None and world.leads else None
    finished = world.share(None if files is None else files.finished(student))
    if finished is not None:
        world.broadcast([value.detach() for value in student.state_dict().values()])
        return _result(student, finished, f"{numbers.name}: {numbers.reason}")
    teacher = EnsembleTeacher(teachers) if len(teachers) > 1 else teachers[0] if teachers else None
    checkpoint = files.load() if files is not None else None
    recorded = checkpoint.record.threads if checkpoint is not None else None
    num_threads = resume_threads(threads, recorded, where=run_dir)
    with contained(place, threads=num_threads), ExitStack() as stack:
        layout = stack.enter_context(placed(student, place))
        if sync_batch_norm and not world.is_alone:
            stack.enter_context(synchronized(student))
        for module in modules_of(teachers):
            stack.enter_context(placed(module, place))
        begun = 0 if checkpoint is None else len(checkpoint.record.history)
        log = stack.enter_context(
            opened(trackers if world.leads else (), logs, begun=begun, facts=settings, task=data.task)
        )
        rehearsal = rehearse(student, teacher, objective, train, num_outputs=data.num_outputs, device=place, seed=seed)
        val = Batches(
            data.val,
            steps,
            batch_size=max(batch_size, BATCH if masking is None else MASKED_BATCH),
            task=data.task,
            masking=masking,
        )
        if sync_batch_norm and not world.is_alone:
            stack.enter_context(synchronized(rehearsal.objective.modules))
        for batches in (train, val):
            batches.place(place)
        run = Run(
            student=student,
            teacher=teacher,
            data=data,
            objective=rehearsal.objective,
            phases=phases(rehearsal.objective, stages, epochs=epochs, lr=lr),
            train=train,
            val=val,
            plan=Plan(
                schedule,
                warmup_epochs,
                place,
                layout,
                numbers.name == "bfloat16",
                clip_norm,
                division,
                teacher_bfloat16=teacher_bfloat16,
            ),
            optimizer=optimizer,
            weight_decay=weight_decay,
            own_outputs=rehearsal.own_outputs,
            example=rehearsal.example,
            ema=ema,
            patience=patience,
            keep=keep,
            files=files,
            checkpoint_epochs=checkpoint_epochs,
            seed=seed,
            log=log,
            progress=progress or _ignore,
            clock=clock,
        )
        if files is not None:
            files.check_adapters(rehearsal.objective.modules.state_dict(), checkpoint)
        if checkpoint is None:
            notes = _notes(objective, accumulate, is_taught=bool(teachers))
            checkpoint = fresh(run, Record(num_threads, warnings=notes, processes=world.size))
        record = train_phases(run, continued(checkpoint, world))
    if files is not None:
        files.finish(student, record, meaning(data.labels, steps, data.tokens))
    return _result(student, record, f"{numbers.name}: {numbers.reason}")


def _notes(objective: Objective, accumulate: int, *, is_taught: bool) -> tuple[str, ...]:
    """What the user should know before the first epoch."""
    notes = []
    if is_taught and not objective.teacher_terms:
        notes.append("no term of the objective wants the teacher: it is not asked")
    if accumulate > 1 and objective.comparing_terms:
        notes.append(
            f"accumulate = {accumulate}: {', '.join(objective.comparing_terms)} compare samples with one another, but "
            f"only within each of the {accumulate} micro-batches of a batch"
        )
    return tuple(notes)


def _ignore(text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
    """Nobody listens."""


def _result(student: nn.Module, record: Record, precision: str) -> TrainResult:
    return TrainResult(
        student=student.eval(),
        history=list(record.history),
        best_epoch=record.best_epoch,
        last=record.history[-1]["val"],
        best=record.best,
        seconds=record.seconds,
        images_seen=record.images_seen,
        teacher_passes=record.teacher_passes,
        warnings=record.warnings,
        precision=precision,
        threads=record.threads,
    )
