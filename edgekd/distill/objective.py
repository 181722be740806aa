"""The objective: a weighted sum of named terms, each a loss on what student, teacher and truth give.

    loss = sum over terms of weight(progress) * loss_term(student[tap], teacher[tap], labels)

There is no alpha: every term has its own weight. The objective finds out from the names of a loss's parameters what
it needs: `student...` first, then any of `teacher...`, `labels...`, `targets...` (or the short s, t, y); everything
else is an option of the term.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor

from edgekd.distill.losses import find_loss
from edgekd.errors import ModelError, UsageError, nearest

Role = Literal["student", "teacher", "truth"]
Named = Mapping[str, Tensor]

NEGLIGIBLE_SHARE = 1e-3


@dataclass(frozen=True)
class Schedule:
    """A weight that goes from `start` to `end` until the part `until` of the training is over, and then stays.

    A warm-up of 20 of 240 epochs from nothing to 8: Schedule(start=0.0, end=8.0, until=20 / 240).
    """

    start: float
    end: float
    shape: Literal["constant", "linear", "cosine"] = "linear"
    until: float = 1.0

    def at(self, progress: float) -> float:
        """The weight at `progress` (0 at the first step, 1 at the end). `constant` is `start` all the way."""
        part = min(max(progress / self.until, 0.0), 1.0)
        return self.start + (self.end - self.start) * SHAPES[self.shape](part)


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda part: 0.0,
    "linear": lambda part: part,
    "cosine": lambda part: 0.5 * (1.0 - math.cos(math.pi * part)),
}


@dataclass(frozen=True)
class Term:
    """One weighted loss.

    loss     a name in `edgekd.distill.losses.LOSSES`, the user's own "package.module:function", or a function
    weight   a number, or a `Schedule` over the training
    *_tap    which of the named tensors of student and teacher the loss sees
    options  the loss function's own keywords
    """

    name: str
    loss: str | Callable[..., Tensor]
    weight: float | Schedule = 1.0
    student_tap: str = "logits"
    teacher_tap: str = "logits"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Bound:
    """A term whose loss was found and whose arguments are known."""

    term: Term
    function: Callable[..., Tensor]
    roles: tuple[tuple[str, Role], ...]


class Objective:
    """`Objective(terms)(student, teacher, batch, progress) -> (loss, {name: value})`.

    student, teacher  named tensors; the teacher's may be empty when no term wants it
    batch             named tensors with the truth in "y"
    progress          0..1, for weights that change
    value             the term's share of the loss, weight included, detached: the values add up to the loss

    Raises `UsageError` for a wrong term and `ModelError` for a tap that student or teacher does not give.
    """

    def __init__(self, terms: Sequence[Term], *, search_path: str | PathLike[str] | None = None) -> None:
        if not terms:
            raise UsageError("found an objective without terms, expected at least one; add a [[distill.terms]]")
        names = [term.name for term in terms]
        for name in names:
            if not name or names.count(name) > 1:
                raise UsageError(f"term names are {names}, expected different names, none of them empty")
        self._terms = tuple(_bind(term, search_path) for term in terms)
        if all(_always_zero(term.weight) for term in terms):
            raise UsageError(f"the weights of all terms ({', '.join(names)}) are 0: there is nothing to learn from")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, in order."""
        return tuple(bound.term.name for bound in self._terms)

    @property
    def teacher_terms(self) -> tuple[str, ...]:
        """Names of the terms that want a teacher."""
        return tuple(bound.term.name for bound in self._terms if _wants(bound, "teacher"))

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's tensors that the terms look at, each once."""
        return tuple(dict.fromkeys(b.term.teacher_tap for b in self._terms if _wants(b, "teacher")))

    def describe(self) -> list[dict[str, Any]]:
        """The terms as plain values: equal for objectives that compute the same."""
        return [
            {
                "name": bound.term.name,
                "loss": f"{bound.function.__module__}:{bound.function.__qualname__}",
                "weight": repr(bound.term.weight),
                "taps": [bound.term.student_tap, bound.term.teacher_tap],
                "options": {name: repr(value) for name, value in sorted(bound.term.options.items())},
            }
            for bound in self._terms
        ]

    def __call__(
        self, student: Named, teacher: Named, batch: Named, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (with gradient) and what each term adds to it (without)."""
        parts: list[Tensor] = []
        values: dict[str, Tensor] = {}
        for bound in self._terms:
            term = bound.term
            weight = term.weight.at(progress) if isinstance(term.weight, Schedule) else term.weight
            student_tap = _tap(student, term.student_tap, "student", term.name)
            if weight == 0.0:  # not computed: a loss that is infinite at the start may be faded in
                values[term.name] = student_tap.new_zeros((), dtype=torch.float32)
                continue
            arguments: dict[str, Any] = dict(term.options)
            for name, role in bound.roles:
                if role == "student":
                    arguments[name] = student_tap
                elif role == "teacher":
                    arguments[name] = _tap(teacher, term.teacher_tap, "teacher", term.name)
                else:
                    arguments[name] = _tap(batch, "y", "batch", term.name)
            value = bound.function(**arguments)
            if not isinstance(value, Tensor) or value.dim() != 0:
                found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise UsageError(f"the loss of term '{term.name}' returned {found}, expected a tensor with one number")
            part = value if weight == 1.0 else value * weight
            parts.append(part)
            values[term.name] = part.detach()
        if not parts:
            return _tap(student, "logits", "student", "loss").float().sum() * 0.0, values
        loss = parts[0]
        for part in parts[1:]:
            loss = loss + part
        return loss, values

    def negligible(self, sums: Mapping[str, float]) -> dict[str, str]:
        """A warning, by name, for each term that added less than a thousandth to the loss of an epoch.

        `sums` holds what each term added, as in the values of a call. A weight on its way from or to 0 is meant
        to be small at one end, so those terms are left out.
        """
        total = sum(abs(value) for value in sums.values())
        texts: dict[str, str] = {}
        for bound in self._terms:
            term = bound.term
            share = abs(sums[term.name]) / total if total > 0 else 1.0
            if len(self._terms) > 1 and share < NEGLIGIBLE_SHARE and not isinstance(term.weight, Schedule):
                texts[term.name] = (
                    f"term '{term.name}' is only {share:.1e} of the loss (weight {term.weight:g}) and hardly teaches "
                    "anything; raise its weight, or drop the term"
                )
        return texts


def first_non_finite(names: Sequence[str], values_KT: Tensor) -> tuple[int, list[str]] | None:
    """(row, names of its columns) of the first row of `values_KT` with NaN or infinity; None if all are finite."""
    bad_KT = ~torch.isfinite(values_KT)
    rows = bad_KT.any(dim=1).nonzero()
    if len(rows) == 0:
        return None
    row = int(rows[0])
    return row, [name for name, bad in zip(names, bad_KT[row].tolist()) if bad]


def _bind(term: Term, search_path: str | PathLike[str] | None) -> _Bound:
    _check_weight(term)
    function = find_loss(term.loss, search_path=search_path) if isinstance(term.loss, str) else term.loss
    roles: list[tuple[str, Role]] = []
    options: list[str] = []
    for index, (name, parameter) in enumerate(inspect.signature(function).parameters.items()):
        role = "student" if index == 0 else _role(name)
        positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if role is not None and positional:
            roles.append((name, role))
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY or (
            positional and parameter.default is not parameter.empty
        ):
            options.append(name)
            if parameter.default is parameter.empty and name not in term.options:
                raise UsageError(f"term '{term.name}': the loss needs the option '{name}'; add it to options")
        else:
            raise UsageError(
                f"term '{term.name}': the loss has the parameter '{name}', expected names that begin with student, "
                "teacher, labels or targets, and options with a default"
            )
    if not roles:
        raise UsageError(f"term '{term.name}': the loss takes no arguments, expected the student's output first")
    for name in term.options:
        if name not in options:
            raise UsageError(f"term '{term.name}': unknown option '{name}'. {nearest(name, options)}")
    return _Bound(term, function, tuple(roles))


def _role(name: str) -> Role | None:
    if name == "t" or name.startswith("teacher"):
        return "teacher"
    if name == "y" or name.startswith(("labels", "targets")):
        return "truth"
    return None


def _wants(bound: _Bound, role: Role) -> bool:
    return any(known == role for _, known in bound.roles)


def _check_weight(term: Term) -> None:
    weight = term.weight
    ends = (weight.start, weight.end) if isinstance(weight, Schedule) else (weight,)
    if not all(math.isfinite(end) and end >= 0 for end in ends):
        raise UsageError(f"term '{term.name}': found weight = {weight}, expected finite numbers from 0")
    if isinstance(weight, Schedule):
        if weight.shape not in SHAPES:
            raise UsageError(f"term '{term.name}': unknown shape '{weight.shape}'. {nearest(weight.shape, SHAPES)}")
        if not 0 < weight.until <= 1:
            raise UsageError(f"term '{term.name}': found until = {weight.until}, expected a part above 0, at most 1")


def _always_zero(weight: float | Schedule) -> bool:
    return weight.start == weight.end == 0 if isinstance(weight, Schedule) else weight == 0


def _tap(tensors: Named, name: str, whose: str, term: str) -> Tensor:
    try:
        return tensors[name]
    except KeyError as error:
        raise ModelError(
            f"term '{term}' looks at '{name}' of the {whose}, which gives {sorted(tensors) or 'nothing'}"
        ) from error
