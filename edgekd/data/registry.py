"""The kinds of data, and `load_dataset`, which reads any of them into splits that were checked and hashed.

Adding a kind = its file with `read(request) -> Source`, its test, one row of KINDS.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from edgekd.data.checks import check_splits
from edgekd.data.source import Pool, Prepare, Progress, Request, Source, UnusableSamples
from edgekd.data.splits import Positions, shuffled, split_positions
from edgekd.errors import DataError, nearest
from edgekd.references import code_sha256
from edgekd.rows import DiskRows
from edgekd.spec import Dataset, Split, Task

KINDS: dict[str, str] = {
    "digits": "edgekd.data.digits:read",
    "mnist": "edgekd.data.mnist:read",
    "fashion_mnist": "edgekd.data.mnist:read",
    "image_folder": "edgekd.data.image_folder:read",
    "arrays": "edgekd.data.arrays:read",
    "webdataset": "edgekd.data.webdataset:read",
    "arrow": "edgekd.data.arrow:read",
    "text": "edgekd.data.text:read",
    "huggingface": "edgekd.data.huggingface:read",
    "sst2": "edgekd.data.text:read_sst2",
    "clinc150": "edgekd.data.text:read_clinc150",
}
OWN = "edgekd.data.own:read"
SPLITS = ("train", "val", "test")


def load_dataset(
    *,
    kind: str,
    root: str | os.PathLike[str] | None = None,
    task: Task = "classification",
    labels: Sequence[str] | None = None,
    target: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    prepare: Prepare | None = None,
    seed: int = 0,
    search_path: str | os.PathLike[str] | None = None,
    licence: str | None = None,
    download: bool = True,
    limit: int | None = None,
    steps: str = "",
    store: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    text: str | None = None,
    targets: bool = True,
) -> Dataset:
    """Read a data set.

    kind           one of KINDS, or "package.module:function" for your own (see edgekd.data.own)
    root           file or folder; mnist and fashion_mnist: EDGEKD_DATA, then the user's cache, when None
    labels         names of the outputs, in order; from the data when None
    target         arrays in a .csv file, webdataset with .json, arrow, text: the columns to predict
    text           text: the column that holds the texts
    val_fraction   of the training samples, where the data has no validation split of its own; `test_fraction` alike
    prepare        one raw sample (path, encoded bytes or array) through the spatial steps
                   (edgekd.device.preprocess.prepare)
    seed           decides the splits and their order
    search_path    folder where "package.module:function" is looked for first
    licence        of the data, instead of the one that the reader knows
    limit          keep so many samples of each split at most (a fair draw)
    steps          what `prepare` does, in words that change with it; samples of webdataset and arrow are kept decoded
                   under them
    store          the folder where they are kept; None: edgekd's cache folder
    progress       hears how decoding goes on
    targets        whether `y` will be read; if not, texts need no labels (`y` is 0), and one class is enough

    Raises `DataError` for data that is missing, corrupt, contradictory or not finite, with the place.
    """
    if kind not in KINDS and ":" not in kind:
        raise DataError(f"data.kind: found '{kind}'. {nearest(kind, KINDS)}, or your own 'package.module:function'")
    module, _, function = KINDS.get(kind, OWN).partition(":")
    request = Request(
        kind=kind,
        root=None if root is None else Path(root),
        task=task,
        labels=tuple(labels or ()),
        target=tuple(target or ()),
        prepare=prepare,
        search_path=None if search_path is None else Path(search_path),
        download=download,
        steps=steps,
        store=None if store is None else Path(store),
        progress=progress,
        text=text,
        targets=targets,
    )
    source = cast(Source, getattr(importlib.import_module(module), function)(request))
    fractions = {"val": val_fraction, "test": test_fraction}
    splits = _split(source, task, fractions={k: v for k, v in fractions.items() if k not in source.pools}, seed=seed)
    read = _read({name: (pool, positions[:limit]) for name, (pool, positions) in splits.items()})
    check_splits(read, task if targets else None, labels=source.labels, name=source.name)
    return Dataset(
        name=source.name,
        task=task,
        labels=source.labels,
        train=read["train"],
        val=read["val"],
        test=read["test"],
        licence=licence or source.licence,
        sha256=_hash(source.labels, read),
    )


def source_signature(
    *, kind: str, root: str | os.PathLike[str] | None, search_path: str | os.PathLike[str] | None
) -> str:
    """Changes when the source changes (names, sizes and times of its files, the text of its code); reads no sample."""
    digest = hashlib.sha256(f"{kind}\n{root}\n".encode())
    if ":" in kind:
        digest.update((code_sha256(kind, search_path) or "").encode())
    if kind == "digits":
        from importlib.metadata import version

        digest.update(version("scikit-learn").encode())
    place = None if root is None else Path(root)
    if kind in ("mnist", "fashion_mnist"):
        from edgekd.data.mnist import folder_of

        place = folder_of(kind, place)
    if place is not None and place.exists():
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        for path in files:
            status = path.stat()
            digest.update(f"{path.relative_to(place)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _split(source: Source, task: Task, *, fractions: dict[str, float], seed: int) -> dict[str, tuple[Pool, Positions]]:
    train = source.pools["train"]
    positions = split_positions(train.ids, train.y, task, fractions=fractions, seed=seed)
    splits = {}
    for name in SPLITS:
        pool = train if name in positions else source.pools[name]
        splits[name] = (pool, positions[name] if name in positions else shuffled(pool.ids, seed=seed))
    return splits


def _read(splits: Mapping[str, tuple[Pool, Positions]]) -> dict[str, Split]:
    """The samples of all splits; what is wrong with some of them is told for all splits at once."""
    read: dict[str, Split] = {}
    problems: list[str] = []
    for name, (pool, positions) in splits.items():
        if not len(positions):
            raise DataError(
                f"the split '{name}' is empty: {len(pool.y)} samples are too few to share out; expected at least 3 "
                "of every class, or a larger data.val_fraction or data.test_fraction"
            )
        try:
            x = pool.read(positions)
        except UnusableSamples as error:
            problems += error.problems
            continue
        x = x if isinstance(x, DiskRows) else np.ascontiguousarray(x[:])
        read[name] = Split(x, pool.y[positions], pool.ids[positions])
    if problems:
        raise UnusableSamples(problems)
    return read


def _hash(labels: Sequence[str], splits: dict[str, Split]) -> str:
    digest = hashlib.sha256("\0".join(labels).encode())
    for name in SPLITS:
        for rows in (splits[name].x, splits[name].y, splits[name].ids):
            digest.update(f"{name} {rows.dtype.str} {rows.shape}".encode())
            # Rows on the disk are known by the hashes that they were given when they were decoded.
            found = rows.digests[rows.positions] if isinstance(rows, DiskRows) else rows[:]
            digest.update(np.ascontiguousarray(found).data)
    return digest.hexdigest()
