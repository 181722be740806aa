"""`package.module:function`: your own data, from a function that returns arrays.

The function returns a mapping with x and y (and x_val, y_val, x_test, y_test where it has them), exactly as a .npz
file would hold them; it may also give "labels" (names) and "licence" (a text). Where its signature names `root`, it
gets data.root. An error inside it is not hidden: it comes out as it is, with its traceback.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import numpy as np

from edgekd.data.arrays import from_arrays
from edgekd.data.source import Request, Source
from edgekd.errors import DataError
from edgekd.references import import_reference, importing_from

EXTRAS = ("labels", "licence")


def read(request: Request) -> Source:
    """Call the function and take its arrays. Raises `DataError` when it is not there or returns something else."""
    function = import_reference(request.kind, search_path=request.search_path, refusal=DataError)
    arguments = {"root": request.root} if "root" in inspect.signature(function).parameters else {}
    # The user's function may import its neighbours only when it is called.
    with importing_from(request.search_path):
        returned = function(**arguments)
    if not isinstance(returned, Mapping):
        raise DataError(
            f"{request.kind} returned {type(returned).__name__}, expected a mapping of arrays: {{'x': ..., 'y': ...}}"
        )
    labels = request.labels or tuple(str(label) for label in returned.get("labels", ()))
    arrays = {key: np.asarray(value) for key, value in returned.items() if key not in EXTRAS}
    return from_arrays(
        arrays,
        name=request.kind.partition(":")[2],
        where=request.kind,
        task=request.task,
        labels=labels,
        prepare=request.prepare,
        licence=str(returned.get("licence", "not stated")),
    )
