"""`arrays`: sensors, tables, time series in one file, .npz with x and y or .csv with a header."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekd.data.checks import as_samples, as_targets, check_lengths, default_labels
from edgekd.data.npz import read_npz
from edgekd.data.source import Prepare, Request, Source, array_pool
from edgekd.errors import DataError, nearest
from edgekd.spec import Array, Task

PAIRS = {"train": ("x", "y"), "val": ("x_val", "y_val"), "test": ("x_test", "y_test")}
MAX_PROBLEMS = 5


def read(request: Request) -> Source:
    """The samples of the file at `request.root`; splits that the file lacks are drawn from x and y."""
    path = request.root
    if path is None or not path.is_file():
        raise DataError(f"arrays: there is no file {path}; expected data.root = a .npz or .csv file")
    if path.suffix == ".npz":
        arrays = read_npz(path)
        labels = request.labels
    elif path.suffix == ".csv":
        arrays, columns = _read_csv(path, request.target, request.task)
        labels = request.labels or (() if request.task == "classification" else columns)
    else:
        raise DataError(f"{path}: found a file that ends in '{path.suffix}', expected .npz or .csv")
    return from_arrays(
        arrays, name=path.stem, where=str(path), task=request.task, labels=labels, prepare=request.prepare
    )


def from_arrays(
    arrays: Mapping[str, Array],
    *,
    name: str,
    where: str,
    task: Task,
    labels: Sequence[str],
    prepare: Prepare | None,
    licence: str = "not stated",
) -> Source:
    """A source from x and y, and from x_val, y_val, x_test and y_test where they are there.

    x (N, ...) numbers; y (N,) class numbers or texts, (N, L) marks of 0 or 1, or (N,) or (N, D) numbers.
    """
    known = [key for pair in PAIRS.values() for key in pair]
    for key in arrays:
        if key not in known:
            raise DataError(f"{where}: unknown array '{key}'. {nearest(key, known)}")
    for x_name, y_name in PAIRS.values():
        if (x_name in arrays) != (y_name in arrays):
            missing = y_name if x_name in arrays else x_name
            raise DataError(f"{where}: there is no array '{missing}'; expected both {x_name} and {y_name}")
    if "x" not in arrays:
        raise DataError(f"{where}: there is no array 'x'; expected x and y, found {', '.join(arrays) or 'nothing'}")
    given = labels or default_labels(arrays["y"], task, where=f"{where}: y")
    pools = {}
    first_id = 0
    for split, (x_name, y_name) in PAIRS.items():
        if x_name not in arrays:
            continue
        x, y = arrays[x_name], arrays[y_name]
        check_lengths(x, y, where=f"{where}: {x_name}, {y_name}")
        x = as_samples(x, where=f"{where}: {x_name}")
        y = as_targets(y, task, given, where=f"{where}: {y_name}")
        pools[split] = array_pool(x, y, first_id=first_id, prepare=prepare)
        first_id += len(y)
    return Source(name, tuple(given), licence, pools)


def _read_csv(path: Path, target: Sequence[str], task: Task) -> tuple[dict[str, Array], tuple[str, ...]]:
    """x from all other columns, y from the target columns; every number must be one."""
    if not target:
        raise DataError(f"{path}: data.target is missing; name the column (or the list of columns) to predict")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8 ({error})") from error
    if len(set(header)) != len(header):
        raise DataError(f"{path}: two columns have the same name; expected a header with a name for each column")
    for name in target:
        if name not in header:
            raise DataError(f"{path}: data.target: there is no column '{name}'. {nearest(name, header)}")
    if task == "classification" and len(target) != 1:
        raise DataError(f"{path}: data.target names {len(target)} columns, expected one for classification")
    columns = [index for index, name in enumerate(header) if name not in target]
    targets = [header.index(name) for name in target]
    if not columns:
        raise DataError(f"{path}: every column is a target; expected at least one other column to learn from")
    problems: list[str] = []
    x: list[list[float]] = []
    y: list[list[str]] = []
    for line, row in rows:
        if len(row) != len(header):
            problems.append(f"line {line} has {len(row)} cells, expected {len(header)}")
            continue
        x.append([_number(row[index], f"line {line}, column '{header[index]}'", problems) for index in columns])
        y.append([row[index].strip() for index in targets])
        if "" in y[-1]:
            problems.append(f"line {line}, column '{target[y[-1].index('')]}' is empty")
    numbers = [[_number(cell, "", []) for cell in row] for row in y]
    if task != "classification" and not problems:
        for (line, _), texts, values in zip(rows, y, numbers):
            problems += [
                f"line {line}, column '{name}': '{text}' is not a finite number"
                for name, text, value in zip(target, texts, values)
                if not math.isfinite(value)
            ]
    _refuse(path, problems)
    is_number = task != "classification" or all(math.isfinite(value) for row in numbers for value in row)
    y_array = np.array(numbers, np.float64) if is_number else np.array(y, dtype=np.str_)
    x_array = np.array(x, np.float32).reshape(len(x), len(columns))
    return {"x": x_array, "y": y_array.reshape(len(y), len(targets))}, tuple(target)


def _number(cell: str, place: str, problems: list[str]) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        problems.append(f"{place}: '{cell}' is not a finite number" if cell.strip() else f"{place} is empty")
    return value


def _refuse(path: Path, problems: Sequence[str]) -> None:
    if problems:
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        listed = "\n  ".join([*problems[:MAX_PROBLEMS], *more])
        raise DataError(f"{path}: cells that are no numbers; repair or remove these lines:\n  {listed}")
