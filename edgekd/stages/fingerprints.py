"""What the outputs of each stage depend on, beside the results of the stages before it.

Everything that changes an output is in, and nothing else: a licence or a moved file must not train for hours again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edgekd.data.registry import source_signature
from edgekd.device.machine import cpu_kind, describe, versions
from edgekd.device.suites import load_suite
from edgekd.device.tokens import tokenize_step
from edgekd.files import sha256_bytes, sha256_file
from edgekd.hub import weights_file
from edgekd.recipe_checks import SYNTHETIC
from edgekd.recipe_sections import AssistantSection, StudentSection, TeacherSection
from edgekd.references import code_sha256, locate
from edgekd.spec import parse_steps
from edgekd.stages import diet, mixing, vectors
from edgekd.stages.aware import config as trained_config
from edgekd.stages.aware import terms as trained_terms
from edgekd.stages.caching import header_facts, store_of
from edgekd.stages.graphs import named_variants, target
from edgekd.stages.lesson import alone_smoothing
from edgekd.stages.texts import opened
from edgekd.stages.training import section_of
from edgekd.stages.workspace import Workspace

Inputs = Mapping[str, Any]
# How answers are kept; what is learned from them depends on the result of the stage `cache`.
CACHE_KEYS = frozenset({"cache", "cache_top_k", "cache_dtype"})
# What students see of the labels.
LABELS = frozenset({"wrong_labels", "labelled"})
# What the student alone does not see, and what changes nothing.
ELSEWHERE = frozenset({"terms", "stages", "baseline", "trackers", "ensemble"})

# edgekd.distill.checkpoint.CURES, by the names that recipes have for them.
CURES = frozenset({"lr", "weight_decay", "schedule", "warmup_epochs", "label_smoothing", "terms", "losses", "stage_lr"})


def data(space: Workspace) -> Inputs:
    """The source of the samples, how they are split, and the steps that are applied once."""
    recipe = space.recipe
    source = source_signature(kind=recipe.data.kind, root=recipe.data.root, search_path=space.search_path)
    return {
        "signature": source,
        "data": recipe.data.model_dump(mode="json", exclude={"augment", "views", "licence", *LABELS}),
        "preprocess": recipe.preprocess.model_dump(mode="json"),
        "postprocess": recipe.postprocess.model_dump(mode="json"),
        "task": recipe.task,
        "seed": recipe.seed,
        **_vectors(space),
        **_tokenizer(space),
        **({"masked_lm": recipe.masked_lm.model_dump(mode="json")} if recipe.task == "masked_lm" else {}),
        **_tools("pillow"),
    }


def _tokenizer(space: Workspace) -> Inputs:
    """The file that makes ids of texts."""
    step = tokenize_step(opened(parse_steps(space.recipe.preprocess.steps), space.search_path))
    return {} if step is None else {"tokenizer": sha256_bytes(step.content.encode()), **_tools("tokenizers")}


def _vectors(space: Workspace) -> Inputs:
    """What the targets of an embedding depend on: the teacher says them."""
    recipe = space.recipe
    if recipe.task != "embedding":
        return {}
    teacher = [recipe.teacher.model, recipe.teacher.args]
    return {"embedding": vectors.settings(recipe, space.search_path), "vectors_of": teacher}


def teacher(space: Workspace, name: str = "teacher") -> Inputs:
    """Its section, its files, the user's code; how it is trained, if it is."""
    section = space.recipe.all_teachers[name]
    if section.is_finished:
        headers = {} if section.url is None else header_facts(section.request.headers, os.environ, name)
        # Its outputs may be for these labels alone, and are judged by them.
        own = {"labels": section.labels} if section.labels else {}
        return {**_model(space, section, without=("train",)), **headers, **own}
    return {**_model(space, section), **_training(space)}


def student(space: Workspace) -> Inputs:
    """The student's section, files and code, its budget, the terms and stages, the user's losses and adapters."""
    terms, stages = space.recipe.distill_terms, space.recipe.distill.stages
    adapters = [term.adapter for term in terms if term.adapter is not None]
    return {
        **student_alone(space),
        "terms": [term.model_dump(mode="json") for term in terms],
        "stages": [stage.model_dump(mode="json", exclude={"lr"}) for stage in stages],
        "stage_lr": [stage.lr for stage in stages],
        "losses": {term.loss: code_sha256(term.loss, space.search_path) for term in terms},
        "adapters": {adapter: code_sha256(adapter, space.search_path) for adapter in adapters},
        "teachers": {name: [item.weight, item.labels] for name, item in space.recipe.all_teachers.items()},
        **({"ensemble": space.recipe.distill.ensemble} if space.recipe.teachers else {}),
    }


def student_whole(space: Workspace) -> Inputs:
    """As `student`, whatever will be cut out of it."""
    return {**student(space), **_model(space, space.recipe.student, without=diet.KEYS)}


def assistant(space: Workspace, name: str) -> Inputs:
    """As `student`, with the assistant's own section in the place of the student's."""
    return {**student(space), **_model(space, space.recipe.assistants[name])}


def student_alone(space: Workspace) -> Inputs:
    """As `student`, without what only the distilled one sees; how much of that there is sets its epochs."""
    budget = space.recipe.distill.model_dump(mode="json", exclude={*ELSEWHERE, *CACHE_KEYS})
    smoothing = alone_smoothing(space.recipe)
    return {
        **_model(space, space.recipe.student),
        "distill": budget,
        **({"label_smoothing": smoothing} if smoothing else {}),
        "views": space.recipe.data.views,
        **_labels(space),
        **_transfer(space),
        **_training(space),
    }


def aware(space: Workspace, name: str) -> Inputs:
    """As `student`, with the terms, the budget and the scheme of a variant that is trained, and its calibration."""
    section, distill = space.recipe.quantize, space.recipe.distill
    named = trained_terms(space)
    return {
        "config": asdict(trained_config(space, name)),
        "qat": section.qat.model_dump(mode="json", exclude={"activation", "weight", "per_channel"}),
        "calibration_samples": section.calibration_samples,
        "terms": [term.model_dump(mode="json") for term in named],
        "losses": {term.loss: code_sha256(term.loss, space.search_path) for term in named},
        "mixing": [distill.mixup, distill.cutmix, distill.clip_norm],
        "views": space.recipe.data.views,
        **_labels(space),
        **_transfer(space),
        **_training(space),
        **_tools("edgekd", "torch", "onnx", "onnxruntime"),
    }


def cache(space: Workspace, name: str = "teacher") -> Inputs:
    """What is asked for and how it is kept, beside the teacher (or assistant) and the data."""
    recipe, section = space.recipe, section_of(space, name)
    mixing = [recipe.distill.mixup, recipe.distill.cutmix]
    return {
        "augment": recipe.data.augment,
        "views": recipe.data.views,
        "mixing": mixing,
        "seed": recipe.seed if recipe.data.augment or any(mixing) else None,
        "keys": recipe.distill.model_dump(mode="json", include=set(CACHE_KEYS - {"cache"})),
        "taps": store_of(space, "train", name).facts()["taps"],
        **({} if section.model is None else {"precision": recipe.distill.precision, "device": space.device}),
        **_transfer(space),
        **_tools("torch"),
    }


def without_cures(inputs: Inputs) -> Inputs:
    """The inputs of a training less those that may change after it diverged: what was learned until then stays."""

    def strip(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: strip(item) for key, item in value.items() if key not in CURES}

    return {key: strip(item) for key, item in inputs.items() if key not in CURES}


def export(space: Workspace) -> Inputs:
    """The graph's versions, what is written into it, and the tools that write it."""
    reject = space.recipe.export.reject
    return {
        # What is put around the network concerns the bundle only.
        "export": space.recipe.export.model_dump(mode="json", include={"opset", "ir_version"}),
        **({} if reject is None else {"reject": reject.model_dump(mode="json")}),
        "licence": space.recipe.student.licence,
        **_tools("edgekd", "torch", "onnx", "onnxscript", "onnxruntime"),
    }


def quantize(space: Workspace) -> Inputs:
    """The variants, their calibration, and what the target can load."""
    limits = target(space)
    return {
        "quantize": space.recipe.quantize.model_dump(mode="json"),
        "variants": list(named_variants(space)),
        "target": [limits.max_opset, limits.max_ir],
        **_mixing(space),
        **_tools("edgekd", "onnx", "onnxruntime"),
    }


def _mixing(space: Workspace) -> Inputs:
    """What a mixture of int8 and float depends on, where one may be made."""
    wanted, limits = mixing.MIXED in named_variants(space), space.recipe.limits
    if limits.accuracy_drop_points is None and not wanted:
        return {}
    scheme = mixing.mixed_config(space).base if wanted else None
    return {
        "accuracy": [limits.accuracy_drop_points, limits.confidence],
        "scheme": None if scheme is None else asdict(scheme),
        **_judging(space),
    }


def verify(space: Workspace) -> Inputs:
    """How outputs are judged, and what computes them: integer kernels differ from CPU to CPU."""
    return {"confidence": space.recipe.limits.confidence, **_judging(space)}


def select(space: Workspace) -> Inputs:
    """The limits, and what the timings depend on."""
    return {
        "limits": space.recipe.limits.model_dump(mode="json", exclude={"unproven"}),
        "export": space.recipe.export.model_dump(mode="json", include={"preprocess_in_graph", "postprocess_in_graph"}),
        "threads": space.recipe.benchmark.threads,
        **_judging(space),
    }


def bundle(space: Workspace) -> Inputs:
    """The whole recipe, whose hash the manifest holds; the target's preferences; what computes the golden outputs."""
    return {"recipe": space.recipe.model_dump(mode="json"), "target": asdict(target(space)), **_judging(space)}


def benchmark(space: Workspace) -> Inputs:
    """The suite's own numbers, not only its name, and the machine."""
    return {
        "suite": asdict(load_suite(space.recipe.benchmark.suite)),
        "threads": space.recipe.benchmark.threads,
        "confidence": space.recipe.limits.confidence,
        **_judging(space),
        **_tools("torch"),
    }


def report(space: Workspace) -> Inputs:
    """What draws it; what it tells comes from the stages before."""
    return _tools("edgekd")


def _model(
    space: Workspace, section: TeacherSection | AssistantSection | StudentSection, *, without: tuple[str, ...] = ()
) -> Inputs:
    files: dict[str, str | None] = {}
    if not isinstance(section, AssistantSection):
        weights = section.weights
        files["weights"] = None if weights is None else str(weights_file(weights, space.search_path))
    if isinstance(section, TeacherSection):
        files |= {"onnx": section.onnx, "logits": section.logits}
        # How it is asked, and how much it counts beside others, does not change what it answers.
        without = (*without, "request", "weight", "labels")
    reference = section.model or ""
    if isinstance(section, StudentSection) and section.init is None:
        without = (*without, "init")
    return {
        "section": section.model_dump(mode="json", exclude={"licence", *files, *without}),
        "files": {key: None if path is None else sha256_file(path) for key, path in files.items()},
        "code": code_sha256(reference, space.search_path),
        **(_tools("torchvision") if reference.startswith("torchvision:") else {}),
        **(_tools("timm") if reference.startswith("timm:") else {}),
        **(_hugging_face(space, reference[3:]) if reference.startswith("hf:") else {}),
    }


def _hugging_face(space: Workspace, reference: str) -> Inputs:
    """What the folder of a model holds; of an id on the hub only the name is known."""
    folder = locate(reference, space.search_path)
    names = ("config.json", "tokenizer.json", "vocab.txt", "*.safetensors", "*.bin", "*.index.json")
    paths = [] if folder is None else [path for name in names for path in sorted(folder.glob(name)) if path.is_file()]
    return {"folder": {path.name: sha256_file(path) for path in paths}, **_tools("transformers")}


def _labels(space: Workspace) -> Inputs:
    """Nothing for usual labels: what was learned from them before stays."""
    data = space.recipe.data
    return {key: getattr(data, key) for key in sorted(LABELS) if key in data.model_dump(exclude_defaults=True)}


def _transfer(space: Workspace) -> Inputs:
    section = space.recipe.transfer
    if section is None:
        return {}
    known = {"transfer": section.model_dump(mode="json"), "transfer_seed": space.recipe.seed}
    if section.kind == SYNTHETIC:
        return known
    source = source_signature(kind=section.kind, root=section.root, search_path=space.search_path)
    return {**known, "transfer_source": source}


def _training(space: Workspace) -> Inputs:
    """What the bytes of trained weights depend on, whatever is trained."""
    return {
        "seed": space.recipe.seed,
        "threads": space.threads,
        "device": space.device,
        "precision": space.recipe.distill.precision,
        "augment": space.recipe.data.augment,
        **_tools("torch"),
    }


def _judging(space: Workspace) -> Inputs:
    """Where outputs are computed, and how they are read."""
    return {
        "machine": [cpu_kind(), describe()["cpu"]],
        "postprocess": space.recipe.postprocess.model_dump(mode="json"),
        **_tools("edgekd", "onnxruntime", "onnxruntime-gpu"),
    }


def _tools(*packages: str) -> dict[str, str | None]:
    installed = versions()
    return {package: installed.get(package) for package in packages}
