"""Stages `teacher`, `student` and `student_alone`: three runs of the same engine with different terms."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import ModelError, explain_os_errors
from edgekd.files import sha256_file
from edgekd.stages.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

    from edgekd.distill.engine import TrainResult
    from edgekd.distill.objective import Objective
    from edgekd.distill.teachers import Teacher

# The loss that a model without a teacher learns from, by task.
ALONE = {
    "classification": "cross_entropy",
    "multilabel": "binary_cross_entropy",
    "regression": "mean_squared_error",
}


def build(space: Workspace, section: Any, *, seed: int) -> nn.Module:
    """The module of a `[teacher]` or `[student]` section, its initial weights a function of `seed` alone."""
    import torch

    from edgekd.distill.models import build_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(
            section.model,
            num_outputs=space.prepared.dataset.num_outputs,
            input_shape=space.prepared.input_shape,
            args=section.args,
            search_path=space.search_path,
        )


def check(space: Workspace) -> None:
    """Build everything that the recipe names, before hours of training: a misspelled name must not come up after them.

    Raises what the stages would raise: `ModelError`, `UsageError`.
    """
    from edgekd.distill.augmentation import check_augment

    build(space, space.recipe.student, seed=space.recipe.seed)
    if space.recipe.teacher.model is not None:
        build(space, space.recipe.teacher, seed=space.recipe.seed)
    student_objective(space)
    check_augment(space.recipe.data.augment, space.prepared.dataset.train.x[:1])


def student_objective(space: Workspace) -> Objective:
    """The recipe's terms."""
    from edgekd.distill.objective import Objective, Term

    terms = [
        Term(term.name, term.loss, weight=term.weight, options=term.options) for term in space.recipe.distill_terms
    ]
    return Objective(terms, search_path=space.search_path)


def load_trained(space: Workspace, name: str) -> nn.Module:
    """The module of an ended training stage, in eval mode, with the weights that validation chose."""
    from edgekd.distill.models import load_weights

    section = space.recipe.teacher if name == "teacher" else space.recipe.student
    module = build(space, section, seed=space.recipe.seed)
    load_weights(module, space.path / name / "weights.safetensors")
    return module.eval()


def load_teacher(space: Workspace) -> Teacher:
    """The recipe's teacher behind its one interface: a trained module, or an ONNX file (a black box)."""
    from edgekd.distill.teachers import ModuleTeacher, OnnxTeacher

    if space.recipe.teacher.onnx is not None:
        return OnnxTeacher(space.path / "teacher" / "teacher.onnx", threads=space.threads)
    return ModuleTeacher(load_trained(space, "teacher"))


def work_on_teacher(space: Workspace) -> tuple[dict[str, Any], str]:
    """Train the teacher, or take the one that the recipe points to."""
    section = space.recipe.teacher
    folder = space.path / "teacher"
    if section.onnx is not None:
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(section.onnx, folder / "teacher.onnx")
        return {"trained": False, "source": "onnx", **_scored(space, "teacher")}, "taken from its ONNX file"
    if section.weights is not None:
        from edgekd.distill.models import load_weights, save_weights

        module = build(space, section, seed=space.recipe.seed)
        load_weights(module, Path(section.weights))
        save_weights(module, folder / "weights.safetensors")
        _save_model_json(space, "teacher", section)
        scored = _scored(space, "teacher")
        return {"trained": False, "source": "weights", **scored}, f"loaded, validation {scored['best']:.4f}"
    trained = _train(space, "teacher", section, teachers=(), objective=_alone(space, section.train.label_smoothing))
    _save_model_json(space, "teacher", section)
    return trained, _summary(space, trained)


def work_on_student(space: Workspace) -> tuple[dict[str, Any], str]:
    """Distil the student from the teacher with the recipe's terms."""
    teachers = (load_teacher(space),)
    trained = _train(space, "student", space.recipe.student, teachers=teachers, objective=student_objective(space))
    return trained, _summary(space, trained)


def work_on_student_alone(space: Workspace) -> tuple[dict[str, Any], str]:
    """Train the same student on the same budget without the teacher, so that the gain is visible."""
    trained = _train(space, "student_alone", space.recipe.student, teachers=(), objective=_alone(space, 0.0))
    return trained, _summary(space, trained)


def teacher_inputs(space: Workspace) -> Mapping[str, Any]:
    """What the teacher depends on beside the data: its section, its files, the user's code."""
    section = space.recipe.teacher
    files = {str(path): sha256_file(path) for path in (section.weights, section.onnx) if path is not None}
    return {
        "section": section.model_dump(mode="json"),
        "files": files,
        "code": code_signature(section.model, space.search_path),
        **training_inputs(space),
    }


def student_inputs(space: Workspace, *, alone: bool) -> Mapping[str, Any]:
    """What a student depends on beside data and teacher."""
    distill = space.recipe.distill.model_dump(mode="json")
    if alone:
        distill.pop("terms")
    section = space.recipe.student
    files = {} if section.weights is None else {str(section.weights): sha256_file(section.weights)}
    return {
        "section": section.model_dump(mode="json"),
        "files": files,
        "distill": distill,
        "code": code_signature(section.model, space.search_path),
        **training_inputs(space),
    }


def training_inputs(space: Workspace) -> dict[str, Any]:
    """Bytes of trained weights depend on these too."""
    import importlib.metadata

    return {
        "seed": space.recipe.seed,
        "threads": space.threads,
        "device": space.device,
        "augment": space.recipe.data.augment,
        "torch": importlib.metadata.version("torch"),
    }


def code_signature(reference: str | None, search_path: Path) -> str | None:
    """sha256 of the user's own module, so that a changed model is trained again; None for everything installed."""
    if reference is None or ":" not in reference:
        return None
    parts = reference.partition(":")[0].split(".")
    for candidate in (search_path.joinpath(*parts).with_suffix(".py"), search_path.joinpath(*parts, "__init__.py")):
        if candidate.is_file():
            return sha256_file(candidate)
    return None


def _alone(space: Workspace, label_smoothing: float) -> Objective:
    from edgekd.distill.objective import Objective, Term

    loss = ALONE[space.recipe.task]
    options: Mapping[str, Any] = {"label_smoothing": label_smoothing} if label_smoothing else {}
    return Objective([Term(loss, loss, options=options)])


def _train(
    space: Workspace, name: str, section: Any, *, teachers: Sequence[Teacher], objective: Objective
) -> dict[str, Any]:
    from edgekd.distill.engine import distill
    from edgekd.distill.models import count, load_weights

    schedule = section.train if name == "teacher" else space.recipe.distill
    module = build(space, section, seed=space.recipe.seed)
    if name != "teacher" and section.weights is not None:
        load_weights(module, Path(section.weights))
    result = distill(
        module,
        teachers,
        space.prepared.dataset,
        objective,
        steps=space.prepared.arithmetic,
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        optimizer=schedule.optimizer,
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        schedule=schedule.schedule,
        warmup_epochs=schedule.warmup_epochs,
        precision=space.recipe.distill.precision,
        device=space.device,
        seed=space.recipe.seed,
        threads=space.threads,
        augment=space.recipe.data.augment,
        run_dir=space.path / name,
        progress=space.listener.step,
    )
    for warning in result.warnings:
        space.listener.warn(f"{name}: {warning}")
    parameters, macs = count(module, space.prepared.input_shape)
    return {"trained": True, "parameters": parameters, "macs": macs, **_numbers(result)}


def _numbers(result: TrainResult) -> dict[str, Any]:
    return {
        "best": result.best,
        "last": result.last,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "images_seen": result.images_seen,
        "teacher_passes": result.teacher_passes,
        "history": list(result.history),
    }


def _scored(space: Workspace, name: str) -> dict[str, Any]:
    """The score on validation of a teacher that was not trained here."""
    from edgekd.device.metrics import contributions, score
    from edgekd.distill.engine import evaluate
    from edgekd.distill.teachers import OnnxTeacher

    prepared = space.prepared
    is_onnx = space.recipe.teacher.onnx is not None
    model: Any = load_teacher(space) if is_onnx else load_trained(space, name)
    outputs = evaluate(model, prepared.dataset.val, prepared.arithmetic, task=space.recipe.task)
    if outputs.shape[1:] != (prepared.dataset.num_outputs,):
        raise ModelError(
            f"the teacher gives {list(outputs.shape)} for {len(outputs)} samples, but the data has "
            f"{prepared.dataset.num_outputs} labels; is this the right teacher for the data?"
        )
    if isinstance(model, OnnxTeacher):
        parameters, macs = None, None
    else:
        from edgekd.distill.models import count

        parameters, macs = count(model, prepared.input_shape)
    value = score(space.recipe.task, contributions(space.recipe.task, outputs, prepared.dataset.val.y))
    return {
        "best": value,
        "last": value,
        "best_epoch": None,
        "epochs": 0,
        "images_seen": 0,
        "teacher_passes": 0,
        "history": [],
        "parameters": parameters,
        "macs": macs,
    }


def _save_model_json(space: Workspace, name: str, section: Any) -> None:
    """What the benchmark needs to open the teacher in PyTorch, in a process of its own."""
    from edgekd.distill.torch_runtime import save_model_json

    save_model_json(
        space.path / name / "model.json",
        reference=section.model,
        args=section.args,
        num_outputs=space.prepared.dataset.num_outputs,
        input_shape=space.prepared.input_shape,
        weights="weights.safetensors",
        search_path=space.search_path,
    )


def _summary(space: Workspace, trained: Mapping[str, Any]) -> str:
    from edgekd.device.metrics import METRIC

    return (
        f"validation {METRIC[space.recipe.task]} {trained['best']:.4f} "
        f"(epoch {trained['best_epoch']} of {trained['epochs']}), {trained['parameters']:,} parameters"
    )
