"""The graph of stages: what each needs, leaves behind, depends on and does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from edgekd.graph.quantization import TRAINED
from edgekd.run_folder import Stage
from edgekd.stages import aware, caching, choosing, diet, fingerprints, graphs, shipping, training
from edgekd.stages.workspace import Workspace, work_on_data

Inputs = Callable[[Workspace], Mapping[str, Any]]
Work = Callable[[Workspace], tuple[Mapping[str, Any], str]]

DIVERGED = "diverged.json"  # edgekd.distill.checkpoint writes it beside the last good checkpoint
STUDENTS = ("student", "student_alone")
TRAINING = ("data", "teacher", "cache", diet.WHOLE, *STUDENTS)
MORE_MODELS = ("teacher_", "assistant_", "cache_")
Row = tuple[tuple[str, ...], tuple[str, ...], Inputs, Work]
# name: (the stages whose results it reads, what it leaves in the run folder, what else it depends on, what it does)
STAGES: dict[str, Row] = {
    "data": ((), (), fingerprints.data, work_on_data),
    "teacher": (("data",), ("teacher",), fingerprints.teacher, training.work_on_teacher),
    "cache": (("data", "teacher"), (), fingerprints.cache, caching.work_on_cache),
    diet.WHOLE: (
        ("data", "teacher", "cache"),
        (diet.WHOLE,),
        fingerprints.student_whole,
        training.work_on_student_whole,
    ),
    "student": (("data", "teacher", "cache", diet.WHOLE), ("student",), fingerprints.student, training.work_on_student),
    "student_alone": (
        ("data", diet.WHOLE),
        ("student_alone",),
        fingerprints.student_alone,
        training.work_on_student_alone,
    ),
    "export": (("data", "teacher", *STUDENTS), ("export",), fingerprints.export, graphs.work_on_export),
    "quantize": (("data", "export"), ("variants",), fingerprints.quantize, graphs.work_on_quantize),
    "verify": (("data", "export", "quantize"), ("outputs",), fingerprints.verify, graphs.work_on_verify),
    "select": (("data", "export", "quantize", "verify"), (), fingerprints.select, choosing.work_on_select),
    "bundle": (
        ("data", "teacher", "export", "quantize", "verify", "select"),
        (shipping.BUNDLE, shipping.FORMATS),
        fingerprints.bundle,
        shipping.work_on_bundle,
    ),
    "benchmark": (
        ("data", "teacher", "export", "bundle", "select"),
        ("benchmark.json", "benchmark.json.gz"),
        fingerprints.benchmark,
        shipping.work_on_benchmark,
    ),
    "report": (
        ("data", "teacher", "cache", *STUDENTS, "export", "quantize", "verify", "select", "bundle", "benchmark"),
        ("results.json", "results.json.gz", "report.html", "report.md"),
        fingerprints.report,
        shipping.work_on_report,
    ),
}


def stages(space: Workspace) -> tuple[Stage, ...]:
    """The stages of this run, in an order in which they can run.

    Without a baseline no student is trained alone, and nothing is cached unless the recipe keeps the answers. One that
    is cut is trained whole first, unless it comes with weights.
    """

    def salvage(inputs: Inputs) -> Mapping[str, Any]:
        return fingerprints.without_cures(inputs(space))

    wanted = {
        "student_alone": space.recipe.distill.baseline,
        "cache": "teacher" in space.recipe.kept,
        diet.WHOLE: diet.is_wanted(space) and space.recipe.student.weights is None,
    }
    table = _with_more_models(space)
    left_out = [name for name, is_wanted in wanted.items() if not is_wanted]
    return tuple(
        Stage(
            name,
            tuple(need for need in needs if need not in left_out),
            outputs,
            partial(inputs, space),
            partial(work, space),
            salvage=partial(salvage, inputs) if _may_diverge(name) else None,
            salvage_mark=DIVERGED,
        )
        for name, (needs, outputs, inputs, work) in table.items()
        if name not in left_out
    )


def _may_diverge(name: str) -> bool:
    return name in TRAINED or (is_training(name) and name != "data" and caching.asked_in(name) is None)


def is_training(name: str) -> bool:
    """Whether a stage belongs to what `edgekd distill` does."""
    return name in TRAINING or name.startswith(MORE_MODELS)


def _with_more_models(space: Workspace) -> dict[str, Row]:
    """The stages with those of further teachers and of assistants and of their answers, which the student's waits for,
    and of variants that are trained, which `quantize` waits for."""
    table: dict[str, Row] = {}
    more: list[str] = []

    def add(other: str, needs: tuple[str, ...], inputs: Inputs, work: Work) -> None:
        """The stage of a model that teaches, and that of its answers where they are kept."""
        table[other] = (needs, (other,), inputs, work)
        more.append(other)
        if other in space.recipe.kept:
            own_inputs: Inputs = partial(fingerprints.cache, name=other)
            own_work: Work = partial(caching.work_on_cache, name=other)
            table[caching.stage_of(other)] = (("data", other), (), own_inputs, own_work)
            more.append(caching.stage_of(other))

    for name, row in STAGES.items():
        if name == "quantize":
            trained = aware.trained_variants(space)
            for variant in trained:
                of_variant: Inputs = partial(fingerprints.aware, name=variant)
                train: Work = partial(aware.work_on_variant, name=variant)
                table[variant] = (
                    ("data", "teacher", "cache", "student", "export", *more),
                    (variant,),
                    of_variant,
                    train,
                )
            row = ((*row[0], *trained), *row[1:])
        if name == diet.WHOLE:
            for other in list(space.recipe.all_teachers)[1:]:
                add(
                    other,
                    ("data",),
                    partial(fingerprints.teacher, name=other),
                    partial(training.work_on_teacher, name=other),
                )
            for other in space.recipe.assistants:
                add(
                    other,
                    ("data", "teacher", "cache", *more),
                    partial(fingerprints.assistant, name=other),
                    partial(training.work_on_assistant, name=other),
                )
        if name in (diet.WHOLE, "student"):
            needs, outputs, own_inputs, own_work = row
            row = ((*needs, *more), outputs, own_inputs, own_work)
        table[name] = row
    return table
