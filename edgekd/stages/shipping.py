"""Stages `bundle`, `benchmark` and `report`: the deployable folder, the numbers, and the page to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekd.device.benchmark import Candidate, benchmark
from edgekd.device.bundle import Bundle
from edgekd.device.calibration import with_temperature
from edgekd.device.machine import cpu_kind
from edgekd.device.manifest import spec_to_json
from edgekd.device.postprocess import PostStep, post_steps_to_json
from edgekd.device.preprocess import apply_arithmetic
from edgekd.device.suites import load_suite
from edgekd.errors import AnswerIsNo
from edgekd.files import sha256_bytes
from edgekd.graph.inspection import inspect
from edgekd.graph.verification import Precision, tolerance_for
from edgekd.recipe import recipe_to_toml
from edgekd.results import read_results, write_results
from edgekd.spec import Array, TensorSpec, steps_to_json
from edgekd.stages import caching, rejecting
from edgekd.stages.choosing import equally_good_elsewhere
from edgekd.stages.converting import convert_bundle, platform_of
from edgekd.stages.graphs import FLOAT, target, variant_path
from edgekd.stages.inside import Contents, Inside, put_inside, run_graph
from edgekd.stages.texts import bundled, random_texts, tokenizer_files
from edgekd.stages.workspace import OUTPUT, Prepared, Workspace, blocks, figures
from edgekd.version import __version__

GOLDEN_SAMPLES = 16
# Of the largest golden output. On one CPU the kernels of three optimization levels agree to five digits, and int8 is
# 0.01 to 0.04 from float; what saturates is further away.
GOLDEN_SHARE = 0.05
BUNDLE = "student.edgekd"
FORMATS = "formats"  # other runtimes' files of the bundle, beside it


def work_on_bundle(space: Workspace) -> tuple[dict[str, Any], str]:
    """Write the bundle and let it prove itself before it counts."""
    from edgekd.device.selftest import self_test

    names = shipped_variants(space)
    graphs = {name: {"main": variant_path(space, name)} for name in names}
    golden = make_golden(space.prepared, {name: graphs[name]["main"] for name in names}, space.recipe.seed)
    export = space.recipe.export
    contents = put_inside(
        Contents(build_manifest(space, names, golden), graphs, golden, _files(space)),
        Inside(export.preprocess_in_graph, export.postprocess_in_graph),
        seed=space.recipe.seed,
    )
    bundle = Bundle.write(
        space.path / BUNDLE, contents.manifest, contents.graphs, contents.golden, files=contents.files
    )
    bad = [row for row in self_test(bundle) if not row["ok"]]
    if bad:
        raise AnswerIsNo(f"the bundle fails its own golden vectors: {', '.join(row['variant'] for row in bad)}")
    size = sum(item["size_bytes"] for item in bundle.manifest["files"].values())
    result = {"path": BUNDLE, "id": bundle.manifest["id"], "variants": list(names), "size_bytes": size}
    said = f"{BUNDLE}: {len(names)} variants, {size / 1000:.1f} kB, golden vectors hold"
    if export.formats:
        found = convert_bundle(bundle, export.formats, space.path / FORMATS, platform=platform_of(target(space)))
        for file, reason in found["refused"].items():
            space.listener.warn(f"{FORMATS}/{file} is not there: {reason}")
        result |= {"formats": found}
        said += f"; {', '.join(found['made']) or 'nothing'} in {FORMATS}"
    return result, said


def _files(space: Workspace) -> dict[str, bytes]:
    """What lies beside graphs and arrays in the bundle."""
    prepared = space.prepared
    return tokenizer_files(prepared.steps, task=space.recipe.task, labels=prepared.dataset.labels)


def shipped_variants(space: Workspace) -> tuple[str, ...]:
    """Variants that held in `verify`, the chosen one first."""
    ranking: list[str] = space.result("select")["ranking"]
    return tuple(ranking)


def make_golden(prepared: Prepared, graphs: Mapping[str, Any], seed: int) -> dict[str, Array]:
    """Synthetic inputs with what each variant makes of them: nobody's data, so it may travel.

    Images are random bytes; arrays are normal with the train split's mean and deviation per feature; texts are random
    tokens, as long as those of the train split.
    """
    train = prepared.dataset.train.x
    rng = np.random.default_rng(seed)
    shape = (GOLDEN_SAMPLES, *train.shape[1:])
    if prepared.vocabulary is not None:
        raw: Array = random_texts(train[: len(train)], prepared.vocabulary, GOLDEN_SAMPLES, rng)
    elif train.dtype == np.uint8:
        raw = rng.integers(0, 256, shape, dtype=np.uint8)
    else:
        mean, std = figures(block.reshape(len(block), -1) for block in blocks(train))
        normal = rng.standard_normal((shape[0], len(mean)))
        raw = (mean + std * normal).astype(np.float32).reshape(shape)
    name = prepared.input_spec.name
    feeds = {name: apply_arithmetic(prepared.arithmetic, raw)}
    golden: dict[str, Array] = {"raw": raw, f"input.{name}": feeds[name]}
    for name, path in graphs.items():
        # All samples in one call, as every loader proves them: a scale found at run time is that of the whole batch.
        golden[f"output.{name}.{OUTPUT}"] = run_graph(path, feeds)[OUTPUT]
    return golden


def build_manifest(space: Workspace, names: tuple[str, ...], golden: Mapping[str, Array]) -> dict[str, Any]:
    """bundle.json, but for what Bundle.write adds: files, sizes, id."""
    recipe, prepared = space.recipe, space.prepared
    select, verify = space.result("select"), space.result("verify")
    validation = verify["validation"]
    inspected = {name: inspect(variant_path(space, name)) for name in names}
    num_outputs = prepared.dataset.num_outputs
    output = TensorSpec(OUTPUT, "float32", ("N", num_outputs))
    teacher = recipe.teacher
    return {
        "name": recipe.name,
        "task": recipe.task,
        "created": space.created,
        "edgekd_version": __version__,
        "licence": recipe.student.licence or "not stated",
        "intended_use": recipe.description or "",
        "provenance": {
            "recipe_sha256": sha256_bytes(recipe_to_toml(recipe).encode()),
            "teacher": {
                "name": teacher.model or "black box",
                "licence": teacher.licence or "not stated",
                "sha256": space.result("teacher").get("sha256") or sha256_of_outputs(space.records["teacher"].outputs),
            },
            "data": {
                "name": prepared.dataset.name,
                "licence": prepared.dataset.licence,
                "sha256": prepared.dataset.sha256,
            },
            "seed": recipe.seed,
        },
        "labels": list(prepared.dataset.labels),
        "default": default_variants(space, names),
        "inputs": [spec_to_json(prepared.input_spec)],
        "outputs": [spec_to_json(output)],
        "preprocess": steps_to_json(bundled(prepared.steps)),
        "postprocess": post_steps_to_json(space.post),
        "variants": {
            name: {
                "precision": name.partition("_")[0],
                "scheme": name.partition("_")[2] or None,
                "opset": inspected[name].opset,
                "ir_version": inspected[name].ir_version,
                "min_runtime": dict(inspected[name].min_runtime),
                "tolerance": golden_tolerance(inspected[name].precision, [golden[f"output.{name}.{OUTPUT}"]]),
                "metrics": {"val": validation[name]},
            }
            for name in names
        },
        "golden": {
            "file": "golden.npz",
            "inputs": [prepared.input_spec.name],
            "outputs": {name: [OUTPUT] for name in names},
            "synthetic": True,
        },
        "samples": None,
        "metrics": {
            "teacher": validation["teacher"],
            "student_alone": validation.get("student_alone"),
            "student": validation[select["chosen"]],
            **({"calibration": verify["calibration"]} if verify.get("calibration") else {}),
        },
        "limits": select["limits"][select["chosen"]],
    }


def golden_tolerance(kind: Precision, outputs: Iterable[Array]) -> dict[str, Any]:
    """How far another machine may be from the golden `outputs` of a variant.

    Float kernels differ in the last bits. Integer kernels may round one step of 256 differently, layer by layer, and
    so change an answer that was close among these random inputs; a kernel that saturates is several times as far off.
    """
    magnitude = max(float(np.abs(values).max(initial=0.0)) for values in outputs)
    if kind in ("int8", "int4"):
        return {"abs": max(GOLDEN_SHARE * magnitude, 1e-7), "rel": 0.0, "label_agreement": 0.8}
    told = tolerance_for(kind, magnitude)
    return {"abs": told.abs, "rel": told.rel, "label_agreement": 1.0 if kind == "float32" else 0.8}


def default_variants(space: Workspace, names: tuple[str, ...]) -> dict[str, str]:
    """Per CPU kind: what was chosen here for this kind, elsewhere the first of the target's preference.

    Size and accuracy are the same elsewhere: a variant that misses them here is preferred nowhere, unless the
    preference has no other (it knows which kernels saturate, and wrong answers are worse than large files).
    """
    select = space.result("select")
    chosen, fitting = str(select["chosen"]), equally_good_elsewhere(select["limits"])

    def best(preference: Sequence[str]) -> str:
        shipped = [name for name in (*preference, FLOAT, chosen) if name in names]
        return next((name for name in preference if name in shipped and name in fitting), shipped[0])

    return {**{kind: best(preference) for kind, preference in target(space).default.items()}, cpu_kind(): chosen}


def sha256_of_outputs(outputs: Mapping[str, str]) -> str:
    """One hash for the weights of a stage."""
    return next((digest for path, digest in sorted(outputs.items()) if path.endswith((".safetensors", ".onnx"))), "")


def roles(space: Workspace) -> dict[str, str]:
    """Candidates of the last benchmark by their role in the report."""
    named: dict[str, str] = {}
    # An encoder of vectors is timed as a graph only: it is no model of `build_model` that another process can build.
    if space.recipe.teacher.model is not None and space.recipe.task != "embedding":
        named["teacher-pytorch"] = "teacher-pytorch"
    if space.recipe.teacher.has_graph:
        named["teacher-onnx"] = "teacher-onnx"
    if space.recipe.distill.baseline:
        named["student-alone"] = "student-alone"
    return named | {name: "variant" for name in shipped_variants(space)}


def work_on_benchmark(space: Workspace) -> tuple[dict[str, Any], str]:
    """Teacher, student alone and every variant in one interleaved run; test is read here, once."""
    prepared, threads = space.prepared, space.recipe.benchmark.threads
    bundle = space.path / BUNDLE
    models: dict[str, tuple[str, str | None, str]] = {
        "teacher-pytorch": (str(rejecting.teacher_json(space)), None, "torch"),
        "teacher-onnx": (str(space.path / "export" / "teacher.onnx"), None, "onnxruntime"),
        "student-alone": (str(space.path / "export" / "student_alone.onnx"), None, "onnxruntime"),
        **{name: (str(bundle), name, "onnxruntime") for name in shipped_variants(space)},
    }
    if space.recipe.export.preprocess_in_graph or space.recipe.export.postprocess_in_graph:
        # The data are kept after resize and crop, and the teacher has neither: networks are compared with networks.
        models |= {name: (str(variant_path(space, name)), None, "onnxruntime") for name in shipped_variants(space)}
    candidates = [
        Candidate(
            name,
            models[name][0],
            variant=models[name][1],
            runtime=models[name][2],
            threads=threads,
            preprocess=prepared.arithmetic,
            postprocess=_post_of(space, name),
        )
        for name in roles(space)
    ]
    # Only answers are known of some teachers: they are judged on validation, and timed nowhere.
    against = "teacher-onnx" if space.recipe.teacher.has_graph else candidates[0].id
    results = benchmark(
        candidates,
        suite=load_suite(space.recipe.benchmark.suite),
        against=against,
        samples=prepared.labelled(prepared.dataset.test),
        seed=space.recipe.seed,
        confidence=space.recipe.limits.confidence,
        progress=lambda text, done, total: space.listener.step(text, done, total, {}),
    )
    write_results(space.path / "benchmark.json", results)
    verdict = results["verdict"]
    for reason in verdict["reasons"]:
        space.listener.warn(f"benchmark {verdict['value']}: {reason}")
    return {"verdict": verdict}, f"{len(results['rows'])} candidates, {verdict['value']}"


def _post_of(space: Workspace, name: str) -> tuple[PostStep, ...]:
    """What makes probabilities of a candidate's outputs; only the student that ships was calibrated."""
    if name.startswith("teacher-"):
        return space.teacher_post
    return with_temperature(space.prepared.post, 1.0) if name == "student-alone" else space.post


def work_on_report(space: Workspace) -> tuple[dict[str, Any], str]:
    """results.json, report.html and report.md."""
    from edgekd.report import write_report

    results = read_results(space.path / "benchmark.json")
    results["command"] = space.command
    results["run"] = describe_run(space)
    write_results(space.path / "results.json", results)
    paths = write_report(results, space.path)
    return {"files": [path.name for path in paths]}, ", ".join(path.name for path in paths)


def describe_run(space: Workspace) -> dict[str, Any]:
    """What the report tells beside the benchmark: training, limits, licences, budget."""
    from edgekd.device.metrics import METRIC

    recipe, records = space.recipe, space.records
    trained = [
        name for name in (*recipe.all_teachers, *recipe.assistants, "student", "student_alone") if name in records
    ]
    select = space.result("select")
    student = space.result("student")
    caches = [caching.stage_of(name) for name in recipe.taught_by("student") if name in recipe.kept]
    return {
        "name": recipe.name,
        "task": recipe.task,
        "metric": METRIC[recipe.task],
        "recipe_toml": recipe_to_toml(recipe),
        "chosen": select["chosen"],
        "limits": select["limits"][select["chosen"]],
        "confidence": recipe.limits.confidence,
        "unproven": recipe.limits.unproven,
        "all_limits": select["limits"],
        "held_back": select["held_back"],
        "mixtures": {
            name: item["search"] for name, item in space.result("quantize")["made"].items() if "search" in item
        },
        "licences": {
            "teacher": recipe.teacher.licence or "not stated",
            "data": space.prepared.dataset.licence,
            "student": recipe.student.licence or "not stated",
        },
        "budget": {
            "epochs": student["epochs"],
            "images_seen": student["images_seen"],
            "teacher_passes": student["teacher_passes"] + sum(space.result(name)["teacher_passes"] for name in caches),
            "seconds": {name: round(record.seconds, 2) for name, record in records.items()},
        },
        "counts": space.result("data")["counts"],
        "training": {name: records[name].result for name in trained},
        "validation": space.result("verify")["validation"],
        "calibration": space.result("verify").get("calibration"),
        "reject": rejecting.describe(space),
        "refused_variants": space.result("quantize")["refused"],
        "roles": roles(space),
        "files": {
            "bundle": BUNDLE,
            **({"teacher": "export/teacher.onnx"} if recipe.teacher.has_graph else {}),
            "report": "report.html",
        },
    }
