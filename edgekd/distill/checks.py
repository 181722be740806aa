"""Looks at data, models and objective before the first step, so that hours are not lost to a wrong shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.distill.batches import Batches
from edgekd.distill.distribution import Division
from edgekd.distill.epoch import ask
from edgekd.distill.evaluation import forward
from edgekd.distill.labelled import LABELLED
from edgekd.distill.modules import evaluating, has_batch_norm, unwrap
from edgekd.distill.objective import Objective
from edgekd.distill.taps import Taps, part_at
from edgekd.distill.teachers import Teacher, tapped, tapped_module
from edgekd.errors import DataError, ModelError, UsageError
from edgekd.spec import Dataset, Split, Task


def check_data(data: Dataset) -> None:
    """Raise `DataError` for an empty split, a label out of range or targets of another shape or with NaN."""
    for name, split in (("train", data.train), ("val", data.val)):
        if len(split) == 0:
            raise DataError(f"{data.name}: the {name} split is empty, expected at least 1 sample; check val_fraction")
        if not len(split.x) == len(split.y) == len(split.ids):
            raise DataError(
                f"{data.name}, {name}: found {len(split.x)} samples, {len(split.y)} labels and {len(split.ids)} ids, "
                "expected as many of each"
            )
        _check_targets(split, data.task, data.num_outputs, f"{data.name}, {name}")


def check_division(
    division: Division,
    train: Batches,
    *,
    num_val: int,
    sync_batch_norm: bool,
    device: torch.device,
) -> None:
    """Raise `UsageError` when there are not samples enough for all processes and micro-batches."""
    if division.accumulate < 1:
        raise UsageError(f"found accumulate = {division.accumulate}, expected a whole number from 1")
    if sync_batch_norm and device.type != "cuda" and not division.world.is_alone:
        raise UsageError(
            f"sync_batch_norm works on GPUs only, but the student is trained on {device.type}; take it out: each "
            "process then normalizes its own samples. Or take a student without batch norm"
        )
    if division.count > 1:
        division.check(max(train.sizes))
    if num_val < division.world.size:
        raise UsageError(
            f"validation has {num_val} samples, too few for {division.world.size} processes; take fewer processes"
        )


@dataclass(frozen=True)
class Rehearsal:
    """What one small batch through everything has shown.

    objective    with the adapters that these shapes need
    own_outputs  what the student gives without taps
    example      the batch
    """

    objective: Objective
    own_outputs: frozenset[str]
    example: Mapping[str, Tensor]


def rehearse(
    student: nn.Module,
    teacher: Teacher | None,
    objective: Objective,
    train: Batches,
    *,
    num_outputs: int,
    device: torch.device,
    seed: int,
) -> Rehearsal:
    """One small batch through student, teacher, adapters and losses; no weight and no statistic changes.

    Raises `UsageError` when a term lacks its teacher or logits have different shapes, `ModelError` when the
    student's outputs do not fit the labels or a tap leads nowhere, and whatever the losses say to the shapes that
    they see.
    """
    if objective.teacher_terms and teacher is None:
        raise UsageError(
            f"the term '{objective.teacher_terms[0]}' compares with a teacher, but there is none; give a teacher, or "
            "drop the term"
        )
    if train.smallest == 1 and has_batch_norm(student):
        raise UsageError(
            f"the student has batch norm, which cannot learn from a batch of 1 sample; found {train.num_samples} "
            "training samples in batches of 1, expected batch_size and samples of at least 2"
        )
    # As training will see them: a cache knows the augmented samples only.
    first = next(train.epoch(0))
    # Samples with a label first, so that the losses on labels are tried out too.
    rows = torch.argsort(first[LABELLED], descending=True, stable=True)[:2] if LABELLED in first else slice(0, 2)
    small = train.at(first["index"][rows].numpy(), view=int(first["view"][0]))
    batch = {name: value.to(device) for name, value in small.items()}
    inner = unwrap(student)
    with torch.no_grad(), evaluating(inner):
        own = forward(inner, batch["x"])
        with Taps(inner, [tap for tap in objective.student_taps if tap not in own]) as taps:
            student_out = {**forward(inner, batch["x"]), **taps.read()} if taps.paths else own
    logits = own["logits"]
    teacher_out: dict[str, Tensor] = {}
    if teacher is not None and objective.teacher_terms:
        with tapped(teacher, objective.teacher_taps, batch):
            teacher_out = ask(teacher, batch, objective.teacher_taps)
    if "logits" in teacher_out and teacher_out["logits"].shape != logits.shape:
        raise UsageError(
            f"student logits are {list(logits.shape)} but teacher logits are {list(teacher_out['logits'].shape)}; do "
            "both models end in the same classes?"
        )
    # One row per sample, or per token that is asked for.
    if tuple(logits.shape) != (len(batch["y"]), num_outputs):
        raise ModelError(
            f"student logits are {list(logits.shape)} but the data has {num_outputs} labels, expected "
            f"{[len(batch['y']), num_outputs]}; build the student with num_outputs = {num_outputs}"
        )

    def build() -> Objective:
        return objective.build(
            student_out,
            teacher_out,
            student_module=lambda tap: part_at(inner, tap),
            teacher_module=lambda tap: None if teacher is None else tapped_module(teacher, tap),
            num_samples=len(train.ids),
            seed=seed,
        )

    dry = build()  # adapters may remember what they see: those of the training see nothing of this
    try:
        with torch.no_grad():
            dry.try_out(student_out, teacher_out, batch)
    except UsageError as error:
        if "ratio" not in batch or not objective.truth_terms:
            raise
        raise UsageError(
            f"{error}. With mixup or cutmix the labels are shares of the classes (N, C): of the losses on labels, "
            "cross_entropy takes them"
        ) from error
    return Rehearsal(build(), frozenset(own), batch)


def _check_targets(split: Split, task: Task, num_outputs: int, where: str) -> None:
    y = split.y
    if task == "masked_lm":
        return  # the texts are asked for themselves
    if task == "classification":
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise DataError(f"{where}: found labels {list(y.shape)} of {y.dtype}, expected one whole number per sample")
        wrong = np.flatnonzero((y < 0) | (y >= num_outputs))
        if len(wrong):
            first = int(wrong[0])
            raise DataError(
                f"{where}: {len(wrong)} labels are out of range, the first is {int(y[first])} (sample "
                f"{int(split.ids[first])}), expected 0 to {num_outputs - 1} for {num_outputs} labels"
            )
        return
    if y.ndim != 2 or y.shape[1] != num_outputs:
        raise DataError(f"{where}: found targets {list(y.shape)}, expected {[len(y), num_outputs]}")
    if task == "multilabel" and not np.isin(y, (0, 1)).all():
        raise DataError(f"{where}: found label values other than 0 and 1, expected 1 where a label holds and else 0")
    if not np.isfinite(y).all():
        wrong = np.flatnonzero(~np.isfinite(y).all(axis=1))
        raise DataError(
            f"{where}: {len(wrong)} targets are NaN or infinite, the first in sample {int(split.ids[wrong[0]])}"
        )
