"""What a training leaves on the disk, so that a killed one goes on and a finished one is not trained again.

    RUN_DIR/checkpoint.pt        after every epoch (or every few), replaced atomically; gone when the training is done
    RUN_DIR/diverged.json        the loss became NaN: the learning rate may change before it goes on
    RUN_DIR/weights.safetensors  finished: the weights of the best epoch
    RUN_DIR/history.json         finished, written last: settings, epochs, scores

A checkpoint holds no random state: everything random is a function of seed and epoch. It is read with
`weights_only=True`: no file can run code.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.models.weights import load_weights, save_weights
from edgekd.errors import ModelError, UsageError, explain_os_errors
from edgekd.files import write_atomically, write_json

VERSION = 2
# After a divergence these may change: the epochs until then stay what they were.
CURES = frozenset({"lr", "weight_decay", "schedule", "warmup_epochs", "objective", "stage_lr"})

# What torch raises for a file that is cut, damaged, or something else.
_UNREADABLE = (
    RuntimeError, OSError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError
)  # fmt: skip

# Settings that older trainings did not write: what they were is not known.
_LATER = frozenset({"teachers"})

State = dict[str, Tensor]

_STATES = ("student", "best_student", "adapters", "average", "optimizer")


@dataclass(frozen=True)
class Record:
    """What a training knows about itself after `len(history)` epochs. Scores are None where they are undefined.

    processes  how many trained the last of them
    """

    threads: int
    history: tuple[dict[str, Any], ...] = ()
    best_epoch: int = 0
    best: float | None = None
    seconds: float = 0.0
    images_seen: int = 0
    teacher_passes: int = 0
    warnings: tuple[str, ...] = ()
    processes: int = 1


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next epoch depends on."""

    record: Record
    student: State
    best_student: State
    adapters: State
    average: State | None
    optimizer: dict[str, Any]


class RunFiles:
    """The files of one training in `folder`; `settings` are those that its result depends on."""

    def __init__(self, folder: str | PathLike[str], settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        # As JSON gives it back, so that comparing with what was read needs no care.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; the old one stays whole until the new one is. Raises `StorageError`."""
        buffer = io.BytesIO()  # through memory, because torch's own writer hides why a disk refused
        torch.save(
            {
                "version": VERSION,
                "settings": json.dumps(self.settings),
                "record": json.dumps(dataclasses.asdict(checkpoint.record)),
                "student": checkpoint.student,
                "best_student": checkpoint.best_student,
                "adapters": checkpoint.adapters,
                "average": checkpoint.average,
                "optimizer": checkpoint.optimizer,
            },
            buffer,
        )
        write_atomically(self._checkpoint, lambda temporary: _fill(temporary, buffer))
        self._clean("diverged.json")

    def load(self) -> Checkpoint | None:
        """The last checkpoint, or None.

        Raises `ModelError` for a file that cannot be read and `UsageError` when it belongs to other settings.
        """
        self._clean(".tmp-*")  # of a process that was killed while writing
        if not self._checkpoint.is_file():
            return None
        content = io.BytesIO(self._checkpoint.read_bytes())
        try:
            raw = torch.load(content, map_location="cpu", weights_only=True)
            version = raw["version"]
            settings = json.loads(raw["settings"])
            states = {} if version != VERSION else {field: raw[field] for field in _STATES}
            record = _record(json.loads(raw["record"]))
        except _UNREADABLE as error:
            raise ModelError(
                f"the checkpoint {self._checkpoint} cannot be read: {error}; delete it to train from the beginning"
            ) from error
        if version != VERSION:
            raise ModelError(
                f"{self._checkpoint} has version {version}, expected {VERSION}; continue with the edgekd that wrote "
                "it, or delete it to train from the beginning"
            )
        self._compare(settings, "an unfinished training", CURES if self._diverged.is_file() else frozenset())
        return Checkpoint(record, **states)

    def check_adapters(self, fresh: State, checkpoint: Checkpoint | None) -> None:
        """Raise `UsageError` when the adapters in `checkpoint` are not like those of the terms as they are now.

        After a divergence the terms may change, but what they have learned must have a place.
        """
        if checkpoint is None or _sizes(checkpoint.adapters) == _sizes(fresh):
            return
        raise UsageError(
            f"{self.folder} holds an unfinished training whose terms have other adapters; take the same terms and "
            "adapters, another folder, or delete this one"
        )

    def finish(self, student: nn.Module, record: Record, metadata: Mapping[str, str] | None = None) -> None:
        """Write the best weights (which `student` holds) and the history; then the checkpoint is not needed."""
        save_weights(student, self.folder / "weights.safetensors", metadata=metadata)
        write_json(
            self._history,
            {"version": VERSION, "settings": self.settings, **dataclasses.asdict(record)},
        )
        self._clean("checkpoint.pt")

    def finished(self, student: nn.Module) -> Record | None:
        """The record of a training that is done, its weights loaded into `student`; None if it is not.

        Raises `UsageError` when it had other settings.
        """
        weights = self.folder / "weights.safetensors"
        if not self._history.is_file() or not weights.is_file():
            return None
        try:
            raw = json.loads(self._history.read_text(encoding="utf-8"))
            settings, record = raw["settings"], _record(raw)
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{self._history} cannot be read: {error}; delete it to train again") from error
        self._compare(settings, "a finished training", frozenset())
        load_weights(student, weights)
        self._clean(".tmp-*", "checkpoint.pt")  # of a process that was killed at its very end
        return record

    def mark_diverged(self, facts: Mapping[str, Any]) -> None:
        """Remember that the training after the last checkpoint diverged."""
        write_json(self._diverged, facts)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def _history(self) -> Path:
        return self.folder / "history.json"

    @property
    def _diverged(self) -> Path:
        return self.folder / "diverged.json"

    def _clean(self, *patterns: str) -> None:
        with explain_os_errors(self.folder):
            for pattern in patterns:
                for path in self.folder.glob(pattern):
                    path.unlink(missing_ok=True)

    def _compare(self, there: Mapping[str, Any], what: str, free: frozenset[str]) -> None:
        names = sorted((there.keys() | self.settings.keys()) - free - (_LATER - there.keys()))
        other = [
            f"{name} {there.get(name)!r} there, {self.settings.get(name)!r} here"
            for name in names
            if there.get(name) != self.settings.get(name)
        ]
        if other:
            raise UsageError(
                f"{self.folder} holds {what} with other settings ({'; '.join(other)}); take the same settings, "
                "another folder, or delete this one"
            )


def _record(raw: Mapping[str, Any]) -> Record:
    # Trainings of before there could be several have nothing on processes: it was one.
    values = {field.name: raw[field.name] for field in dataclasses.fields(Record) if field.name != "processes"}
    values["processes"] = raw.get("processes", 1)
    return Record(**{**values, "history": tuple(values["history"]), "warnings": tuple(values["warnings"])})


def _sizes(state: State) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def _fill(path: Path, buffer: io.BytesIO) -> None:
    path.write_bytes(buffer.getbuffer())
