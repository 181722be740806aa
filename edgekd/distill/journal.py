"""A journal of answers: on the disk as they come, so that nothing is asked for twice."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from edgekd.errors import explain_os_errors
from edgekd.files import sha256_bytes
from edgekd.spec import Array


class Journal:
    """Answers on the disk as they come, one line each. What a kill or a power cut tore is not believed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, start: int, end: int, arrays: Mapping[str, Array]) -> None:
        """Write down the answers to the rows from `start` to `end`; they are on the disk when this returns."""
        values = {}
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            values[name] = base64.b64encode(buffer.getvalue()).decode()
        text = json.dumps({"start": start, "end": end, "arrays": values})
        with explain_os_errors(self._path), self._path.open("ab") as file:
            # A line that was torn stays alone on its line.
            file.write(f"\n{sha256_bytes(text.encode())} {text}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def replay(self, row: int) -> Iterator[tuple[int, int, dict[str, Array]]]:
        """(start, end, arrays) of what was written down from `row` on, by `start`; there may be gaps between them."""
        if not self._path.is_file():
            return
        records = []
        with explain_os_errors(self._path), self._path.open("rb") as file:
            for line in file:
                digest, _, text = line.strip().partition(b" ")
                if sha256_bytes(text).encode() == digest:
                    records.append(json.loads(text))
        for record in sorted(records, key=lambda item: int(item["start"])):
            if record["start"] >= row:
                row = record["end"]
                yield record["start"], row, {k: _read_array(v) for k, v in record["arrays"].items()}

    def clear(self) -> None:
        """Forget: the answers are in a shard."""
        self._path.unlink(missing_ok=True)


def _read_array(text: str) -> Array:
    array: Array = np.lib.format.read_array(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
    return array
