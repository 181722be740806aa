"""`edgekd init DIR`: a project with a user's own data, teacher and student, and one test that passes."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from edgekd import assets
from edgekd.errors import UsageError, explain_os_errors
from edgekd.files import write_text

# Written in this order; below export/templates/project.
FILES = ("recipe.toml", "data.py", "models.py", "tests/test_project.py", "README.md")
NAME_IN_TEMPLATES = "project"


def write_project(folder: str | PathLike[str]) -> list[Path]:
    """Write the project into `folder`, which must be new or empty; returns the files. Its name becomes the run's.

    Raises `UsageError` for a folder that holds something, `StorageError` where nothing may be written.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, expected a new or empty folder; choose another name")
    with explain_os_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in target.iterdir())
    if found:
        more = ", ..." if len(found) > 3 else ""
        raise UsageError(
            f"{target} is not empty ({', '.join(found[:3])}{more}); choose a new folder, so that nothing is overwritten"
        )
    templates = assets.folder("export", "templates") / "project"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", target.resolve().name).strip("-._") or NAME_IN_TEMPLATES
    return [write_text(target / file, _named((templates / file).read_text(encoding="utf-8"), name)) for file in FILES]


def _named(text: str, name: str) -> str:
    text = text.replace(f'name = "{NAME_IN_TEMPLATES}"', f'name = "{name}"')
    return text.replace(f"runs/{NAME_IN_TEMPLATES}", f"runs/{name}")
