"""What the student sees in training: samples without labels beside the data's own or in their place, spoilt labels.

    who                                  samples                             labels
    teachers                             the data's                          right, all of them
    assistants, student, int8_qat ...    those of [transfer], or both        as [data] wrong_labels and labelled say
    student alone                        the data's                          as [data] wrong_labels and labelled say
    validation and test of all           the data's                          right, all of them

The data's samples and the others lie in memory together. Nobody but the teachers knows a label that may not be seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.data.labels import labelled, wrong_labels
from edgekd.data.registry import load_dataset
from edgekd.data.synthetic import synthetic_images
from edgekd.device.preprocess import prepare, split_steps
from edgekd.errors import DataError, RecipeError
from edgekd.files import canonical_json, sha256_bytes
from edgekd.recipe import Recipe
from edgekd.recipe_checks import CLASSIFICATION_KINDS, SYNTHETIC
from edgekd.spec import Array, Dataset, Split, steps_to_json
from edgekd.stages.workspace import Workspace


@dataclass(frozen=True)
class Lesson:
    """The data set that is learned from, and (N,) which of its training labels may be used (None: all)."""

    data: Dataset
    labelled: NDArray[np.bool_] | None

    @property
    def extras(self) -> dict[str, Array]:
        """What batches hold besides."""
        return {} if self.labelled is None else {"labelled": self.labelled}


def for_students(space: Workspace) -> Lesson:
    """What student and assistants learn from: the samples that the teacher answers to, and the labels they may see."""
    section = space.recipe.transfer
    own = for_student_alone(space)
    if section is None:
        return own
    shown = space.shown
    count = len(shown.train) - (len(own.data.train) if section.with_train else 0)
    hidden = np.zeros(count, np.bool_)
    if not section.with_train:
        return Lesson(shown, hidden)
    seen = np.ones(len(own.data.train), np.bool_) if own.labelled is None else own.labelled
    y = np.concatenate([own.data.train.y, shown.train.y[len(seen) :]])
    data = replace(shown, train=replace(shown.train, y=y), sha256=_renamed(shown.sha256, own.data.sha256))
    return Lesson(data, np.concatenate([seen, hidden]))


def for_student_alone(space: Workspace) -> Lesson:
    """What the student alone learns from."""
    section, seed = space.recipe.data, space.recipe.seed
    data = space.prepared.dataset
    train = data.train
    seen = labelled(train.ids, section.labelled, seed=seed) if section.labelled < 1 else None
    if section.wrong_labels:
        y = wrong_labels(train.y, train.ids, section.wrong_labels, num_classes=data.num_outputs, seed=seed)
        facts = {"wrong_labels": section.wrong_labels, "seed": seed}
        data = replace(data, train=replace(train, y=y), sha256=_renamed(data.sha256, facts))
    return Lesson(data, seen)


def alone_epochs(space: Workspace, epochs: int) -> int:
    """Over how many epochs of its own data the student alone sees as many samples as the student in `epochs`."""
    share = len(space.shown.train) / len(space.prepared.dataset.train)
    return epochs if epochs == 0 else max(1, round(epochs * share))


def alone_smoothing(recipe: Recipe) -> float:
    """By how much the labels are smoothed for the student alone: as they are for the student, else the gain would be
    that of the smoothing too."""
    for term in recipe.distill_terms:
        smoothing = term.options.get("label_smoothing") if term.loss == "cross_entropy" else None
        if isinstance(smoothing, float | int):
            return float(smoothing)
    return 0.0


def shown(space: Workspace) -> Dataset:
    """The data set with the training samples that the teacher answers to. Labels that are not known are 0."""
    section, data = space.recipe.transfer, space.prepared.dataset
    if section is None:
        return data
    x, facts = _transferred(space)
    own = data.train.x[:1]
    if x.shape[1:] != own.shape[1:] or x.dtype != own.dtype:
        raise DataError(
            f"transfer: samples of '{section.kind}' are {list(x.shape[1:])} of {x.dtype} after the spatial steps, but "
            f"those of the data {list(own.shape[1:])} of {own.dtype}; bring both to one form in preprocess.steps, for "
            "example with to_grey or to_rgb, and resize"
        )
    first = 1 + max(int(split.ids.max()) for split in (data.train, data.val, data.test))
    ids = np.arange(first, first + len(x), dtype=np.int64)
    y = np.zeros((len(x), *data.train.y.shape[1:]), data.train.y.dtype)
    if section.with_train:
        x, y = np.concatenate([data.train.x[:], x]), np.concatenate([data.train.y, y])
        ids = np.concatenate([data.train.ids, ids])
    renamed = _renamed(data.sha256, {**facts, "with_train": section.with_train})
    return replace(data, name=f"{data.name} + {section.kind}", train=Split(x, y, ids), sha256=renamed)


def _transferred(space: Workspace) -> tuple[Array, dict[str, Any]]:
    """The samples of `[transfer]` after the spatial steps, and what they depend on."""
    section, recipe = space.recipe.transfer, space.recipe
    assert section is not None
    if section.kind == SYNTHETIC:
        own = space.prepared.dataset.train.x
        if own.dtype != np.uint8:
            raise DataError(
                f"transfer: synthetic images are bytes, but samples of the data are {own.dtype}; take another kind"
            )
        count = section.limit or len(own)
        x = synthetic_images(section.source, count, shape=own.shape[1:], seed=recipe.seed)
        return x, {"synthetic": section.source, "count": count, "seed": recipe.seed}
    spatial, _ = split_steps(space.prepared.steps)
    other = load_dataset(
        kind=section.kind,
        root=section.root,
        task="classification" if section.kind in CLASSIFICATION_KINDS else recipe.task,
        target=section.target or None,
        prepare=lambda raw: prepare(spatial, raw),
        steps=canonical_json(steps_to_json(spatial)),
        seed=recipe.seed,
        search_path=space.search_path,
        limit=section.limit,
        targets=False,
    )
    return other.train.x[:], {"transfer": other.sha256}


def describe_alone(space: Workspace) -> str:
    """How its budget is made the student's, where it learns from other samples."""
    return "" if space.recipe.transfer is None else "as many samples as the student saw, of the data alone"


def describe(space: Workspace) -> str:
    """What is unusual about the student's lesson, in words; nothing where nothing is."""
    section, data = space.recipe.transfer, space.recipe.data
    said = []
    if section is not None:
        what = f"synthetic images ({section.source})" if section.kind == SYNTHETIC else f"samples of {section.kind}"
        total, own = len(space.shown.train), len(space.prepared.dataset.train)
        count = total - own if section.with_train else total
        said.append(f"{count:,} {what}{' beside the data' if section.with_train else ' in place of the data'}")
    if data.wrong_labels:
        said.append(f"{100 * data.wrong_labels:g} % of the labels wrong")
    if data.labelled < 1:
        said.append(f"{100 * data.labelled:g} % of the labels seen")
    return ", ".join(said)


def check(space: Workspace, truth_terms: tuple[str, ...]) -> None:
    """Raise `RecipeError` when a term, or the student alone, would have no label to learn from."""
    lesson = for_students(space)
    if lesson.labelled is not None and not lesson.labelled.any() and truth_terms:
        why = f"data.labelled = {space.recipe.data.labelled:g}"
        if space.recipe.transfer is not None and not space.recipe.transfer.with_train:
            why = "the samples of [transfer] have no labels"
        raise RecipeError(
            f"distill.terms: '{truth_terms[0]}' learns from labels, but {why}; remove the term, or add "
            "transfer.with_train = true or some labels"
        )
    alone = for_student_alone(space)
    if space.recipe.distill.baseline and alone.labelled is not None and not alone.labelled.any():
        raise RecipeError(
            f"data.labelled = {space.recipe.data.labelled:g}: the student alone has no label to learn from; add "
            "distill.baseline = false"
        )


def _renamed(sha256: str, facts: object) -> str:
    return sha256_bytes(canonical_json([sha256, facts]).encode())
