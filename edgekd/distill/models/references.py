"""Finds the user's own functions: `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from edgekd.errors import ModelError

# Top-level name of a user's module -> the folder it was imported from. Two projects may both have a models.py, and
# one process (a notebook, a test run) may use both.
_imported: dict[str, str] = {}


@contextmanager
def importing_from(search_path: str | PathLike[str] | None) -> Iterator[None]:
    """Put the folder `search_path` first on `sys.path` while the block runs; None changes nothing."""
    if search_path is None:
        yield
        return
    entry = str(Path(search_path).resolve())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def import_reference(reference: str, *, search_path: str | PathLike[str] | None = None) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules beside `search_path` are found too.

    Raises `ModelError` when the text has another form, or the module or function is not there. An error inside the
    user's module is not hidden: it comes out as it is, with its traceback.
    """
    module_name, colon, name = reference.partition(":")
    if not colon or not module_name or not name:
        raise ModelError(f"found '{reference}', expected package.module:function, such as my_models:build")
    _forget_namesake(module_name.partition(".")[0], search_path)
    with importing_from(search_path):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise  # the module is there; something that it imports is not
            looked = f" in {search_path} or among the installed packages" if search_path else ""
            raise ModelError(
                f"'{reference}': no module '{error.name}' was found{looked}; put {module_name.partition('.')[0]}.py "
                "beside the recipe or install its package"
            ) from error
    try:
        function = getattr(module, name)
    except AttributeError as error:
        own = sorted(n for n, v in vars(module).items() if inspect.isroutine(v) or inspect.isclass(v))
        raise ModelError(
            f"'{reference}': the module {module_name} has no '{name}'; it has {', '.join(own) or 'no functions'}"
        ) from error
    if not callable(function):
        raise ModelError(f"'{reference}' is a {type(function).__name__}, expected a function")
    return function  # type: ignore[no-any-return]


def call(function: Callable[..., Any], what: str, arguments: dict[str, Any]) -> Any:
    """`function(**arguments)`. Raises `ModelError` when the signature does not take them; `what` names it."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{what}{inspect.signature(function)} does not take the arguments {sorted(arguments)}: {error}"
        ) from error
    return function(**arguments)


def accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Those of the `offered` keyword arguments that the signature of `function` names."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in parameters}


def _forget_namesake(name: str, search_path: str | PathLike[str] | None) -> None:
    """Drop the module `name` from the cache when it came from the folder of another project."""
    if search_path is None:
        return
    folder = Path(search_path).resolve()
    if not ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
        return
    if _imported.get(name, str(folder)) != str(folder):
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            del sys.modules[known]
    _imported[name] = str(folder)
