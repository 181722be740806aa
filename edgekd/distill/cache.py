"""The teacher cache on the disk: what a teacher answered to each view of each sample, once, for every student.

    ROOT/KEY/index.json                facts that the answers depend on, tensors, shards with sha256; written last
    ROOT/KEY/ids.npy                   (N,) int64 sample ids, sorted
    ROOT/KEY/00000.0.npy               rows of the first tensor; shards follow each other without a gap
    ROOT/KEY/journal.jsonl             answers that have not filled a shard yet (only of teachers behind a URL)
    ROOT/KEY/build.lock                held while a process builds

Row view * N + position belongs to the sample ids[position]. KEY is the hash of the facts, so that the same teacher,
data and augmentation lead here from any run, and others lead elsewhere; whoever looks at fewer tensors of the same
answers is led here too. Plain .npy files, mapped into memory, never unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError, StorageError
from edgekd.files import canonical_json, held, sha256_bytes, sha256_file
from edgekd.spec import Array

VERSION = 1
INDEX, IDS, LOCK, JOURNAL = "index.json", "ids.npy", "build.lock", "journal.jsonl"
_KEY_LENGTH = 24

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Cache:
    """A cache folder as its index describes it; `is_complete` says whether every row is there."""

    path: Path
    index: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.path.name

    @property
    def facts(self) -> Facts:
        """What the answers depend on."""
        facts: Facts = self.index["facts"]
        return facts

    @property
    def views(self) -> int:
        """Views of each sample."""
        return int(self.index["views"])

    @property
    def num_samples(self) -> int:
        """Samples, each in every view."""
        return int(self.index["num_samples"])

    @property
    def num_outputs(self) -> int:
        """Width of the logits."""
        return int(self.index["num_outputs"])

    @property
    def shards(self) -> Sequence[Mapping[str, Any]]:
        """The shards that are written, in the order of their rows."""
        shards: Sequence[Mapping[str, Any]] = self.index["shards"]
        return shards

    @property
    def rows_done(self) -> int:
        """Rows in whole shards."""
        return int(self.shards[-1]["stop"]) if self.shards else 0

    @property
    def is_complete(self) -> bool:
        """Whether the answer to every view of every sample is there."""
        return self.rows_done == self.num_samples * self.views

    @property
    def size_bytes(self) -> int:
        """What its files take on the disk."""
        total = 0
        with suppress(FileNotFoundError):  # another process may remove it meanwhile
            for path in self.path.iterdir():
                total += path.stat().st_size
        return total

    @property
    def used_at(self) -> float:
        """When it was last built or learned from, in seconds since 1970."""
        return (self.path / INDEX).stat().st_mtime

    def ids(self) -> NDArray[np.int64]:
        """The sample ids (N,), sorted."""
        ids: NDArray[np.int64] = _load(self.path / IDS)
        return ids

    def arrays(self, name: str) -> list[Array]:
        """The shards of a tensor, mapped into memory."""
        return [_load(self.path / shard["files"][name]["file"]) for shard in self.shards]

    def touch(self) -> None:
        """Remember that it is used now. In a folder that may not be written nothing is remembered."""
        with suppress(OSError):
            (self.path / INDEX).touch()


def cache_key(facts: Facts) -> str:
    """The name of the folder for these facts."""
    return sha256_bytes(canonical_json(facts).encode())[:_KEY_LENGTH]


def find_cache(root: Path, facts: Facts) -> Cache | None:
    """The complete cache of these facts below `root`, its files checked against their hashes; None if there is none.

    One that keeps further taps, all else equal, will do as well. Raises `DataError` for one that is damaged, or that
    belongs to other facts.
    """
    path = root / cache_key(facts)
    cache = open_cache(path, facts) if (path / INDEX).is_file() else None
    if cache is None or not cache.is_complete:
        cache = _with_more_taps(root, facts)
    if cache is not None:
        check_hashes(cache)
    return cache


def _with_more_taps(root: Path, facts: Facts) -> Cache | None:
    """The smallest complete cache of the same facts that keeps further taps."""
    wanted, others = _taps_and_others(json.loads(json.dumps(facts)))
    found = []
    for cache in list_caches(root) if wanted else []:
        taps, rest = _taps_and_others(cache.facts)
        if wanted < taps and rest == others and cache.is_complete:
            found.append(cache)
    return min(found, key=lambda cache: cache.size_bytes, default=None)


def _taps_and_others(facts: Facts) -> tuple[frozenset[str], dict[str, Any]]:
    """The tensors that are kept, and all other facts."""
    store = facts.get("store")
    if not isinstance(store, dict):
        return frozenset(), dict(facts)
    others = {key: value for key, value in store.items() if key != "taps"}
    return frozenset(map(str, store.get("taps", ()))), {**facts, "store": others}


def list_caches(root: Path) -> list[Cache]:
    """The caches below `root`, the last used first; folders that are none, or cannot be read, are left out."""
    found: list[tuple[float, int, Cache]] = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        with suppress(DataError, StorageError, FileNotFoundError):  # another process may remove one meanwhile
            cache = open_cache(path)
            found.append((-cache.used_at, len(found), cache))
    return [cache for _, _, cache in sorted(found)]


def open_cache(path: Path, facts: Facts | None = None) -> Cache:
    """The cache in the folder `path`, complete or not; its answers are not read yet.

    Raises `DataError` when it cannot be read, comes from a newer edgekd, or, with `facts`, belongs to others: a stale
    cache is never used.
    """
    place = path / INDEX
    try:
        index = json.loads(place.read_text(encoding="utf-8"))
        version = index["version"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is no teacher cache: {INDEX} is not there; `edgekd cache info` lists them") from error
    except OSError as error:
        raise StorageError(f"cannot read {place}: {error.strerror or error}; check its permissions") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place} cannot be read: {error}; {_drop(path)}") from error
    if version != VERSION:
        raise DataError(f"{path} has version {version}, expected {VERSION}; {_drop(path)}")
    cache = Cache(path, index)
    _check_index(cache)
    if facts is not None:
        others = differences(cache.facts, json.loads(json.dumps(facts)))
        if others:
            raise DataError(
                f"the teacher cache {path} holds answers to something else: {'; '.join(others)}; {_drop(path)}"
            )
    return cache


def differences(there: Facts, here: Facts) -> list[str]:
    """One text for each fact that differs: `augment {'shift': 1} there, {'shift': 2} here`."""
    texts = []
    for name in sorted(there.keys() | here.keys()):
        one, other = there.get(name), here.get(name)
        if isinstance(one, dict) and isinstance(other, dict) and name == "teacher":
            texts += [f"{name}.{text}" for text in differences(one, other)]
        elif one != other:
            texts.append(f"{name} {_short(one)} there, {_short(other)} here")
    return texts


def check_hashes(cache: Cache) -> None:
    """Raise `DataError` that names every file of the cache that is missing, cut or changed."""
    problems = []
    for name, size, digest in files_of(cache):
        path = cache.path / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        elif sha256_file(path) != digest:
            problems.append(f"{name} was changed: its sha256 is another")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"the teacher cache {cache.path} is damaged: {'; '.join(problems[:5])}{more}; {_drop(cache.path)}"
        )


def files_of(cache: Cache) -> list[tuple[str, int, str]]:
    """(name, size in bytes, sha256) of every file that holds ids or answers."""
    described = [cache.index["ids"], *(item for shard in cache.shards for item in shard["files"].values())]
    return [(item["file"], item["size_bytes"], item["sha256"]) for item in described]


@contextmanager
def building(path: Path) -> Iterator[None]:
    """Hold the cache folder `path` for this process. Raises `StorageError` at once when another one holds it."""
    refusal = (
        f"another edgekd process is building the teacher cache {path}; run the same command again when it has ended: "
        "the cache is then used as it is"
    )
    with held(path / LOCK, purpose="a teacher cache", refusal=refusal):
        yield


def _check_index(cache: Cache) -> None:
    """What is read from an index must not lead out of its folder, and must add up."""
    row = 0
    try:
        for shard in cache.shards:
            if shard["start"] != row or shard["stop"] <= row:
                raise ValueError(f"a shard begins at row {shard['start']}, expected {row}")
            row = shard["stop"]
        names = [name for name, _, _ in files_of(cache)]
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError("a file lies outside the folder")
        if row > cache.num_samples * cache.views or not isinstance(cache.facts, dict):
            raise ValueError(f"{row} rows, expected at most {cache.num_samples} x {cache.views}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{cache.path / INDEX} makes no sense: {error}; {_drop(cache.path)}") from error


def _load(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}; {_drop(path.parent)}") from error
    return array


def _drop(path: Path) -> str:
    return f"drop it with `edgekd cache prune {path.name}`, and it is built again"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 48 else f"{text[:45]}..."
