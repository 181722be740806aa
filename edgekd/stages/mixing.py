"""The variant `mixed` of a run: int8, but for the layers that cost the most accuracy per millisecond.

Made when the recipe names it, and by itself when the accuracy limit is set, the float student holds it and int8 does
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgekd.device.machine import cpu_kind
from edgekd.device.metrics import Contributions, drop_points
from edgekd.errors import UsageError
from edgekd.graph.mixed import Evaluation
from edgekd.graph.quantization import VARIANTS, Int8Static, MixedPrecision
from edgekd.graph.schemes import static_scheme
from edgekd.graph.targets import load_target
from edgekd.spec import Array, Interval
from edgekd.stages.workspace import OUTPUT, Workspace

MIXED = "mixed"


def mixed_config(space: Workspace) -> MixedPrecision:
    """The target's scheme for this CPU with the recipe's calibration; its budget is the accuracy limit, where set."""
    base = VARIANTS[static_scheme(load_target(space.recipe.target.name), cpu_kind())]
    chosen = VARIANTS[MIXED]
    if not isinstance(base, Int8Static) or not isinstance(chosen, MixedPrecision):
        raise UsageError(f"quantize.variants: '{MIXED}' needs a static int8 scheme; name one in the target")
    limit = space.recipe.limits.accuracy_drop_points
    base = replace(base, calibration=space.recipe.quantize.calibration)
    return replace(chosen, base=base, budget=chosen.budget if limit is None else min(limit, 100.0))


def evaluation(space: Workspace, reference: Contributions) -> Evaluation:
    """Validation, and the points lost there against `reference`: the teacher's contributions, or the float student's
    where no limit says how far from the teacher it may be."""
    prepared, confidence = space.prepared, space.recipe.limits.confidence
    val, task = prepared.dataset.val, space.recipe.task

    def drop(outputs: Mapping[str, Array]) -> Interval:
        return drop_points(task, reference, prepared.judge(outputs[OUTPUT], val), confidence=confidence)

    return Evaluation(prepared.feeds(val), drop)


def is_needed(limit: float, student: Interval, quantized: Interval) -> bool:
    """Whether float holds the limit where int8 does not: the whole interval, or the figure where even float's interval
    is too wide."""
    if student.high <= limit:
        return quantized.high > limit
    return student.value <= limit < quantized.value
