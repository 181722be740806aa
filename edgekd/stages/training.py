"""Stages `teacher`, `student` and `student_alone`: three runs of the same engine with different terms."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.device.tokens import tokenize_step
from edgekd.distill.endpoint import shown_url
from edgekd.errors import ModelError, RecipeError, StageFailed, UsageError, explain_os_errors
from edgekd.files import sha256_file
from edgekd.graph.metadata import meaning
from edgekd.graph.quantization import TRAINED
from edgekd.hub import weights_file
from edgekd.recipe_sections import AssistantSection, ScheduleSection, StudentSection, TeacherSection, TermSection
from edgekd.references import locate
from edgekd.spec import Array, Step, parse_steps
from edgekd.stages import acquaintance, aware, caching, diet, ensembles, lesson, masks, together, vectors
from edgekd.stages.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

    from edgekd.distill.batches import Batches
    from edgekd.distill.engine import TrainResult
    from edgekd.distill.mixing import Mixing
    from edgekd.distill.objective import Objective, Term
    from edgekd.distill.replacement import Substitutes
    from edgekd.distill.teachers import Teacher

# The stages whose student is smaller where the recipe cuts it.
CUT = ("student", "student_alone")
# Added to the seed of a student of its teacher's kind.
OTHER_SEED = 1_000_003
# The tasks whose outputs have names.
LABELLED = ("classification", "multilabel")
# The loss that a model without a teacher learns from, by task.
ALONE = {
    "classification": "cross_entropy",
    "multilabel": "binary_cross_entropy",
    "regression": "mean_squared_error",
    "masked_lm": "cross_entropy",
}


def build(space: Workspace, section: Any, *, seed: int, outputs: int | None = None) -> nn.Module:
    """The module of a `[teacher]` or `[student]` section, its initial weights a function of `seed` alone.

    outputs  how many it has; None: as many as the data has labels, or as its weights say
    """
    import torch

    from edgekd.distill.models import build_encoder, build_masked, build_model

    outputs = ensembles.num_outputs(space, section) if outputs is None else outputs
    embeds, vocabulary = space.recipe.task == "embedding", space.prepared.vocabulary
    step = tokenize_step(space.prepared.steps)
    longest = None if step is None else step.max_length
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if embeds and (section.model or "").startswith("hf:") and vocabulary is not None:
            return build_encoder(
                section.model,
                outputs=outputs,
                vocabulary=vocabulary,
                args=section.args,
                init=_init(section),
                pooling=vectors.pooling_of(space.recipe, space.search_path),
                search_path=space.search_path,
                longest=longest,
            )
        if space.recipe.task == "masked_lm" and vocabulary is not None:
            return build_masked(
                section.model or "",
                vocabulary=vocabulary,
                args=section.args,
                init=_init(section),
                search_path=space.search_path,
                longest=longest,
            )
        return build_model(
            section.model,
            num_outputs=outputs,
            input_shape=space.prepared.input_shape,
            args=section.args,
            search_path=space.search_path,
            tokens=() if space.prepared.vocabulary is None else space.prepared.vocabulary.tokens,
            init=_init(section),
            embeds=embeds,
            **reads(space),
        )


def _init(section: Any) -> dict[str, Any] | None:
    """What the student takes over from its teacher, as `build_model` wants it."""
    found = section.init if isinstance(section, StudentSection) else None
    return None if found is None else found.model_dump(exclude={"of"}, exclude_none=True)


def reads(space: Workspace) -> dict[str, Any]:
    """What `build_model` is told of the token ids that models read; nothing for samples of another kind."""
    vocabulary = space.prepared.vocabulary
    return {} if vocabulary is None else {"vocabulary": vocabulary.size, "pad": vocabulary.pad}


def substitutes(space: Workspace) -> Substitutes | None:
    """The words for `[data] augment`, alike ones by the table of an hf: teacher before this run trains it."""
    from edgekd.distill.augmentation import OF_TEXTS
    from edgekd.distill.replacement import substitutes_of

    vocabulary, augment = space.prepared.vocabulary, space.recipe.data.augment
    if vocabulary is None or not any(augment.get(name) for name in OF_TEXTS):
        return None
    knows = augment.get("replace_similar") and (space.recipe.teacher.model or "").startswith("hf:")
    return substitutes_of(vocabulary.tokens, _table_of_words(space) if knows else None)


def _table_of_words(space: Workspace) -> Array:
    """(V, D) the vectors of the tokens in the weights that the teacher comes with. Raises `RecipeError` for none."""
    from edgekd.distill.models import load_weights
    from edgekd.distill.models.hub import embedding_of, is_fresh

    section = space.recipe.teacher
    name = (section.model or "").removeprefix("hf:")
    if section.weights is None and is_fresh(str(locate(name, space.search_path) or name)):
        raise RecipeError(
            f"data.augment.replace_similar: found teacher.model = 'hf:{name}' without weights, whose words lie at "
            "random; expected a pretrained one, which knows the words that are alike. Take hf:FOLDER with its weights, "
            "or teacher.weights = FILE; or replace_random"
        )
    module = build(space, section, seed=space.recipe.seed)
    if section.weights is not None:
        load_weights(module, weights_file(section.weights, space.search_path))
    return embedding_of(module)


def size_of(space: Workspace, module: nn.Module) -> tuple[int, int]:
    """(parameters, multiply-accumulates of one sample; of the longest text)."""
    import torch

    from edgekd.distill.models import count

    shape = space.prepared.input_shape
    if space.masking is not None:
        shape = (2, *shape)  # nothing is asked for: the layers alone
    dtype = torch.float32 if space.prepared.vocabulary is None else torch.int64
    return count(module, shape, dtype=dtype)


def check(space: Workspace) -> None:
    """Build everything that the recipe names, before hours of training: a misspelled name must not come up after them.

    A few samples go through untrained models, adapters and losses. Raises what the stages would raise: `ModelError`,
    `UsageError`, `RecipeError`.
    """
    import torch

    from edgekd.distill.batches import Batches
    from edgekd.distill.checks import rehearse
    from edgekd.distill.trackers import check_trackers

    recipe, dataset = space.recipe, space.prepared.dataset
    check_trackers(recipe.distill.trackers)
    student = build(space, recipe.student, seed=recipe.seed)
    if diet.is_wanted(space) and (recipe.student.low_rank is None or recipe.student.low_rank.rank is not None):
        diet.cut(space, student, by="l1")
    modules = {
        name: build(space, section, seed=recipe.seed)
        for name, section in recipe.all_teachers.items()
        if section.model is not None
    }
    assistants = {name: build(space, section, seed=recipe.seed) for name, section in recipe.assistants.items()}
    for one in recipe.all_teachers.values():
        ensembles.own_classes(space, one)
    few = Batches(
        dataset.train.take(slice(0, 2)),
        space.prepared.training,
        batch_size=2,
        augment=recipe.data.augment,
        substitutes=space.substitutes,
        task=recipe.task,
        mixing=mixing(space),
        masking=space.masking,
    )
    objective = student_objective(space)
    lesson.check(space, objective.truth_terms)
    if recipe.student.init is not None and recipe.student.init.of == "trained":
        _take_over(space, build(space, recipe.student, seed=recipe.seed), modules.get("teacher"))
    teacher, by = _untrained_teacher(space, modules), "the teachers" if recipe.teachers else "the teacher"
    for name, pupil in {**assistants, "student": student}.items():
        if teacher is not None or not objective.teacher_terms:
            with _saying_who(name, by) if assistants else nullcontext():
                rehearse(
                    pupil,
                    teacher,
                    objective,
                    few,
                    num_outputs=dataset.num_outputs,
                    device=torch.device("cpu"),
                    seed=recipe.seed,
                )
        teacher, by = _untrained(space, name, pupil), name
    if space.prepared.vocabulary is not None:
        for name, module in {**modules, **assistants}.items():
            if name in recipe.kept:
                _check_shapes(space, name, module, few)


def _untrained_teacher(space: Workspace, modules: Mapping[str, nn.Module]) -> Teacher | None:
    """Who teaches as `teacher_for_student` gives it, before it has learned; None for a black box that stands alone.

    modules  the teachers that are modules, by name
    """
    from edgekd.distill.teachers import UnknownTeacher

    recipe = space.recipe
    teachers = {name: _untrained(space, name, module) for name, module in modules.items()}
    if not recipe.teachers:
        return teachers.get("teacher")
    unknown = UnknownTeacher(num_outputs=space.prepared.dataset.num_outputs)
    in_order = [teachers.get(name, unknown) for name in recipe.all_teachers]
    return ensembles.together(space, in_order, recipe.distill_terms)


def _untrained(space: Workspace, name: str, module: nn.Module) -> Teacher:
    """A teacher, an assistant or a student before it has learned, as somebody would learn from it."""
    from edgekd.distill.teachers import ModuleTeacher, TeacherToKeep

    teacher = ModuleTeacher(module)
    if name not in space.recipe.kept:
        return teacher
    store = caching.store_of(space, "train", name)
    return TeacherToKeep(teacher, store, num_outputs=ensembles.width_of(space, name))


@contextmanager
def _saying_who(name: str, by: str) -> Iterator[None]:
    """Errors of the block say who could not learn from whom."""
    try:
        yield
    except (ModelError, UsageError) as error:
        kind = ModelError if isinstance(error, ModelError) else UsageError
        raise kind(f"{name}, taught by {by}: {error}") from error


def _check_shapes(space: Workspace, name: str, module: nn.Module, few: Batches) -> None:
    """Raise `RecipeError` where kept answers would be as long as their text, each of another length."""
    from edgekd.distill.teachers import ModuleTeacher, tapped

    batch, teacher = next(few.epoch(0)), ModuleTeacher(module)
    taps = caching.taps_of(space, name)
    with tapped(teacher, taps, batch):
        named = teacher(batch)
    long = [tap for tap in taps if tap in named and named[tap].ndim > 2]
    if long:
        raise RecipeError(
            f"distill.cache keeps answers of one shape, but '{long[0]}' of the {name} is as long as each text; set "
            "distill.cache = false"
        )


def student_objective(space: Workspace, wanted: Sequence[TermSection] | None = None) -> Objective:
    """The recipe's terms, or those of them that are `wanted`."""
    from edgekd.distill.objective import Objective

    terms = [term_of(term) for term in (space.recipe.distill_terms if wanted is None else wanted)]
    return Objective(terms, search_path=space.search_path)


def term_of(term: TermSection) -> Term:
    """A term as the objective wants it."""
    from edgekd.distill.objective import Term

    return Term(
        term.name,
        term.loss,
        weight=_number(term.weight),
        student_tap=term.student_tap,
        teacher_tap=term.teacher_tap,
        adapter=term.adapter,
        options={name: _number(value) for name, value in term.options.items()},
        adapter_options=term.adapter_options,
        compares_samples=term.compares_samples,
    )


def mixing(space: Workspace) -> Mixing:
    """How the student's samples are mixed."""
    from edgekd.distill.mixing import Mixing

    distill, dataset = space.recipe.distill, space.prepared.dataset
    num_classes = dataset.num_outputs if dataset.task == "classification" else None
    return Mixing(distill.mixup, distill.cutmix, num_classes)


def _number(value: Any) -> Any:
    """A weight or option as the objective wants it: a table with start and end is a schedule."""
    from edgekd.distill.objective import Schedule

    if isinstance(value, Mapping) and {"start", "end"} <= value.keys():
        value = ScheduleSection.model_validate(dict(value))
    return Schedule(**value.model_dump()) if isinstance(value, ScheduleSection) else value


def section_of(space: Workspace, name: str) -> TeacherSection | AssistantSection | StudentSection:
    """The recipe's section of what the training stage `name` trains."""
    recipe = space.recipe
    return recipe.all_teachers.get(name) or recipe.assistants.get(name) or recipe.student


def load_trained(space: Workspace, name: str) -> nn.Module:
    """The module of an ended training stage, in eval mode, with the weights that validation chose."""
    from edgekd.distill.models import load_weights

    section = section_of(space, name)
    module = build(space, section, seed=space.recipe.seed)
    path = space.path / name / "weights.safetensors"
    if name in CUT and diet.is_wanted(space):
        diet.shape(module, path)
    load_weights(module, path)
    return module.eval()


def load_teacher(space: Workspace, name: str = "teacher") -> Teacher:
    """A teacher, or an assistant, behind its one interface: a trained module, an ONNX file, answers in a file.

    Of a teacher behind a URL, the answers for validation: all others come from the cache (edgekd.stages.caching).
    """
    from edgekd.distill.teachers import ModuleTeacher, OnnxTeacher

    section = space.recipe.all_teachers.get(name)
    if section is None or section.model is not None:
        return ModuleTeacher(load_trained(space, name))
    if section.logits is not None:
        return caching.file_teacher(space, name)
    if section.url is not None:
        return caching.remembered(space, "val", name=name)
    return OnnxTeacher(space.path / name / "teacher.onnx", threads=space.threads, task=space.recipe.task)


def teacher_for_student(space: Workspace, name: str = "student") -> Teacher:
    """Whom the model of the training stage `name` learns from, in the units that it learns in."""
    from edgekd.device.postprocess import Denormalize
    from edgekd.distill.teachers import StandardizedTeacher

    recipe = space.recipe
    teachers = [
        caching.remembered(space, "train", space.world, one) if one in recipe.kept else load_teacher(space, one)
        for one in recipe.taught_by(name)
    ]
    teacher = teachers[0]
    if len(teachers) > 1:
        teacher = ensembles.together(space, teachers, _terms(space, name))
    post = space.prepared.post
    if space.teacher_post == post or recipe.taught_by(name)[0] in recipe.assistants:
        return teacher
    return StandardizedTeacher(teacher, [step for step in post if isinstance(step, Denormalize)])


def work_on_teacher(space: Workspace, name: str = "teacher") -> tuple[dict[str, Any], str]:
    """Train a teacher, or take the one that the recipe points to.

    Of an hf: model the result holds what its configuration says: the same weights compute something else with another.
    """
    section = space.recipe.all_teachers[name]
    result, told = _taken_or_trained(space, name, section)
    if (section.model or "").startswith("hf:"):
        from edgekd.distill.models.hub import config_sha256

        result["config"] = config_sha256(build(space, section, seed=space.recipe.seed))
    return result, told


def _taken_or_trained(space: Workspace, name: str, section: TeacherSection) -> tuple[dict[str, Any], str]:
    folder = space.path / name
    if section.onnx is not None:
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(section.onnx, folder / "teacher.onnx")
        _check_stated(space, Path(section.onnx), space.prepared.steps, section)
        _check_ids(space, f"the teacher {Path(section.onnx).name}", Path(section.onnx))
        return {"trained": False, "source": "onnx", **_scored(space, name)}, "taken from its ONNX file"
    if section.model is None:
        return _take_answers(space, name)
    if section.weights is not None:
        from edgekd.distill.models import load_weights, save_weights
        from edgekd.distill.models.finished import reorder
        from edgekd.distill.models.hub import HuggingFace

        module = build(space, section, seed=space.recipe.seed)
        weights = weights_file(section.weights, space.search_path)
        places = _places(space, section, weights)
        load_weights(module, weights)
        _check_stated(space, weights, space.prepared.arithmetic, section)
        if places is not None and isinstance(module, HuggingFace):
            reorder(module, places)
        labels = _labels_of(space, section)
        metadata = meaning(labels, space.prepared.arithmetic, space.prepared.dataset.tokens)
        save_weights(module, folder / "weights.safetensors", metadata=metadata)
        save_teacher_json(space, space.path / name / "model.json", section)
        scored = _scored(space, name)
        moved = "" if places is None else ", its classes brought into the order of the data"
        return {"trained": False, "source": "weights", **scored}, f"loaded{moved}, validation {scored['best']:.4f}"
    if space.recipe.task == "embedding":
        return _take_encoder(space, section)
    trained = train(space, name)
    save_teacher_json(space, space.path / name / "model.json", section)
    return trained, summary(space, trained)


def _take_encoder(space: Workspace, section: TeacherSection) -> tuple[dict[str, Any], str]:
    """A teacher of vectors as it was pretrained, with the matrix that makes them shorter."""
    import torch

    from edgekd.distill.models import save_weights
    from edgekd.distill.models.sentence import SentenceEncoder

    module = build(space, section, seed=space.recipe.seed)
    matrix = space.prepared.matrix
    if matrix is not None and isinstance(module, SentenceEncoder) and module.project is not None:
        with torch.no_grad():
            module.project.weight.copy_(torch.from_numpy(matrix.T))
    save_weights(module, space.path / "teacher" / "weights.safetensors")
    scored = _scored(space, "teacher")
    return {
        "trained": False,
        "source": section.model,
        **scored,
    }, f"as it was pretrained, {scored['parameters']:,} parameters"


def _places(space: Workspace, section: TeacherSection, weights: Path) -> list[int] | None:
    """Where a classifier that transformers saved has the labels of the data, where that is another order.

    Weights that edgekd wrote say themselves what they mean.
    """
    from edgekd.distill.models.finished import classes_of

    family, _, name = (section.model or "").partition(":")
    if family != "hf" or space.recipe.task not in LABELLED or "names" in acquaintance.stated(weights):
        return None
    reference = str(locate(name, space.search_path) or name)
    labels, data = _labels_of(space, section), space.prepared.dataset.labels
    whose = "the data has" if labels == data else "the recipe gives it"
    classes = classes_of(reference, section.args)
    return acquaintance.places_of(classes, labels, where=f"the teacher {section.model}", whose=whose)


def _labels_of(space: Workspace, section: TeacherSection) -> tuple[str, ...]:
    """What the outputs of a teacher that is a module mean: the labels of the data, or its own."""
    labels = space.prepared.dataset.labels
    return labels if ensembles.num_outputs(space, section) == len(labels) else section.labels


def _check_stated(space: Workspace, path: Path, steps: Sequence[Step], section: TeacherSection) -> None:
    data, said, where = space.prepared.dataset, acquaintance.stated(path), f"the teacher {path.name}"
    acquaintance.check_stated(said, data.labels, steps, tokens=data.tokens, where=where)
    acquaintance.check_own(said, section.labels, data.labels, where=where)


def _check_ids(space: Workspace, where: str, path: Path | None = None) -> None:
    """Whether a teacher that says nothing of its tokens can be that of these texts: a graph, or one behind a URL."""
    step = tokenize_step(parse_steps(space.recipe.preprocess.steps))
    if step is None:
        return
    warning = acquaintance.check_ids(
        {} if path is None else acquaintance.stated(path),
        None if path is None else _table_rows(path),
        space.prepared.dataset.tokens,
        cut=step.vocabulary,
        where=where,
    )
    if warning is not None:
        space.listener.warn(warning)


def _table_rows(path: Path) -> int | None:
    """Rows of the table in which a graph looks up the ids of its input."""
    from edgekd.graph.clean import load_model
    from edgekd.graph.text_inputs import table_rows

    model = load_model(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    # One input, or it is refused as a teacher.
    names = [value.name for value in model.graph.input if value.name not in weights]
    return table_rows(model, names[0]) if names else None


def _take_answers(space: Workspace, name: str) -> tuple[dict[str, Any], str]:
    """A teacher of which only answers are known: they are scored on validation."""
    section = space.recipe.all_teachers[name]
    if section.logits is not None and any(space.recipe.data.augment.values()):
        space.listener.warn(
            f"data.augment changes the samples, but {name}.logits answers to them as they are: each augmented sample "
            "gets the answer to the original"
        )
    if section.url is not None:
        _check_ids(space, f"the teacher {shown_url(section.url)}")
    scored = _scored(space, name)
    if section.logits is not None:
        where = section.logits
        facts = {"source": "logits", "sha256": sha256_file(where)}
    else:
        where = shown_url(section.url or "")
        facts = {"source": "url"}
    return {"trained": False, **facts, **scored}, f"{where}, validation {scored['best']:.4f}"


def work_on_student_whole(space: Workspace) -> tuple[dict[str, Any], str]:
    """Distil the student as it is before the cut."""
    return _trained(space, diet.WHOLE)


def work_on_student(space: Workspace) -> tuple[dict[str, Any], str]:
    """Distil the student from the teacher, or from the last assistant, with the recipe's terms."""
    return _trained(space, "student")


def work_on_assistant(space: Workspace, name: str) -> tuple[dict[str, Any], str]:
    """Distil an assistant from the one before it, the first from the teacher, with the student's terms."""
    return _trained(space, name)


def work_on_student_alone(space: Workspace) -> tuple[dict[str, Any], str]:
    """Train the same student on the same budget without the teacher, so that the gain is visible."""
    return _trained(space, "student_alone")


def _trained(space: Workspace, name: str) -> tuple[dict[str, Any], str]:
    trained = train(space, name)
    return trained, summary(space, trained)


def _lesson(space: Workspace, name: str) -> tuple[tuple[Teacher, ...], Objective]:
    """Whom the training stage `name` learns from, and what."""
    teachers = space.recipe.all_teachers
    if name in teachers:
        return (), _alone(space, teachers[name].train.label_smoothing)
    if name == "student_alone":
        return (), _alone(space, lesson.alone_smoothing(space.recipe))
    return (teacher_for_student(space, name),), student_objective(space, _terms(space, name))


def _terms(space: Workspace, name: str) -> Sequence[TermSection]:
    """What the model of the training stage `name` learns from its teacher."""
    return aware.terms(space) if name in TRAINED else space.recipe.distill_terms


def _alone(space: Workspace, label_smoothing: float) -> Objective:
    from edgekd.distill.objective import Objective, Term

    loss = ALONE[space.recipe.task]
    options: Mapping[str, Any] = {"label_smoothing": label_smoothing} if label_smoothing else {}
    return Objective([Term(loss, loss, options=options)])


def train(space: Workspace, name: str) -> dict[str, Any]:
    """Train the model of the stage `name`, together with the other processes, which `edgekd.stages.together` calls."""
    import torch

    from edgekd.distill.distribution import ALONE
    from edgekd.distill.engine import distill

    together.call(space, name)
    section: Any = section_of(space, name)
    teachers, objective = _lesson(space, name)
    is_teacher, is_variant = name in space.recipe.all_teachers, name in TRAINED
    schedule: Any = section.train if is_teacher else space.recipe.distill
    learned = lesson.Lesson(space.prepared.dataset, None) if is_teacher else lesson.for_students(space)
    if is_variant:
        schedule = space.recipe.quantize.qat
    epochs, warmup_epochs = _epochs(space, section, schedule.epochs), schedule.warmup_epochs
    if name == "student_alone":
        learned = lesson.for_student_alone(space)
        epochs, warmup_epochs = (lesson.alone_epochs(space, count) for count in (epochs, warmup_epochs))
    module = _beginning(space, name, section)
    is_compiled = space.recipe.distill.compile and not is_teacher and not is_variant
    pupil: Any = torch.compile(module) if is_compiled else module
    with _explained_compiling(is_compiled):
        result = distill(
            pupil,
            teachers,
            learned.data,
            objective,
            steps=space.prepared.training,
            extras=learned.extras,
            epochs=epochs,
            batch_size=schedule.batch_size,
            optimizer=schedule.optimizer,
            lr=schedule.lr,
            weight_decay=schedule.weight_decay,
            schedule=schedule.schedule,
            warmup_epochs=warmup_epochs,
            precision="float32" if is_variant else space.recipe.distill.precision,
            device=space.device,
            seed=space.recipe.seed,
            threads=space.threads,
            augment=space.recipe.data.augment,
            substitutes=space.substitutes,
            masking=space.masking,
            # A teacher that is trained here sees another augmentation in every epoch: it learns best from those.
            views=None if is_teacher else space.recipe.data.views,
            **({} if is_teacher else _only_students(space, name)),
            accumulate=1 if is_variant else schedule.accumulate,
            sync_batch_norm=False if is_variant else schedule.sync_batch_norm,
            world=space.world or ALONE,
            run_dir=space.path / name,
            trackers=space.recipe.distill.trackers,
            log_dir=space.path / "logs" / name,
            progress=space.listener.step,
        )
    if space.masking is not None and (space.world is None or space.world.leads):
        _save_folder(space, name, module)
    for warning in result.warnings:
        space.listener.warn(f"{name}: {warning}")
    describe = lesson.describe_alone if name == "student_alone" else lesson.describe
    unusual = "" if is_teacher else describe(space)
    parameters, macs = size_of(space, module)
    return {"trained": True, "parameters": parameters, "macs": macs, "lesson": unusual, **_numbers(result)}


def _save_folder(space: Workspace, name: str, module: nn.Module) -> None:
    """A masked language model as other recipes begin with it: hf:RUN/student/model, with its tokenizer."""
    from edgekd.distill.models.masked import save_folder

    step = tokenize_step(space.prepared.steps)
    assert step is not None
    save_folder(module, space.path / name / masks.FOLDER, step.content)


@contextmanager
def _explained_compiling(is_compiled: bool) -> Iterator[None]:
    """Raise `StageFailed` for what torch.compile cannot do, in place of its own errors."""
    if not is_compiled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        told = " ".join(str(error).split("\n\n")[0].split()).rstrip(".")
        raise StageFailed(
            f"torch.compile failed: {told}. It needs a C++ compiler (g++ or clang++) and a student that it can trace; "
            "go on with --set distill.compile=false: finished stages are kept"
        ) from error


def _beginning(space: Workspace, name: str, section: Any) -> nn.Module:
    """The module of a training stage before its first step."""
    from edgekd.distill.models import load_weights

    if name in TRAINED:
        return aware.build(space, name)
    if name in CUT and diet.is_wanted(space):
        return diet.begin(space, name)
    # A generation begins where no other did; teachers of one kind are different ones.
    seed = space.recipe.seed + _number_of(name)
    if name in (*CUT, diet.WHOLE) and _is_like_its_teacher(space):
        seed += OTHER_SEED
    module = build(space, section, seed=seed)
    if name in ("student", diet.WHOLE) and section.init is not None and section.init.of == "trained":
        teacher = load_trained(space, "teacher") if space.recipe.teacher.model is not None else None
        _take_over(space, module, teacher)
    if name in CUT and section.weights is not None:
        load_weights(module, weights_file(section.weights, space.search_path))
    return module


def _is_like_its_teacher(space: Workspace) -> bool:
    """Whether equal seeds would give both the same weights, and so make the teacher easy to imitate."""
    teacher, student = space.recipe.teacher, space.recipe.student
    return teacher.model == student.model and teacher.args == student.args


def _take_over(space: Workspace, student: nn.Module, teacher: nn.Module | None) -> None:
    """Make the student once more, of the teacher that was trained in this run. Raises `RecipeError` for another one."""
    from edgekd.distill.models.from_teacher import parse_init, student_from
    from edgekd.distill.models.hub import HuggingFace, inner
    from edgekd.distill.models.sentence import SentenceEncoder

    of_transformers = HuggingFace | SentenceEncoder
    if not isinstance(teacher, of_transformers) or not isinstance(student, of_transformers):
        raise RecipeError(
            "student.init.of = 'trained' makes the student of this run's teacher, which is no hf: model; take "
            "of = 'pretrained', or an hf: model as teacher.model"
        )
    made = student_from(
        inner(teacher), parse_init(_init(space.recipe.student) or {}), rows=teacher.rows, pad=student.pad
    )
    try:
        inner(student).load_state_dict(made.state_dict())
    except RuntimeError as error:
        raise RecipeError(
            "student.init.of = 'trained' makes the student of this run's teacher, but student.model with its init is "
            f"of another shape ({' '.join(str(error).split())[:200]}); take the teacher's model for student.model"
        ) from error
    if isinstance(teacher, SentenceEncoder) and isinstance(student, SentenceEncoder):
        mine, its = student.project, teacher.project
        if mine is not None and its is not None and mine.weight.shape == its.weight.shape:  # not of a narrower one
            mine.load_state_dict(its.state_dict())


def _only_students(space: Workspace, name: str) -> dict[str, Any]:
    """What a student's training has beside the budget; that of the student alone has one stage, of the same length."""
    from edgekd.distill.programme import Stage

    distill = space.recipe.distill
    if name in TRAINED:
        return {"mixup": distill.mixup, "cutmix": distill.cutmix, "clip_norm": distill.clip_norm}
    stages = [Stage(stage.name, stage.epochs, stage.terms, stage.lr) for stage in distill.stages]
    return {
        "stages": () if name == "student_alone" else stages,
        "mixup": distill.mixup,
        "cutmix": distill.cutmix,
        "ema": distill.ema,
        "patience": distill.patience,
        "keep": distill.keep,
        "clip_norm": distill.clip_norm,
    }


def _number_of(name: str) -> int:
    """2 of "teacher_2", 0 of "teacher", "student" and "student_alone"."""
    number = name.rpartition("_")[2]
    return int(number) if number.isdigit() else 0


def _epochs(space: Workspace, section: Any, usual: int) -> int:
    """An assistant may have epochs of its own; with stages it has theirs."""
    own = section.epochs if isinstance(section, AssistantSection) else None
    return usual if own is None or space.recipe.distill.stages else own


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
    """The score on validation of a teacher that was not trained here. Raises `ModelError` when it cannot teach."""
    from edgekd.device.metrics import METRIC, contributions, score
    from edgekd.distill.engine import evaluate

    prepared, task, val = space.prepared, space.recipe.task, space.prepared.dataset.val
    section = space.recipe.all_teachers[name]
    model: Any = load_teacher(space, name) if section.model is None else load_trained(space, name)
    outputs = evaluate(model, val, prepared.training, task=task, masking=space.masking)
    if task == "masked_lm":
        value = score(task, contributions(task, outputs, val.y))
        return _not_trained(value, *size_of(space, model))
    labels, own = prepared.dataset.labels, ensembles.is_specialist(space, name, outputs)
    if own:
        labels = section.labels
        outputs, val = ensembles.of_own_classes(space, name, outputs, val)
    if task != "regression" and is_probabilities(outputs, task):
        raise ModelError(
            f"{ensembles.called(name)} gives probabilities, expected logits: scores before the softmax or sigmoid, "
            "which the losses apply themselves; take its last layer off"
        )
    if task == "classification":
        acquaintance.check_order(outputs, val.y, labels, where=ensembles.called(name), own=own)
    value = score(task, prepared.judge(outputs, val, space.teacher_post))
    if task == "regression" and value < 0:
        raise ModelError(
            f"the teacher's {METRIC[task]} on validation is {value:.3g}: worse than always answering with the mean, "
            "so nothing can be learned from it. Expected targets in the units of the data (postprocess.steps says it "
            "where the graph gives others), and the preprocessing that it was trained with"
        )
    size = (None, None) if section.model is None else size_of(space, model)
    return {**_not_trained(value, *size), **({ensembles.OUTPUTS: len(labels)} if own else {})}


def _not_trained(value: float, parameters: int | None, macs: int | None) -> dict[str, Any]:
    """The result of a training stage that trained nothing."""
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


def is_probabilities(outputs_ND: Array, task: str) -> bool:
    """Whether outputs for a whole split lie in 0..1, and add up to 1 where one class is right: no logits do."""
    within = bool(((outputs_ND >= 0) & (outputs_ND <= 1)).all())
    return within and (task != "classification" or bool((abs(outputs_ND.sum(axis=1) - 1) < 1e-3).all()))


def save_teacher_json(
    space: Workspace,
    path: Path,
    section: TeacherSection,
    *,
    weights: str = "weights.safetensors",
    reject: Mapping[str, Any] | None = None,
) -> None:
    """What the benchmark needs to open the teacher in PyTorch, in a process of its own; nobody times masked words."""
    from edgekd.distill.torch_runtime import save_model_json

    if space.masking is not None:
        return

    save_model_json(
        path,
        reference=section.model or "",
        args=section.args,
        num_outputs=ensembles.num_outputs(space, section),
        input_shape=space.prepared.input_shape,
        weights=weights,
        search_path=space.search_path,
        reject=reject,
        **reads(space),
    )


def summary(space: Workspace, trained: Mapping[str, Any]) -> str:
    from edgekd.device.metrics import METRIC

    unusual = f", learned from {trained['lesson']}" if trained.get("lesson") else ""
    perplexity = f", perplexity {math.exp(-trained['best']):.1f}," if space.recipe.task == "masked_lm" else ""
    return (
        f"validation {METRIC[space.recipe.task]} {trained['best']:.4f}{perplexity} "
        f"(epoch {trained['best_epoch']} of {trained['epochs']}), {trained['parameters']:,} parameters{unusual}"
    )
