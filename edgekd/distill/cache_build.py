"""Fills a teacher cache: every view of every sample through the teacher, once.

Shard after shard is written atomically and then named in the index, so that a killed build goes on at the next shard.
A teacher whose answers cost money or patience writes a journal besides: then no answer is asked for twice.
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from edgekd.distill.answers import LOGITS
from edgekd.distill.batches import Batches, Positions
from edgekd.distill.cache import IDS, INDEX, JOURNAL, VERSION, Cache, Facts, building, cache_key, find_cache, open_cache
from edgekd.distill.distribution import ALONE, World
from edgekd.distill.execution import autocast
from edgekd.distill.journal import Journal
from edgekd.distill.stored import PIXELS, TOPK_LOGITS, Store, encode, pixels_of, shown
from edgekd.distill.teachers import Teacher, check_finite
from edgekd.errors import DataError, EdgekdError, StorageError, UsageError
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
    concurrency so many questions at a time, of a teacher that is far away
    bfloat16    the teacher computes under autocast, as it may beside the student
    """

    teacher: Teacher
    batches: Batches
    store: Store
    num_outputs: int
    name: str
    batch_size: int = 512
    journal: bool = False
    place: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = dict
    concurrency: int = 1
    bfloat16: bool = False

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
        return self.ask_about(self.batch(start, end))

    def answer(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the teacher says about a batch."""
        with autocast(batch["x"].device, bfloat16=self.bfloat16):
            return self.teacher(batch)

    def ask_about(self, batch: Mapping[str, Tensor]) -> dict[str, Array]:
        """The teacher's answers to a batch, as they are kept."""
        named = self.answer(batch)
        missing = [tap for tap in self.store.taps if tap not in named]
        if missing:
            raise UsageError(f"the teacher gives {', '.join(sorted(named))}; {', '.join(missing)} cannot be kept")
        if LOGITS in named:  # on a GPU the teacher itself does not look each time
            check_finite(named[LOGITS], batch, "the teacher")
        answers = encode(named, self.store, num_outputs=self.num_outputs)
        return {**answers, PIXELS: pixels_of(shown(batch)).numpy()}


def build_cache(
    root: Path, facts: Facts, order: Order, *, progress: Progress | None = None, world: World = ALONE
) -> tuple[Cache, int]:
    """The cache of these facts below `root`, built or finished if it is not complete; and how many rows were asked for.

    The processes of `world` all call this with the same arguments: each answers every so manieth shard, process 0 holds
    the folder and writes the index after each round. The files are those that one process would write.

    Raises `UsageError` for endless views, `DataError` for a damaged or foreign cache, `StorageError` when another
    process builds it or the disk is too small, and whatever the teacher raises: what it answered so far is kept.
    """
    found = world.share(find_cache(root, facts) if world.leads else None)
    if found is not None:
        return found, 0
    path, rows = root / cache_key(facts), order.rows
    with building(path) if world.leads else nullcontext():
        found = world.share(find_cache(root, facts) if world.leads else None)  # another one may have finished it
        if found is not None:
            return found, 0
        if world.leads:
            for left in path.glob(f"{TEMPORARY}*"):  # of a process that was killed while writing
                left.unlink(missing_ok=True)
        index = world.share(_begin(path, facts, order) if world.leads else {})
        # A teacher that is far away is asked by one process: the others would only stand in the queue.
        crew = 1 if order.journal else world.size
        own = _build(path, index, order, rows, progress, world, crew) if world.rank < crew else 0
        asked = sum(world.collect(own))  # the index is whole when all have come here
        return open_cache(path, facts), asked


def _build(
    path: Path, index: dict[str, Any], order: Order, rows: int, progress: Progress | None, world: World, crew: int
) -> int:
    """Write the shards that are missing, `crew` processes one each at a time; how many rows this one asked for."""
    row = index["shards"][-1]["stop"] if index["shards"] else 0
    journal = Journal(path / JOURNAL) if order.journal else None
    given = {} if journal is None else {(start, end): arrays for start, end, arrays in journal.replay(row)}
    if any(TOPK_LOGITS in names for names in (index["tensors"], *given.values())):
        raise DataError(
            f"the teacher cache {path} was begun by an earlier edgekd, which kept a top-k in another form; finish it "
            "with that one (what is complete can be read), or delete it to ask the teacher anew"
        )
    asked = 0

    def note(piece: Piece, arrays: Mapping[str, Array]) -> None:
        nonlocal asked
        asked += piece[1] - piece[0]
        if journal is not None:
            journal.append(*piece, arrays)

    pieces = list(_pieces(order, row, given))
    size = 0
    if world.leads:  # how wide an answer is shows the first one
        given[pieces[0]] = dict(next(answers(order, pieces[:1], given, note)))
        size = row_bytes(given[pieces[0]])
    size = world.share(size) if crew > 1 else size
    shards = _shards(pieces, rows, _shard_rows(size))
    for first in range(0, len(shards), crew):
        entry = None
        if first + world.rank < len(shards):
            own = shards[first + world.rank]
            _check_room(path, (rows - shards[first][0][0]) * size)
            pending = []
            for (_, end), arrays in zip(own, answers(order, own, given, note)):
                pending.append(arrays)
                if progress is not None:
                    done = shards[first][0][0] + (end - own[0][0]) * crew
                    progress(f"{order.name}: answers of the teacher", min(done, rows), rows)
            entry = _write_shard(path, len(index["shards"]) + world.rank, own, pending)
        for written in world.collect(entry) if crew > 1 else [entry]:
            if written is not None:
                index["shards"].append(written[0])
                index["tensors"] = written[1]
        if world.leads:
            write_json(path / INDEX, index)
        if journal is not None:
            journal.clear()
    return asked


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


Piece = tuple[int, int]
Note = Callable[[Piece, Mapping[str, Array]], None]


def answers(
    order: Order, pieces: Sequence[Piece], given: dict[Piece, dict[str, Array]], note: Note
) -> Iterator[Mapping[str, Array]]:
    """The answers to `pieces` in their order; those in `given` are taken out of it, the others asked for.

    `note` hears of each answer as it comes, in whatever order: also of those that were on their way when another
    question failed, whose error is raised after them.
    """
    if order.concurrency == 1:
        for piece in pieces:
            arrays = given.pop(piece, None)
            if arrays is None:
                arrays = order.ask(*piece)
                note(piece, arrays)
            yield arrays
        return
    waiting = deque(piece for piece in pieces if piece not in given)
    flying: dict[Future[dict[str, Array]], Piece] = {}
    come = {piece: given.pop(piece) for piece in pieces if piece in given}
    with ThreadPoolExecutor(order.concurrency) as pool:

        def receive() -> None:
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            failed = None
            for future in done:
                piece = flying.pop(future)
                failed = failed or future.exception()
                if future.exception() is None:
                    come[piece] = future.result()
                    note(piece, come[piece])
            if failed is not None:
                raise failed

        try:
            for piece in pieces:
                while piece not in come:
                    while waiting and len(flying) < order.concurrency:
                        asked = waiting.popleft()
                        flying[pool.submit(order.ask_about, order.batch(*asked))] = asked
                    receive()
                yield come.pop(piece)
        finally:
            while flying:
                with suppress(EdgekdError):  # the first failure is the one to tell
                    receive()


def _pieces(order: Order, row: int, given: Iterable[Piece]) -> Iterator[Piece]:
    """(start, end) of the questions from `row` on, each within one view; among them those `given`: asked before."""
    known = {start: end for start, end in given}
    starts = [*sorted(known), order.rows]
    samples = len(order.positions)
    while row < order.rows:
        following = next(start for start in starts if start > row)
        end = known.get(row, min(row + order.batch_size, (row // samples + 1) * samples, following))
        yield row, end
        row = end


def _shards(pieces: Iterable[Piece], rows: int, size: int) -> list[list[Piece]]:
    """The questions of each shard: `size` rows of `rows` in all, and what the last question has more."""
    shards: list[list[Piece]] = [[]]
    for start, end in pieces:
        shards[-1].append((start, end))
        if end >= min(shards[-1][0][0] + size, rows):
            shards.append([])
    return shards[:-1]


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path).free
    if needed > free:
        raise StorageError(
            f"the teacher cache {path} takes another {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free; "
            "free some, choose another place with --cache, or keep less (fewer data.views, distill.cache_top_k); what "
            "was built is kept"
        )


def _write_shard(
    path: Path, number: int, own: Sequence[Piece], pending: Sequence[Mapping[str, Array]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the index says of the shard, and of the tensors in it."""
    files, tensors = {}, {}
    for position, name in enumerate(pending[0]):
        values = np.concatenate([arrays[name] for arrays in pending])
        files[name] = _write_array(path / f"{number:05d}.{position}.npy", values)
        tensors[name] = {"dtype": values.dtype.name, "shape": list(values.shape[1:])}
    return {"start": own[0][0], "stop": own[-1][1], "files": files}, tensors


def row_bytes(arrays: Mapping[str, Array]) -> int:
    """What one row of these takes."""
    return sum(math.prod(array.shape[1:]) * array.itemsize for array in arrays.values())


def _shard_rows(size: int) -> int:
    return max(1, min(SHARD_ROWS, SHARD_BYTES // max(size, 1)))


def _write_array(path: Path, array: Array) -> dict[str, Any]:
    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    write_atomically(path, fill)
    return {"file": path.name, "size_bytes": path.stat().st_size, "sha256": sha256_file(path)}
