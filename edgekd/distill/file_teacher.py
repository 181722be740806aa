"""A teacher whose answers somebody computed before and wrote into a file, by sample id.

`.npz` (numpy.savez) or `.parquet`, one row per sample, in any order:

    ids                                     (N,) whole numbers, each once; `Split.ids` of the data set
    logits                                  (N, C), or for a regression its numbers
    or probabilities                        (N, C), each row sums to 1 (several labels: each of them from 0 to 1)
    or topk_indices and topk_probabilities or topk_log_probabilities    (N, K)
    or labels                               (N,) class numbers or names
    classes                                 (C,) names of the columns; optional, then compared with those of the data

Parquet: a column of lists where the arrays above have two axes; `classes` is a comma-separated text in the file's
metadata. Other columns may hold anything: they are not read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgekd.data.npz import read_npz
from edgekd.distill.answers import CLASSES, KINDS, Ids, classes_of, named_ids, read_answers, with_logits
from edgekd.errors import DataError, MissingExtra, UsageError
from edgekd.spec import Array, Split, Task

if TYPE_CHECKING:
    from pyarrow import ChunkedArray, Table

IDS = "ids"
_READ = frozenset({IDS, *(name for ways in KINDS.values() for names in ways for name in names)})


class LogitsFile:
    """The answers in `path`, for the samples that it names.

    own  the classes of a specialist, whose columns may be these alone (`edgekd.distill.answers.classes_of`)

    An augmented sample gets the answer to the sample as it is: the file knows no views. Raises `DataError` for a
    file that cannot be read, ids that are missing or there twice, and everything that `read_answers` refuses;
    `UsageError` for samples that are mixed of two.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        labels: Sequence[str],
        own: Sequence[str] = (),
        task: Task = "classification",
    ) -> None:
        self.path = Path(path)
        raw = read_file(self.path)
        labels = classes_of(raw, labels, own, where=str(self.path))
        ids_N = _ids(raw.pop(IDS, None), self.path)
        answers = read_answers(raw, ids_N, labels=labels, task=task, where=str(self.path))
        order = np.argsort(ids_N, kind="stable")
        self._num_outputs = len(labels)
        self._ids = torch.from_numpy(ids_N[order])
        self._answers = {name: torch.from_numpy(array[order]) for name, array in answers.items()}

    def check(self, splits: Mapping[str, Split]) -> None:
        """Raise `DataError` that names the samples of `splits` that the file says nothing about."""
        for name, split in splits.items():
            known_N = np.isin(split.ids, self._ids.numpy())
            if not known_N.all():
                raise DataError(
                    f"{self.path} has no answers for {int((~known_N).sum())} of {len(known_N)} samples of {name}, with "
                    f"the ids {named_ids(split.ids[~known_N])}; expected one for every sample of "
                    f"{' and '.join(splits)}. The ids are those of the data set, Split.ids"
                )

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if "ratio" in batch:
            raise UsageError(
                f"mixup and cutmix make samples of two, and {self.path} has answers to each alone; switch them off, or "
                "take a teacher that can be asked"
            )
        ids_N = batch["id"].cpu()
        position_N = torch.searchsorted(self._ids, ids_N).clamp_(max=len(self._ids) - 1)
        strange_N = self._ids[position_N] != ids_N
        if bool(strange_N.any()):
            strange = ids_N[strange_N].numpy()
            raise DataError(
                f"{self.path} has no answers for {len(strange)} of {len(ids_N)} samples, with the ids "
                f"{named_ids(strange)}; add them to the file"
            )
        found = {name: value.index_select(0, position_N) for name, value in self._answers.items()}
        return with_logits(found, self._num_outputs)


def read_file(path: Path) -> dict[str, Array]:
    """The arrays of a file of answers, by name. Raises `DataError` for what is no .npz and no .parquet."""
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise DataError(f"{path}: found a file that ends in '{path.suffix}', expected .npz or .parquet")


def _read_parquet(path: Path) -> dict[str, Array]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "hf", purpose=f"reading {path.name}") from error
    try:
        schema = pyarrow.parquet.read_schema(path)
        table: Table = pyarrow.parquet.read_table(path, columns=[name for name in schema.names if name in _READ])
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}; write it with pyarrow or pandas") from error
    arrays = {name: _column(table.column(name), name, path) for name in table.column_names}
    # What is not read is named where nothing else is found.
    arrays |= {name: np.empty(0) for name in schema.names if name not in {*_READ, CLASSES}}
    stated: Mapping[bytes, bytes] = schema.metadata or {}
    if CLASSES.encode() in stated:
        arrays[CLASSES] = np.array([text.strip() for text in stated[CLASSES.encode()].decode().split(",")])
    return arrays


def _column(column: ChunkedArray, name: str, path: Path) -> Array:
    """A column of numbers or texts as (N,), one of lists of equal length as (N, K)."""
    import pyarrow
    import pyarrow.compute

    if column.null_count:
        raise DataError(f"{path}: the column {name} has {column.null_count} empty cells; fill them or drop the rows")
    kind = column.type
    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind)
    if not is_list:
        return np.asarray(column.to_numpy())
    widths = np.unique(pyarrow.compute.list_value_length(column).to_numpy())
    if len(widths) > 1:
        raise DataError(
            f"{path}: the lists in the column {name} have {widths.min()} to {widths.max()} items, expected the same "
            "number in every row"
        )
    flat = np.asarray(pyarrow.compute.list_flatten(column).to_numpy())
    return flat.reshape(len(column), int(widths[0]) if len(widths) else 0)


def _ids(array: Array | None, path: Path) -> Ids:
    if array is None:
        raise DataError(f"{path} has no array '{IDS}'; expected the sample ids (N,), one for each row")
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise DataError(
            f"{path}: {IDS} is {list(array.shape)} of {array.dtype}, expected one whole number for each row, [N]"
        )
    ids_N: Ids = array.astype(np.int64)
    found, counts = np.unique(ids_N, return_counts=True)
    if (counts > 1).any():
        twice = found[counts > 1]
        raise DataError(
            f"{path}: {len(twice)} ids are there more than once: {named_ids(twice)}; expected one row per sample"
        )
    return ids_N
