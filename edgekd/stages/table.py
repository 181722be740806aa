"""The graph of stages: what each needs, leaves behind, depends on and does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from edgekd.run_folder import Stage
from edgekd.stages import caching, choosing, fingerprints, graphs, shipping, training
from edgekd.stages.workspace import Workspace, work_on_data

Inputs = Callable[[Workspace], Mapping[str, Any]]
Work = Callable[[Workspace], tuple[Mapping[str, Any], str]]

DIVERGED = "diverged.json"  # edgekd.distill.checkpoint writes it beside the last good checkpoint
STUDENTS = ("student", "student_alone")
TRAINED = ("teacher", *STUDENTS)
# name: (the stages whose results it reads, what it leaves in the run folder, what else it depends on, what it does)
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...], Inputs, Work]] = {
    "data": ((), (), fingerprints.data, work_on_data),
    "teacher": (("data",), ("teacher",), fingerprints.teacher, training.work_on_teacher),
    "cache": (("data", "teacher"), (), fingerprints.cache, caching.work_on_cache),
    "student": (("data", "teacher", "cache"), ("student",), fingerprints.student, training.work_on_student),
    "student_alone": (("data",), ("student_alone",), fingerprints.student_alone, training.work_on_student_alone),
    "export": (("data", "teacher", *STUDENTS), ("export",), fingerprints.export, graphs.work_on_export),
    "quantize": (("data", "export"), ("variants",), fingerprints.quantize, graphs.work_on_quantize),
    "verify": (("data", "export", "quantize"), ("outputs",), fingerprints.verify, graphs.work_on_verify),
    "select": (("data", "export", "quantize", "verify"), (), fingerprints.select, choosing.work_on_select),
    "bundle": (
        ("data", "teacher", "export", "quantize", "verify", "select"),
        (shipping.BUNDLE,),
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

    Without a baseline no student is trained alone, and nothing is cached unless the recipe keeps the answers.
    """

    def salvage(inputs: Inputs) -> Mapping[str, Any]:
        return fingerprints.without_cures(inputs(space))

    wanted = {"student_alone": space.recipe.distill.baseline, "cache": space.recipe.keeps_answers}
    left_out = [name for name, is_wanted in wanted.items() if not is_wanted]
    return tuple(
        Stage(
            name,
            tuple(need for need in needs if need not in left_out),
            outputs,
            partial(inputs, space),
            partial(work, space),
            salvage=partial(salvage, inputs) if name in TRAINED else None,
            salvage_mark=DIVERGED,
        )
        for name, (needs, outputs, inputs, work) in STAGES.items()
        if name not in left_out
    )
