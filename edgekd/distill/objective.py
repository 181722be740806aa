"""The objective: a weighted sum of named terms, each a loss on what student, teacher and truth give.

    loss = sum over terms of weight(progress) * loss_term(adapter_term(student[tap], teacher[tap]), labels)

There is no alpha: every term has its own weight. The objective finds out from the names of a loss's parameters what
it needs: `student...` first, then any of `teacher...`, `labels...`, `targets...` (or the short s, t, y), and `mask`
where it looks at tokens (N, L, ...) and the batch says which of them count; everything else is an option of the term,
or what its adapter adds. Where a batch says which of its samples are labelled, losses on labels see those alone, but
one with the parameter `labelled`, which gets them all and what the label of each counts (N,).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.distribution import SHARES, Portion
from edgekd.distill.labelled import LABELLED, LABELLED_ROWS, labelled_only
from edgekd.distill.masking import ASKED
from edgekd.distill.randomness import key, preserved
from edgekd.distill.terms import MASK, BoundTerm, Schedule, Term, always_zero, bind, tap_names
from edgekd.errors import ModelError, UsageError, nearest

__all__ = ["Objective", "Schedule", "Term"]

Named = Mapping[str, Tensor]
# One tensor, or the several of a term that taps several.
Tapped = Tensor | list[Tensor]
FindModule = Callable[[str], nn.Module | None]
Networks = Callable[[], AbstractContextManager[object]]

NEGLIGIBLE_SHARE = 1e-3


class Objective:
    """`Objective(terms)(student, teacher, batch, progress) -> (loss, {name: value})`.

    student, teacher  named tensors; the teacher's may be empty when no term wants it
    batch             named tensors with the truth in "y"; with "mask" (N, L) for tokens, true = counts; with "labelled"
                      (N,) where only some samples have a truth
    progress          0..1, for weights and options that change
    value             the term's share of the loss, weight included, detached: the values add up to the loss

    Adapters need shapes: `build` gives the objective with its adapters in `modules`.

    Raises `UsageError` for a wrong term and `ModelError` for a tap that student or teacher does not give.
    """

    def __init__(self, terms: Sequence[Term], *, search_path: str | PathLike[str] | None = None) -> None:
        if not terms:
            raise UsageError("found an objective without terms, expected at least one; add a [[distill.terms]]")
        names = [term.name for term in terms]
        for name in names:
            if not name or names.count(name) > 1:
                raise UsageError(f"term names are {names}, expected different names, none of them empty")
        self._terms = tuple(bind(term, search_path) for term in terms)
        if all(always_zero(term.weight) for term in terms):
            raise UsageError(f"the weights of all terms ({', '.join(names)}) are 0: there is nothing to learn from")
        self._adapters: dict[str, nn.Module] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, in order."""
        return tuple(bound.term.name for bound in self._terms)

    @property
    def teacher_terms(self) -> tuple[str, ...]:
        """Names of the terms that want a teacher."""
        return tuple(bound.term.name for bound in self._terms if bound.wants_teacher)

    @property
    def truth_terms(self) -> tuple[str, ...]:
        """Names of the terms that want the labels."""
        return tuple(bound.term.name for bound in self._terms if bound.wants_truth)

    @property
    def comparing_terms(self) -> tuple[str, ...]:
        """Names of the terms that compare samples with one another."""
        return tuple(bound.term.name for bound in self._terms if bound.compares)

    @property
    def student_taps(self) -> tuple[str, ...]:
        """The student's tensors that the terms look at, each once."""
        return tuple(dict.fromkeys(tap for b in self._terms for tap in tap_names(b.term.student_tap)))

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's tensors that the terms look at, each once."""
        return tuple(
            dict.fromkeys(tap for b in self._terms if b.wants_teacher for tap in tap_names(b.term.teacher_tap))
        )

    @property
    def modules(self) -> nn.ModuleDict:
        """The adapters of the terms that have one, trained with the student. Empty before `build`."""
        # A module's name may hold no dot, and not be one of a module's own attributes.
        return nn.ModuleDict({f"term {n}".replace(".", "/"): module for n, module in self._adapters.items()})

    def after_step(self) -> None:
        """Tell the adapters that want to know it that the optimizer has made a step."""
        for module in self._adapters.values():
            if (after := getattr(module, "after_step", None)) is not None:
                after()

    def describe(self) -> list[dict[str, Any]]:
        """The terms as plain values: equal for objectives that compute the same."""
        return [bound.describe() for bound in self._terms]

    def only(self, names: Sequence[str]) -> Objective:
        """The terms of these names, in the objective's order, sharing its adapters.

        Raises `UsageError` for a name that is not among them.
        """
        for name in names:
            if name not in self.names:
                raise UsageError(f"there is no term '{name}'. {nearest(name, self.names)}")
        chosen = copy.copy(self)
        chosen._terms = tuple(bound for bound in self._terms if bound.term.name in names)
        chosen._adapters = {name: module for name, module in self._adapters.items() if name in names}
        return chosen

    def build(
        self,
        student: Named,
        teacher: Named,
        *,
        student_module: FindModule = lambda tap: None,
        teacher_module: FindModule = lambda tap: None,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> Objective:
        """The same terms with fresh adapters for tensors of these shapes, on the student's device.

        student, teacher  what both give for a batch of any size
        *_module          which module a tap belongs to, for adapters that read its weights
        num_samples       one more than the largest sample id, for adapters that remember each sample
        seed              of the adapters' initial weights

        Raises `UsageError` when an adapter does not fit.
        """
        built = copy.copy(self)
        built._adapters = {}
        for index, bound in enumerate(self._terms):
            term = bound.term
            if bound.builder is None and bound.auto is None:
                continue
            student_value = _look(student, term.student_tap, "student", term.name)
            teacher_value = student_value
            if bound.wants_teacher:
                teacher_value = _look(teacher, term.teacher_tap, "teacher", term.name)
            builder = bound.builder or (bound.auto if _differ(student_value, teacher_value) else None)
            if builder is None:
                continue
            with preserved():
                torch.manual_seed(key(seed, index, 3, 0) >> 1)
                try:
                    module = builder(
                        _shapes(student_value),
                        _shapes(teacher_value),
                        student_module=_modules(student_module, term.student_tap),
                        teacher_module=_modules(teacher_module, term.teacher_tap),
                        num_samples=num_samples,
                        **term.adapter_options,
                    )
                except TypeError as error:
                    raise UsageError(f"term '{term.name}': its adapter cannot be built: {error}") from error
            if not isinstance(module, nn.Module):
                raise UsageError(
                    f"term '{term.name}': its adapter's builder returned a {type(module).__name__}, expected a "
                    "torch.nn.Module"
                )
            first = student_value[0] if isinstance(student_value, list) else student_value
            built._adapters[term.name] = module.to(first.device).train()
        return built

    def __call__(
        self, student: Named, teacher: Named, batch: Named, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (with gradient) and what each term adds to it (without)."""
        return self.total(self.parts(student, teacher, batch, progress), student)

    def parts(
        self,
        student: Named,
        teacher: Named,
        batch: Named,
        progress: float,
        portion: Portion | None = None,
        *,
        networks: Networks = nullcontext,
    ) -> dict[str, Tensor]:
        """What each term adds to the loss, with gradient. A term of weight 0 is not computed and not there.

        So a loss that is infinite at the start may be faded in.

        portion   which rows of the batch these are, where others are elsewhere: the mean over the processes of the sum
                  over the portions of a batch is the loss of the batch. Terms that compare samples see those of all
                  processes
        networks  around adapters that hold whole networks, which then compute as the student does
        """
        parts: dict[str, Tensor] = {}
        for bound in self._terms:
            weight = bound.weight(progress)
            if weight != 0.0:
                if portion is None:
                    value = self._value(bound, student, teacher, batch, progress, networks)
                elif bound.compares:
                    value = self._value_of_all(bound, student, teacher, batch, progress, networks, portion)
                    weight *= portion.whole
                else:
                    value = self._value(bound, student, teacher, batch, progress, networks)
                    value = value * _share(bound, student, batch, portion)
                parts[bound.term.name] = value if weight == 1.0 else value * weight
        return parts

    def try_out(self, student: Named, teacher: Named, batch: Named) -> None:
        """Compute every term once, whatever its weight, so that it says now what it cannot take."""
        for bound in self._terms:
            self._value(bound, student, teacher, batch, 1.0, nullcontext)

    def total(self, parts: Mapping[str, Tensor], student: Named) -> tuple[Tensor, dict[str, Tensor]]:
        """What `parts` add up to, and each of them without gradient; 0 for the terms that are not there."""
        values = {name: part.detach() for name, part in parts.items()}
        if parts:
            loss, *others = parts.values()
            for other in others:
                loss = loss + other
        else:
            loss = _tap(student, "logits", "student", "loss").float().sum() * 0.0
        if len(parts) < len(self._terms):
            zero = loss.new_zeros(())
            values = {name: values.get(name, zero) for name in self.names}
        return loss, values

    def negligible(self, sums: Mapping[str, float], *, of: str = "loss") -> dict[str, str]:
        """A warning, by name, for each term that is less than a thousandth of the whole.

        `sums` holds a figure for each term: what it added to the loss of an epoch, or the norm of its gradient. A
        weight on its way from or to 0 is meant to be small at one end, so those terms are left out.
        """
        total = sum(abs(value) for value in sums.values())
        texts: dict[str, str] = {}
        for bound in self._terms:
            term = bound.term
            share = abs(sums.get(term.name, 0.0)) / total if total > 0 else 1.0
            if len(self._terms) > 1 and share < NEGLIGIBLE_SHARE and not isinstance(term.weight, Schedule):
                texts[term.name] = (
                    f"term '{term.name}' is only {share:.1e} of the {of} (weight {term.weight:g}) and hardly teaches "
                    "anything; raise its weight, or drop the term"
                )
        return texts

    def _value_of_all(
        self,
        bound: BoundTerm,
        student: Named,
        teacher: Named,
        batch: Named,
        progress: float,
        networks: Networks,
        portion: Portion,
    ) -> Tensor:
        """The term's loss of the rows of all processes: each of them computes the same."""
        adapter = bound.term.name in self._adapters
        # (Shares and numbers of rows are those of this part.)
        needed = [
            name for name in batch if name in ("y", MASK, LABELLED) or (adapter and name not in (SHARES, LABELLED_ROWS))
        ]
        student = portion.gather({tap: student[tap] for tap in tap_names(bound.term.student_tap) if tap in student})
        teacher = portion.gather({tap: teacher[tap] for tap in tap_names(bound.term.teacher_tap) if tap in teacher})
        batch = portion.gather({name: batch[name] for name in needed})
        with portion.draws() if adapter and portion.draws is not None else nullcontext():
            return self._value(bound, student, teacher, batch, progress, networks)

    def _value(
        self, bound: BoundTerm, student: Named, teacher: Named, batch: Named, progress: float, networks: Networks
    ) -> Tensor:
        """The term's loss, without its weight."""
        term = bound.term
        student_value: Any = _look(student, term.student_tap, "student", term.name)
        teacher_value: Any = _look(teacher, term.teacher_tap, "teacher", term.name) if bound.wants_teacher else None
        options = {**bound.options, **{name: schedule.at(progress) for name, schedule in bound.scheduled}}
        arguments: dict[str, Any] = {}
        adapter = self._adapters.get(term.name)
        if adapter is not None:
            with networks() if getattr(adapter, "holds_networks", False) else nullcontext():
                student_value, teacher_value, extras = adapter(student_value, teacher_value, batch)
            if not bound.given <= extras.keys() <= bound.parameters:
                raise UsageError(
                    f"term '{term.name}': its adapter gives {sorted(extras) or 'nothing'} beside the tensors, but the "
                    f"loss takes {sorted(bound.given) or 'nothing more'}; is it the adapter for this loss?"
                )
            arguments.update(extras)
        elif bound.builder is not None:
            raise UsageError(f"term '{term.name}' has an adapter: call build on the objective first")
        arguments.update(bound.teacher_arguments(teacher_value))
        for name, role in bound.roles:
            if role == "student":
                arguments[name] = student_value
            elif role == "truth":
                arguments[name] = _tap(batch, "y", "batch", term.name)
            elif role == "mask" and MASK in batch and _is_of_tokens(student_value):
                arguments.setdefault(name, batch[MASK])
        if not bound.wants_truth or LABELLED not in batch:
            return _computed(bound, {**options, **arguments})
        if LABELLED in bound.parameters - options.keys():
            return _computed(bound, {**options, **arguments, LABELLED: batch[LABELLED]})
        # Not before the adapter: its batch norm learns from all samples, and on all processes at the same moment.
        return labelled_only(lambda chosen: _computed(bound, {**options, **chosen}), arguments, batch)


def _computed(bound: BoundTerm, arguments: Mapping[str, Any]) -> Tensor:
    value = bound.function(**arguments)
    if not isinstance(value, Tensor) or value.dim() != 0:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"the loss of term '{bound.term.name}' returned {found}, expected a tensor with one number")
    return value


def _share(bound: BoundTerm, student: Named, batch: Named, portion: Portion) -> float | Tensor:
    """What a term of these rows counts in the loss of the batch: their share of the samples, or of the tokens, or of
    those of them that are asked for."""
    if SHARES not in batch:
        return portion.own
    if ASKED in batch and bound.term.student_tap == "logits":  # a row for each token that is asked for
        return batch[SHARES][2]
    if bound.share is None or MASK not in batch:
        return portion.own
    value = _look(student, bound.term.student_tap, "student", bound.term.name)
    return batch[SHARES][bound.share] if _is_of_tokens(value) else portion.own


def _tap(tensors: Named, name: str, whose: str, term: str) -> Tensor:
    try:
        return tensors[name]
    except KeyError as error:
        raise ModelError(
            f"term '{term}' looks at '{name}' of the {whose}, which gives {sorted(tensors) or 'nothing'}"
        ) from error


def _look(tensors: Named, tap: str | tuple[str, ...], whose: str, term: str) -> Tapped:
    if isinstance(tap, str):
        return _tap(tensors, tap, whose, term)
    return [_tap(tensors, name, whose, term) for name in tap]


def _shapes(value: Tapped) -> Any:
    """Shapes of one sample."""
    return [tuple(item.shape[1:]) for item in value] if isinstance(value, list) else tuple(value.shape[1:])


def _modules(find: FindModule, tap: str | tuple[str, ...]) -> Any:
    return find(tap) if isinstance(tap, str) else [find(name) for name in tap]


def _is_of_tokens(value: Tapped) -> bool:
    return (value[0] if isinstance(value, list) else value).dim() == 3


def _differ(student: Tapped, teacher: Tapped) -> bool:
    """Whether the widths differ: channels of maps, else the last axis. Of lists: those of any pair."""
    if isinstance(student, list) and isinstance(teacher, list) and len(student) == len(teacher):
        return any(map(_differ, student, teacher))
    if isinstance(student, list) or isinstance(teacher, list):
        return False
    width = 1 if student.dim() == 4 else -1
    return student.dim() != teacher.dim() or (student.dim() > 1 and student.shape[width] != teacher.shape[width])
