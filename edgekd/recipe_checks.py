"""What one table cannot say alone: contradictions between the keys of a recipe, and files that are not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edgekd import assets
from edgekd.data.registry import KINDS
from edgekd.data.synthetic import SOURCES
from edgekd.device.postprocess import parse_post_steps
from edgekd.device.preprocess import split_steps
from edgekd.device.suites import load_suite
from edgekd.distill.endpoint import check_url
from edgekd.distill.trackers import check_names
from edgekd.errors import ModelError, RecipeError, UsageError, nearest
from edgekd.graph.formats import FORMATS
from edgekd.hub import PREFIX
from edgekd.recipe_errors import explain, find_unknown_key
from edgekd.recipe_sections import ScheduleSection
from edgekd.spec import parse_steps

if TYPE_CHECKING:
    from edgekd.recipe import Recipe
    from edgekd.recipe_sections import TeacherSection

VERSION = 1
TRAINED = ("int8_qat", "int4_qat")  # edgekd.graph.quantization.TRAINED, which reading a recipe must not import
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
# Steps that leave the meaning of the outputs: the losses work on logits, and on targets without their units.
POST_STEPS_OF = {
    "classification": ("softmax", "top_k"),
    "multilabel": ("sigmoid", "threshold"),
    "regression": ("denormalize",),
    "embedding": (),
    "masked_lm": (),
}
# What a student learns from when the recipe names no terms.
DEFAULT_TERMS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "classification": (
        {"name": "kd", "loss": "kd", "weight": 0.9, "options": {"temperature": 4.0}},
        {"name": "cross_entropy", "loss": "cross_entropy", "weight": 0.1},
    ),
    "multilabel": (
        {"name": "multilabel_kd", "loss": "multilabel_kd", "weight": 0.5},
        {"name": "binary_cross_entropy", "loss": "binary_cross_entropy", "weight": 0.5},
    ),
    "regression": (
        {"name": "regression_kd", "loss": "regression_kd", "weight": 0.5},
        {"name": "mean_squared_error", "loss": "mean_squared_error", "weight": 0.5},
    ),
    "embedding": ({"name": "cosine", "loss": "cosine_embedding", "weight": 1.0},),
    # As DistilBERT was made: by what the teacher says of every token, hidden or not.
    "masked_lm": (
        {
            "name": "kd",
            "loss": "kd",
            "weight": 5.0,
            "options": {"temperature": 2.0},
            "student_tap": "token_logits",
            "teacher_tap": "token_logits",
        },
        {"name": "cross_entropy", "loss": "cross_entropy", "weight": 2.0},
        {
            "name": "cosine",
            "loss": "cosine_embedding",
            "weight": 1.0,
            "student_tap": "hidden",
            "teacher_tap": "hidden",
        },
    ),
}
# Losses whose numbers mean something for one task only; every other loss is left to the user.
TASK_OF_LOSS = {
    "cross_entropy": "classification",
    "kd": "classification",
    "soft_cross_entropy": "classification",
    "dkd": "classification",
    "dist": "classification",
    "class_correlation": "classification",
    "logit_standardized_kd": "classification",
    "multi_temperature_kd": "classification",
    "teacher_free": "classification",
    "multilabel_kd": "multilabel",
    "binary_cross_entropy": "multilabel",
    "regression_kd": "regression",
    "mean_squared_error": "regression",
}
# Tasks that take the losses of another one.
LOSSES_OF = {"embedding": "regression", "masked_lm": "classification"}
# What any teacher gives, whole or as the best k; other taps lie inside a model.
ANSWERS = ("logits", "topk_indices", "topk_log_probabilities")
# Teachers of which only the answers are seen.
BLACK_BOXES = ("onnx", "logits", "url")
CLASSIFICATION_KINDS = ("digits", "mnist", "fashion_mnist", "image_folder", "sst2", "clinc150")
# Images that are made here: a kind of [transfer].
SYNTHETIC = "synthetic"
# What data.root must be, where it has to be given.
ROOTS = {
    "image_folder": "the folder of images",
    "arrays": "the .npz or .csv file",
    "webdataset": "the .tar file, or a folder of them",
    "text": "the .csv, .tsv or .jsonl file, or a folder with train.* (and dev.*, test.*)",
    "huggingface": "a name on the hub, such as 'stanfordnlp/sst2', or a folder",
    "sst2": "the folder that holds sst2/ (or set EDGEKD_DATA)",
    "clinc150": "the folder that holds clinc150/ (or set EDGEKD_DATA)",
    "arrow": "the .arrow or .parquet file, or a folder of them (as datasets.save_to_disk leaves it)",
}


def check_recipe(recipe: Recipe, *, source: str, check_files: bool) -> None:
    """Raise `RecipeError` (or `ModelError` for a missing file) on the first contradiction."""
    try:
        if recipe.version != VERSION:
            raise RecipeError(
                f"version = {recipe.version}, but this edgekd reads version {VERSION}; install a newer edgekd"
            )
        split_steps(parse_steps(recipe.preprocess.steps))
        _check_postprocess(recipe)
        for name in recipe.export.formats:
            if name not in FORMATS:
                raise RecipeError(f"export.formats: unknown format '{name}'. {nearest(name, FORMATS)}")
        if recipe.export.reject is not None and recipe.task != "classification":
            raise RecipeError(
                f"export.reject gives a sample to one of several classes, but task = '{recipe.task}'; remove it, or "
                "take task = 'classification'"
            )
        _check_data(recipe)
        _check_transfer(recipe)
        _check_teachers(recipe)
        _check_embedding(recipe)
        _check_masked_lm(recipe)
        _check_more_teachers(recipe)
        _check_terms(recipe)
        _check_stages(recipe)
        _check_views(recipe)
        _check_trained_variants(recipe)
        _check_diet(recipe)
        _check_trackers(recipe)
        if check_files:
            _check_root(recipe)
            _check_files(recipe)
            load_suite(recipe.benchmark.suite)
            if not recipe.target.name.endswith(".toml"):
                assets.find("export", "targets", recipe.target.name)
    except UsageError as error:
        raise RecipeError(f"{source}: {error}") from None
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None


def _check_postprocess(recipe: Recipe) -> None:
    if recipe.postprocess.steps is None:
        return
    ops, fitting = [step.op for step in parse_post_steps(recipe.postprocess.steps)], POST_STEPS_OF[recipe.task]
    for op in ops:
        if op not in fitting:
            raise RecipeError(
                f"postprocess.steps: '{op}' makes no sense of the outputs of task = '{recipe.task}'; expected "
                f"{' and '.join(fitting)}"
            )
    if recipe.task == "multilabel" and "sigmoid" not in ops:
        raise RecipeError("postprocess.steps: 'sigmoid' is missing: the graph of a multilabel student gives logits")


def _check_data(recipe: Recipe) -> None:
    data = recipe.data
    if data.kind not in KINDS and ":" not in data.kind:
        raise RecipeError(
            f"data.kind: found '{data.kind}'. {nearest(data.kind, KINDS)}, or your own 'package.module:function'"
        )
    is_of_vectors = recipe.task == "embedding" and data.kind in ("sst2", "clinc150")
    if data.kind in CLASSIFICATION_KINDS and recipe.task != "classification" and not is_of_vectors:
        raise RecipeError(
            f"task = '{recipe.task}', but data.kind = '{data.kind}' has one class per sample; expected task = "
            "'classification', or kind = 'arrays' or your own 'package.module:function'"
        )
    if data.val_fraction + data.test_fraction >= 1:
        raise RecipeError(
            f"data.val_fraction + data.test_fraction = {data.val_fraction + data.test_fraction:g}: nothing is left "
            "to train on; expected a sum below 1"
        )


def _check_transfer(recipe: Recipe) -> None:
    transfer, data = recipe.transfer, recipe.data
    if data.wrong_labels and recipe.task != "classification":
        raise RecipeError(f"data.wrong_labels swaps classes, but task = '{recipe.task}'; remove it")
    if transfer is None:
        return
    kinds = (SYNTHETIC, *KINDS)
    if transfer.kind not in kinds and ":" not in transfer.kind:
        raise RecipeError(
            f"transfer.kind: found '{transfer.kind}'. {nearest(transfer.kind, kinds)}, or your own "
            "'package.module:function'"
        )
    if transfer.source not in SOURCES:
        raise RecipeError(f"transfer.source: found '{transfer.source}'. {nearest(transfer.source, SOURCES)}")
    if transfer.kind in ROOTS and transfer.root is None:
        raise RecipeError(f"transfer.root is missing: transfer.kind = '{transfer.kind}' needs {ROOTS[transfer.kind]}")
    for where, teacher in _teachers_by_key(recipe).items():
        if teacher.logits is not None:
            raise RecipeError(
                f"transfer brings samples that {where}.logits holds no answers to; take a teacher that can be asked"
            )


def _check_root(recipe: Recipe) -> None:
    data = recipe.data
    if data.kind in ROOTS and data.root is None:
        what = ROOTS[data.kind]
        raise RecipeError(f"data.root is missing: data.kind = '{data.kind}' needs {what}; add --set data.root=PATH")
    if data.kind == "arrays" and str(data.root).endswith(".csv") and not data.target:
        raise RecipeError(
            "data.target is missing: a .csv file needs the name of its label column (or a list of them); "
            "add --set data.target=COLUMN"
        )


def _check_teachers(recipe: Recipe) -> None:
    for where, teacher in _teachers_by_key(recipe).items():
        _check_teacher(teacher, where, recipe.task)


def _teachers_by_key(recipe: Recipe) -> dict[str, TeacherSection]:
    """The teachers as the user writes them."""
    return {"teacher": recipe.teacher, **{f"teachers.{number}": one for number, one in enumerate(recipe.teachers)}}


def _check_teacher(teacher: TeacherSection, where: str, task: str) -> None:
    defaults = type(teacher)()
    given = [key for key in ("model", *BLACK_BOXES) if getattr(teacher, key) is not None]
    if len(given) > 1:
        raise RecipeError(f"{where} has {' and '.join(map(repr, given))}; expected one of them")
    if not given:
        raise RecipeError(
            f"{where} has neither 'model' nor 'onnx', 'logits' or 'url'; expected a built-in name, your own "
            "'package.module:function', onnx = 'FILE', logits = 'FILE' or url = 'URL'"
        )
    black_box = given[0] if given[0] in BLACK_BOXES else None
    # A resolved recipe states the defaults too: only a value that differs from them was meant.
    trains = teacher.train != defaults.train
    if black_box is not None:
        useless = {"args": bool(teacher.args), "weights": teacher.weights is not None, "train": trains}
        for key, is_there in useless.items():
            if is_there:
                raise RecipeError(f"{where}.{black_box} is a finished teacher; remove {where}.{key}")
        if not (teacher.licence or "").strip():
            raise RecipeError(
                f"{where}.licence is missing: {where}.{black_box} is a black box, and some licences forbid learning "
                f'from a model\'s outputs; look it up and state it, for example --set {where}.licence="Apache-2.0"'
            )
    if teacher.url is not None:
        check_url(teacher.url, insecure=teacher.request.insecure, key=where)
    elif teacher.request != defaults.request:
        raise RecipeError(f"{where}.request says how a {where}.url is asked, but there is none; remove it")
    if teacher.train.label_smoothing and task != "classification":
        raise RecipeError(f"{where}.train.label_smoothing works for classification only, but task = '{task}'")


def _check_embedding(recipe: Recipe) -> None:
    if recipe.task != "embedding":
        if recipe.embedding != type(recipe.embedding)():
            raise RecipeError(f"embedding is for task = 'embedding', but task = '{recipe.task}'; remove it")
        return
    if not any(step.get("op") == "tokenize" for step in recipe.preprocess.steps):
        raise RecipeError("task = 'embedding' is for texts; put tokenize into preprocess.steps")
    teacher = recipe.teacher
    if not (teacher.model or "").startswith("hf:") or teacher.weights or recipe.teachers or recipe.assistant:
        raise RecipeError(
            "task = 'embedding' takes one teacher, model = \"hf:FOLDER\" without teacher.weights: a sentence encoder "
            "as it is, whose vectors the student learns"
        )


def _check_masked_lm(recipe: Recipe) -> None:
    if recipe.task != "masked_lm":
        if recipe.masked_lm != type(recipe.masked_lm)():
            raise RecipeError(f"masked_lm is for task = 'masked_lm', but task = '{recipe.task}'; remove it")
        return
    ops = [step.get("op") for step in recipe.preprocess.steps]
    if "tokenize" not in ops or "trim" not in ops:
        raise RecipeError("task = 'masked_lm' is for texts; put tokenize and trim into preprocess.steps")
    models = {name: section.model or "" for name, section in recipe.all_teachers.items()}
    models |= {name: section.model for name, section in recipe.assistants.items()}
    for name, model in {**models, "student": recipe.student.model}.items():
        if not model.startswith("hf:"):
            raise RecipeError(
                f"task = 'masked_lm' takes models of transformers, but {name}.model = '{model}'; expected "
                '"hf:FOLDER", or a kind with args for a fresh one, such as "hf:bert"'
            )
    distill, data = recipe.distill, recipe.data
    refused = {
        "distill.cache": distill.cache,
        "distill.mixup": distill.mixup,
        "distill.cutmix": distill.cutmix,
        "distill.compile": distill.compile,
        "transfer": recipe.transfer is not None,
        "data.wrong_labels": data.wrong_labels,
        "data.labelled": data.labelled < 1,
        "student.prune": recipe.student.prune is not None,
        "student.low_rank": recipe.student.low_rank is not None,
    }
    for key, is_there in refused.items():
        if is_there:
            raise RecipeError(f"{key} does not go with task = 'masked_lm', which asks for other tokens in every epoch")


def _check_more_teachers(recipe: Recipe) -> None:
    if recipe.distill.ensemble != "logits" and (not recipe.teachers or recipe.task != "classification"):
        found = f"task = '{recipe.task}'" if recipe.teachers else "there is one teacher"
        raise RecipeError(
            f"distill.ensemble = '{recipe.distill.ensemble}' averages what several teachers of a classification say, "
            f"but {found}; remove it"
        )
    if recipe.teachers and recipe.task == "regression" and any(t.is_finished for t in recipe.all_teachers.values()):
        raise RecipeError("several teachers of a regression must be trained here: others may speak in other units")
    labelled = [name for name, teacher in recipe.all_teachers.items() if teacher.labels]
    if labelled and (recipe.task != "classification" or not recipe.teachers):
        raise RecipeError(
            f"{labelled[0]}.labels gives a teacher its own classes: for several teachers of a classification"
        )
    for name in labelled:
        twice = [label for label, count in Counter(recipe.all_teachers[name].labels).items() if count > 1]
        if twice:
            raise RecipeError(f"{name}.labels names '{twice[0]}' twice; expected each label once")
    if labelled and recipe.data.wrong_labels:
        raise RecipeError(
            f"{labelled[0]}.labels sends each sample to the teachers of its class, and data.wrong_labels makes that "
            "another class; remove one"
        )


def _check_terms(recipe: Recipe) -> None:
    terms = recipe.distill_terms
    for index, term in enumerate(terms):
        task = TASK_OF_LOSS.get(term.loss, recipe.task)
        if task not in (recipe.task, LOSSES_OF.get(recipe.task)):
            fitting = ", ".join(default["loss"] for default in DEFAULT_TERMS[recipe.task])
            raise RecipeError(
                f"distill.terms.{index}: the loss '{term.loss}' is for {task}, but task = '{recipe.task}'; "
                f"expected for example {fitting}"
            )
    twice = [name for name, count in Counter(term.name for term in terms).items() if count > 1]
    if twice:
        raise RecipeError(f"distill.terms: two terms are called '{twice[0]}'; give each its own name")
    weights = [term.weight for term in terms]
    if not any(weight if isinstance(weight, float) else weight.start or weight.end for weight in weights):
        raise RecipeError("distill.terms: every weight is 0, so nothing would be learned; expected one above 0")
    for index, term in enumerate(terms):
        _check_options(term.options, f"distill.terms.{index}.options")
        taps = (term.teacher_tap,) if isinstance(term.teacher_tap, str) else term.teacher_tap
        inside = [tap for tap in taps if _looks_inside_a_black_box(recipe, tap)]
        if inside:
            raise RecipeError(
                f"distill.terms.{index}: teacher_tap = '{inside[0]}' looks inside the teacher, which is a black box; "
                "expected a teacher.model, or teacher_tap = 'logits'"
            )


def _looks_inside_a_black_box(recipe: Recipe, tap: str) -> bool:
    """Whether a tap, of several teachers with the number of one before it, wants more of a teacher than it says."""
    number, slash, own = tap.partition("/")
    sections = list(recipe.all_teachers.values())
    if recipe.teachers and slash and number.isdecimal() and int(number) < len(sections):
        return own not in ANSWERS and sections[int(number)].model is None
    return tap not in ANSWERS and recipe.teacher.model is None


def _check_options(options: Mapping[str, Any], place: str) -> None:
    """A table with start and end is a schedule."""
    for name, value in options.items():
        if isinstance(value, Mapping) and {"start", "end"} <= value.keys():
            unknown = find_unknown_key(ScheduleSection, value, source=f"{place}.{name}", origins={})
            if unknown is not None:
                raise RecipeError(unknown)
            try:
                ScheduleSection.model_validate(dict(value))
            except ValidationError as error:
                raise RecipeError(explain(error, source=f"{place}.{name}", origins={})) from None


def _check_stages(recipe: Recipe) -> None:
    distill, known = recipe.distill, [term.name for term in recipe.distill_terms]
    twice = [name for name, count in Counter(stage.name for stage in distill.stages).items() if count > 1]
    if twice:
        raise RecipeError(f"distill.stages: two stages are called '{twice[0]}'; give each its own name")
    for index, stage in enumerate(distill.stages):
        for name in stage.terms:
            if name not in known:
                raise RecipeError(f"distill.stages.{index}.terms: there is no term '{name}'. {nearest(name, known)}")
        if not stage.terms:
            raise RecipeError(f"distill.stages.{index}.terms is empty, expected some of {', '.join(known)}")
        if stage.epochs <= distill.warmup_epochs:
            raise RecipeError(
                f"distill.stages.{index}.epochs = {stage.epochs}: the stage ends before its warm-up "
                f"(distill.warmup_epochs = {distill.warmup_epochs}); expected more"
            )
    idle = [name for name in known if all(name not in stage.terms for stage in distill.stages)]
    if distill.stages and idle:
        raise RecipeError(f"distill.stages: no stage learns the term '{idle[0]}'; name it in one, or drop the term")
    for number, one in enumerate(recipe.assistant if distill.stages else ()):
        if one.epochs is not None:
            raise RecipeError(
                f"assistant.{number}.epochs = {one.epochs}, but an assistant goes through the student's "
                "distill.stages; remove one of the two"
            )
    total = sum(stage.epochs for stage in distill.stages)
    if distill.stages and "epochs" in distill.model_fields_set and distill.epochs != total:
        raise RecipeError(
            f"distill.epochs = {distill.epochs}, but the stages have {total} epochs in all; remove distill.epochs"
        )


def _check_trained_variants(recipe: Recipe) -> None:
    section = recipe.quantize
    names = [name for name in section.variants if name in TRAINED]
    if not names and section.qat != type(section.qat)():
        raise RecipeError(
            f"quantize.qat says how variants are trained, but quantize.variants names none of {', '.join(TRAINED)}; "
            "add one, or remove quantize.qat"
        )
    if names and section.qat.warmup_epochs >= section.qat.epochs:
        raise RecipeError(
            f"quantize.qat.warmup_epochs = {section.qat.warmup_epochs}, expected less than quantize.qat.epochs = "
            f"{section.qat.epochs}"
        )
    if "int4_qat" in names and section.qat.weight != "int8":
        raise RecipeError(
            "quantize.qat.weight = 'uint8', but the 4-bit weights of int4_qat are signed; expected 'int8'"
        )


def _check_diet(recipe: Recipe) -> None:
    student = recipe.student
    if student.prune is None and student.prune_by != "l1":
        raise RecipeError(
            f"student.prune_by = '{student.prune_by}' says which channels go, but none do; add student.prune = 0.5, "
            "for example, or remove it"
        )
    if student.low_rank is not None and (student.low_rank.rank is None) == (student.low_rank.energy is None):
        raise RecipeError("student.low_rank: expected either rank (how many) or energy (a share, such as 0.95)")


def _check_views(recipe: Recipe) -> None:
    data, distill, kept = recipe.data, recipe.distill, recipe.kept
    teachers = _teachers_by_key(recipe).items()
    files = [f"{where}.logits" for where, one in teachers if one.logits is not None]
    urls = [f"{where}.url" for where, one in teachers if one.url is not None]
    augments = any(data.augment.values())
    mixes = distill.mixup > 0 or distill.cutmix > 0
    if data.views is not None and data.views > 1 and not augments and not mixes:
        raise RecipeError(
            f"data.views = {data.views}, but data.augment is empty: all views would be the same; remove it, or add "
            "augmentation"
        )
    if mixes and any(step.get("op") == "tokenize" for step in recipe.preprocess.steps):
        raise RecipeError(
            "distill.mixup and cutmix blend numbers, but the samples are texts; remove them, or take data.augment = "
            "{replace_random = 0.1}, for example"
        )
    if mixes and files:
        raise RecipeError(
            f"distill.mixup and cutmix make samples that {files[0]} holds no answers to; remove them, or take a "
            "teacher that can be asked"
        )
    if distill.cache and not kept:
        raise RecipeError(f"distill.cache keeps what a teacher answers, but {files[0]} is such a file; remove one")
    if kept and (augments or mixes) and data.views is None:
        why = "distill.cache" if distill.cache else urls[0]
        what = "data.augment" if augments else "distill.mixup and cutmix"
        verb = "makes" if augments else "make"
        raise RecipeError(
            f"data.views is missing: {why} keeps the teacher's answers, and {what} {verb} other samples in every "
            "epoch; add data.views = 8, for example, to cycle through 8 views of each sample"
        )
    if not kept and (distill.cache_top_k is not None or distill.cache_dtype != "float32"):
        raise RecipeError("distill.cache_top_k and cache_dtype say how distill.cache keeps answers; add cache = true")


def _check_trackers(recipe: Recipe) -> None:
    try:
        check_names(recipe.distill.trackers)
    except UsageError as error:
        raise RecipeError(f"distill.trackers: {error}") from None


def _check_files(recipe: Recipe) -> None:
    further = [(f"teachers.{n}", section) for n, section in enumerate(recipe.teachers)]
    weights = [(f"{name}.weights", section.weights) for name, section in further]
    for key, value in (
        ("teacher.weights", recipe.teacher.weights),
        ("student.weights", recipe.student.weights),
        *weights,
    ):
        if value is not None and not value.startswith(PREFIX):
            if Path(value).suffix not in WEIGHTS:
                raise ModelError(f"{key}: found {value}, expected a file that ends in {', '.join(WEIGHTS)}, or hf:ID")
            _check_file(key, value)
    files = [(f"{name}.{key}", getattr(section, key)) for name, section in further for key in ("onnx", "logits")]
    for key, value in (("teacher.onnx", recipe.teacher.onnx), ("teacher.logits", recipe.teacher.logits), *files):
        if value is not None:
            _check_file(key, value)
    if recipe.target.name.endswith(".toml"):
        _check_file("target.name", recipe.target.name)


def _check_file(key: str, path: str) -> None:
    if not Path(path).is_file():
        raise ModelError(f"{key}: there is no file {path}; correct the path")
