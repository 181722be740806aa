"""Arrays by name from an .npz file of the user's own. Never unpickles."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from edgekd.errors import DataError
from edgekd.spec import Array


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of the file. Raises `DataError` when it is missing, corrupt or holds something else."""
    if not path.is_file():
        found = "is no file" if path.exists() else "is not there"
        raise DataError(f"{path} {found}; expected an .npz file that numpy.savez wrote")
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            is_named = isinstance(loaded, np.lib.npyio.NpzFile)
            arrays = {name: loaded[name] for name in loaded.files} if is_named else {}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as .npz: {error}; expected arrays of numbers or texts that numpy.savez(path, x=x, "
            "y=y) wrote (Python objects are never loaded from a file)"
        ) from error
    if not is_named:
        raise DataError(f"{path} is a single array; expected an .npz file with named arrays")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path} holds '{name}', which is no array; write it with numpy.savez")
    return arrays
