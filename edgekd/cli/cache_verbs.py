"""The verb around teachers' answers: cache build, verify, info, prune."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli import tables
from edgekd.cli.options import Common
from edgekd.cli.processes import processes
from edgekd.cli.progress import bars
from edgekd.cli.run_verbs import CacheFolder, Device, Out, Set
from edgekd.doctor import require
from edgekd.errors import AnswerIsNo, DataError, UsageError, nearest

if TYPE_CHECKING:
    from edgekd.distill.cache import Cache
    from edgekd.distill.cache_verify import CacheCheck

DAY_S = 86_400.0


class Action(str, Enum):
    """What to do with teachers' answers."""

    BUILD = "build"
    VERIFY = "verify"
    INFO = "info"
    PRUNE = "prune"


def cache(
    common: Common,
    action: Annotated[Action, typer.Argument(metavar="build|verify|info|prune")],
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", help="verify, info, prune: these caches (see info).")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="build, verify: the recipe whose teacher is asked.")
    ] = None,
    sets: Set = None,
    out: Out = None,
    device: Device = "auto",
    cache: CacheFolder = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="verify: answers to ask the teacher again.")] = 64,
    older_than_days: Annotated[
        float | None, typer.Option("--older-than-days", min=0, help="prune: caches that nobody used for so long.")
    ] = None,
    max_size_mb: Annotated[
        float | None, typer.Option("--max-size-mb", min=0, help="prune: the longest unused, until the rest fits.")
    ] = None,
) -> None:
    """What teachers answered, kept for every student to come: build, verify, list and delete it.

    A recipe with `distill.cache = true` builds and uses it by itself, in any run with the same teacher, data and
    augmentation.

    Examples:

      edgekd cache build --recipe digits --set data.views=8

      edgekd cache verify --recipe digits --set data.views=8

      edgekd cache prune --older-than-days 30
    """
    require("train", purpose="the teacher cache")
    from edgekd.data.download import cache_folder
    from edgekd.stages.caching import FOLDER

    options = {
        "--recipe": (recipe, (Action.BUILD, Action.VERIFY)),
        "--set": (sets, (Action.BUILD, Action.VERIFY)),
        "--out": (out, (Action.BUILD, Action.VERIFY)),
        "--older-than-days": (older_than_days, (Action.PRUNE,)),
        "--max-size-mb": (max_size_mb, (Action.PRUNE,)),
        "KEY": (keys, (Action.VERIFY, Action.INFO, Action.PRUNE)),
    }
    for name, (value, fitting) in options.items():
        if value and action not in fitting:
            raise UsageError(
                f"cache {action.value}: {name} is for cache {' and '.join(item.value for item in fitting)}"
            )
    root = cache_folder(FOLDER) if cache is None else cache
    if recipe is not None:
        if keys:
            raise UsageError(f"cache verify: found a recipe and the cache {keys[0]}, expected one of them")
        _with_recipe(common, action, recipe, root, sets=sets, out=out, device=device, samples=samples)
    elif action is Action.BUILD:
        raise UsageError("cache build: --recipe is missing; a shipped recipe (edgekd recipes) or a TOML file")
    elif action is Action.PRUNE:
        _prune(common, root, keys or (), older_than_days=older_than_days, max_size_mb=max_size_mb)
    else:
        _show(common, root, _chosen(root, keys or ()), check=action is Action.VERIFY)


def _with_recipe(
    common: Common,
    action: Action,
    recipe: str,
    root: Path,
    *,
    sets: list[str] | None,
    out: Path | None,
    device: str,
    samples: int,
) -> None:
    """Build, or ask the teacher again; its training comes first, where the run folder does not hold it."""
    require("train", "cpu", purpose="asking a teacher")
    from edgekd import pipeline
    from edgekd.stages import caching

    overrides = [*common.overrides(sets), "distill.cache=true"]
    with processes(device) as world:
        if not world.leads:
            pipeline.follow(recipe, world=world, out=out, overrides=overrides, device=device, cache=root)
            return
        with (
            bars(common) as listener,
            pipeline.some_stages(
                recipe,
                lambda name: caching.is_of_teachers(name) and (action is Action.BUILD or not caching.asked_in(name)),
                out=out,
                overrides=overrides,
                device=device,
                threads=common.threads,
                cache=root,
                listener=listener,
                world=world,
            ) as (space, worked),
        ):
            teachers = [name for name in space.recipe.kept if name in space.recipe.all_teachers]
            built: list[tuple[Cache, int]] = []
            checked: list[tuple[Cache, CacheCheck]] = []
            for name in teachers:
                if action is Action.VERIFY:
                    checked.append(caching.verify(space, name, samples=samples, seed=common.seed or 0))
                    continue
                # The stage may have ended long ago, and the answers be deleted since.
                found, asked = caching.build_together(space, name)
                stage = caching.stage_of(name)
                built.append((found, asked + (int(space.result(stage)["teacher_passes"]) if stage in worked else 0)))
    if action is Action.VERIFY:
        _tell_checked(common, checked)
        return
    if common.as_json:
        _print_rows(common, [{**_row(found), "asked": asked} for found, asked in built])
        return
    for found, asked in built:
        told = f"{asked:,} answers asked for" if asked else "it was there: nothing was asked"
        common.say(f"{found.path}: {_size(found)} MB, {told}")
    settings = [f"--set={item}" for item in (*(sets or ()), "distill.cache=true")]
    again = tables.command("distill-and-export", recipe, *settings)
    tables.print_next(common, again, tables.command("cache", "info"))


def _tell_checked(common: Common, checked: Sequence[tuple[Cache, CacheCheck]]) -> None:
    """How each cache compares with its teacher. Raises `AnswerIsNo` for the first that has other answers."""
    if common.as_json:
        _print_rows(common, [{**_row(found), "ok": check.ok, **asdict(check)} for found, check in checked])
    for found, check in () if common.as_json else checked:
        differs = ", ".join(f"{name} by at most {value:.2g}" for name, value in check.max_abs_diff.items())
        common.say(f"{found.key}: hashes hold; {check.compared} answers asked for again, {differs}")
    for found, check in checked:
        if not check.ok:
            wrong = ", ".join(f"{number} (view {view})" for number, view in check.wrong[:5])
            raise AnswerIsNo(
                f"the teacher now gives other answers to {len(check.wrong)} of {check.compared} samples, the ids "
                f"{wrong}; drop the cache with `edgekd cache prune {found.key}`, and build it again"
            )


def _print_rows(common: Common, rows: Sequence[dict[str, Any]]) -> None:
    """The cache of the first teacher, and under "more" those of the others."""
    first, *more = rows
    common.print_json({**first, **({"more": more} if more else {})})


def _chosen(root: Path, keys: Sequence[str]) -> list[Cache]:
    from edgekd.distill.cache import list_caches

    caches = {cache.key: cache for cache in list_caches(root)}
    for key in keys:
        if key not in caches:
            raise UsageError(f"{root} has no cache '{key}'. {nearest(key, caches)}")
    return [caches[key] for key in keys] if keys else list(caches.values())


def _show(common: Common, root: Path, caches: Sequence[Cache], *, check: bool) -> None:
    """The list of caches; with `check` their hashes first."""
    from edgekd.distill.cache import check_hashes

    damaged = []
    for cache in caches if check else ():
        try:
            check_hashes(cache)
        except DataError as error:
            damaged.append(str(error))
    now = time.time()
    if common.as_json:
        rows = [{**_row(cache), "unused_days": round((now - cache.used_at) / DAY_S, 3)} for cache in caches]
        common.print_json({"folder": str(root), "caches": rows, "damaged": damaged})
    elif caches:
        cells = [
            (
                cache.key,
                str(cache.index["name"]),
                _teacher(cache),
                f"{cache.num_samples:,} x {cache.views}",
                "yes" if cache.is_complete else "no",
                _size(cache),
                f"{(now - cache.used_at) / DAY_S:.1f}",
            )
            for cache in caches
        ]
        columns = ("key", "data", "teacher", "samples x views", "complete", "MB", "unused, days")
        common.out.print(tables.plain_table(columns, cells, left=3))
    if not common.as_json:
        total = sum(cache.size_bytes for cache in caches)
        common.say(
            f"{len(caches)} caches in {root}, {total / 1e6:.1f} MB{', hashes hold' if check and not damaged else ''}"
        )
    if damaged:
        raise DataError("\n".join(damaged))


def _prune(
    common: Common,
    root: Path,
    keys: Sequence[str],
    *,
    older_than_days: float | None,
    max_size_mb: float | None,
) -> None:
    from edgekd.distill.cache_upkeep import prune

    if not keys and older_than_days is None and max_size_mb is None:
        raise UsageError(
            "cache prune: say what to delete: KEY (see `edgekd cache info`), --older-than-days, --max-size-mb"
        )
    removed = prune(
        root,
        keys=keys,
        older_than_s=None if older_than_days is None else older_than_days * DAY_S,
        max_bytes=None if max_size_mb is None else int(max_size_mb * 1e6),
    )
    freed = sum(size for _, size in removed)
    if common.as_json:
        common.print_json({"folder": str(root), "removed": [key for key, _ in removed], "freed_bytes": freed})
        return
    for key, size in removed:
        common.say(f"deleted {key}: {size / 1e6:.1f} MB")
    common.say(f"{len(removed)} caches deleted, {freed / 1e6:.1f} MB free again")


def _row(cache: Cache) -> dict[str, Any]:
    return {
        "key": cache.key,
        "path": str(cache.path),
        "name": cache.index["name"],
        "num_samples": cache.num_samples,
        "views": cache.views,
        "complete": cache.is_complete,
        "size_bytes": cache.size_bytes,
        "tensors": cache.index["tensors"],
        "facts": cache.facts,
    }


def _teacher(cache: Cache) -> str:
    teacher: Mapping[str, Any] = cache.facts.get("teacher", {})
    return str(teacher.get("model") or teacher.get("url") or ("an ONNX file" if "onnx" in teacher else "unknown"))


def _size(cache: Cache) -> str:
    return f"{cache.size_bytes / 1e6:.1f}"
