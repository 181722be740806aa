"""Data in many files: which belong to which split, and where what was made of them is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.data.download import cache_folder
from edgekd.data.source import Pool, Request
from edgekd.data.store import Encoded, Positions, stored_rows
from edgekd.errors import DataError, UsageError
from edgekd.files import canonical_json, sha256_bytes
from edgekd.rows import Rows
from edgekd.spec import Array

# What people call the splits, in the names of files and folders.
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
FOLDER = "data"


def shards_by_split(request: Request, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """The files at or below `request.root` with these suffixes, sorted, by split; all are "train" where none says.

    A file says its split by a word of its path below the root: train-000.tar, validation/data-00000-of-00002.arrow.
    Raises `DataError` when there is none, or some say their split and others do not.
    """
    root, kind = request.root, request.kind
    what = " or ".join(suffixes)
    if root is None or not root.exists():
        raise DataError(f"{kind}: there is no {root}; expected data.root = a {what} file, or a folder of them")
    if root.is_file():
        if root.suffix not in suffixes:
            raise DataError(f"{kind}: {root} ends in '{root.suffix}', expected {what}")
        return {"train": [root]}
    paths = sorted(path for suffix in suffixes for path in root.rglob(f"*{suffix}") if path.is_file())
    if not paths:
        raise DataError(f"{kind}: {root} holds no file that ends in {what}; unpack compressed ones first")
    splits: dict[str, list[Path]] = {}
    for path in paths:
        splits.setdefault(_split_of(path.relative_to(root).as_posix(), root), []).append(path)
    if set(splits) == {""}:
        return {"train": paths}
    if "" in splits or "train" not in splits:
        found = f"{splits[''][0]} says none" if "" in splits else f"there are only {', '.join(sorted(splits))}"
        raise DataError(
            f"{kind}: some files below {root} say their split, but {found}; expected train, and val and test where "
            "there are any, as a word in each name or folder (train-000, validation/...), or in none"
        )
    return splits


def _split_of(name: str, root: Path) -> str:
    found = {SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_OF}
    if len(found) > 1:
        raise DataError(f"{root / name} says several splits: {', '.join(sorted(found))}; expected one")
    return found.pop() if found else ""


def kept_folder(request: Request) -> Path:
    """Where what was made of this data is kept: one folder for each place that data comes from."""
    root = request.store if request.store is not None else cache_folder(FOLDER)
    place = "" if request.root is None else str(request.root.resolve())
    return root / sha256_bytes(f"{request.kind}\n{place}".encode())[:24]


def signature(paths: Sequence[Path]) -> str:
    """Changes when one of the files does: by names, sizes and times."""
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return sha256_bytes(canonical_json(found).encode())


def stored_pool(
    request: Request, split: str, paths: Sequence[Path], encoded: Encoded, y: Array, ids: Array, **facts: Any
) -> Pool:
    """The samples of one split of shards, decoded into a store when they are first asked for."""
    prepare = request.prepare
    if prepare is None:
        raise UsageError(
            f"{request.kind} needs prepare=, the function that decodes a sample (edgekd.device.preprocess)"
        )
    folder = kept_folder(request) / f"{split}-{sha256_bytes(request.steps.encode())[:16]}"
    known: Mapping[str, Any] = {
        "source": signature(paths),
        "steps": request.steps,
        "pillow": _version("pillow"),
        **facts,
    }

    def read(positions: Positions) -> Rows:
        name = f"{request.root} ({split})"
        return stored_rows(
            folder, encoded, positions, facts=known, prepare=prepare, name=name, progress=request.progress
        )

    return Pool(y, np.ascontiguousarray(ids, np.int64), read)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
