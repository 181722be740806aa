"""What a reader of one kind of data gives, before it is split, checked and hashed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError
from edgekd.rows import Rows
from edgekd.spec import Array, Task

# One sample as it comes: a file, encoded bytes, an array or a text.
Raw = Path | bytes | Array | str
Prepare = Callable[[Raw], Array]
# (text, samples done, samples in all)
Progress = Callable[[str, int, int], None]


class UnusableSamples(DataError):
    """Some samples cannot be read. `problems` has a line for each, so that all of them are told at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 sample cannot" if len(problems) == 1 else f"{len(problems)} samples cannot"
        super().__init__("\n  ".join([f"{count} be used; repair or remove:", *problems]))


@dataclass(frozen=True)
class Request:
    """What `load_dataset` was asked for, as its readers see it.

    steps    what `prepare` does, in words that change with it
    store    where data that may not fit into memory is kept decoded
    targets  whether somebody reads `y`; if not, texts need none, and it is 0
    """

    kind: str
    root: Path | None
    task: Task
    labels: tuple[str, ...]
    target: tuple[str, ...]
    prepare: Prepare | None
    search_path: Path | None
    download: bool
    steps: str = ""
    store: Path | None = None
    progress: Progress | None = None
    text: str | None = None
    targets: bool = True


@dataclass(frozen=True)
class Pool:
    """Samples that belong together, read only when they are needed.

    y     (N,) int64 | (N, L) uint8 | (N, D) float32
    ids   (N,) int64, unique and stable
    read  the samples at some positions, already prepared: (n, ...) uint8 or float32, in memory or on the disk; raises
          `UnusableSamples`
    """

    y: Array
    ids: NDArray[np.int64]
    read: Callable[[NDArray[np.intp]], Rows]


@dataclass(frozen=True)
class Source:
    """`pools` holds "train", and "val" and "test" where the data comes with a split of its own."""

    name: str
    labels: tuple[str, ...]
    licence: str
    pools: Mapping[str, Pool]


def array_pool(x: Array, y: Array, *, first_id: int, prepare: Prepare | None) -> Pool:
    """Samples that are in memory already; their ids are their positions, from `first_id` on."""

    def read(positions: NDArray[np.intp]) -> Array:
        chosen = x[positions]
        return chosen if prepare is None or not len(chosen) else np.stack([prepare(sample) for sample in chosen])

    return Pool(y, np.arange(first_id, first_id + len(y), dtype=np.int64), read)
