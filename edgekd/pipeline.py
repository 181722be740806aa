"""The main job from Python: what `edgekd distill-and-export` runs.

    from edgekd.pipeline import distill_and_export
    run = distill_and_export("digits", out="runs/digits")
    run.bundle, run.results["rows"], run.missed

Stages meet at files in the run folder. A second call with nothing changed does nothing; a killed one goes on.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.device.machine import available_cores, resolve_threads
from edgekd.doctor import require
from edgekd.errors import InputRefused, StageFailed, UsageError, is_out_of_memory
from edgekd.files import write_json, write_text
from edgekd.recipe import LoadedRecipe, load_recipe, recipe_to_toml
from edgekd.results import read_results
from edgekd.run_folder import Listener, RunFolder, Silence, Stage, check_folder, locked
from edgekd.stages import caching, graphs, masks, shipping, together, training
from edgekd.stages.table import is_training, stages
from edgekd.stages.workspace import Workspace
from edgekd.version import __version__

if TYPE_CHECKING:
    from edgekd.distill.distribution import World


@dataclass(frozen=True)
class RunResult:
    """What a run left in its folder. `worked` names the stages that had to run this time; none: nothing changed."""

    path: Path
    worked: tuple[str, ...]
    results: Mapping[str, Any]
    seconds: float

    @property
    def bundle(self) -> Path:
        """The deployable folder."""
        return self.path / shipping.BUNDLE

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def chosen(self) -> str:
        """The variant that the limits chose."""
        return str(self.results["run"]["chosen"])

    @property
    def missed(self) -> list[Mapping[str, Any]]:
        """Limits of the chosen variant that ended missed."""
        return [item for item in self.results["run"]["limits"] if item["verdict"] == "missed"]

    @property
    def unproven(self) -> list[Mapping[str, Any]]:
        """Limits of the chosen variant that the samples could neither prove nor refute."""
        return [item for item in self.results["run"]["limits"] if item["verdict"] == "unproven"]


def distill_and_export(
    recipe: str | Path | LoadedRecipe = "digits",
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    threads: int | None = None,
    force: str | None = None,
    cache: str | Path | None = None,
    listener: Listener | None = None,
    command: str | None = None,
    world: World | None = None,
) -> RunResult:
    """Teacher, student, ONNX, int8, proof, bundle, benchmark and report, in one resumable folder.

    `recipe` is a shipped name, a TOML file or a loaded recipe; `overrides` are "a.b=value" texts; `out` is the
    run folder (default: runs/NAME); `cache` is where teachers' answers are kept, if the recipe keeps them. Raises the
    errors of edgekd.errors; limits that are missed raise nothing:
    read `RunResult.missed`.

    `world` are the processes that train together (edgekd.distill.distribution): process 0 calls this, the others
    `follow`.
    """
    loaded = _load(recipe, overrides)
    listener = Silence() if listener is None else listener
    path = run_path(loaded, out)
    started = time.monotonic()
    with locked(path):
        space = open_workspace(
            loaded,
            path,
            device=device,
            threads=threads,
            cache=cache,
            listener=listener,
            command=command or " ".join(sys.argv),
            world=world,
        )
        worked = _run(space, stages(space), force=force)
        together.dismiss(space)
    results = read_results(path)
    return RunResult(path, tuple(worked), results, time.monotonic() - started)


def train(
    recipe: str | Path | LoadedRecipe,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    student_only: bool = False,
    device: str = "auto",
    threads: int | None = None,
    force: str | None = None,
    cache: str | Path | None = None,
    listener: Listener | None = None,
    world: World | None = None,
) -> tuple[Path, Mapping[str, Mapping[str, Any]], list[str]]:
    """Only the training stages: the run folder, the result of each stage, and which stages had to run.

    `student_only` leaves out the student without teacher, which is trained for comparison. A later
    `distill_and_export` into the same folder goes on from here.
    """
    with some_stages(
        recipe,
        lambda name: is_training(name) and not (student_only and name == "student_alone"),
        out=out,
        overrides=overrides,
        device=device,
        threads=threads,
        force=force,
        cache=cache,
        listener=listener,
        world=world,
    ) as (space, worked):
        return space.path, {name: record.result for name, record in space.records.items()}, worked


def follow(
    recipe: str | Path | LoadedRecipe,
    *,
    world: World,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    cache: str | Path | None = None,
) -> None:
    """What the other processes of `world` do while process 0 calls `train`, `some_stages` or `distill_and_export`.

    They train, and answer for the cache, when they are called.
    The arguments are those of process 0. Nothing is written here, and nobody listens.
    """
    from edgekd.distill.execution import choose_device

    loaded = _load(recipe, overrides)
    path = Path(out) if out is not None else Path("runs") / loaded.recipe.name
    place, root = str(choose_device(device)), None if cache is None else Path(cache)
    space = Workspace(loaded.recipe, loaded.folder, path, Silence(), place, 1, "", "", root, world=world)

    def answer(call: together.Call) -> None:
        space.threads, space.records = call.threads, dict(call.records)
        asked = caching.asked_in(call.stage)
        if asked is None:
            training.train(space, call.stage)
        else:
            caching.build(space, "train", world, asked)

    with _memory():
        together.follow(world, answer)


@contextmanager
def some_stages(
    recipe: str | Path | LoadedRecipe,
    wanted: Callable[[str], bool],
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    threads: int | None = None,
    force: str | None = None,
    cache: str | Path | None = None,
    listener: Listener | None = None,
    world: World | None = None,
) -> Iterator[tuple[Workspace, list[str]]]:
    """The workspace of a run after the `wanted` stages, locked until the block ends; and which of them had to run."""
    loaded = _load(recipe, overrides)
    path = run_path(loaded, out)
    with locked(path):
        space = open_workspace(
            loaded,
            path,
            device=device,
            threads=threads,
            cache=cache,
            listener=Silence() if listener is None else listener,
            command=" ".join(sys.argv),
            world=world,
        )
        yield space, _run(space, tuple(stage for stage in stages(space) if wanted(stage.name)), force=force)
        together.dismiss(space)


def run_path(loaded: LoadedRecipe, out: str | Path | None) -> Path:
    """The run folder: `out`, or runs/NAME below the current folder. Raises `UsageError` for somebody's own folder."""
    path = Path(out) if out is not None else Path("runs") / loaded.recipe.name
    check_folder(path)
    return path


def open_workspace(
    loaded: LoadedRecipe,
    path: Path,
    *,
    device: str,
    threads: int | None,
    listener: Listener,
    command: str,
    cache: str | Path | None = None,
    world: World | None = None,
) -> Workspace:
    """The workspace of a run folder; what belongs to the whole run is fixed by its first call.

    Trained bytes depend on the number of threads, so a resumed run keeps the number that it began with unless
    one is asked for.
    """
    require("train", "cpu", purpose="distilling and exporting")
    from edgekd.distill.execution import choose_device

    place = str(choose_device(device))
    wanted = threads if threads is not None else loaded.recipe.threads or None
    state = _read_state(path)
    if wanted is None:
        share = available_cores() if world is None else max(1, available_cores() // world.local_size)
        wanted = int(state.get("threads", share))
        if wanted > available_cores():
            raise UsageError(
                f"{path} began with {wanted} training threads, but only {available_cores()} cores are available now; "
                f"run on as many cores, or train again with --threads {available_cores()}"
            )
    created = str(state.get("created") or datetime.now(timezone.utc).isoformat(timespec="seconds"))
    number = resolve_threads(wanted)
    if state.get("threads", number) != number:
        listener.warn(
            f"this run began with {state['threads']} training threads; with {number} other weights come out, so "
            "everything is trained again"
        )
    state = {"created": created, "threads": number, "edgekd_version": __version__}
    if _read_state(path) != state:
        write_json(path / "run.json", state)
    text = recipe_to_toml(loaded.recipe)
    known = path / "recipe.toml"
    if not known.is_file() or known.read_bytes() != text.encode():
        write_text(known, text)
    root = None if cache is None else Path(cache)
    return Workspace(loaded.recipe, loaded.folder, path, listener, place, number, created, command, root, world=world)


@dataclass(frozen=True)
class Plan:
    """What a run would do: per stage "done" or "to do" with estimated seconds, and the disk that it would take.

    `cache_mb` is what the teacher's answers take in their folder; nothing, if a run before has left them there.
    """

    path: Path
    rows: tuple[Mapping[str, Any], ...]
    seconds: float
    disk_mb: float
    free_mb: float
    cache_mb: float


def plan(
    recipe: str | Path | LoadedRecipe = "digits",
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    threads: int | None = None,
    force: str | None = None,
) -> Plan:
    """A dry run: reads the data, times a few real steps of each model, writes nothing into the run folder.

    The estimate of training is steps times the measured time of a step; the other stages are taken from runs of
    the shipped recipes and stand for minutes, not for percent.
    """
    from edgekd.stages.estimate import estimate

    loaded = _load(recipe, overrides)
    path = run_path(loaded, out)
    with tempfile.TemporaryDirectory() as scratch:
        space = open_workspace(
            loaded,
            Path(scratch),
            device=device,
            threads=threads if threads is not None else _read_state(path).get("threads"),
            listener=Silence(),
            command="",
        )
        table = stages(space)
        folder = RunFolder(path, listener=Silence(), force=force)
        space.records = folder.records
        pending = folder.pending(table)
        seconds, disk_mb, cache_mb = estimate(space, [stage.name for stage in table])
    rows = tuple(
        {
            "stage": stage.name,
            "state": "to do" if stage.name in pending else "done",
            "seconds": round(seconds[stage.name], 1) if stage.name in pending else 0.0,
        }
        for stage in table
    )
    return Plan(path, rows, sum(seconds[name] for name in pending), disk_mb, _free_mb(path), cache_mb)


def _run(space: Workspace, table: tuple[Stage, ...], *, force: str | None) -> list[str]:
    if space.recipe.task == "masked_lm" and not all(is_training(stage.name) for stage in table):
        raise UsageError(
            "a masked language model is the beginning of a student, none for a device yet: run `edgekd distill`, then "
            f'`edgekd distill-and-export` with a recipe of the task and --set student.model="hf:{space.path}/student/'
            f'{masks.FOLDER}"'
        )
    folder = RunFolder(space.path, listener=space.listener, force=force)
    space.records = folder.records
    with _memory():
        pending = folder.pending(table)
        if pending:
            graphs.check(space)
        if any(map(is_training, pending)):
            training.check(space)
        return folder.run(table)


@contextmanager
def _memory() -> Iterator[None]:
    """Say what to do when memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageFailed(
            "out of memory; lower distill.batch_size or data.limit and run the same command again: finished stages "
            "are kept"
        ) from error


def _load(recipe: str | Path | LoadedRecipe, overrides: Sequence[str]) -> LoadedRecipe:
    if isinstance(recipe, LoadedRecipe):
        return recipe
    return load_recipe(recipe, overrides=overrides)


def _read_state(path: Path) -> dict[str, Any]:
    state = path / "run.json"
    if not state.is_file():
        return {}
    advice = "delete its folder, or choose another with --out"
    try:
        raw = json.loads(state.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputRefused(f"{state} cannot be read as JSON ({error}); {advice}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("threads", 1), int):
        raise InputRefused(f"{state} does not say how the run began; {advice}")
    return raw


def _free_mb(path: Path) -> float:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free / 1e6
