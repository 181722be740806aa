"""Stages `export`, `quantize` and `verify`: from trained modules to proven ONNX files.

RUN/export/{teacher,student,student_alone}.onnx    float32, parity with PyTorch proven
RUN/variants/NAME.onnx                             what the target names; "float32" is the exported student
RUN/outputs/CANDIDATE.npy                          outputs on validation, for choosing
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.calibration import calibrate, wants_calibration
from edgekd.device.metrics import Contributions, drop_points, score_interval
from edgekd.device.runtimes import open_session
from edgekd.device.runtimes.chunks import answer_name, rows_at_once, run_in_chunks
from edgekd.errors import AnswerIsNo, UsageError, explain_os_errors, nearest
from edgekd.files import write_bytes
from edgekd.graph.metadata import metadata as metadata_of
from edgekd.graph.mixed import Evaluation
from edgekd.graph.quantization import (
    TRAINED,
    VARIANTS,
    Config,
    Int8Static,
    MixedPrecision,
    QuantizeResult,
    quantize,
)
from edgekd.graph.targets import Target, load_target
from edgekd.graph.verification import Precision, VerifyResult, verify
from edgekd.spec import Array, Interval, Split
from edgekd.stages import aware, mixing, rejecting
from edgekd.stages.texts import of_one_length
from edgekd.stages.training import load_teacher
from edgekd.stages.workspace import OUTPUT, Prepared, Workspace

FLOAT = "float32"
PER_CHANNEL, PER_TENSOR = "int8_u8s8", "int8_u8s8_per_tensor"
CALIBRATION = "calibration.json"
PARITY_SAMPLES = 256
OUTPUT_BATCH = 256


def named_variants(space: Workspace) -> tuple[str, ...]:
    """The recipe's variants, or else the target's; float32 always, and first. No model is looked at."""
    named = space.recipe.quantize.variants or target(space).variants
    return (FLOAT, *(name for name in named if name != FLOAT))


def variant_names(space: Workspace) -> tuple[str, ...]:
    """The variants to make.

    Beside the target's int8_u8s8 a depthwise student gets the variant with one scale per weight: which of the two is
    faster there, and right, differs from student to student, so both are measured.
    """
    named = named_variants(space)
    if space.recipe.quantize.variants or PER_CHANNEL not in named or not space.has_depthwise:
        return named
    return (*named, PER_TENSOR)


def precision(name: str) -> Precision:
    """The precision of a variant, which decides how far it may be from the float student."""
    families: dict[str, Precision] = {"int8": "int8", "fp16": "float16", "int4": "int4", mixing.MIXED: "int8"}
    return families.get(name.partition("_")[0], "float32")


def target(space: Workspace) -> Target:
    """The recipe's target."""
    return load_target(space.recipe.target.name)


def check(space: Workspace) -> None:
    """Raise `UsageError` for a variant or a target that does not exist, or a graph that the target cannot load, and
    what `rejecting.check` raises."""
    for name in variant_names(space)[1:]:
        if name not in VARIANTS and name not in TRAINED:
            known = [FLOAT, *VARIANTS, *TRAINED]
            raise UsageError(f"quantize.variants: unknown variant '{name}'. {nearest(name, known)}")

    rejecting.check(space)
    wanted, limits = space.recipe.export, target(space)
    for key, found, most in (
        ("opset", wanted.opset, limits.max_opset),
        ("ir_version", wanted.ir_version, limits.max_ir),
    ):
        if found > most:
            raise UsageError(
                f"export.{key} = {found}, but the target '{limits.name}' loads at most {most}; add "
                f"--set export.{key}={most}, or choose another target"
            )


def variant_path(space: Workspace, name: str) -> Path:
    """Where the graph of a variant lies."""
    return space.path / "export" / "student.onnx" if name == FLOAT else space.path / "variants" / f"{name}.onnx"


def candidate_paths(space: Workspace) -> dict[str, Path]:
    """Every ONNX file whose accuracy is measured: teacher, student alone, and the variants that were made."""
    paths = {"teacher": space.path / "export" / "teacher.onnx"} if space.recipe.teacher.has_graph else {}
    if space.recipe.distill.baseline:
        paths["student_alone"] = space.path / "export" / "student_alone.onnx"
    made = (FLOAT, *space.result("quantize")["made"]) if "quantize" in space.records else (FLOAT,)
    return paths | {name: variant_path(space, name) for name in made}


def work_on_export(space: Workspace) -> tuple[dict[str, Any], str]:
    """Export teacher (unless only its answers are known), student and student alone; each proven before it counts."""
    from edgekd.distill.to_onnx import export

    prepared = space.prepared
    names = [
        *(["teacher"] if space.recipe.teacher.has_graph else []),
        "student",
        *(["student_alone"] if space.recipe.distill.baseline else []),
    ]
    samples = prepared.feeds(prepared.dataset.val, PARITY_SAMPLES)
    done: dict[str, Any] = {}
    for index, name in enumerate(names):
        space.listener.step(f"export {name}", index, len(names), {})
        path = space.path / "export" / f"{name}.onnx"
        if name == "teacher" and space.recipe.teacher.onnx is not None:
            with explain_os_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(space.path / "teacher" / "teacher.onnx", path)
            continue
        module, found = rejecting.finished(space, name)
        result = export(
            module,
            path,
            inputs=(prepared.input_spec,),
            outputs=(OUTPUT,),
            samples=samples,
            opset=space.recipe.export.opset,
            ir_version=space.recipe.export.ir_version,
            metadata=metadata(space),
        )
        done[name] = {
            "size_bytes": result.size_bytes,
            "sha256": result.sha256,
            "opset": result.opset,
            "ir_version": result.ir_version,
            "max_abs_diff": result.max_abs_diff,
            **({} if found is None else {"reject": found.to_json()}),
        }
        if name == "teacher" and found is not None:
            rejecting.write_teacher_json(space, found)
    worst = max(item["max_abs_diff"] for item in done.values())
    said = f"student {done['student']['size_bytes'] / 1000:.1f} kB, differs from PyTorch by at most {worst:.1e}"
    if (section := space.recipe.export.reject) is not None:
        said += f"; below {done['student']['reject']['value']:.3g} the answer is {section.label}"
    return done, said


def metadata(space: Workspace) -> dict[str, str]:
    """What travels inside the graph for whoever opens it without the bundle."""
    prepared = space.prepared
    return metadata_of(
        name=space.recipe.name,
        task=space.recipe.task,
        labels=prepared.dataset.labels,
        licence=space.recipe.student.licence or "",
        sample_shape=[size for size in prepared.input_spec.shape[1:] if isinstance(size, int)],
        steps=prepared.steps,
    )


def work_on_quantize(space: Workspace) -> tuple[dict[str, Any], str]:
    """Make each variant; one that cannot be made for this model is named with its reason, not passed over."""
    calibration = calibration_feeds(space)
    # Ranges belong to one student; what an earlier one left would be refused.
    (space.path / "variants" / CALIBRATION).unlink(missing_ok=True)
    made: dict[str, Any] = {}
    refused: dict[str, str] = {}
    names = variant_names(space)[1:]
    for index, name in enumerate(names):
        space.listener.step(f"quantize {name}", index, len(names), {})
        _make(space, name, calibration, made, refused)
    if mixing.MIXED not in names and _needs_mixture(space, list(made)):
        space.listener.step(f"quantize {mixing.MIXED}", len(names), len(names) + 1, {})
        _make(space, mixing.MIXED, calibration, made, refused)
    return {"made": made, "refused": refused}, ", ".join(made) or "no quantized variant"


def _make(
    space: Workspace,
    name: str,
    calibration: Sequence[Mapping[str, Array]],
    made: dict[str, Any],
    refused: dict[str, str],
) -> None:
    """One variant, into `made` or `refused`."""
    try:
        if name in TRAINED:
            result = _write_trained(space, name)
        else:
            result = quantize(
                space.path / "export" / "student.onnx",
                variant_path(space, name),
                config(space, name),
                calibration=calibration,
                cache=space.path / "variants" / CALIBRATION,
                evaluation=_evaluation(space) if name == mixing.MIXED else None,
                target=target(space),
            )
    except (AnswerIsNo, UsageError) as error:
        refused[name] = str(error)
        space.listener.warn(f"variant {name} cannot be made for this student: {error}")
        return
    made[name] = {
        "size_bytes": result.size_bytes,
        "sha256": result.sha256,
        "num_quantized": result.num_quantized,
        **({} if result.search is None else {"search": result.search.to_json()}),
    }


def _evaluation(space: Workspace) -> Evaluation:
    """Points lost against the teacher where a limit allows some, else against the float student."""
    name = "teacher" if space.recipe.limits.accuracy_drop_points is not None else FLOAT
    return mixing.evaluation(space, _contributions(space, name))


def _needs_mixture(space: Workspace, made: list[str]) -> bool:
    """Whether the accuracy limit is set, float holds it, and no static int8 that was made does."""
    limit = space.recipe.limits.accuracy_drop_points
    static = [name for name in made if isinstance(VARIANTS.get(name), Int8Static)]
    if limit is None or not static:
        return False
    reference = _contributions(space, "teacher")

    def drop(name: str) -> Interval:
        own = _contributions(space, name)
        return drop_points(space.recipe.task, reference, own, confidence=space.recipe.limits.confidence)

    student = drop(FLOAT)
    return all(mixing.is_needed(limit, student, drop(name)) for name in static)


def _contributions(space: Workspace, name: str) -> Contributions:
    """What each validation sample adds to the metric for the teacher or a variant."""
    prepared, val = space.prepared, space.prepared.dataset.val
    path = variant_path(space, name) if name != "teacher" else space.path / "export" / "teacher.onnx"
    if name == "teacher" and not space.recipe.teacher.has_graph:
        outputs = told_answers(space)
    else:
        outputs = answers(path, prepared, val)
    return prepared.judge(outputs, val, space.teacher_post if name == "teacher" else None)


def _write_trained(space: Workspace, name: str) -> QuantizeResult:
    """The file of a variant that was trained, proven against the module on validation."""
    from edgekd.distill.qat import write_quantized

    if "refused" in (trained := space.result(name)):
        raise AnswerIsNo(trained["refused"])
    return write_quantized(
        aware.load(space, name),
        variant_path(space, name),
        samples=space.prepared.feeds(space.prepared.dataset.val),
        target=target(space),
        labels=space.recipe.task == "classification",
    )


def _parity(space: Workspace, name: str, feeds: Mapping[str, Array]) -> VerifyResult:
    """A variant beside what it was made of: the float student, or the module that was trained."""
    labels, path = space.recipe.task == "classification", variant_path(space, name)
    if name in TRAINED:
        from edgekd.distill.qat import compare

        return compare(aware.load(space, name), path, feeds, labels=labels)
    return verify(variant_path(space, FLOAT), path, feeds, tolerance=precision(name), labels=labels)


def config(space: Workspace, name: str) -> Config:
    """The quantization of a variant, with the recipe's calibration where it has one."""
    chosen = VARIANTS[name]
    if isinstance(chosen, MixedPrecision):
        return mixing.mixed_config(space)
    return replace(chosen, calibration=space.recipe.quantize.calibration) if isinstance(chosen, Int8Static) else chosen


def calibration_feeds(space: Workspace) -> list[dict[str, Array]]:
    """Samples of the train split, spread evenly over it, as the model sees them: one group, of texts one per length.

    No text is filled up to the longest: ranges would cover what padding makes of a layer, and waste steps on it.
    """
    prepared = space.prepared
    train = prepared.dataset.train
    count = min(space.recipe.quantize.calibration_samples, len(train))
    indices = np.linspace(0, len(train) - 1, count).astype(np.intp)
    chosen = train.take(indices)
    return [prepared.feeds(chosen.take(rows)) for rows in of_one_length(chosen.x[:], prepared.steps)]


def work_on_verify(space: Workspace) -> tuple[dict[str, Any], str]:
    """Parity of each variant with the float student at several batch sizes, and everybody's score on validation."""
    prepared, confidence = space.prepared, space.recipe.limits.confidence
    task, val = space.recipe.task, prepared.dataset.val
    parity: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    paths: dict[str, Path | None] = {"teacher": None, **candidate_paths(space)}
    teacher_rows: Array | None = None
    few = prepared.feeds(val, PARITY_SAMPLES)
    for index, (name, path) in enumerate(paths.items()):
        space.listener.step(f"verify {name}", index, len(paths), {})
        if path is not None and name not in ("teacher", "student_alone"):
            result = _parity(space, name, few)
            parity[name] = {
                "ok": result.ok,
                "max_abs_diff": result.max_abs_diff,
                "label_agreement": result.label_agreement,
                "batch_sizes": list(result.batch_sizes),
                "axes": {axis: list(sizes) for axis, sizes in result.axes.items()},
                "problems": list(result.problems),
                "tolerance": result.tolerance.to_json(),
            }
            for problem in result.problems:
                space.listener.warn(f"variant {name} is out: {problem}")
        outputs = told_answers(space) if path is None else answers(path, prepared, val)
        save_outputs(space, name, outputs)
        own = prepared.judge(outputs, val, space.teacher_post if name == "teacher" else None)
        teacher_rows = own if teacher_rows is None else teacher_rows
        rows[name] = {
            "accuracy": score_interval(task, own, confidence=confidence).to_json(),
            "drop_points": drop_points(task, teacher_rows, own, confidence=confidence).to_json(),
        }
    if not parity[FLOAT]["ok"]:
        raise AnswerIsNo(f"the exported student fails its own verification: {'; '.join(parity[FLOAT]['problems'])}")
    good = [name for name, item in parity.items() if item["ok"]]
    calibration = None
    if wants_calibration(prepared.post):
        calibration = calibrate(load_outputs(space, FLOAT), val.y).to_json()
    told = {"parity": parity, "validation": rows, "calibration": calibration}
    return told, f"{len(good)} of {len(parity)} variants hold: {', '.join(good)}"


def answers(path: Path, prepared: Prepared, split: Split) -> Array:
    """Outputs of an ONNX file with one input for all samples of `split`, (N, D); one by one where a sample's answer
    depends on its neighbours (`rows_at_once`)."""
    session = open_session(path, threads=1)
    name, answer, size = session.inputs[0].name, answer_name(session), rows_at_once(path, OUTPUT_BATCH)
    parts = (split.take(slice(start, start + size)) for start in range(0, len(split), size))
    try:
        return np.concatenate(
            [run_in_chunks(session, {name: prepared.samples(part)}, size=size)[answer] for part in parts]
        )
    finally:
        session.close()


def told_answers(space: Workspace) -> Array:
    """What a teacher without a graph answers to validation, (N, D)."""
    from edgekd.distill.engine import evaluate

    prepared = space.prepared
    return evaluate(load_teacher(space), prepared.dataset.val, prepared.training, task=space.recipe.task)


def save_outputs(space: Workspace, name: str, outputs: Array) -> None:
    """Keep outputs for the choosing stage, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, outputs, allow_pickle=False)
    write_bytes(space.path / "outputs" / f"{name}.npy", buffer.getvalue())


def load_outputs(space: Workspace, name: str) -> Array:
    """Outputs that `verify` kept."""
    outputs: Array = np.load(space.path / "outputs" / f"{name}.npy", allow_pickle=False)
    return outputs
