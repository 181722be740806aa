"""Stages `int8_qat` and `int4_qat`: quantization-aware distillation of variants, between `export` and `quantize`.

RUN/NAME/weights.safetensors   what was learned, scales included; before it is done, the checkpoint (edgekd.distill)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekd.errors import AnswerIsNo, ModelError, UsageError
from edgekd.graph.quantization import TRAINED, Int8QAT
from edgekd.recipe_checks import DEFAULT_TERMS
from edgekd.recipe_sections import TermSection
from edgekd.stages.workspace import Workspace

if TYPE_CHECKING:
    from edgekd.distill.qat import FakeQuantized


def trained_variants(space: Workspace) -> tuple[str, ...]:
    """The recipe's variants that are trained."""
    return tuple(name for name in space.recipe.quantize.variants if name in TRAINED)


def config(space: Workspace, name: str) -> Int8QAT:
    """The scheme of a trained variant."""
    section, calibration = space.recipe.quantize.qat, space.recipe.quantize.calibration
    return replace(
        TRAINED[name],
        activation=section.activation,
        weight=section.weight,
        per_channel=section.per_channel,
        calibration=calibration,
    )


def terms(space: Workspace) -> tuple[TermSection, ...]:
    """The student's terms that look at its answers: of its inner features the int8 graph has none. Without any, the
    task's own."""
    fitting = [term for term in space.recipe.distill_terms if term.student_tap == "logits" and term.adapter is None]
    return tuple(fitting) or tuple(TermSection(**term) for term in DEFAULT_TERMS[space.recipe.task])


def build(space: Workspace, name: str) -> FakeQuantized:
    """The exported student as a module that rounds like its int8 graph, before it has learned."""
    from edgekd.distill.qat import fake_quantize
    from edgekd.stages.graphs import FLOAT, calibration_feeds, variant_path

    return fake_quantize(variant_path(space, FLOAT), config(space, name), calibration=calibration_feeds(space))


def load(space: Workspace, name: str) -> FakeQuantized:
    """The module with what the stage `name` has learned."""
    from edgekd.distill.models import load_weights

    module = build(space, name)
    load_weights(module, space.path / name / "weights.safetensors")
    return module.eval()


def work_on_variant(space: Workspace, name: str) -> tuple[dict[str, Any], str]:
    """Train the variant `name`; one that cannot be made of this student is named with its reason."""
    from edgekd.stages.training import summary, train

    try:
        build(space, name)
    except (AnswerIsNo, ModelError, UsageError) as error:
        return {"refused": str(error)}, f"not for this student: {error}"
    trained = train(space, name)
    return trained, summary(space, trained)
