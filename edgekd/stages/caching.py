"""Stage `cache`: what the teacher answers to every view of every training sample, kept for this student and the next.

The answers lie in edgekd's cache folder, not in the run: any run with the same teacher, data and augmentation finds
them there. A teacher behind a URL is asked through the cache only, so that no answer is paid for twice. Each further
teacher and each assistant whose answers are kept has a cache and a stage of its own (`cache_teacher_2`,
`cache_assistant_1`): another recipe finds the answers of each of them alone.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.data.download import cache_folder
from edgekd.device.machine import versions
from edgekd.errors import DataError, UsageError
from edgekd.files import sha256_bytes, sha256_file
from edgekd.recipe_sections import TeacherSection
from edgekd.references import code_sha256
from edgekd.spec import steps_to_json
from edgekd.stages import ensembles, together
from edgekd.stages.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekd.distill.batches import Batches
    from edgekd.distill.cache import Cache
    from edgekd.distill.cache_build import Order
    from edgekd.distill.cache_verify import CacheCheck
    from edgekd.distill.cached_teacher import CachedTeacher
    from edgekd.distill.distribution import World
    from edgekd.distill.file_teacher import LogitsFile
    from edgekd.distill.stored import Store
    from edgekd.distill.teachers import Teacher

    Place = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]

FOLDER = "teachers"
STAGE = "cache"
# How words of a header's name end that holds a credential: X-Api-Key, X-AuthToken, Cookie.
_CREDENTIALS = (
    "auth", "authorization", "cookie", "credential", "credentials", "key", "passwd", "password", "secret", "session",
    "sig", "signature", "token",
)  # fmt: skip


def cache_root(space: Workspace) -> Path:
    """Where caches lie: as asked for, else in edgekd's cache folder (EDGEKD_CACHE overrides it)."""
    return cache_folder(FOLDER) if space.cache_root is None else space.cache_root


def stage_of(name: str) -> str:
    """The stage that keeps the answers of the teacher or assistant `name`."""
    return STAGE if name == "teacher" else f"{STAGE}_{name}"


def asked_in(stage: str) -> str | None:
    """Whose answers the stage keeps; None for a stage of another kind."""
    if stage == STAGE:
        return "teacher"
    return stage.removeprefix(f"{STAGE}_") if stage.startswith(f"{STAGE}_") else None


def is_of_teachers(stage: str) -> bool:
    """Whether `edgekd cache` needs a stage: the data, all teachers, and their answers; no assistant, whom a student's
    recipe teaches."""
    name = asked_in(stage) or stage
    return name in ("data", "teacher") or name.startswith("teacher_")


def work_on_cache(space: Workspace, name: str = "teacher") -> tuple[dict[str, Any], str]:
    """Let the teacher (or assistant) `name` answer what no run before has asked it."""
    cache, asked = build_together(space, name)
    result = {
        "key": cache.key,
        "num_samples": cache.num_samples,
        "views": cache.views,
        "teacher_passes": asked,
        "size_bytes": cache.size_bytes,
    }
    rows = cache.num_samples * cache.views
    how = f"{asked:,} answers asked for" if asked else "found, nothing was asked"
    return result, f"{rows:,} answers in {cache.path} ({cache.size_bytes / 1e6:.1f} MB), {how}"


def remembered(space: Workspace, split: str, world: World | None = None, name: str = "teacher") -> CachedTeacher:
    """The answers of a teacher or assistant to the samples of `split`; what is missing is asked for first, as in
    `build`.

    The teacher itself, where it is a module, is loaded when an adapter wants to look at it.
    """
    from edgekd.distill.cached_teacher import CachedTeacher
    from edgekd.distill.teachers import ModuleTeacher
    from edgekd.stages.training import load_trained, section_of

    @functools.cache
    def module() -> nn.Module:
        return ModuleTeacher(load_trained(space, name)).module

    found, _ = build(space, split, world, name)
    has_module = section_of(space, name).model is not None
    return CachedTeacher(found, taps=store_of(space, split, name).taps, module=module if has_module else None)


def build_together(space: Workspace, name: str = "teacher") -> tuple[Cache, int]:
    """The cache of the training samples, built by all processes of the run: the leader calls the others."""
    together.call(space, stage_of(name))
    return build(space, "train", space.world, name)


def build(space: Workspace, split: str, world: World | None = None, name: str = "teacher") -> tuple[Cache, int]:
    """The cache of `split` ("train" in its views, others as they are), and how many answers it took now.

    world  the processes that all call this now; None: this one alone
    """
    from edgekd.distill.cache import find_cache
    from edgekd.distill.cache_build import build_cache
    from edgekd.distill.distribution import ALONE

    world = world or ALONE
    root, facts = cache_root(space), facts_of(space, split, name)
    found = world.share(find_cache(root, facts) if world.leads else None)
    if found is not None:
        return found, 0

    def progress(text: str, done: int, total: int) -> None:
        space.listener.step(text, done, total, {})

    with asking(space, split, name) as order:
        return build_cache(root, facts, order, progress=progress, world=world)


def verify(space: Workspace, name: str = "teacher", *, samples: int, seed: int) -> tuple[Cache, CacheCheck]:
    """The cache of the training samples, checked against its hashes, and `samples` of its answers against the teacher.

    Raises `DataError` when there is none, with what distinguishes the nearest.
    """
    from edgekd.distill.cache import find_cache
    from edgekd.distill.cache_verify import verify_cache

    root, facts = cache_root(space), facts_of(space, "train", name)
    cache = find_cache(root, facts)
    if cache is None:
        whose = "this teacher" if name == "teacher" else name
        raise DataError(f"{root} holds no answers of {whose} to this data; {_nearest(root, facts)}")
    with asking(space, "train", name) as order:
        return cache, verify_cache(cache, order, samples=samples, seed=seed)


def _nearest(root: Path, facts: Mapping[str, Any]) -> str:
    from edgekd.distill.cache import differences, list_caches

    others = [(differences(cache.facts, facts), cache) for cache in list_caches(root)]
    if not others:
        return "build them with `edgekd cache build`"
    texts, cache = min(others, key=lambda item: len(item[0]))
    state = "; ".join(texts) or "it is not complete"
    return f"the nearest cache, {cache.key}, is another: {state}. Build one with `edgekd cache build`"


def facts_of(space: Workspace, split: str, name: str = "teacher") -> dict[str, Any]:
    """What the answers depend on; the same facts in another run lead to the same cache."""
    recipe, prepared = space.recipe, space.prepared
    dataset = space.shown if split == "train" else prepared.dataset
    augment = {key: value for key, value in recipe.data.augment.items() if value} if split == "train" else {}
    mixing = [recipe.distill.mixup, recipe.distill.cutmix] if split == "train" else [0.0, 0.0]
    varies = bool(augment) or any(mixing)
    words = space.substitutes if augment else None
    return {
        "teacher": _teacher_facts(space, name),
        "data": dataset.sha256,
        "split": split,
        "num_samples": len(getattr(dataset, split)),
        "steps": steps_to_json(prepared.training),
        "augment": augment,
        **({} if words is None else {"substitutes": words.sha256}),
        "mixing": mixing,
        "seed": recipe.seed if varies else None,
        "views": recipe.data.views if varies else 1,
        "store": store_of(space, split, name).facts(),
    }


def _teacher_facts(space: Workspace, name: str) -> dict[str, Any]:
    from edgekd.stages.training import section_of

    installed, section = versions(), section_of(space, name)
    if isinstance(section, TeacherSection) and section.url is not None:
        return {"url": section.url, **header_facts(section.request.headers, os.environ, name)}
    if isinstance(section, TeacherSection) and section.onnx is not None:
        return {"onnx": sha256_file(section.onnx), "onnxruntime": installed.get("onnxruntime")}
    reference = section.model or ""
    outputs = space.records[name].outputs
    return {
        "model": reference,
        "args": dict(section.args),
        "weights": next(digest for path, digest in outputs.items() if path.endswith(".safetensors")),
        "code": code_sha256(reference, space.search_path),
        "precision": _precision(space, name),
        "torch": installed.get("torch"),
        "torchvision": installed.get("torchvision") if reference.startswith("torchvision:") else None,
        **_library_facts(space, name, reference),
    }


def _precision(space: Workspace, name: str) -> str:
    """In which numbers a teacher computes: those that it would compute in beside the student. Several compute in
    bfloat16 where all of them choose it."""
    import torch

    from edgekd.distill.execution import choose_precision
    from edgekd.stages.training import build, section_of

    recipe, device = space.recipe, torch.device(space.device)
    sections = [section_of(space, one) for one in (recipe.all_teachers if name in recipe.all_teachers else (name,))]
    modules = [build(space, section, seed=recipe.seed) for section in sections if section.model is not None]
    shape = space.prepared.input_shape
    chosen = {choose_precision(recipe.distill.precision, device, module, shape).name for module in modules}
    return chosen.pop() if len(chosen) == 1 else "float32"


def _library_facts(space: Workspace, name: str, reference: str) -> dict[str, Any]:
    """What models of timm and transformers compute beside their weights: by which version, by which configuration."""
    family, installed = reference.partition(":")[0], versions()
    if family == "timm":
        return {"timm": installed.get("timm")}
    if family == "hf":
        from edgekd.distill.models.hub import config_sha256
        from edgekd.stages.training import load_trained

        config = space.result(name).get("config") or config_sha256(load_trained(space, name))
        return {"transformers": installed.get("transformers"), "config": config}
    return {}


def store_of(space: Workspace, split: str, name: str = "teacher") -> Store:
    """How the recipe wants answers kept, and the features that its terms look at; to score, whole logits suffice.

    So they do of a specialist with no more outputs than a top-k would keep.
    """
    from edgekd.distill.answers import LOGITS
    from edgekd.distill.stored import Store

    if split != "train":
        return Store()
    distill, top_k = space.recipe.distill, space.recipe.distill.cache_top_k
    if top_k is not None and top_k >= ensembles.width_of(space, name) < space.prepared.dataset.num_outputs:
        top_k = None
    return Store(distill.cache_dtype, top_k, (LOGITS, *taps_of(space, name)))


def taps_of(space: Workspace, name: str) -> tuple[str, ...]:
    """What the terms look at inside a teacher or assistant, by its own paths: of several teachers it is named with the
    number of one before it."""
    from edgekd.stages.training import student_objective

    recipe, taps = space.recipe, student_objective(space).teacher_taps
    if name in recipe.all_teachers and recipe.teachers:
        prefix = f"{list(recipe.all_teachers).index(name)}/"
        taps = tuple(tap.removeprefix(prefix) for tap in taps if tap.startswith(prefix))
    return features(taps)


def features(taps: Sequence[str]) -> tuple[str, ...]:
    """Of the tensors that terms look at, those from inside the teacher."""
    from edgekd.distill.answers import TOLD

    return tuple(dict.fromkeys(tap for tap in taps if tap not in TOLD))


def batches_of(space: Workspace, split: str) -> Batches:
    """The samples of `split` as training shows them."""
    from edgekd.distill.batches import Batches
    from edgekd.stages.training import mixing

    recipe = space.recipe
    return Batches(
        getattr(space.shown if split == "train" else space.prepared.dataset, split),
        space.prepared.training,
        batch_size=recipe.distill.batch_size,
        seed=recipe.seed,
        augment=recipe.data.augment if split == "train" else None,
        substitutes=space.substitutes if split == "train" else None,
        views=recipe.data.views,
        mixing=mixing(space) if split == "train" else None,
        task=recipe.task,
    )


@contextmanager
def asking(space: Workspace, split: str, name: str = "teacher") -> Iterator[Order]:
    """What `build_cache` needs to know, with a teacher that answers until the end of the block."""
    from edgekd.distill.cache_build import Order
    from edgekd.stages.training import section_of

    store, section = store_of(space, split, name), section_of(space, name)
    batches, outputs = batches_of(space, split), ensembles.width_of(space, name)
    data = f"{space.prepared.dataset.name} {split}"
    if isinstance(section, TeacherSection) and section.url is not None:
        with _open_url(space, name, section) as teacher:
            yield Order(
                teacher,
                batches,
                store,
                outputs,
                data,
                batch_size=section.request.batch_size,
                journal=True,
                concurrency=section.request.concurrency,
            )
        return
    with _computing(space, name, batches, features(store.taps)) as (computing, place, bfloat16):
        size = space.recipe.distill.batch_size
        yield Order(computing, batches, store, outputs, data, batch_size=size, place=place, bfloat16=bfloat16)


@contextmanager
def _open_url(space: Workspace, name: str, teacher: TeacherSection) -> Iterator[Teacher]:
    from edgekd.distill.endpoint import RequestOptions, open_endpoint
    from edgekd.distill.http_teacher import HttpTeacher

    section = teacher.request
    options = RequestOptions(
        batch_size=section.batch_size,
        timeout_s=section.timeout_s,
        retries=section.retries,
        per_s=section.per_s,
        encoding=section.encoding,
        headers=read_headers(section.headers, os.environ, name),
        insecure=section.insecure,
    )
    with open_endpoint(teacher.url or "", options) as endpoint:
        yield HttpTeacher(
            endpoint,
            labels=space.prepared.dataset.labels,
            own=teacher.labels,
            task=space.recipe.task,
            encoding=section.encoding,
        )


def read_headers(names: Mapping[str, str], environ: Mapping[str, str], whose: str = "teacher") -> dict[str, str]:
    """The headers with their values from the environment. Raises `UsageError` that names a variable that is not set."""
    for header, variable in names.items():
        if not environ.get(variable):
            raise UsageError(
                f"{whose}.request.headers.{header}: the environment variable {variable} is not set; expected the value "
                "of the header in it (it is not written anywhere)"
            )
    return {header: environ[variable] for header, variable in names.items()}


def header_facts(names: Mapping[str, str], environ: Mapping[str, str], whose: str = "teacher") -> dict[str, Any]:
    """What the answers of an endpoint may depend on beside its URL: a header may choose its model.

    Each header by the first digits of a hash of its value, never the value itself. Credentials are left out: a new one
    gets the same answers. Raises `UsageError` as `read_headers` does.
    """
    choosing = {header: variable for header, variable in names.items() if not _is_credential(header)}
    values = read_headers(choosing, environ, whose)
    digests = {
        header.lower(): sha256_bytes(f"{header.lower()}\0{value}".encode())[:16] for header, value in values.items()
    }
    return {"headers": digests} if digests else {}


def _is_credential(header: str) -> bool:
    return any(word.endswith(_CREDENTIALS) for word in re.split("[-_]", header.lower()))


@contextmanager
def _computing(
    space: Workspace, name: str, batches: Batches, taps: Sequence[str]
) -> Iterator[tuple[Teacher, Place, bool]]:
    """The teacher where it would compute beside the student, what brings batches there, and whether in bfloat16."""
    import torch

    from edgekd.distill.execution import contained, placed
    from edgekd.distill.teachers import ModuleTeacher, tapped
    from edgekd.stages.training import load_teacher

    device = torch.device(space.device)
    teacher = load_teacher(space, name)
    with contained(device, threads=space.threads), ExitStack() as stack:
        if not isinstance(teacher, ModuleTeacher):
            if taps:
                raise UsageError(f"the teacher is a black box: it has logits, and no {', '.join(taps)} to tap")
            yield teacher, dict, False
            return
        stack.enter_context(placed(teacher.module, device))

        def place(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device) for name, value in batch.items()}

        stack.enter_context(tapped(teacher, taps, place(batches.at(np.arange(2), view=0))))
        yield teacher, place, _precision(space, name) == "bfloat16"


def file_teacher(space: Workspace, name: str = "teacher") -> LogitsFile:
    """The answers in the recipe's file. Raises `DataError` when they do not cover training and validation."""
    from edgekd.distill.file_teacher import LogitsFile

    dataset, section = space.prepared.dataset, space.recipe.all_teachers[name]
    path = Path(str(section.logits))
    teacher = LogitsFile(path, labels=dataset.labels, own=section.labels, task=space.recipe.task)
    teacher.check({"train": dataset.train, "val": dataset.val})
    return teacher
