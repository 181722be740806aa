"""What every data set must be, whatever its source: numbers, labels and splits that a model can learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekd.errors import DataError
from edgekd.spec import Array, Split, Task


def as_samples(x: Array, *, where: str) -> Array:
    """uint8 stays, other numbers become float32. Raises `DataError` for what is not a finite number."""
    if x.ndim < 2:
        raise DataError(f"{where}: x has the shape {list(x.shape)}, expected (samples, features...)")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind not in "fiub":
        raise DataError(f"{where}: x holds {x.dtype}, expected numbers (uint8 or float32)")
    with np.errstate(over="ignore"):
        numbers: Array = x.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(numbers.reshape(len(x), -1)).all(axis=1))
    if len(wrong):
        raise DataError(f"{where}: x is NaN or infinite {_samples(wrong)}; remove or repair them")
    return numbers


def as_targets(y: Array, task: Task, labels: Sequence[str], *, where: str) -> Array:
    """`y` in the form of `Split`: int64 classes, uint8 marks or float32 targets. Texts are looked up in `labels`."""
    if task == "classification":
        return _classes(y, labels, where)
    if y.dtype.kind not in "fiub":
        raise DataError(f"{where}: y holds {y.dtype}, expected numbers for {task}")
    y = y[:, None] if y.ndim == 1 else y
    if y.ndim != 2:
        raise DataError(f"{where}: y has the shape {list(y.shape)}, expected (samples, outputs) for {task}")
    if labels and y.shape[1] != len(labels):
        raise DataError(f"{where}: y has {y.shape[1]} columns, but {len(labels)} labels are named")
    if task == "multilabel":
        wrong = np.flatnonzero(~np.isin(y, (0, 1)).all(axis=1))
        if len(wrong):
            raise DataError(f"{where}: y holds other values than 0 and 1 {_samples(wrong)}, expected marks of 0 or 1")
        return y.astype(np.uint8)
    wrong = np.flatnonzero(~np.isfinite(y.astype(np.float64)).all(axis=1))
    if len(wrong):
        raise DataError(f"{where}: y is NaN or infinite {_samples(wrong)}; remove or repair them")
    return y.astype(np.float32)


def default_labels(y: Array, task: Task, *, where: str) -> tuple[str, ...]:
    """Names for the outputs when nobody gave any: classes by number or by their own texts, columns by position."""
    if task != "classification":
        width = 1 if y.ndim == 1 else y.shape[1]
        word = "label" if task == "multilabel" else "target"
        return (word,) if width == 1 else tuple(f"{word}_{index}" for index in range(width))
    if y.dtype.kind in "US":
        return tuple(sorted({str(value) for value in y.ravel()}))
    classes = _classes(y, (), where)
    names = tuple(str(index) for index in range(int(classes.max(initial=-1)) + 1))
    absent = sorted(set(range(len(names))) - set(classes.tolist()))
    if absent:
        raise DataError(
            f"{where}: the classes go up to {len(names) - 1}, but no sample has class {_listed(absent)}; expected "
            "classes 0, 1, 2, ... without a gap. Renumber them, or name all of them in data.labels"
        )
    return names


def check_lengths(x: Array, y: Array, *, where: str) -> None:
    """As many samples as targets, and at least one."""
    if len(x) != len(y):
        raise DataError(f"{where}: x has {len(x)} samples, but y has {len(y)}; expected one y for each x")
    if not len(x):
        raise DataError(f"{where}: there are no samples")


def check_splits(splits: Mapping[str, Split], task: Task | None, *, labels: Sequence[str], name: str) -> None:
    """The splits fit one another, and there is something to tell apart, unless nobody asks for that (None)."""
    train = splits["train"]
    for other, split in splits.items():
        if split.x.shape[1:] != train.x.shape[1:] or split.x.dtype != train.x.dtype:
            raise DataError(
                f"{name}: samples of '{other}' are {split.x.dtype} {list(split.x.shape[1:])}, but those of 'train' "
                f"are {train.x.dtype} {list(train.x.shape[1:])}; expected the same"
            )
    if task == "classification":
        seen = np.unique(train.y)
        if len(labels) < 2 or len(seen) < 2:
            only = f"'{labels[int(seen[0])]}'" if len(seen) else "none"
            raise DataError(f"{name}: only one class is there to learn ({only}); expected two or more")


def _classes(y: Array, labels: Sequence[str], where: str) -> Array:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1:
        raise DataError(
            f"{where}: y has the shape {list(y.shape)}, expected one class per sample; several marks per sample "
            "are task = 'multilabel'"
        )
    if y.dtype.kind in "US":
        index = {label: number for number, label in enumerate(labels)}
        unknown = sorted({str(value) for value in y} - set(index))
        if unknown:
            raise DataError(
                f"{where}: y holds {_listed(unknown)}, which is not in labels = [{_listed(labels)}] "
                f"({len(labels)}: those of the recipe, else of the training data); give training samples of it, remove "
                "these samples, or correct data.labels"
            )
        return np.array([index[str(value)] for value in y], dtype=np.int64)
    if y.dtype.kind not in "fiub":
        raise DataError(f"{where}: y holds {y.dtype}, expected class numbers or texts")
    whole = np.isfinite(y) & (y == np.round(y)) if y.dtype.kind == "f" else np.ones(len(y), bool)
    wrong = np.flatnonzero(~whole)
    if len(wrong):
        raise DataError(
            f"{where}: y is not a whole number {_samples(wrong)}; expected class numbers (or task = 'regression')"
        )
    classes = y.astype(np.int64)
    top = len(labels) if labels else None
    wrong = np.flatnonzero((classes < 0) | (classes >= (top or np.iinfo(np.int64).max)))
    if len(wrong):
        expected = f"0 to {top - 1}, for {top} labels" if top else "0 or more"
        raise DataError(
            f"{where}: the label {classes[wrong[0]]} is out of range {_samples(wrong)}; expected {expected}"
        )
    return classes


def _samples(positions: Array) -> str:
    shown = _listed([int(position) for position in positions[:5]])
    more = f" and {len(positions) - 5} more" if len(positions) > 5 else ""
    return f"in sample {shown}{more}" if len(positions) == 1 else f"in samples {shown}{more}"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")
