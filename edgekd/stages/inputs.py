"""Reads samples from files for the verbs that take them: images, npy, npz. Never unpickles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgekd.data.npz import read_npz
from edgekd.errors import DataError
from edgekd.spec import Array

ARRAYS = (".npy", ".npz")


def read_inputs(paths: Sequence[Path]) -> Iterator[tuple[str, Path | Array]]:
    """Samples with a name each: an image file is one; an array file is one sample per row of its first axis.

    An .npz gives its array `x`, or its only one.
    """
    for path in paths:
        if not path.is_file():
            found = "is no file" if path.exists() else "is not there"
            raise DataError(f"{path} {found}; expected an image, or an .npy or .npz file of samples")
        if path.suffix not in ARRAYS:
            yield str(path), path
            continue
        for index, row in enumerate(read_array(path)):
            yield f"{path}[{index}]", row


def read_array(path: Path) -> Array:
    """The samples of an .npy or .npz file, (N, ...)."""
    if path.suffix == ".npz":
        arrays = read_npz(path)
        if "x" not in arrays and len(arrays) != 1:
            raise DataError(
                f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}; expected an array x, or only one array"
            )
        array = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    else:
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} cannot be read as .npy: {error}; write it with numpy.save") from error
    if array.ndim < 2 or len(array) == 0:
        raise DataError(f"{path} has the shape {array.shape}; expected samples along the first axis, (N, ...)")
    return array
