"""A benchmark in parts: what is measured is kept beside the result, so that the same command goes on where it ended.

FILE.json.part/0000.npz, 0001.npz, ...   written after the checks, each launch of all candidates and each round of cold
                                         starts: the arrays that are new, and everything else that is known by then

A launch that was cut off is measured anew: candidates are compared within launches, and half of one compares nothing.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.data.npz import read_npz
from edgekd.device.archive import arrays_to_bytes
from edgekd.device.candidates import content_of
from edgekd.device.loadgen import LoadGen
from edgekd.device.machine import allowed_cores, describe, versions
from edgekd.device.plans import Request, to_json
from edgekd.device.readings import Readings
from edgekd.device.rows import Measured
from edgekd.errors import DataError, StorageError, UsageError, explain_os_errors
from edgekd.files import TEMPORARY, canonical_json, sha256_bytes, write_bytes
from edgekd.spec import Array

_CALLS = ("latency_ns", "block", "launch")
_RECORDS = "[0-9]" * 4 + ".npz"


@dataclass
class Part:
    """One run of the command: when it began, how many launches and rounds of cold starts it has ended."""

    started: str
    launches: int = 0
    cold_starts: int = 0


@dataclass
class State:
    """What a benchmark has measured so far; `measured` and `errors` in the order of its candidates.

    checked      whether all candidates were loaded, checked and evaluated
    spans        readings of the machine before and after the timed part of each launch
    passes, ran  blocks of each candidate, and of all together
    launching_s  what it took to start and warm up the processes
    """

    measured: list[Measured]
    errors: list[str | None]
    parts: list[Part] = field(default_factory=list)
    checked: bool = False
    spans: list[tuple[Readings, Readings]] = field(default_factory=list)
    passes: int = 0
    ran: int = 0
    launching_s: float = 0.0

    @property
    def num_cold_starts(self) -> int:
        """Rounds in which every candidate was started from nothing; the first processes of a part are not counted."""
        return sum(part.cold_starts for part in self.parts)

    @property
    def resumptions(self) -> list[int]:
        """The launches that were the first of a later part."""
        ends = itertools.accumulate(part.launches for part in self.parts[:-1])
        return sorted({end for end in ends if 0 < end < len(self.spans)})


def nothing_measured(num_candidates: int) -> State:
    """Where a benchmark begins."""
    return State([Measured() for _ in range(num_candidates)], [None] * num_candidates)


class Journal:
    """The records of one benchmark, which is known by `key`, in `folder`.

    earlier    what they hold, None where there are none
    discarded  whether others lay there: of another benchmark, or damaged
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        self._count, self._known_calls, self._evaluated = 0, list[int](), False
        for half in folder.glob(f"{TEMPORARY}*"):  # somebody was killed while it was written
            half.unlink()
        self.earlier = self._read()
        self.discarded = self.earlier is None and bool(self._records())
        if self.discarded:
            self.remove()

    def keep(self, state: State) -> None:
        """Add a record: it is there whole, or not at all."""
        arrays: dict[str, Array] = {}
        for index, measured in enumerate(state.measured):
            known = self._known_calls[index] if self._known_calls else 0
            arrays |= {f"{index}.{name}": getattr(measured, name)[known:] for name in _CALLS}
            if measured.outputs is not None and not self._evaluated:
                arrays[f"{index}.outputs"] = measured.outputs
        told = np.frombuffer(canonical_json({"key": self._key, **_to_json(state)}).encode(), np.uint8)
        write_bytes(self._folder / f"{self._count:04}.npz", arrays_to_bytes({**arrays, "state": told}))
        self._holds(self._count + 1, state)

    def remove(self) -> None:
        """Forget what was measured."""
        for path in self._records():
            path.unlink()
        self._count, self._known_calls, self._evaluated, self.earlier = 0, [], False, None

    def _holds(self, count: int, state: State) -> None:
        self._count, self._evaluated = count, True
        self._known_calls = [len(measured.latency_ns) for measured in state.measured]

    def _records(self) -> list[Path]:
        return sorted(self._folder.glob(_RECORDS))

    def _read(self) -> State | None:
        records = self._records()
        try:
            found = [read_npz(path) for path in records]
            told = [json.loads(record["state"].tobytes()) for record in found]
            if not told or any(item.pop("key") != self._key for item in told):
                return None
            state = _from_json(told[-1])
            for index, measured in enumerate(state.measured):
                for name in _CALLS:
                    setattr(measured, name, np.concatenate([record[f"{index}.{name}"] for record in found]))
                measured.outputs = found[0].get(f"{index}.outputs")
        except (DataError, ValueError, KeyError, TypeError):
            return None
        self._holds(len(records), state)
        return state


@contextmanager
def opened(out: Path, key: str) -> Iterator[Journal]:
    """The journal beside the result `out`, held for this process; without a record it leaves no folder.

    Raises `StorageError` when another process measures for the same result, or nothing can be written there.
    """
    folder = out.with_name(f"{out.name.removesuffix('.gz')}.part")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, but what is measured so far goes there; choose another --out")
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY) if sys.platform != "win32" else None
    try:
        if held is not None:
            _lock(held, out)
        yield Journal(folder, key)
    finally:
        if held is not None:
            os.close(held)
        with suppress(OSError):  # it holds records, and stays
            folder.rmdir()


def key_of(request: Request, loadgen: LoadGen | None = None) -> str:
    """What must be the same to go on: the request, the bytes of models and samples, this machine, the versions."""
    samples = "" if request.samples is None else str(request.samples.describe()["sha256"])
    asked = {
        "plan": to_json(request, place=functools.cache(content_of), samples_file=samples),
        "loadgen": None if loadgen is None else {**asdict(loadgen), "folder": str(loadgen.folder.resolve())},
        "machine": describe(),
        "name": platform.node(),
        "cores": allowed_cores(),
        "versions": versions(),
    }
    return sha256_bytes(canonical_json(asked).encode())


def _lock(held: int, out: Path) -> None:
    if sys.platform != "win32":  # mypy knows this form only
        import fcntl

        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"another benchmark measures for {out}; wait until it ends, or choose another --out"
            ) from error
        except OSError:
            pass  # a file system without locks


def _to_json(state: State) -> dict[str, Any]:
    plain = [item.name for item in fields(Measured) if item.name not in (*_CALLS, "outputs")]
    return {
        **{item.name: getattr(state, item.name) for item in fields(State)},
        "measured": [{name: getattr(measured, name) for name in plain} for measured in state.measured],
        "parts": [asdict(part) for part in state.parts],
        "spans": [[asdict(reading) for reading in span] for span in state.spans],
    }


def _from_json(told: dict[str, Any]) -> State:
    measured = [Measured(**{**item, "cold": [tuple(start) for start in item["cold"]]}) for item in told["measured"]]
    parts = [Part(**item) for item in told["parts"]]
    spans = [(Readings(**before), Readings(**after)) for before, after in told["spans"]]
    return State(**{**told, "measured": measured, "parts": parts, "spans": spans})
