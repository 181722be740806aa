"""`arrow`: Hugging Face data sets, as a folder from `datasets.save_to_disk`, .arrow files or .parquet files.

Read through pyarrow; the package `datasets` is not needed. One column holds the samples: images (datasets.Image, or
encoded bytes) or arrays of numbers. The column to learn is `data.target`, else the ClassLabel of the data set, else the
column `label`. Arrow files are mapped into memory, Parquet files are read piece by piece. The ids of samples are their
places.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.data.checks import as_targets, default_labels
from edgekd.data.shards import shards_by_split, stored_pool
from edgekd.data.source import Raw, Request, Source
from edgekd.data.store import CHUNK, Encoded, Positions
from edgekd.errors import DataError, MissingExtra, nearest
from edgekd.rows import Array

SUFFIXES = (".arrow", ".parquet")
LABEL = "label"
_FILE_FORMAT = b"ARROW1"


def read(request: Request) -> Source:
    """Samples as `prepare` makes them.

    Raises `DataError` for files and columns that cannot be used, `MissingExtra` without pyarrow.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingExtra("pyarrow", "hf", purpose="the data kind 'arrow'") from error
    splits = {
        split: [_open(path) for path in paths if _is_data(path)]
        for split, paths in shards_by_split(request, SUFFIXES).items()
    }
    schema = _common_schema(request, splits)
    features = _features(schema)
    targets = _targets(request, schema, features)
    column = _sample_column(request, schema, features, targets)
    values = {split: _labels(request, tables, targets) for split, tables in splits.items()}
    labels = request.labels or _class_names(features, targets)
    labels = labels or default_labels(values["train"], request.task, where=f"{request.root}: {', '.join(targets)}")
    pools, first_id = {}, 0
    for split, tables in splits.items():
        where = f"{request.root} ({split}), column {', '.join(targets)}"
        y = as_targets(values[split], request.task, labels, where=where)
        ids = np.arange(first_id, first_id + len(y), dtype=np.int64)
        paths = [table.path for table in tables]
        pools[split] = stored_pool(request, split, paths, _encoded(tables, column), y, ids, column=column)
        first_id += len(y)
    name = request.root.resolve().stem if request.root is not None else request.kind
    return Source(name, tuple(labels), "not stated", pools)


@dataclass(frozen=True)
class Table:
    """One file. `groups` are the numbers of its rows that are read together."""

    path: Path
    schema: Any
    groups: tuple[int, ...]
    mapped: Any = None

    @property
    def num_rows(self) -> int:
        """All rows."""
        return sum(self.groups)

    def batches(self, columns: Sequence[str], positions: Positions) -> Iterator[tuple[int, Any]]:
        """(first row, record batch) of these columns, all that hold one of the positions (ascending).

        Raises `DataError` for a damaged file.
        """
        import pyarrow as pa

        starts = np.concatenate([[0], np.cumsum(self.groups)])
        wanted = np.unique(np.searchsorted(starts, positions, side="right") - 1)
        try:
            if self.mapped is not None:
                found = self.mapped.select(list(columns)).to_batches()
                yield from ((int(starts[group]), found[group]) for group in wanted)
                return
            import pyarrow.parquet as pq

            with pq.ParquetFile(self.path) as file:
                for group in wanted:
                    row = int(starts[group])
                    for batch in file.iter_batches(batch_size=CHUNK, row_groups=[int(group)], columns=list(columns)):
                        yield row, batch
                        row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path, error) from error


def _open(path: Path) -> Table:
    import pyarrow as pa

    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                groups = tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
                return Table(path, file.schema_arrow, groups)
        with path.open("rb") as opened:
            is_file = opened.read(len(_FILE_FORMAT)) == _FILE_FORMAT
        source = pa.memory_map(str(path))
        mapped = (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).read_all()
        return Table(path, mapped.schema, tuple(batch.num_rows for batch in mapped.to_batches()), mapped)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _is_data(path: Path) -> bool:
    """Whether a file belongs to the data: `datasets` keeps others beside, which its state.json does not name."""
    try:
        state = json.loads((path.parent / "state.json").read_text(encoding="utf-8"))
        return path.name in {item["filename"] for item in state["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _common_schema(request: Request, splits: Mapping[str, Sequence[Table]]) -> Any:
    tables = [table for tables in splits.values() for table in tables]
    if not splits["train"] or not sum(table.num_rows for table in splits["train"]):
        raise DataError(f"arrow: {request.root} holds no rows to train on")
    first = splits["train"][0]
    for table in tables:
        if not table.schema.equals(first.schema):
            raise DataError(
                f"{table.path} has the columns {_listed(table.schema)}, but {first.path} has {_listed(first.schema)}; "
                "expected the same columns of the same types"
            )
    return first.schema


def _features(schema: Any) -> Mapping[str, Any]:
    """What `datasets` says of its columns, by column; nothing in files that others wrote."""
    try:
        features: Mapping[str, Any] = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}
    return {
        name: feature for name, feature in features.items() if isinstance(feature, Mapping) and name in schema.names
    }


def _targets(request: Request, schema: Any, features: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns to learn."""
    if request.target:
        for name in request.target:
            if name not in schema.names:
                raise DataError(
                    f"{request.root}: data.target: there is no column '{name}'. {nearest(name, schema.names)}"
                )
        if request.task == "classification" and len(request.target) != 1:
            raise DataError(f"data.target names {len(request.target)} columns, expected one for classification")
        return request.target
    found = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    found = found or [name for name in schema.names if name == LABEL]
    if len(found) != 1:
        raise DataError(
            f"{request.root}: {' and '.join(found) if found else 'no column'} could be what is to be learned, of "
            f"{_listed(schema)}; name one in data.target"
        )
    return (found[0],)


def _sample_column(request: Request, schema: Any, features: Mapping[str, Any], targets: Sequence[str]) -> str:
    """The column of the samples: that of images, else that of arrays."""
    import pyarrow as pa

    others = [field for field in schema if field.name not in targets]
    images = [f.name for f in others if features.get(f.name, {}).get("_type") == "Image"]
    encoded = [f.name for f in others if pa.types.is_binary(_bytes_type(f.type)) or _is_large(_bytes_type(f.type))]
    arrays = [f.name for f in others if _is_list(f.type)]
    found = images or encoded or arrays
    if len(found) != 1:
        raise DataError(
            f"{request.root}: {' and '.join(found) if found else 'no column'} could hold the samples, of "
            f"{_listed(schema)}; expected one column of images (bytes) or of arrays: take the others out "
            "(datasets: select_columns)"
        )
    name: str = found[0]
    return name


def _bytes_type(kind: Any) -> Any:
    """The type of the bytes in a datasets.Image, else the type itself."""
    import pyarrow as pa

    is_image = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return kind.field(kind.get_field_index("bytes")).type if is_image else kind


def _is_large(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_large_binary(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_uint8(kind: Any) -> bool:
    """Whether lists (of lists ...) hold bytes."""
    import pyarrow as pa

    while _is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_uint8(kind))


def _class_names(features: Mapping[str, Any], targets: Sequence[str]) -> tuple[str, ...]:
    names = features.get(targets[0], {}).get("names") if len(targets) == 1 else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _labels(request: Request, tables: Sequence[Table], targets: Sequence[str]) -> Array:
    """(N,) of one column, (N, D) of several, or of lists of numbers."""
    columns = []
    for name in targets:
        values: list[Any] = []
        for table in tables:
            for _, batch in table.batches([name], np.arange(table.num_rows)):
                values += batch.column(0).to_pylist()
        missing = [number for number, value in enumerate(values) if value is None]
        if missing:
            raise DataError(
                f"{request.root}: the column '{name}' is empty in {len(missing)} of {len(values)} rows, first in row "
                f"{missing[0]}; label or remove them"
            )
        try:
            columns.append(np.array(values))
        except ValueError as error:
            raise DataError(
                f"{request.root}: the column '{name}' holds lists of different lengths ({error})"
            ) from error
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def _encoded(tables: Sequence[Table], column: str) -> Encoded:
    starts = np.concatenate([[0], np.cumsum([table.num_rows for table in tables])])
    dtype = np.uint8 if _is_uint8(tables[0].schema.field(column).type) else np.float32

    def read_rows(positions: Positions) -> Iterable[Raw | DataError]:
        for number, table in enumerate(tables):
            low, high = np.searchsorted(positions, [starts[number], starts[number + 1]])
            own = positions[low:high] - starts[number]
            for first, batch in table.batches([column], own) if len(own) else ():
                values = batch.column(0)
                for row in own[(own >= first) & (own < first + len(values))] - first:
                    yield _raw(values[int(row)].as_py(), dtype)

    def names(positions: Positions) -> list[str]:
        found = np.searchsorted(starts, positions, side="right") - 1
        return [f"{tables[i].path}, row {position - starts[i]}" for i, position in zip(found, positions)]

    return Encoded(int(starts[-1]), read_rows, names)


def _raw(value: Any, dtype: type[np.uint8] | type[np.float32]) -> Raw | DataError:
    if isinstance(value, Mapping):
        path = value.get("path")
        value = value["bytes"]
        if value is None and path is not None:
            return DataError(
                f"it names the file {path} instead of holding its bytes; save the data set with its images in it "
                "(datasets: embed_external_files=True)"
            )
    if value is None:
        return DataError("it is empty; remove it")
    if isinstance(value, bytes):
        return value
    try:
        return np.array(value, dtype)
    except (ValueError, TypeError) as error:
        return DataError(f"it is no array of numbers ({error})")


def _listed(schema: Any) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _damaged(path: Path, error: BaseException) -> DataError:
    text = str(error).strip().splitlines()
    return DataError(f"{path} cannot be read as {path.suffix[1:]} ({text[0] if text else error}); make it again")
