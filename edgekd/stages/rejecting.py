"""`[export] reject`: teacher and students with the reject option behind them, each with its own threshold.

It is found on validation, from the float outputs of the trained module. The order on the way from a sample to an answer
is: the network, the rule, the softmax with the temperature that `verify` fits on what the rule gives. A temperature
changes the order of no two logits, so it changes no answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.device.rejection import Threshold, find_threshold
from edgekd.errors import DataError, RecipeError, nearest
from edgekd.recipe_sections import RejectSection
from edgekd.stages.training import load_trained, save_teacher_json
from edgekd.stages.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn


def check(space: Workspace) -> None:
    """Raise `RecipeError` for a label that the data does not have, `DataError` without samples to find a threshold on,
    before hours of training."""
    section = space.recipe.export.reject
    if section is None:
        return
    dataset = space.prepared.dataset
    rejected = class_of(space, section)
    if not (dataset.val.y != rejected).any():
        raise DataError(
            f"export.reject: all {len(dataset.val)} validation samples are of the class '{section.label}'; expected "
            "some of another, on which the threshold is found"
        )


def class_of(space: Workspace, section: RejectSection) -> int:
    """The number of the class that is the answer to what is rejected."""
    labels = list(space.prepared.dataset.labels)
    if section.label not in labels:
        raise RecipeError(f"export.reject: the data has no label '{section.label}'. {nearest(section.label, labels)}")
    return labels.index(section.label)


def finished(space: Workspace, name: str) -> tuple[nn.Module, Threshold | None]:
    """What the training stage `name` leaves to be exported, with its threshold where the recipe rejects."""
    module, section = load_trained(space, name), space.recipe.export.reject
    if section is None:
        return module, None
    from edgekd.distill.engine import evaluate
    from edgekd.distill.rejection import Rejecting

    prepared, rejected = space.prepared, class_of(space, section)
    val = prepared.dataset.val
    found = find_threshold(evaluate(module, val, prepared.training), val.y, rejected, keep=section.keep)
    num_classes = prepared.dataset.num_outputs
    rejecting = Rejecting(module, rejected=rejected, num_classes=num_classes, threshold=found.value)
    return rejecting.eval(), found


def teacher_json(space: Workspace) -> Path:
    """How the teacher is opened in PyTorch: with the rule where its graph has it."""
    return space.path / ("teacher" if space.recipe.export.reject is None else "export") / "model.json"


def write_teacher_json(space: Workspace, found: Threshold) -> None:
    """Describe the teacher with its rule; the weights stay where they are."""
    section = space.recipe.export.reject
    assert section is not None
    save_teacher_json(
        space,
        teacher_json(space),
        space.recipe.teacher,
        weights="../teacher/weights.safetensors",
        reject={"class": class_of(space, section), "threshold": found.value},
    )


def describe(space: Workspace) -> Mapping[str, Any] | None:
    """For results.json: the class, the share to keep, and each model's threshold; None for a teacher that is not
    touched, because it comes as a graph or as answers alone."""
    section = space.recipe.export.reject
    if section is None:
        return None
    exported = space.result("export")
    names = ["teacher", "student", *(["student_alone"] if space.recipe.distill.baseline else [])]
    return {**section.model_dump(), "models": {name: exported.get(name, {}).get("reject") for name in names}}
