"""`package.module:function`: your own data, from a function that returns arrays.

The function returns a mapping with x and y (and x_val, y_val, x_test, y_test where it has them), exactly as a .npz
file would hold them; it may also give "labels" (names) and "licence" (a text). Where its signature names `root`, it
gets data.root. An error inside it is not hidden: it comes out as it is, with its traceback.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.data.arrays import from_arrays
from edgekd.data.source import Request, Source
from edgekd.errors import DataError, nearest

EXTRAS = ("labels", "licence")


def read(request: Request) -> Source:
    """Call the function and take its arrays. Raises `DataError` when it is not there or returns something else."""
    function = find_function(request.kind, request.search_path)
    arguments = {"root": request.root} if "root" in inspect.signature(function).parameters else {}
    with _on_path(request.search_path):
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


def find_function(reference: str, search_path: Path | None) -> Callable[..., Any]:
    """The function of "package.module:function", looked for in `search_path` first."""
    module_name, _, name = reference.partition(":")
    _forget_namesake(module_name.partition(".")[0], search_path)
    with _on_path(search_path):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise
            raise DataError(
                f"data.kind: there is no module '{module_name}' in {search_path} or among the installed packages; "
                "expected 'package.module:function'"
            ) from error
    function: Callable[..., Any] | None = vars(module).get(name)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise DataError(f"data.kind: {module_name} has no function '{name}'. {nearest(name, functions)}")
    return function


def find_file(reference: str, search_path: Path | None) -> Path | None:
    """The file of the module of "package.module:function", found without running it; None if there is none."""
    module_name = reference.partition(":")[0]
    if search_path is not None:
        place = search_path.joinpath(*module_name.split("."))
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _forget_namesake(name: str, search_path: Path | None) -> None:
    """Drop `name` from Python's cache when it was imported from another project's folder than `search_path`."""
    module = sys.modules.get(name)
    if search_path is None or module is None or find_file(f"{name}:", search_path) is None:
        return
    if not Path(module.__file__ or "").resolve().is_relative_to(search_path.resolve()):
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            del sys.modules[known]


@contextmanager
def _on_path(folder: Path | None) -> Iterator[None]:
    """`folder` in front of Python's search path for as long as needed."""
    if folder is None:
        yield
        return
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
