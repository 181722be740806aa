"""Samples that may be more than fit into memory: each is decoded once, into a file that is mapped into memory.

    STORE/index.json     what the rows depend on, their type and shape
    STORE/rows           prepared samples one after the other, row i that of sample i; a hole where none is yet
    STORE/digests        16 bytes of the sha256 of each row; zeros where none is yet
    STORE/build.lock     held while a process decodes

Any sample is then as near as any other: training draws from them, shuffled, as from an array in memory, and the
operating system keeps in memory what fits. At most `CHUNK` decoded samples are held while the files are written. A
row counts when its digest is there, which is written after the row is on the disk; so a killed process loses one chunk.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgekd.data.source import Prepare, Progress, Raw, UnusableSamples
from edgekd.errors import DataError, StorageError, explain_os_errors
from edgekd.files import canonical_json, held, sha256_bytes, write_json
from edgekd.rows import Array, DiskRows

VERSION = 1
INDEX, ROWS, DIGESTS, LOCK = "index.json", "rows", "digests", "build.lock"
DIGEST_BYTES = 16
CHUNK = 256
# So many samples that cannot be used are told; the next run tells of the others.
MAX_PROBLEMS = 100

Positions = NDArray[np.intp]


@dataclass(frozen=True)
class Encoded:
    """Samples as they lie in the files of a data set.

    count  how many
    read   those at some positions (ascending), in that order, one after the other: a path, encoded bytes or an array
           each, or the `DataError` why it cannot be read
    names  what to call those at some positions (ascending), for people
    """

    count: int
    read: Callable[[Positions], Iterable[Raw | DataError]]
    names: Callable[[Positions], Sequence[str]]


def stored_rows(
    folder: Path,
    encoded: Encoded,
    positions: Positions,
    *,
    facts: Mapping[str, Any],
    prepare: Prepare,
    name: str,
    progress: Progress | None = None,
) -> DiskRows:
    """The prepared samples at `positions`, in that order; those that are not in the store `folder` yet are decoded now.

    facts  what the rows depend on beside the code; a store with others is made anew

    Raises `UnusableSamples` that names those that cannot be decoded or differ in shape, and `StorageError` when the
    disk is too small or another process is decoding.
    """
    facts = json.loads(canonical_json({"version": VERSION, "count": encoded.count, **facts}))
    store = _Store(folder, facts)
    if not store.has(positions):
        refusal = (
            f"another edgekd process is decoding {name} into {folder}; run the same command again when it has ended: "
            "the samples are then used as they are"
        )
        with held(folder / LOCK, purpose="data that may not fit into memory", refusal=refusal):
            _fill(store, encoded, np.unique(positions), prepare, name, progress)
    return store.rows(positions)


@dataclass(frozen=True)
class _Store:
    folder: Path
    facts: Mapping[str, Any]

    def index(self) -> Mapping[str, Any] | None:
        """What the store says of itself; None when it is not there, or belongs to other facts."""
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            size = int(self.facts["count"]) * _row_bytes(index)
            is_whole = (self.folder / ROWS).stat().st_size == size
            is_whole &= (self.folder / DIGESTS).stat().st_size == int(self.facts["count"]) * DIGEST_BYTES
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return index if index["facts"] == self.facts and is_whole else None

    def has(self, positions: Positions) -> bool:
        """Whether all these rows are there."""
        return self.index() is not None and not len(self.missing(positions))

    def missing(self, positions: Positions) -> Positions:
        """Those of the positions whose rows are not there."""
        is_there = np.asarray(self._digests()[positions]).any(axis=1)
        return positions[~is_there]

    def create(self, first: Array) -> None:
        """An empty store for rows like `first`. Whoever still reads from an older one keeps it."""
        count = int(self.facts["count"])
        for old in (INDEX, ROWS, DIGESTS):
            (self.folder / old).unlink(missing_ok=True)
        index = {"facts": dict(self.facts), "dtype": first.dtype.str, "shape": list(first.shape)}
        for name, size in ((ROWS, first.nbytes), (DIGESTS, DIGEST_BYTES)):
            with (self.folder / name).open("wb") as file:
                file.truncate(count * size)
        write_json(self.folder / INDEX, index)

    def rows(self, positions: Positions) -> DiskRows:
        """The rows at these positions, which are all there."""
        index = self.index()
        if index is None:
            raise DataError(f"{self.folder} was changed by another process; run the same command again")
        shape = (int(self.facts["count"]), *index["shape"])
        mapped = np.memmap(self.folder / ROWS, np.dtype(index["dtype"]), mode="r", shape=shape)
        return DiskRows(np.asarray(mapped), np.asarray(self._digests()), positions)

    def _digests(self) -> Array:
        shape = (int(self.facts["count"]), DIGEST_BYTES)
        return np.memmap(self.folder / DIGESTS, np.uint8, mode="r", shape=shape)


def _fill(
    store: _Store, encoded: Encoded, positions: Positions, prepare: Prepare, name: str, progress: Progress | None
) -> None:
    """Decode the samples at `positions` (ascending) that the store does not hold."""
    index = store.index()
    todo = positions if index is None else store.missing(positions)
    problems: list[str] = []
    raws = iter(encoded.read(todo))
    with explain_os_errors(store.folder), ThreadPoolExecutor() as pool:
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            found = list(pool.map(lambda raw: _prepared(raw, prepare), _next(raws, len(chunk), name)))
            good = [row for row in found if not isinstance(row, str)]
            if index is None and good:
                store.create(good[0])
                index = store.index()
            if index is not None:
                if start == 0 or start % (64 * CHUNK) == 0:
                    _check_room(store.folder, (len(todo) - start) * _row_bytes(index), name)
                expected = f"{np.dtype(index['dtype'])} {index['shape']}"
                found = [_like(row, expected) for row in found]
                _write(store.folder, chunk, found)
            wrong = [number for number, row in enumerate(found) if isinstance(row, str)]
            if wrong:
                names = encoded.names(chunk[wrong])
                problems += [f"{place}: {found[number]}" for place, number in zip(names, wrong)]
            if len(problems) >= MAX_PROBLEMS:
                break
            if progress is not None:
                progress(f"decoding {name}", min(start + CHUNK, len(todo)), len(todo))
    if problems:
        raise UnusableSamples(problems)


def _next(raws: Iterator[Raw | DataError], count: int, name: str) -> list[Raw | DataError]:
    try:
        return list(islice(raws, count))
    except OSError as error:
        raise DataError(f"{name} cannot be read any more ({error}); are its files still there?") from error


def _prepared(raw: Raw | DataError, prepare: Prepare) -> Array | str:
    """The sample, or why it cannot be used."""
    if isinstance(raw, DataError):
        return str(raw)
    try:
        row = np.ascontiguousarray(prepare(raw))
    except (DataError, OSError) as error:
        return str(error)
    if row.dtype != np.uint8:
        row = row.astype(np.float32, copy=False)
        if not np.isfinite(row).all():
            return "holds NaN or infinite values; remove or repair it"
    return row


def _like(row: Array | str, expected: str) -> Array | str:
    found = row if isinstance(row, str) else f"{row.dtype} {list(row.shape)}"
    if isinstance(row, str) or found == expected:
        return row
    return (
        f"is {found}, but the others are {expected}; add a step " + '{op = "resize", size = [height, width]} '
        "(and to_rgb or to_grey) to preprocess.steps"
    )


def _write(folder: Path, positions: Positions, rows: Sequence[Array | str]) -> None:
    """Rows, and then their digests. Written, not mapped: a full disk is then an error and no crash."""
    with (folder / ROWS).open("r+b") as file, (folder / DIGESTS).open("r+b") as digests:
        good = [(int(position), row) for position, row in zip(positions, rows) if not isinstance(row, str)]
        for position, row in good:
            file.seek(position * row.nbytes)
            file.write(row.data)
        _sync(file)
        for position, row in good:
            digests.seek(position * DIGEST_BYTES)
            digests.write(bytes.fromhex(sha256_bytes(row.tobytes()))[:DIGEST_BYTES])


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_room(folder: Path, needed: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"the decoded samples of {name} take {needed / 1e6:,.1f} MB in {folder}, but only {free / 1e6:,.1f} MB are "
            "free; free some, choose another place with EDGEKD_CACHE, take smaller images (resize in "
            "preprocess.steps) or fewer of them (data.limit)"
        )


def _row_bytes(index: Mapping[str, Any]) -> int:
    return int(np.dtype(index["dtype"]).itemsize * np.prod(index["shape"], dtype=np.int64))
