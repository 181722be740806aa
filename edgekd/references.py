"""The user's own functions, `package.module:function`: found, imported, and hashed together with what they import."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from edgekd.errors import InputRefused, ModelError, nearest


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


def import_reference(
    reference: str,
    *,
    search_path: str | PathLike[str] | None = None,
    refusal: type[InputRefused] = ModelError,
) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules beside `search_path` are found too.

    Raises `refusal` when the text has another form, or the module or function is not there. An error inside the
    user's module is not hidden: it comes out as it is, with its traceback.
    """
    module_name, colon, name = reference.partition(":")
    if not colon or not module_name or not name:
        raise refusal(f"found '{reference}', expected package.module:function, such as my_models:build")
    _forget_namesake(module_name.partition(".")[0], search_path)
    with importing_from(search_path):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise  # the module is there; something that it imports is not
            looked = f" in {search_path} or among the installed packages" if search_path else ""
            raise refusal(
                f"'{reference}': no module '{error.name}' was found{looked}; put {module_name.partition('.')[0]}.py "
                "beside the recipe or install its package"
            ) from error
    try:
        function = getattr(module, name)
    except AttributeError as error:
        own = [key for key, value in vars(module).items() if inspect.isroutine(value) or inspect.isclass(value)]
        raise refusal(f"'{reference}': the module {module_name} has no '{name}'. {nearest(name, own)}") from error
    if not callable(function):
        raise refusal(f"'{reference}' is a {type(function).__name__}, expected a function")
    return function  # type: ignore[no-any-return]


def locate(reference: str, search_path: str | PathLike[str] | None = None) -> Path | None:
    """The file or folder `reference`: a path (relative ones start at `search_path`), or one in an installed package,
    package/path, which is not imported. None where there is neither.
    """
    path = Path(search_path or "", Path(reference).expanduser())
    if path.exists():
        return path
    package, _, inner = reference.partition("/")
    if not inner or not package.isidentifier() or ".." in Path(inner).parts:
        return None
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return next((Path(place, inner) for place in places if Path(place, inner).exists()), None)


def code_sha256(reference: str, search_path: str | PathLike[str] | None) -> str | None:
    """Changes when the module of `reference` changes, or any module below `search_path` that it leads to.

    The files are read, never run: their import statements say where to look further. What a program imports by a
    computed name, or reads as data, is not seen. None when the module is not below `search_path` (an installed
    package).
    """
    if search_path is None or ":" not in reference:
        return None
    root = Path(search_path)
    pending = _files(reference.partition(":")[0], root)
    seen: dict[str, bytes] = {}
    while pending:
        path = pending.pop()
        name = path.relative_to(root).as_posix()
        if name not in seen:
            seen[name] = path.read_bytes()
            pending += [found for module in _imports(seen[name], path, root) for found in _files(module, root)]
    if not seen:
        return None
    digest = hashlib.sha256()
    for name, content in sorted(seen.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _files(module: str, root: Path) -> list[Path]:
    """The files below `root` that importing `module` runs: its own, and the `__init__.py` of each package above it."""
    place, found = root, []
    for part in module.split("."):
        place = place / part
        found += [path for path in (place.with_suffix(".py"), place / "__init__.py") if part and path.is_file()]
    return found


def _imports(content: bytes, path: Path, root: Path) -> Iterator[str]:
    """The full names of the modules that a file may import, those of `from package import module` among them."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return  # the import itself will say so
    package = path.relative_to(root).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _forget_namesake(name: str, search_path: str | PathLike[str] | None) -> None:
    """Drop the module `name` from Python's cache when it came from another folder than `search_path`, which has one.

    Two projects may both have a models.py, and one process (a notebook, a test run) may use both.
    """
    module = sys.modules.get(name)
    if search_path is None or module is None:
        return
    folder = Path(search_path).resolve()
    if not (_files(name, folder) or (folder / name).is_dir()):
        return
    places = [module.__file__] if module.__file__ else list(module.__path__)
    if not any(Path(place).resolve().is_relative_to(folder) for place in places):
        for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
            del sys.modules[known]
