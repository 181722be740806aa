"""The run folder: fingerprinted stages that are skipped when nothing changed and resumed when they were killed.

RUN/recipe.toml        the resolved recipe
RUN/run.json           what belongs to the whole run: when it began, with how many threads
RUN/run.lock           held while a process works here
RUN/stages/NAME.json   written last, when a stage has ended: fingerprint, outputs with hashes, result
RUN/stages/NAME.started  the fingerprints that the stage's half-finished files belong to
RUN/...                the outputs that each stage lists
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekd.errors import UsageError, explain_os_errors, nearest
from edgekd.files import TEMPORARY, canonical_json, held, sha256_bytes, sha256_file, write_json, write_text

# What says that a folder is a run's: the first is made first, the second with it.
OWN = ("run.lock", "run.json")


class Listener(Protocol):
    """Hears how a run goes on; the command line draws progress bars from it."""

    def stage_started(self, name: str, index: int, total: int) -> None:
        """Stage `name` begins, as number `index` (from 0) of `total`."""

    def stage_skipped(self, name: str) -> None:
        """Stage `name` is unchanged since it ended: its outputs are used as they are."""

    def step(self, text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Within the stage: `done` of `total` steps of `text`, with figures worth showing."""

    def stage_finished(self, name: str, seconds: float, summary: str) -> None:
        """Stage `name` ended."""

    def warn(self, text: str) -> None:
        """Something that the user should know but that stops nothing."""


class Silence:
    """A listener that does nothing."""

    def stage_started(self, name: str, index: int, total: int) -> None:
        """Nothing."""

    def stage_skipped(self, name: str) -> None:
        """Nothing."""

    def step(self, text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Nothing."""

    def stage_finished(self, name: str, seconds: float, summary: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Stage:
    """One station of the way.

    inputs        gives everything, beside the results of `needs`, that its outputs depend on
    salvage       gives those that half-finished files depend on in any case. Where a failure left the file
                  `salvage_mark` in an output, the others may change and the stage still goes on from there
    """

    name: str
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    inputs: Callable[[], Mapping[str, Any]]
    work: Callable[[], tuple[Mapping[str, Any], str]]
    salvage: Callable[[], Mapping[str, Any]] | None = None
    salvage_mark: str = ""


@dataclass(frozen=True)
class Record:
    """What an ended stage left behind."""

    fingerprint: str
    outputs: Mapping[str, str]
    result: Mapping[str, Any]
    seconds: float

    @property
    def identity(self) -> str:
        """Changes when any output or result changes; later stages depend on this, not on how it came about."""
        return sha256_bytes(canonical_json({"outputs": self.outputs, "result": self.result}).encode())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. Raises `StorageError` at once when another process holds it."""
    refusal = f"another edgekd process works in {folder}; wait until it ends, or choose another folder with --out"
    with held(folder / "run.lock", purpose="a run folder", refusal=refusal):
        yield


class RunFolder:
    """Runs stages in their order inside one folder."""

    def __init__(
        self, path: Path, *, listener: Listener, clock: Callable[[], float] = time.monotonic, force: str | None = None
    ) -> None:
        self.path = path
        self.listener = listener
        self.clock = clock
        self.force = force
        self.records: dict[str, Record] = {}

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage has ended with the same inputs and its outputs are still what they were."""
        record = self._read(stage.name)
        if record is None or self.force == stage.name or any(need not in self.records for need in stage.needs):
            return False
        return record.fingerprint == self.fingerprint(stage) and self._hash_outputs(stage) == record.outputs

    def fingerprint(self, stage: Stage) -> str:
        """sha256 over the stage's inputs and the identities of the stages that it needs."""
        return self._hash_inputs(stage, stage.inputs())

    def _hash_inputs(self, stage: Stage, inputs: Mapping[str, Any]) -> str:
        needs = {need: self.records[need].identity for need in stage.needs}
        return sha256_bytes(canonical_json({"stage": stage.name, "inputs": inputs, "needs": needs}).encode())

    def run(self, stages: tuple[Stage, ...]) -> list[str]:
        """Run what is not done; returns the names of the stages that had to run."""
        check_force(self.force, stages)
        self._sweep(stages)
        worked: list[str] = []
        for index, stage in enumerate(stages):
            if self.is_done(stage):
                record = self._read(stage.name)
                if record is not None:
                    self.records[stage.name] = record
                    self.listener.stage_skipped(stage.name)
                    continue
            self.listener.stage_started(stage.name, index, len(stages))
            self._prepare(stage)
            started = self.clock()
            result, summary = stage.work()
            seconds = self.clock() - started
            self._finish(stage, result, seconds)
            worked.append(stage.name)
            self.listener.stage_finished(stage.name, seconds, summary)
        return worked

    def pending(self, stages: tuple[Stage, ...]) -> list[str]:
        """The names of the stages that `run` would have to run, without running any."""
        check_force(self.force, stages)
        todo: list[str] = []
        for stage in stages:
            record = self._read(stage.name)
            if record is not None and self.is_done(stage):
                self.records[stage.name] = record
            else:
                todo.append(stage.name)
        return todo

    def _sweep(self, stages: tuple[Stage, ...]) -> None:
        """Throw away the temporary files of a process that was killed while writing; the lock says that it is gone."""
        places = {
            self.path,
            self.path / "stages",
            *(self.path / output for stage in stages for output in stage.outputs),
        }
        with explain_os_errors(self.path):
            for place in filter(Path.is_dir, places):
                for path in place.glob(f"{TEMPORARY}*"):
                    _remove(path)

    def _prepare(self, stage: Stage) -> None:
        """Throw away half-finished files that belong to other inputs; keep those of the same inputs, to resume."""
        marker = self.path / "stages" / f"{stage.name}.started"
        record = self._record_path(stage.name)
        with explain_os_errors(self.path):
            # With a record the stage had ended: its files are whole, and were changed, or are to be made anew.
            if record.is_file() or self.force == stage.name or not self._may_resume(stage, marker):
                for output in stage.outputs:
                    _remove(self.path / output)
            # After the outputs: killed between the two, the next run finds the record and removes them all.
            record.unlink(missing_ok=True)
        write_text(marker, "\n".join([self.fingerprint(stage), self._salvage_fingerprint(stage)]))

    def _may_resume(self, stage: Stage, marker: Path) -> bool:
        """Whether the half-finished files belong to these inputs, or were left by a failure that other inputs cure."""
        if not marker.is_file():
            return False
        begun, salvage, *_ = [*marker.read_text(encoding="utf-8").splitlines(), "", ""]
        if begun == self.fingerprint(stage):
            return True
        is_left = any((self.path / output / stage.salvage_mark).is_file() for output in stage.outputs)
        return stage.salvage is not None and is_left and salvage == self._salvage_fingerprint(stage)

    def _salvage_fingerprint(self, stage: Stage) -> str:
        return "" if stage.salvage is None else self._hash_inputs(stage, stage.salvage())

    def _finish(self, stage: Stage, result: Mapping[str, Any], seconds: float) -> None:
        record = Record(self.fingerprint(stage), self._hash_outputs(stage), json.loads(json.dumps(result)), seconds)
        write_json(
            self._record_path(stage.name),
            {
                "stage": stage.name,
                "fingerprint": record.fingerprint,
                "outputs": record.outputs,
                "result": record.result,
                "seconds": round(seconds, 3),
            },
        )
        self.records[stage.name] = record

    def _hash_outputs(self, stage: Stage) -> dict[str, str]:
        hashes: dict[str, str] = {}
        for output in stage.outputs:
            root = self.path / output
            files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
            for path in files:
                if path.is_file() and not path.name.startswith(TEMPORARY):
                    hashes[path.relative_to(self.path).as_posix()] = sha256_file(path)
        return hashes

    def _record_path(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.json"

    def _read(self, name: str) -> Record | None:
        """The stage's record, or None: a record that cannot be read is as good as none, the stage runs again."""
        try:
            raw = json.loads(self._record_path(name).read_text(encoding="utf-8"))
            return Record(raw["fingerprint"], raw["outputs"], raw["result"], float(raw["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def check_folder(path: Path) -> None:
    """Raise `UsageError` when `path` holds something that is no run: stages replace folders such as `teacher` in it."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, expected a run folder, or a new one; choose another with --out")
    with explain_os_errors(path):
        found = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
    others = [name for name in found if not name.startswith(TEMPORARY)]
    if others and not set(OWN) & set(others):
        more = ", ..." if len(others) > 3 else ""
        raise UsageError(
            f"{path} is not empty ({', '.join(others[:3])}{more}) and no run folder: a run would replace what is in "
            "it. Choose a new folder with --out"
        )


def check_force(force: str | None, stages: tuple[Stage, ...]) -> None:
    """Raise `UsageError` when `--force` names no stage."""
    known = [stage.name for stage in stages]
    if force is not None and force not in known:
        raise UsageError(f"--force {force}: there is no such stage. {nearest(force, known)}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
