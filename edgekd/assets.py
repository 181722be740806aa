"""Finds the files that travel with edgekd: recipes, targets, apps, suites.

In an installed wheel they lie inside the package (`edgekd/_export`), in a checkout beside it (`export/`).
"""

from __future__ import annotations

from pathlib import Path

from edgekd.errors import UsageError, nearest

_PACKAGE = Path(__file__).resolve().parent
_ROOTS = {"export": ("_export", "export"), "benchmarks": ("_benchmarks", "benchmarks")}


def folder(kind: str, name: str) -> Path:
    """The folder `name` of `kind` ("export" or "benchmarks"): `folder("export", "recipes")`."""
    in_wheel, in_checkout = _ROOTS[kind]
    for root in (_PACKAGE / in_wheel, _PACKAGE.parent / in_checkout):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"this edgekd installation lacks its folder {kind}/{name}; reinstall edgekd")


def names(kind: str, name: str, suffix: str = ".toml") -> list[str]:
    """The names, without suffix, of the files in that folder, sorted."""
    return sorted(path.stem for path in folder(kind, name).glob(f"*{suffix}"))


def find(kind: str, name: str, item: str, suffix: str = ".toml") -> Path:
    """The file `item` of that folder. Raises `UsageError` with the nearest name when there is none."""
    path = folder(kind, name) / f"{item}{suffix}"
    if item not in names(kind, name, suffix):
        raise UsageError(f"no {name.removesuffix('s')} is called '{item}'. {nearest(item, names(kind, name, suffix))}")
    return path
