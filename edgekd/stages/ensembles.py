"""Several teachers as one: how wide each of them is, what it says of which samples, and how all of it is averaged.

A teacher with `labels` has outputs for all classes of the data, in their order, or it is a specialist with one for each
of its labels, in their order. The stage that scores it on validation sees which, by its width, and leaves it in its
result.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import ModelError, RecipeError, nearest
from edgekd.hub import weights_file
from edgekd.recipe_sections import TeacherSection, TermSection
from edgekd.spec import Array, Split
from edgekd.stages.workspace import Workspace

if TYPE_CHECKING:
    from edgekd.distill.teachers import Teacher
    from edgekd.distill.terms import BoundTerm

# The key of a specialist's width in the result of its stage.
OUTPUTS = "outputs"


def called(name: str) -> str:
    """A teacher, for errors."""
    return "the teacher" if name == "teacher" else name


def own_classes(space: Workspace, section: TeacherSection) -> list[int]:
    """The numbers of the labels that a teacher knows. Raises `RecipeError` for a label that the data does not have."""
    names = list(space.prepared.dataset.labels)
    for label in section.labels:
        if label not in names:
            raise RecipeError(f"a teacher's labels: the data has no label '{label}'. {nearest(label, names)}")
    return [names.index(label) for label in section.labels]


def is_specialist(space: Workspace, name: str, answers_ND: Array) -> bool:
    """Whether the teacher `name` has outputs for its own labels alone. Raises `ModelError` where it has any others."""
    own, count = len(space.recipe.all_teachers[name].labels), space.prepared.dataset.num_outputs
    if answers_ND.shape[1:] == (count,):
        return False
    if not own or answers_ND.shape[1:] != (own,):
        expected = f", and the teacher {own} of its own" if own else ""
        raise ModelError(
            f"{called(name)} gives {list(answers_ND.shape)} for {len(answers_ND)} samples, but the data has {count} "
            f"labels{expected}; is this the right teacher for the data?"
        )
    if name == "teacher":
        raise ModelError(
            f"the teacher has {own} outputs, for teacher.labels alone, but with the first teacher all others are "
            f"compared: expected {count}, one for each label of the data. Move it to [[teachers]], and take another "
            "one for [teacher]"
        )
    if own == 1:
        raise ModelError(
            f"{name} has one output, for its one label, and the share of one class among itself is always 1: nothing "
            f"can be learned from it. Expected two labels or more, or {count} outputs, one for each label of the data"
        )
    return True


def of_own_classes(space: Workspace, name: str, answers_NK: Array, split: Split) -> tuple[Array, Split]:
    """Of a specialist's answers to `split` those to samples of its classes, and these samples, with the numbers of its
    outputs for labels. Raises `ModelError` when there are none, for nothing then says whether it is right."""
    section = space.recipe.all_teachers[name]
    output_of = {number: output for output, number in enumerate(own_classes(space, section))}
    rows = np.flatnonzero(np.isin(split.y, list(output_of)))
    if not len(rows):
        raise ModelError(
            f"{name} cannot be judged: none of the {len(split)} validation samples is of its labels "
            f"{', '.join(section.labels)}; expected some of each. Take more of the data for validation"
        )
    own = split.take(rows)
    outputs = np.array([output_of[number] for number in own.y.tolist()], dtype=own.y.dtype)
    return answers_NK[rows], Split(own.x, outputs, own.ids)


def num_outputs(space: Workspace, section: Any) -> int:
    """How many outputs the module of a recipe's section has: one for each label of the data, or, of a teacher whose
    weights fit nothing else, one for each of its own. Raises `ModelError` for weights that fit neither."""
    from edgekd.distill.models import load_weights
    from edgekd.stages.training import build

    count = space.prepared.dataset.num_outputs
    has_own = isinstance(section, TeacherSection) and section.labels and section.weights is not None
    if not has_own or len(section.labels) == count:
        return count
    path = weights_file(section.weights, space.search_path)
    reasons = []
    for outputs in (count, len(section.labels)):
        try:
            load_weights(build(space, section, seed=space.recipe.seed, outputs=outputs), path)
        except ModelError as error:
            reasons.append(error)
        else:
            return outputs
    raise ModelError(
        f"{path.name} fits the model neither with {count} outputs, one for each label of the data, nor with "
        f"{len(section.labels)}, one for each of the teacher's own. With {count}: {reasons[0]}"
    ) from reasons[0]


def width_of(space: Workspace, name: str) -> int:
    """How many outputs a teacher or an assistant has: as its stage saw it, and before that as its weights say."""
    from edgekd.stages.training import section_of

    if name in space.records:
        return int(space.result(name).get(OUTPUTS, space.prepared.dataset.num_outputs))
    return num_outputs(space, section_of(space, name))


def together(space: Workspace, teachers: Sequence[Teacher], terms: Sequence[TermSection]) -> Teacher:
    """All teachers of the recipe, in its order, as the one whom `terms` look at."""
    from edgekd.distill.teachers import EnsembleTeacher

    sections = space.recipe.all_teachers
    weights = [section.weight for section in sections.values()]
    degrees = temperature(space, terms)
    if not any(section.labels for section in sections.values()):
        return EnsembleTeacher(teachers, weights, temperature=degrees)
    _check_mixing(space)
    classes = [own_classes(space, section) for section in sections.values()]
    outputs = space.prepared.dataset.num_outputs
    return EnsembleTeacher(teachers, weights, temperature=degrees, classes=classes, num_outputs=outputs)


def _check_mixing(space: Workspace) -> None:
    """Raise `RecipeError` where two specialists may be asked about one sample, of whose classes none knows both."""
    distill, teachers = space.recipe.distill, space.recipe.all_teachers
    if not (distill.mixup or distill.cutmix) or not all(section.labels for section in teachers.values()):
        return
    narrow = [name for name in teachers if width_of(space, name) < space.prepared.dataset.num_outputs]
    if narrow:
        raise RecipeError(
            f"distill.mixup and cutmix blend samples of two classes: {narrow[0]} has outputs for its own labels alone, "
            "and no teacher is asked about all samples, who could say how likely these are beside the others. Remove "
            "mixup and cutmix, or the labels of a teacher that has outputs for all classes"
        )


def temperature(space: Workspace, terms: Sequence[TermSection]) -> float | None:
    """At which temperature the teachers' probabilities are averaged: that of the terms. None: logits are averaged.

    Raises `RecipeError` where it is not one number for all of them.
    """
    from edgekd.distill.answers import LOGITS
    from edgekd.distill.terms import bind, tap_names
    from edgekd.stages.training import term_of

    if space.recipe.distill.ensemble == "logits":
        return None
    bound = [bind(term_of(term), space.search_path) for term in terms]
    looking = [one for one in bound if one.wants_teacher and LOGITS in tap_names(one.term.teacher_tap)]
    found = {one.term.name: _temperature_of(one) for one in looking}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{value:g} ('{name}')" for name, value in found.items())
        raise RecipeError(
            "distill.ensemble = 'probabilities' averages at the temperature of the terms, which is not the same for "
            f"all: {told}; give them one, or take ensemble = 'logits'"
        )
    return next(iter(found.values()), None)


def _temperature_of(bound: BoundTerm) -> float:
    """At which temperature a term looks at logits: 1 where its loss has none."""
    parameters = inspect.signature(bound.function).parameters
    default = parameters["temperature"].default if "temperature" in parameters else 1.0
    given = bound.term.options.get("temperature", default)
    if "temperatures" in parameters or not isinstance(given, int | float):
        raise RecipeError(
            f"distill.ensemble = 'probabilities' averages at one temperature, but the term '{bound.term.name}' looks "
            "at the teachers at several; give it one number, or take ensemble = 'logits'"
        )
    return float(given)
