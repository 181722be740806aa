"""`webdataset`: tar shards, ROOT/train-000.tar and so on, or one .tar file; never unpacked.

    KEY.jpg (or another image, or KEY.npy) followed by KEY.cls or KEY.json; other files are left out

KEY.cls holds the class, as a number or a name; of a KEY.json, `data.target` names the key (or keys) to learn. A key
stands once in a split, and its files stand together. Shards that say no split in their name are shared out by their
keys, so adding samples never moves the others. Each shard is read through once, for an index that is kept.

The layout is that of https://github.com/webdataset/webdataset.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.data.checks import as_targets, default_labels
from edgekd.data.image_folder import SUFFIXES
from edgekd.data.shards import kept_folder, shards_by_split, signature, stored_pool
from edgekd.data.source import Raw, Request, Source, UnusableSamples
from edgekd.data.store import MAX_PROBLEMS, Encoded, Positions
from edgekd.errors import DataError
from edgekd.files import canonical_json, write_atomically
from edgekd.rows import Array

VERSION = 1
IMAGES = frozenset(suffix[1:] for suffix in SUFFIXES)
ARRAY, CLASS, TABLE = "npy", "cls", "json"
_END = 512

Members = dict[str, tarfile.TarInfo]


@dataclass(frozen=True)
class Index:
    """Where the samples of a split lie: (N,) each. `y` is as it was written: numbers, texts, or (N, D) numbers."""

    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    ids: NDArray[np.int64]
    y: Array


def read(request: Request) -> Source:
    """Samples as `prepare` makes them. Raises `UnusableSamples` that names every one that is damaged, twice there,
    without a label, or called by a name that leads out of its archive."""
    splits = shards_by_split(request, (".tar",))
    indices: dict[str, Index] = {}
    problems: list[str] = []
    for split, paths in splits.items():
        try:
            indices[split] = _index(request, split, paths)
        except UnusableSamples as error:
            problems += error.problems
    if problems:
        raise UnusableSamples(problems)
    labels = request.labels or default_labels(indices["train"].y, request.task, where=f"{request.root}")
    pools = {}
    for split, paths in splits.items():
        index = indices[split]
        y = as_targets(index.y, request.task, labels, where=f"{request.root} ({split})")
        pools[split] = stored_pool(request, split, paths, _encoded(index, paths), y, index.ids)
    name = request.root.resolve().name.removesuffix(".tar") if request.root is not None else request.kind
    return Source(name, tuple(labels), "not stated", pools)


def _index(request: Request, split: str, paths: Sequence[Path]) -> Index:
    """The index of a split, as it is kept or made anew."""
    facts = canonical_json([VERSION, split, signature(paths), request.target])
    kept = kept_folder(request) / f"{split}.npz"
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            if str(arrays["facts"]) == facts:
                return Index(*(arrays[name] for name in ("shard", "offset", "size", "ids", "y")))
    except (OSError, ValueError, KeyError, EOFError):
        pass  # not there, or of no use: it is made again
    index = scan(paths, request.target, split=split)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, facts=np.array(facts), **vars(index))

    write_atomically(kept, write)
    return index


def scan(paths: Sequence[Path], target: Sequence[str], *, split: str) -> Index:
    """The index of the shards of a split, from their headers and labels. Raises `UnusableSamples`."""
    shards, offsets, sizes, ids = array("i"), array("q"), array("q"), array("q")
    values: list[Any] = []
    problems: list[str] = []
    for number, path in enumerate(paths):
        for key, members in _samples(path, problems):
            sample, value = _sample(path, key, members, target, problems)
            if sample is None:
                continue
            shards.append(number)
            offsets.append(sample.offset_data)
            sizes.append(sample.size)
            ids.append(int.from_bytes(hashlib.sha256(f"{split}/{key}".encode()).digest()[:8], "big") >> 1)
            values.append(value)
        if len(problems) >= MAX_PROBLEMS:
            raise UnusableSamples(problems[:MAX_PROBLEMS])
    found = np.array(ids, np.int64)
    order = np.argsort(found, kind="stable")
    again = np.sort(order[1:][found[order[1:]] == found[order[:-1]]])
    index = Index(
        np.array(shards, np.int32), np.array(offsets, np.int64), np.array(sizes, np.int64), found, _targets(values)
    )
    for name in _names(index, paths, again[:MAX_PROBLEMS]):
        problems.append(f"{name}: its key is there twice; give each sample of a split a key of its own")
    if problems:
        raise UnusableSamples(problems)
    if not values:
        raise DataError(f"{paths[0]} and what belongs to it hold no sample; expected KEY.jpg with KEY.cls, for example")
    return index


def _samples(path: Path, problems: list[str]) -> Iterator[tuple[str, Members]]:
    """The files of each key, one key after the other."""
    key, members = "", Members()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                wrong = _refusal(member)
                if wrong is not None:
                    problems.append(f"{path}: {member.name}: {wrong}")
                    continue
                folder, _, base = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                if not stem:
                    continue
                if f"{folder}/{stem}" != key and members:
                    yield key, members
                    members = Members()
                key = f"{folder}/{stem}"
                if suffix.lower() in members:
                    problems.append(f"{path}: {member.name}: it is there twice; remove one")
                members[suffix.lower()] = member
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            block = file.read(_END)
        if len(block) < _END or any(block):
            problems.append(f"{path}: it is cut off or damaged at byte {end}; make it again")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        problems.append(f"{path}: it cannot be read as a tar file ({error}); expected .tar without compression")
    if members:
        yield key, members


def _refusal(member: tarfile.TarInfo) -> str | None:
    """Why a file in an archive is not even looked at."""
    parts = PurePosixPath(member.name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in member.name:
        return "its name leads out of the archive; expected a relative one"
    if not member.isreg() or member.issparse():
        return "it is a link, a device or a file with holes; expected a plain file"
    return None


def _sample(
    path: Path, key: str, members: Members, target: Sequence[str], problems: list[str]
) -> tuple[tarfile.TarInfo | None, Any]:
    """The file of the sample and its label; nothing where there is no sample, or something is wrong."""
    where = f"{path}: {key.removeprefix('/')}"
    samples = [name for name in members if name in IMAGES or name == ARRAY]
    label = TABLE if target else CLASS
    if not samples:
        if label in members:
            problems.append(f"{where}.{label}: there is no image and no .npy beside it")
        return None, None
    if len(samples) > 1:
        problems.append(f"{where}: there are {' and '.join(samples)}; expected one image or .npy for each key")
        return None, None
    if label not in members:
        hint = "" if target or TABLE not in members else "; data.target names the key in its .json"
        problems.append(f"{where}.{samples[0]}: there is no {label} beside it{hint}")
        return None, None
    with path.open("rb") as file:
        file.seek(members[label].offset_data)
        text = file.read(members[label].size)
    try:
        return members[samples[0]], _label(text.decode("utf-8").strip(), target)
    except (ValueError, KeyError, TypeError) as error:
        problems.append(f"{where}.{label}: {error.args[0] if isinstance(error, KeyError) else error}")
        return None, None


def _label(text: str, target: Sequence[str]) -> Any:
    """A number, a text, or a list of numbers. Raises `ValueError` or `KeyError` that says what is wrong."""
    if not target:
        if not text:
            raise ValueError("it is empty, expected a class")
        return int(text) if text.lstrip("-").isdecimal() else sys.intern(text)
    table = json.loads(text)
    if not isinstance(table, Mapping):
        raise ValueError(f"it holds a {type(table).__name__}, expected an object")
    found = []
    for name in target:
        if name not in table:
            raise KeyError(f"it has no '{name}' (data.target); it has {', '.join(sorted(table)) or 'nothing'}")
        found.append(table[name])
    values = found if len(found) > 1 else found[0]
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, (int, float) if isinstance(values, list) else (int, float, str)) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise ValueError(f"'{', '.join(target)}' is {json.dumps(values)[:40]}, expected finite numbers or a text")
    return values


def _targets(values: Sequence[Any]) -> Array:
    """One array of labels: of whole numbers, numbers or texts."""
    lengths = {len(value) if isinstance(value, list) else 0 for value in values}
    if len(lengths) > 1:
        raise DataError(f"data.target: samples have {sorted(lengths)} numbers (0: a single one), expected as many each")
    if any(isinstance(value, str) for value in values):
        return np.array([str(value) for value in values])
    numbers = np.array(values)
    return numbers if numbers.dtype.kind in "iu" else numbers.astype(np.float64)


def _encoded(index: Index, paths: Sequence[Path]) -> Encoded:
    def read_members(positions: Positions) -> Iterable[Raw | DataError]:
        for shard, group in groupby(positions, key=lambda position: int(index.shard[position])):
            with paths[shard].open("rb") as file:
                for position in group:
                    file.seek(int(index.offset[position]))
                    yield _open(file.read(int(index.size[position])))

    return Encoded(len(index.ids), read_members, lambda positions: _names(index, paths, positions))


def _open(data: bytes) -> Raw | DataError:
    if not data.startswith(b"\x93NUMPY"):
        return data
    try:
        loaded: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        return DataError(f"it cannot be read as .npy: {error}; write it with numpy.save")
    return loaded


def _names(index: Index, paths: Sequence[Path], positions: Positions) -> list[str]:
    """`SHARD: FILE` of some samples, in ascending order; looked up in the shards, as no index keeps names."""
    names = []
    for shard, group in groupby(positions, key=lambda position: int(index.shard[position])):
        with tarfile.open(paths[shard], "r:") as tar:
            at = {member.offset_data: member.name for member in tar}
        names += [f"{paths[shard]}: {at.get(int(index.offset[position]), 'a file')}" for position in group]
    return names
