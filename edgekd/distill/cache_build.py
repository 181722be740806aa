"""Fills a teacher cache: every view of every sample through the teacher, once.

Shard after shard is written atomically and then named in the index, so that a killed build goes on at the next shard.
A teacher whose answers cost money or patience writes a journal besides: then no answer is asked for twice.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from edgekd.distill.batches import Batches, Positions
from edgekd.distill.cache import IDS, INDEX, JOURNAL, VERSION, Cache, Facts, building, cache_key, find_cache, open_cache
from edgekd.distill.journal import Journal
from edgekd.distill.stored import PIXELS, Store, encode, pixels_of
from edgekd.distill.teachers import Teacher
from edgekd.errors import StorageError, UsageError
from edgekd.files import TEMPORARY, sha256_file, write_atomically, write_json
from edgekd.spec import Array

# A kill costs at most one shard; a map of memory stays small; a hash is soon made.
SHARD_ROWS = 8192
SHARD_BYTES = 64 << 20

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Order:
    """What is to be cached, and how the teacher is asked.

    teacher     who answers
    batches     whose samples and views these are
    store       how answers are kept
    name        of the data, for people
    batch_size  samples per question
    journal     write down each answer as it comes
    place       brings a batch to where the teacher computes
    """

    teacher: Teacher
    batches: Batches
    store: Store
    num_outputs: int
    name: str
    batch_size: int = 512
    journal: bool = False
    place: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = dict

    @cached_property
    def positions(self) -> Positions:
        """Positions in the split of the samples by ascending id."""
        return np.argsort(self.batches.ids, kind="stable")

    @property
    def views(self) -> int:
        """Views of each sample. Raises `UsageError` when there is no end of them."""
        if self.batches.views is None:
            raise UsageError("every epoch has views of its own: no cache holds them; give a number of views to cycle")
        return self.batches.views

    @property
    def rows(self) -> int:
        """Answers in all."""
        return len(self.positions) * self.views

    def batch(self, start: int, end: int) -> Mapping[str, Tensor]:
        """The samples of the rows from `start` to `end`, which lie in one view."""
        view, position = divmod(start, len(self.positions))
        return self.place(self.batches.at(self.positions[position : position + end - start], view=view))

    def ask(self, start: int, end: int) -> dict[str, Array]:
        """The teacher's answers to these rows, as they are kept."""
        batch = self.batch(start, end)
        named = self.teacher(batch)
        missing = [tap for tap in self.store.taps if tap not in named]
        if missing:
            raise UsageError(f"the teacher gives {', '.join(sorted(named))}; {', '.join(missing)} cannot be kept")
        answers = encode(named, self.store, num_outputs=self.num_outputs)
        return {**answers, PIXELS: pixels_of(batch["x"]).numpy()}


def build_cache(root: Path, facts: Facts, order: Order, *, progress: Progress | None = None) -> tuple[Cache, int]:
    """The cache of these facts below `root`, built or finished if it is not complete; and how many rows were asked for.

    Raises `UsageError` for endless views, `DataError` for a damaged or foreign cache, `StorageError` when another
    process builds it or the disk is too small, and whatever the teacher raises: what it answered so far is kept.
    """
    found = find_cache(root, facts)
    if found is not None:
        return found, 0
    path = root / cache_key(facts)
    rows = order.rows
    with building(path):
        found = find_cache(root, facts)  # another process may have finished it meanwhile
        if found is not None:
            return found, 0
        for left in path.glob(f"{TEMPORARY}*"):  # of a process that was killed while writing
            left.unlink(missing_ok=True)
        index = _begin(path, facts, order)
        journal = Journal(path / JOURNAL) if order.journal else None
        row = index["shards"][-1]["stop"] if index["shards"] else 0
        asked = 0
        pending: list[Mapping[str, Array]] = []
        stop = rows
        for start, end, written in _pieces(order, row, journal):
            arrays = order.ask(start, end) if written is None else written
            if written is None:
                asked += end - start
                if journal is not None:
                    journal.append(start, end, arrays)
            if not pending:
                stop = min(start + _shard_rows(arrays), rows)
                _check_room(path, (rows - start) * row_bytes(arrays))
            pending.append(arrays)
            if end >= stop:
                _write_shard(path, index, end, pending)
                pending = []
                if journal is not None:
                    journal.clear()
            if progress is not None:
                progress(f"{order.name}: answers of the teacher", end, rows)
        return open_cache(path, facts), asked


def _begin(path: Path, facts: Facts, order: Order) -> dict[str, Any]:
    """The index so far, or a fresh one."""
    if (path / INDEX).is_file():
        return dict(open_cache(path, facts).index)
    ids = np.ascontiguousarray(order.batches.ids[order.positions])
    return {
        "version": VERSION,
        "name": order.name,
        "facts": dict(facts),
        "num_samples": len(ids),
        "views": order.views,
        "num_outputs": order.num_outputs,
        "ids": _write_array(path / IDS, ids),
        "tensors": {},
        "shards": [],
    }


def _pieces(order: Order, row: int, journal: Journal | None) -> Iterator[tuple[int, int, dict[str, Array] | None]]:
    """(start, end, answers if they were written down before) of the rows from `row` on, each within one view."""
    for start, end, arrays in journal.replay(row) if journal is not None else ():
        yield start, end, arrays
        row = end
    samples = len(order.positions)
    while row < order.rows:
        end = min(row + order.batch_size, (row // samples + 1) * samples)
        yield row, end, None
        row = end


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path).free
    if needed > free:
        raise StorageError(
            f"the teacher cache {path} takes another {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free; "
            "free some, choose another place with --cache, or keep less (fewer data.views, distill.cache_top_k); what "
            "was built is kept"
        )


def _write_shard(path: Path, index: dict[str, Any], end: int, pending: list[Mapping[str, Array]]) -> None:
    number = len(index["shards"])
    start = index["shards"][-1]["stop"] if number else 0
    files = {}
    for position, name in enumerate(pending[0]):
        values = np.concatenate([arrays[name] for arrays in pending])
        files[name] = _write_array(path / f"{number:05d}.{position}.npy", values)
        index["tensors"][name] = {"dtype": values.dtype.name, "shape": list(values.shape[1:])}
    index["shards"].append({"start": start, "stop": end, "files": files})
    write_json(path / INDEX, index)


def row_bytes(arrays: Mapping[str, Array]) -> int:
    """What one row of these takes."""
    return sum(math.prod(array.shape[1:]) * array.itemsize for array in arrays.values())


def _shard_rows(arrays: Mapping[str, Array]) -> int:
    return max(1, min(SHARD_ROWS, SHARD_BYTES // max(row_bytes(arrays), 1)))


def _write_array(path: Path, array: Array) -> dict[str, Any]:
    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    write_atomically(path, fill)
    return {"file": path.name, "size_bytes": path.stat().st_size, "sha256": sha256_file(path)}
