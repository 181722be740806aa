"""`text`: sentences with labels, in .csv, .tsv or .jsonl (each also .gz), one file or a folder with one per split.

    ROOT.csv                                 text,label           splits are drawn
    ROOT/train.tsv dev.tsv test.tsv          val may be called dev, valid or validation

In .tsv every character counts (no quotes); a .jsonl has one table per line; the lines of a .txt are texts without a
label, which students of vectors and of masked words can do without, and so can samples that only the teacher answers to
([transfer]). The label is the column `data.target`
(default "label"), the text the column `data.text` (default "text", or the only other one). `sst2` and `clinc150` are
public sets in the layout of their publishers, below `data.root`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.data.checks import as_targets, default_labels
from edgekd.data.source import Pool, Request, Source
from edgekd.errors import DataError, nearest
from edgekd.spec import Array

SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
NAMES = {"train": ("train",), "val": ("val", "dev", "valid", "validation"), "test": ("test",)}
OUT_OF_SCOPE = "oos"
# Tasks whose targets are in no file.
UNLABELLED = ("embedding", "masked_lm")
MAX_PROBLEMS = 5
# Characters of a cell that an error repeats.
MAX_SHOWN = 60
# Of one field; the csv module's own limit is 128 kB, and reviews are longer.
MAX_FIELD = 10_000_000

Rows = list[tuple[str, tuple[Any, ...]]]


def read(request: Request) -> Source:
    """The texts below `request.root`, tokenized by `request.prepare`."""
    root = request.root
    if root is None or not root.exists():
        raise DataError(
            f"text: there is nothing at {root}; expected data.root = a .csv, .tsv or .jsonl file, or a folder of them"
        )
    files = _splits(root) if root.is_dir() else {"train": root}
    target = target_of(request)
    parts = {name: _read(path, request.text, target, request) for name, path in files.items()}
    return source(parts, request, name=root.name.partition(".")[0], licence="not stated", target=target)


def texts_of(path: Path) -> list[str]:
    """The texts in one file of the kind `text`, whatever stands beside them. Raises `DataError`."""
    asked = Request("text", path, "embedding", (), (), prepare=None, search_path=None, download=False, targets=False)
    return [text for text, *_ in _read(path, None, (), asked)]


def read_sst2(request: Request) -> Source:
    """The Stanford Sentiment Treebank, two classes: sst2/{train,dev,test}.tsv below the root."""
    files = _splits(_folder(request, "sst2"))
    parts = {name: _read(path, "sentence", ("label",), request) for name, path in files.items()}
    named = ("negative", "positive")
    return source(parts, request, name="sst2", licence="not stated (cite Socher et al. 2013)", labels=named)


def read_clinc150(request: Request) -> Source:
    """CLINC150: 150 intents, and "oos" for what is none of them, last: clinc150/data_full.json below the root."""
    path = _folder(request, "clinc150") / "data_full.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        parts: dict[str, Rows] = {
            name: [(str(text), (str(label),)) for key in (name, f"oos_{name}") for text, label in table[key]]
            for name in NAMES
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected the publisher's data_full.json") from error
    labels = sorted({row[1][0] for row in parts["train"]} - {OUT_OF_SCOPE})
    return source(parts, request, name="clinc150", licence="CC-BY-3.0", labels=(*labels, OUT_OF_SCOPE))


def _folder(request: Request, name: str) -> Path:
    root = request.root
    if root is None:
        raise DataError(
            f"{name}: data.root is missing; set EDGEKD_DATA, or data.root, to the folder that holds {name}/"
        )
    folder = root / name if (root / name).is_dir() else root
    if not folder.is_dir():
        raise DataError(f"{name}: there is no folder {root}; expected data.root = the folder that holds {name}/")
    return folder


def target_of(request: Request) -> tuple[str, ...]:
    """The columns to predict; none where the teacher's vectors are learned."""
    return request.target or (() if request.task in UNLABELLED else ("label",))


def read_targets(columns: Iterable[str], target: Sequence[str], request: Request) -> tuple[str, ...]:
    """Those of the target's columns that must be there: all, or where nobody asks for labels those that are."""
    return tuple(target) if request.targets else tuple(name for name in target if name in set(columns))


def source(
    parts: dict[str, Rows],
    request: Request,
    *,
    name: str,
    licence: str,
    labels: Sequence[str] = (),
    target: Sequence[str] = ("label",),
) -> Source:
    """What becomes of the (text, labels) of each split; `labels` name the classes where the recipe does not."""
    if request.prepare is None or not request.steps or '"tokenize"' not in request.steps:
        raise DataError(
            f"{name} holds texts, and nothing says how they become numbers; put "
            '{op = "tokenize", file = "tokenizer.json", max_length = 64} into preprocess.steps'
        )
    if request.task in UNLABELLED or not request.targets:  # the teacher says the targets, or the texts do
        y = {split: np.zeros((len(rows), 1), np.float32) for split, rows in parts.items()}
        given: Sequence[str] = ("0",)
    else:
        y = _targets(parts, request)
        given = request.labels or labels
    if not given:
        given = default_labels(y["train"], request.task, where=name) if request.task == "classification" else target
    pools, first = {}, 0
    for split, rows in parts.items():
        targets = as_targets(y[split], request.task, given, where=f"{name}, {split}")
        pools[split] = _pool([row[0] for row in rows], targets, first, request)
        first += len(rows)
    return Source(name, tuple(given), licence, pools)


def _pool(texts: Sequence[str], y: Array, first: int, request: Request) -> Pool:
    prepare = request.prepare
    assert prepare is not None

    def read_rows(positions: NDArray[np.intp]) -> Array:
        return np.stack([prepare(texts[position]) for position in positions])

    return Pool(y, np.arange(first, first + len(texts), dtype=np.int64), read_rows)


def _targets(parts: Mapping[str, Rows], request: Request) -> dict[str, Array]:
    """Of each split numbers where every label of all splits is one, else texts."""
    texts = {
        split: np.array([[str(cell).strip() for cell in cells] for _, cells in rows]) for split, rows in parts.items()
    }
    try:
        numbers: dict[str, Array] = {split: table.astype(np.float64) for split, table in texts.items()}
    except ValueError:
        return texts
    # Names may look like numbers ("401k" does not, "911" does).
    are_names = all(set(table.ravel()) <= set(request.labels) for table in texts.values())
    return texts if request.task == "classification" and are_names else numbers


def _splits(folder: Path) -> dict[str, Path]:
    """The file of each split in the folder. Raises `DataError` when there is none for train, or two for one."""
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        paths = [
            path
            for name in names
            for suffix in SUFFIXES
            for path in (folder / f"{name}{suffix}", folder / f"{name}{suffix}.gz")
            if path.is_file()
        ]
        if len(paths) > 1:
            raise DataError(f"{folder} has {paths[0].name} and {paths[1].name} for the split '{split}'; keep one")
        if paths:
            found[split] = paths[0]
    if "train" not in found:
        raise DataError(f"{folder} has no train file; expected train{', train'.join(SUFFIXES)} (or .gz of them)")
    return found


def _read(path: Path, text: str | None, target: Sequence[str], request: Request) -> Rows:
    """(text, labels) of every line. Raises `DataError` that names the lines that cannot be used."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in SUFFIXES:
        raise DataError(f"{path}: found a file that ends in '{path.suffix}', expected {', '.join(SUFFIXES)} (or .gz)")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not valid UTF-8 (byte {error.start}); save the file as UTF-8") from error
    rows: Rows = []
    problems: list[str] = []
    for line, record in _records(path, kind, lines, problems):
        column = text_column(path, record, text, read_targets(record, target, request))
        wanted = (column, *(target if request.targets else ()))
        cells = [record.get(name) for name in wanted]
        if problem := problem_of(wanted, cells):
            problems.append(f"line {line}: {problem}")
        else:
            rows.append((str(cells[0]), marks_of(cells[1:])))
    if problems:
        raise DataError(f"{path}: lines that cannot be used; repair or remove them:{listed(problems)}")
    if not rows:
        raise DataError(f"{path} holds no texts")
    return rows


def problem_of(names: Sequence[str], cells: Sequence[Any]) -> str | None:
    """What is wrong with a row, the column of its text first and then those of its targets; None where nothing is."""
    for number, (name, cell) in enumerate(zip(names, cells)):
        if cell is None or not str(cell).strip():
            return f"'{name}' is empty"
        found = f"'{name}' is {repr(cell)[:MAX_SHOWN]}"
        if number == 0 and not isinstance(cell, str):
            return f"{found}, expected a text"
        if not isinstance(cell, (str, int, float)) or (isinstance(cell, float) and not math.isfinite(cell)):
            return f"{found}, expected one text or number; several marks have a column each (data.target)"
    return None


def marks_of(cells: Iterable[Any]) -> tuple[Any, ...]:
    """The targets of a row; true is 1."""
    return tuple(int(cell) if isinstance(cell, bool) else cell for cell in cells)


def listed(problems: Sequence[str]) -> str:
    """A line for each of the first problems."""
    more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
    return "".join(f"\n  {one}" for one in (*problems[:MAX_PROBLEMS], *more))


def _records(path: Path, kind: str, text: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each line."""
    if kind == ".txt":
        yield from ((number, {"text": line}) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
        return
    if kind == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                problems.append(f"line {number}: no JSON ({error})")
                continue
            if isinstance(record, dict):
                yield number, record
            else:
                problems.append(f"line {number}: found {type(record).__name__}, expected a table")
        return
    csv.field_size_limit(MAX_FIELD)
    plain: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
    # Lines end where csv says so: str.splitlines would end them at U+2028 too.
    reader = csv.DictReader(io.StringIO(text, newline="") if kind == ".csv" else text.split("\n"), **plain)
    try:
        for record in reader:
            if None in record or None in record.values():
                problems.append(f"line {reader.line_num} has another number of cells than the header")
            else:
                yield reader.line_num, record
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not readable as {kind[1:]} ({error})") from error


def text_column(place: object, columns: Iterable[str], text: str | None, target: Sequence[str]) -> str:
    """The column of the texts: the one called so, "text", or the only one that is no target."""
    columns = list(columns)
    for name in target:
        if name not in columns:
            raise DataError(f"{place}: data.target: there is no column '{name}'. {nearest(name, columns)}")
    others = [name for name in columns if name not in target]
    wanted = text or ("text" if "text" in others or len(others) != 1 else others[0])
    if wanted not in others:
        raise DataError(f"{place}: data.text: there is no column '{wanted}' of texts. {nearest(wanted, others)}")
    return wanted
