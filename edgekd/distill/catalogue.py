"""What there is to choose from: losses and adapters, as `edgekd recipes --losses` lists them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from edgekd.distill.adapters import ADAPTERS, find_adapter
from edgekd.distill.losses import ADAPTER_OF, DEFAULT_WEIGHTS, LOSSES, find_loss
from edgekd.distill.terms import MASK, Term, bind
from edgekd.errors import UsageError, nearest

# What a builder is given by the engine; the others are a recipe's `adapter_options`.
_GIVEN = ("student_shape", "teacher_shape", "student_module", "teacher_module", "num_samples")


@dataclass(frozen=True)
class Choice:
    """A loss or an adapter.

    kind          "loss" or "adapter"
    summary       the first line of its description; `description` is all of it, with formula, shapes and source
    options       its keywords and their defaults: `options` of a term, or `adapter_options`
    needs         of a loss: what it reads beside the student, "teacher" and "labels"
    usual_weight  of a loss: with which it matters beside a cross-entropy of about 2.3; None: nobody has published one
    adapter       of a loss: the one that it always has
    """

    name: str
    kind: str
    summary: str
    description: str
    options: dict[str, Any]
    needs: tuple[str, ...] = ()
    usual_weight: float | None = None
    adapter: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def losses() -> list[Choice]:
    """All losses, in the order of `LOSSES`."""
    return [_loss(name) for name in LOSSES]


def adapters() -> list[Choice]:
    """All adapters, in the order of `ADAPTERS`."""
    found = []
    for name in ADAPTERS:
        builder = find_adapter(name)
        found.append(Choice(name, "adapter", *_described(builder), _options(builder, _GIVEN)))
    return found


def one(name: str) -> Choice:
    """The loss or adapter of that name. Raises `UsageError` with the nearest one."""
    found = {choice.name: choice for choice in (*adapters(), *losses())}
    if name not in found:
        raise UsageError(f"there is no loss or adapter '{name}'. {nearest(name, found)}")
    return found[name]


def _loss(name: str) -> Choice:
    function, bound = find_loss(name), bind(Term(name, name), None)
    needs = [what for what, wanted in (("teacher", bound.wants_teacher), ("labels", bound.wants_truth)) if wanted]
    return Choice(
        name,
        "loss",
        *_described(function),
        _options(function, (MASK,)),
        tuple(needs),
        DEFAULT_WEIGHTS.get(name),
        ADAPTER_OF.get(name),
    )


def _described(function: Callable[..., object]) -> tuple[str, str]:
    text = inspect.getdoc(function) or ""
    return text.partition("\n")[0], text


def _options(function: Callable[..., object], given: tuple[str, ...]) -> dict[str, Any]:
    """Keywords that have a default; what a recipe cannot write has None for one."""
    parameters = inspect.signature(function).parameters
    return {
        name: list(item.default) if isinstance(item.default, tuple) else item.default
        for name, item in parameters.items()
        if name not in given and item.default is not item.empty and item.default is not None
    }
