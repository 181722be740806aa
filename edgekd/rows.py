"""Samples that may be more than fit into memory: an array, or rows on the disk that are read as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekd.files import write_atomically

Array = NDArray[Any]

# What is read at once where all rows are to be seen, one piece after the other.
PIECE_BYTES = 64 << 20


class Rows(Protocol):
    """What is asked of samples (N, ...): a numpy array can do it. An index (slice or positions) gives an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""

    @property
    def ndim(self) -> int:
        """Axes, that of the samples among them."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: Any, /) -> Any:
        """The rows at a slice or at positions, as an array."""


@dataclass(frozen=True)
class DiskRows:
    """Rows of a file that is mapped into memory: only what was asked for is ever copied out of it.

    mapped     (M, ...) all rows of the file
    digests    (M, 16) uint8, a hash of each
    positions  (N,) of which these are
    """

    mapped: Array
    digests: Array
    positions: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (len(self.positions), *self.mapped.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.mapped.dtype

    @property
    def ndim(self) -> int:
        """Axes, that of the samples among them."""
        return self.mapped.ndim

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: NDArray[np.intp] | slice) -> Array:
        """The rows at a slice or at positions, as an array in memory."""
        rows: Array = self.mapped[self.positions[index]]
        return rows

    def take(self, index: NDArray[np.intp] | slice) -> DiskRows:
        """The same, without reading them."""
        return DiskRows(self.mapped, self.digests, self.positions[index])


def take(x: Rows, index: NDArray[np.intp] | slice) -> Rows:
    """The rows at `index`; those on the disk stay there."""
    rows: Rows = x.take(index) if isinstance(x, DiskRows) else x[index]
    return rows


def pieces(x: Rows, *, size_bytes: int = PIECE_BYTES) -> Iterator[Array]:
    """All rows one after the other, so many at a time that they take `size_bytes` at most (one row at least)."""
    one = int(np.prod(x.shape[1:], dtype=np.int64)) * x.dtype.itemsize
    count = max(1, size_bytes // max(one, 1))
    for start in range(0, len(x), count):
        yield x[start : start + count]


def save_rows(path: Path, x: Rows) -> None:
    """The rows as an .npy file, written piece by piece."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(x.dtype), "fortran_order": False, "shape": x.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces(x):
                file.write(np.ascontiguousarray(piece).data)

    write_atomically(path, write)
