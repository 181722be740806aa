"""results.json on the disk: what `benchmark --out`, a run and `report` share."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.device.benchmark import SCHEMA
from edgekd.errors import InputRefused
from edgekd.files import write_bytes

# Raw samples of a long benchmark take megabytes; above this size the file is compressed.
PLAIN_BYTES = 1_000_000
# Far above any real result: a file that grows beyond this when it is unpacked is not one.
MAX_BYTES = 1 << 30


def write_results(path: Path, results: Mapping[str, Any]) -> Path:
    """Write `results` atomically as JSON; above 1 MB as gzip, with `.gz` behind the name. Returns what was written."""
    data = (json.dumps(results, ensure_ascii=False, allow_nan=False) + "\n").encode()
    packed = path.with_name(path.name.removesuffix(".gz") + ".gz")
    plain = path.with_name(path.name.removesuffix(".gz"))
    if len(data) <= PLAIN_BYTES:
        written, other = write_bytes(plain, data), packed
    else:
        written, other = write_bytes(packed, gzip.compress(data, mtime=0)), plain
    other.unlink(missing_ok=True)
    return written


def find_results(path: Path) -> Path:
    """The result file at `path`, plain or packed, or that of a run folder. Raises `InputRefused` when there is none."""
    place = path / "results.json" if path.is_dir() else path
    found = next((item for item in (place, place.with_name(place.name + ".gz")) if item.is_file()), None)
    if found is None:
        raise InputRefused(f"{place} is not there; expected a run folder or a result file that edgekd wrote")
    return found


def read_results(path: Path) -> dict[str, Any]:
    """Read a result file, or that of a run folder. Raises `InputRefused` when it is not one."""
    found = find_results(path)
    try:
        results = json.loads(_unpacked(found))
    except (ValueError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise InputRefused(f"{found} is not JSON: {error}; expected a result file that edgekd wrote") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise InputRefused(f"{found} has the schema {schema!r}, expected '{SCHEMA}'; was it made by edgekd?")
    return dict(results)


def _unpacked(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(2)
    opener = gzip.open if start == b"\x1f\x8b" else Path.open
    with opener(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputRefused(f"{path} is larger than {MAX_BYTES} bytes; expected a result file that edgekd wrote")
    return bytes(data)
