"""One term of an objective: a loss, its weight, what it looks at, and what it needs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any, Literal

from torch import Tensor, nn

from edgekd.distill.adapters import ADAPTERS, WITHOUT_TEACHER, find_adapter
from edgekd.distill.losses import ADAPTER_OF, EQUAL_SHAPES, find_loss
from edgekd.distill.losses.comparing import compares_samples, looks_at_truth, mean_of
from edgekd.errors import UsageError, nearest

Role = Literal["student", "teacher", "truth", "mask"]
AUTO = "auto"
# The parameter of losses on tokens (N, L, ...), and the batch's tensor (N, L): which of them count.
MASK = "mask"


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` until the part `until` of the training is over, and then stays.

    A warm-up of 20 of 240 epochs from nothing to 8: Schedule(start=0.0, end=8.0, until=20 / 240). In a training of
    several stages the training is the stage.
    """

    start: float
    end: float
    shape: Literal["constant", "linear", "cosine"] = "linear"
    until: float = 1.0

    def at(self, progress: float) -> float:
        """The number at `progress` (0 at the first step, 1 at the end). `constant` is `start` all the way."""
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

    loss             a name in `edgekd.distill.losses.LOSSES`, the user's own "package.module:function", or a function
    weight           a number, or a `Schedule` over the training
    *_tap            which tensor of student and teacher the loss sees: "logits", a tap path (edgekd.distill.taps), or
                     several of them, which adapter and loss get as a list
    adapter          what brings the tensors together: a name in `edgekd.distill.adapters.ADAPTERS`, the user's own
                     "package.module:builder", or a builder. Without one, a loss that is made for one gets it
                     (`edgekd.distill.losses.ADAPTER_OF`), and a loss that compares element by element gets
                     the smallest that fits where the widths differ ("auto")
    options          the loss function's own keywords; a number may be a `Schedule`
    adapter_options  the builder's own keywords
    compares_samples whether the loss compares samples with one another instead of being a mean over them: it then gets
                     the whole batch on several processes. None: as `edgekd.distill.losses.comparing` says, and no for
                     the user's own
    """

    name: str
    loss: str | Callable[..., Tensor]
    weight: float | Schedule = 1.0
    student_tap: str | tuple[str, ...] = "logits"
    teacher_tap: str | tuple[str, ...] = "logits"
    adapter: str | Callable[..., nn.Module] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter_options: Mapping[str, Any] = field(default_factory=dict)
    compares_samples: bool | None = None


@dataclass(frozen=True)
class BoundTerm:
    """A term whose loss was found and whose arguments are known. `given` are those that the adapter must add."""

    term: Term
    function: Callable[..., Tensor]
    roles: tuple[tuple[str, Role], ...]
    options: Mapping[str, Any]
    scheduled: tuple[tuple[str, Schedule], ...]
    given: frozenset[str]
    parameters: frozenset[str]
    builder: Callable[..., nn.Module] | None
    auto: Callable[..., nn.Module] | None

    # The next ones are looked at in every step.
    @cached_property
    def wants_teacher(self) -> bool:
        """Whether it needs what a teacher gives."""
        if _adapter(self.term) in WITHOUT_TEACHER:
            return False
        return self.builder is not None or any(role == "teacher" for _, role in self.roles)

    @cached_property
    def compares(self) -> bool:
        """Whether it compares samples with one another."""
        known = self.term.compares_samples
        return compares_samples(self.function) if known is None else known

    @cached_property
    def share(self) -> int | None:
        """Its place in a batch's `SHARES` where it looks at tokens; None: it counts as its share of the samples."""
        takes_mask = any(role == "mask" for _, role in self.roles)
        return {"tokens": 0, "pairs": 1, "samples": None}[mean_of(self.function)] if takes_mask else None

    @cached_property
    def wants_truth(self) -> bool:
        """Whether it needs the labels."""
        return any(role == "truth" for _, role in self.roles)

    def weight(self, progress: float) -> float:
        """The weight at `progress`."""
        weight = self.term.weight
        return weight.at(progress) if isinstance(weight, Schedule) else weight

    @cached_property
    def _teacher_names(self) -> tuple[str, ...]:
        return tuple(name for name, role in self.roles if role == "teacher")

    def teacher_arguments(self, value: Any) -> dict[str, Any]:
        """The teacher's tensors by the loss's parameters: a loss of several gets one tap for each, in their order."""
        names = self._teacher_names
        if len(names) < 2:
            return {name: value for name in names}
        if not isinstance(value, list) or len(value) != len(names):
            raise UsageError(
                f"term '{self.term.name}': the loss takes {len(names)} tensors of the teacher ({', '.join(names)}), "
                f"found the tap {self.term.teacher_tap!r}; expected teacher_tap to name as many, in that order"
            )
        return dict(zip(names, value))

    def describe(self) -> dict[str, Any]:
        """Plain values, equal for terms that compute the same."""
        described: dict[str, Any] = {
            "name": self.term.name,
            "loss": _reference(self.function),
            "weight": repr(self.term.weight),
            "taps": [self.term.student_tap, self.term.teacher_tap],
            "options": {name: repr(value) for name, value in sorted(self.term.options.items())},
        }
        if self.builder is not None:
            described["adapter"] = _reference(self.builder)
            described["adapter_options"] = {
                key: repr(value) for key, value in sorted(self.term.adapter_options.items())
            }
        return described


def bind(term: Term, search_path: str | PathLike[str] | None) -> BoundTerm:
    """Find the term's loss and adapter, and what they need. Raises `UsageError` for whatever does not fit."""
    _check_weight(term)
    function = find_loss(term.loss, search_path=search_path) if isinstance(term.loss, str) else term.loss
    builder, auto = _builders(term, search_path)
    roles: list[tuple[str, Role]] = []
    options: list[str] = []
    given: list[str] = []
    parameters = inspect.signature(function).parameters
    for index, (name, parameter) in enumerate(parameters.items()):
        role = "student" if index == 0 else _role(name)
        positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        has_default = parameter.default is not parameter.empty
        named = positional or parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if role == "truth" and has_default and not looks_at_truth(function, term.options):
            continue
        if role is not None and positional:
            roles.append((name, role))
        elif name == MASK and has_default and name not in term.options:
            roles.append((name, "mask"))
        elif named and (has_default or name in term.options):
            options.append(name)
        elif named and builder is not None:
            given.append(name)
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            raise UsageError(f"term '{term.name}': the loss needs the option '{name}'; add it to options")
        else:
            raise UsageError(
                f"term '{term.name}': the loss has the parameter '{name}', expected names that begin with student, "
                "teacher, labels or targets, and options with a default"
            )
    if not roles:
        raise UsageError(f"term '{term.name}': the loss takes no arguments, expected the student's output first")
    for name, value in term.options.items():
        if name not in options:
            raise UsageError(f"term '{term.name}': unknown option '{name}'. {nearest(name, options)}")
        if isinstance(value, Schedule):
            _check_schedule(term.name, value)
    return BoundTerm(
        term=term,
        function=function,
        roles=tuple(roles),
        options={name: value for name, value in term.options.items() if not isinstance(value, Schedule)},
        scheduled=tuple((name, value) for name, value in term.options.items() if isinstance(value, Schedule)),
        given=frozenset(given),
        parameters=frozenset(parameters),
        builder=builder,
        auto=auto,
    )


def tap_names(tap: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names in a term's tap."""
    return (tap,) if isinstance(tap, str) else tuple(tap)


def always_zero(weight: float | Schedule) -> bool:
    """Whether a term of this weight never counts."""
    return weight.start == weight.end == 0 if isinstance(weight, Schedule) else weight == 0


def _builders(
    term: Term, search_path: str | PathLike[str] | None
) -> tuple[Callable[..., nn.Module] | None, Callable[..., nn.Module] | None]:
    """(the adapter that was asked for, the one that is taken only where widths differ)."""
    for side in ("student", "teacher"):
        if not tap_names(term.student_tap if side == "student" else term.teacher_tap):
            raise UsageError(f"term '{term.name}': {side}_tap names nothing, expected at least one tap")
    adapter = _adapter(term)
    if adapter is not None:
        return find_adapter(adapter, search_path=search_path) if isinstance(adapter, str) else adapter, None
    if term.adapter_options:
        raise UsageError(
            f"term '{term.name}': adapter_options say how an adapter is built, but there is none; name one: "
            f"{', '.join(ADAPTERS)}"
        )
    return None, find_adapter(AUTO) if term.loss in EQUAL_SHAPES else None


def _adapter(term: Term) -> str | Callable[..., nn.Module] | None:
    """The adapter that the term names, or the one that its loss is made for."""
    if term.adapter is None and isinstance(term.loss, str):
        return ADAPTER_OF.get(term.loss)
    return term.adapter


def _role(name: str) -> Role | None:
    if name == "t" or name.startswith("teacher"):
        return "teacher"
    if name == "y" or name.startswith(("labels", "targets")):
        return "truth"
    return None


def _check_weight(term: Term) -> None:
    weight = term.weight
    ends = (weight.start, weight.end) if isinstance(weight, Schedule) else (weight,)
    if not all(math.isfinite(end) and end >= 0 for end in ends):
        raise UsageError(f"term '{term.name}': found weight = {weight}, expected finite numbers from 0")
    if isinstance(weight, Schedule):
        _check_schedule(term.name, weight)


def _check_schedule(name: str, schedule: Schedule) -> None:
    if schedule.shape not in SHAPES:
        raise UsageError(f"term '{name}': unknown shape '{schedule.shape}'. {nearest(schedule.shape, SHAPES)}")
    if not 0 < schedule.until <= 1:
        raise UsageError(f"term '{name}': found until = {schedule.until}, expected a part above 0, at most 1")


def _reference(function: Callable[..., object]) -> str:
    return f"{function.__module__}:{function.__qualname__}"
