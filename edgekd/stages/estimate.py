"""What a run will cost, from a few real training steps of the real models: for `--dry-run`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekd.recipe_sections import AssistantSection, TeacherSection
from edgekd.stages import diet
from edgekd.stages.aware import trained_variants
from edgekd.stages.caching import features, stage_of, store_of
from edgekd.stages.ensembles import width_of
from edgekd.stages.graphs import variant_names
from edgekd.stages.training import build, section_of
from edgekd.stages.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor, nn

TIMED_STEPS = 5
# Seconds of the stages that do not train, on two cores; they hardly depend on the recipe. Export: per model.
EXPORT_SECONDS, QUANTIZE_SECONDS, VERIFY_SECONDS, SELECT_SECONDS, BUNDLE_SECONDS = 5.0, 2.0, 2.0, 4.0, 1.0
BENCHMARK_SECONDS, REPORT_SECONDS = 15.0, 3.0


def estimate(space: Workspace, names: Sequence[str]) -> tuple[dict[str, float], float, float]:
    """Seconds per stage, and megabytes that the run folder and the teacher's kept answers will take."""
    import torch

    began = time.perf_counter()
    recipe, dataset = space.recipe, space.prepared.dataset
    data_seconds = time.perf_counter() - began
    previous = torch.get_num_threads()
    torch.set_num_threads(space.threads)
    try:
        student = build(space, recipe.student, seed=recipe.seed)
        teacher = None if recipe.teacher.model is None else build(space, recipe.teacher, seed=recipe.seed)
        train_s, forward_s = time_steps(space, student, recipe.distill.batch_size)
        teacher_train_s, teacher_forward_s = (
            (0.0, forward_s) if teacher is None else time_steps(space, teacher, recipe.teacher.train.batch_size)
        )
        more = _more_models(space, len(space.shown.train) * (recipe.data.views or 1))
    finally:
        torch.set_num_threads(previous)
    shown = len(space.shown.train)
    steps = recipe.distill.epochs * math.ceil(shown / recipe.distill.batch_size)
    teacher_steps = recipe.teacher.train.epochs * math.ceil(len(dataset.train) / recipe.teacher.train.batch_size)
    qat = recipe.quantize.qat
    qat_steps = qat.epochs * math.ceil(len(dataset.train) / qat.batch_size)
    answers = shown * (recipe.data.views or 1)
    # Of further teachers and of assistants only the training is told: what they say costs less.
    asked_s = 0.0 if recipe.taught_by("student")[0] in recipe.kept else teacher_forward_s
    trains_teacher = recipe.teacher.weights is None and teacher is not None
    models = 3 if recipe.distill.baseline else 2
    num_variants = len(variant_names(space))
    seconds = {
        "data": data_seconds,
        "teacher": teacher_steps * teacher_train_s if trains_teacher else 1.0,
        "cache": answers * teacher_forward_s / recipe.distill.batch_size,
        "student": steps * (train_s + asked_s),
        "student_alone": steps * train_s,
        diet.WHOLE: steps * (train_s + asked_s),
        "export": EXPORT_SECONDS * models,
        "quantize": QUANTIZE_SECONDS * num_variants,
        "verify": VERIFY_SECONDS,
        "select": SELECT_SECONDS,
        "bundle": BUNDLE_SECONDS,
        "benchmark": BENCHMARK_SECONDS,
        "report": REPORT_SECONDS,
        **more,
        # Rounding adds about as much as the student itself takes.
        **dict.fromkeys(trained_variants(space), qat_steps * (2 * train_s + teacher_forward_s)),
    }
    student_bytes = megabytes(student)
    teacher_bytes = 0.0 if teacher is None else megabytes(teacher)
    # Weights, optimizer state (two moments) and best weights in the checkpoint, and the ONNX file, per model; then
    # the variants, once among the run's files and once in the bundle.
    disk_mb = 5 * (teacher_bytes + 2 * student_bytes) + 2 * num_variants * student_bytes + 2.0
    cache_mb = answers * sum(answer_bytes(space, name) for name in recipe.kept) / 1e6
    return {name: seconds[name] for name in names}, disk_mb, cache_mb


def _more_models(space: Workspace, answers: int) -> dict[str, float]:
    """Seconds of the further teachers and the assistants, whose own teachers' passes are left out, and of as many
    `answers` of each."""
    recipe, samples = space.recipe, len(space.prepared.dataset.train)
    seconds: dict[str, float] = {}
    for name in (*list(recipe.all_teachers)[1:], *recipe.assistants):
        section = section_of(space, name)
        seconds |= {name: 1.0, stage_of(name): 1.0}
        if section.model is None:
            continue
        budget = section.train if isinstance(section, TeacherSection) else recipe.distill
        epochs = section.epochs if isinstance(section, AssistantSection) and section.epochs else budget.epochs
        step_s, forward_s = time_steps(space, build(space, section, seed=recipe.seed), budget.batch_size)
        seconds[stage_of(name)] = answers * forward_s / budget.batch_size
        if not isinstance(section, TeacherSection) or not section.is_finished:
            seconds[name] = epochs * math.ceil(samples / budget.batch_size) * step_s
    return seconds


def answer_bytes(space: Workspace, name: str) -> int:
    """What one answer of a teacher or assistant takes in its cache: the logits or the top-k, and the features that
    terms look at."""
    import torch

    from edgekd.distill.answers import LOGITS
    from edgekd.distill.cache_build import row_bytes
    from edgekd.distill.stored import PIXELS, encode
    from edgekd.distill.teachers import ModuleTeacher, tapped

    store, outputs, section = store_of(space, "train", name), width_of(space, name), section_of(space, name)
    named = {LOGITS: torch.zeros(2, outputs)}
    taps = features(store.taps)
    if taps and section.model is not None:
        asked = ModuleTeacher(build(space, section, seed=space.recipe.seed))
        batch = {"x": torch.from_numpy(space.prepared.samples(space.prepared.dataset.train, 2))}
        with tapped(asked, taps, batch):
            named = {**asked(batch)}
    pixels = {PIXELS: np.zeros(2, np.float32)}
    return row_bytes({**encode(named, store, num_outputs=outputs), **pixels})


def time_steps(space: Workspace, module: nn.Module, batch_size: int) -> tuple[float, float]:
    """Seconds of one training step and of one forward pass, the fastest of a few."""
    import torch

    x = torch.from_numpy(space.prepared.samples(space.prepared.dataset.train, batch_size)).to(space.device)
    module = module.to(space.device).train()
    train, forward = [], []
    for _ in range(TIMED_STEPS):
        began = time.perf_counter()
        module.zero_grad()
        torch.autograd.backward(_first(module(x)).square().mean())
        train.append(_wait(space.device) - began)
    with torch.inference_mode():
        module.eval()
        for _ in range(TIMED_STEPS):
            began = time.perf_counter()
            module(x)
            forward.append(_wait(space.device) - began)
    return min(train), min(forward)


def megabytes(module: nn.Module) -> float:
    """Size of a module's weights in float32."""
    return sum(parameter.numel() for parameter in module.parameters()) * 4 / 1e6


def _first(outputs: Tensor | dict[str, Tensor]) -> Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def _wait(device: str) -> float:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
