"""A training in several stages: which terms are learned when, for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.distill.objective import Objective
from edgekd.errors import UsageError


@dataclass(frozen=True)
class Stage:
    """A part of the training with terms of its own: FitNets is one of hints, then one of soft labels.

    epochs  its length; learning rate (with its warm-up), weights and options run their schedules within it
    terms   names of terms of the objective, which go on with the same adapter where they come again
    lr      None: that of the training

    The student goes on with the weights where the stage before ended, optimizer and average begin anew.
    """

    name: str
    epochs: int
    terms: tuple[str, ...]
    lr: float | None = None


@dataclass(frozen=True)
class Phase:
    """A stage as the training sees it: `first` is its first epoch, from 0."""

    name: str | None
    first: int
    epochs: int
    lr: float
    objective: Objective

    @property
    def end(self) -> int:
        """The epoch after its last one."""
        return self.first + self.epochs


def phases(objective: Objective, stages: Sequence[Stage], *, epochs: int, lr: float) -> tuple[Phase, ...]:
    """The stages one after the other, or the one phase of a training without stages."""
    if not stages:
        return (Phase(None, 0, epochs, lr, objective),)
    found: list[Phase] = []
    for stage in stages:
        first = found[-1].end if found else 0
        found.append(Phase(stage.name, first, stage.epochs, stage.lr or lr, objective.only(stage.terms)))
    return tuple(found)


def check_stages(objective: Objective, stages: Sequence[Stage], *, epochs: int, warmup_epochs: int) -> None:
    """Raise `UsageError` for stages that are no training together."""
    names = [stage.name for stage in stages]
    for stage in stages:
        if not stage.name or names.count(stage.name) > 1:
            raise UsageError(f"stage names are {names}, expected different names, none of them empty")
        if not stage.terms:
            raise UsageError(f"stage '{stage.name}' has no terms, expected some of {', '.join(objective.names)}")
        if stage.epochs <= warmup_epochs:
            raise UsageError(
                f"stage '{stage.name}' has {stage.epochs} epochs, expected more than warmup_epochs = {warmup_epochs}"
            )
        if stage.lr is not None and not stage.lr > 0:
            raise UsageError(f"stage '{stage.name}': found lr = {stage.lr}, expected a number above 0")
        objective.only(stage.terms)
    total = sum(stage.epochs for stage in stages)
    if stages and total != epochs:
        raise UsageError(f"the stages have {total} epochs in all, but epochs = {epochs}; expected the same")
    idle = [name for name in objective.names if stages and all(name not in stage.terms for stage in stages)]
    if idle:
        raise UsageError(f"no stage learns the term '{idle[0]}'; name it in a stage, or drop the term")


def describe(stages: Sequence[Stage]) -> list[list[Any]]:
    """The stages as plain values, without their learning rates."""
    return [[stage.name, stage.epochs, list(stage.terms)] for stage in stages]
