"""`huggingface`: texts of a data set of the hub by its name, "stanfordnlp/sst2" or "nyu-mll/glue:cola", or in a folder
that `datasets` reads. Loading one by name needs the network, the first time; code of the data set is never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.data.source import Request, Source
from edgekd.data.text import NAMES, Rows, listed, marks_of, problem_of, read_targets, source, target_of, text_column
from edgekd.errors import DataError, MissingExtra


def read(request: Request) -> Source:
    """Every split that the data set has; "validation" is val. Names of classes come with the data set."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "datasets", purpose="the data kind 'huggingface'") from error
    if request.root is None:
        raise DataError('huggingface: data.root is missing; expected a name on the hub, such as "stanfordnlp/sst2"')
    place, _, config = str(request.root).partition(":")
    datasets.disable_progress_bars()
    try:
        found: Any = datasets.load_dataset(place, config or None, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"huggingface: '{place}' cannot be loaded: {first}; expected the name of a data set on the hub (it needs "
            "the network), NAME:CONFIG, or a folder with csv, json or parquet files"
        ) from error
    target = target_of(request)
    parts: dict[str, Rows] = {}
    labels: tuple[str, ...] = ()
    for split, names in NAMES.items():
        table = next((found[name] for name in names if name in found), None)
        if table is None:
            continue
        target = read_targets(table.column_names, target_of(request), request)
        column = text_column(place, table.column_names, request.text, target)
        labels = labels or tuple(getattr(table.features.get(next(iter(target), "")), "names", ()))
        wanted = (column, *(target if request.targets else ()))
        rows = list(zip(*(table[name] for name in wanted)))
        # Test sets of competitions hide their labels: -1, or none.
        if split != "train" and all(marks in ([-1], [None]) for _, *marks in rows):
            continue
        problems = [f"row {number}: {told}" for number, row in enumerate(rows) if (told := problem_of(wanted, row))]
        if problems:
            raise DataError(
                f"huggingface: {place}, {split}: {len(problems)} of {len(rows)} rows cannot be used; filter them out, "
                f"and give the folder of what is left:{listed(problems)}"
            )
        parts[split] = [(text, marks_of(marks)) for text, *marks in rows]
    if "train" not in parts:
        raise DataError(f"huggingface: {place} has the splits {', '.join(found)}, expected 'train'")
    name = Path(place).name
    return source(parts, request, name=name, licence="not stated", labels=labels, target=target)
