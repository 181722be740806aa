"""What is laid over a recipe before it is validated: `--set` values, `EDGEKD_*` variables, absolute paths."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd import toml
from edgekd.errors import RecipeError, UsageError
from edgekd.hub import PREFIX
from edgekd.recipe_checks import DEFAULT_TERMS

# Data sets in a public format that lie together in one folder, which EDGEKD_DATA may name.
KINDS_IN_EDGEKD_DATA = ("mnist", "fashion_mnist", "sst2", "clinc150")
PATHS = (
    ("data", "root"),
    ("transfer", "root"),
    ("teacher", "weights"),
    ("teacher", "onnx"),
    ("teacher", "logits"),
    ("student", "weights"),
)
NAMES_OR_PATHS = (("target", "name"), ("benchmark", "suite"))  # a path where they end in .toml


def set_value(tables: dict[str, Any], override: str) -> str:
    """Put one `a.b=value` into `tables`; returns its dotted key."""
    key, equals, text = override.partition("=")
    key, text = key.strip(), text.strip()
    parts = key.split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set {override}: expected KEY=VALUE, for example --set distill.epochs=5")
    if parts[:2] == ["distill", "terms"] and len(parts) > 2:
        _write_default_terms(tables)
    place: Any = tables
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        so_far = ".".join(parts[:index]) or "the recipe"
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise RecipeError(
                    f"--set {override}: {so_far} is a list of {len(place)}; expected a number from 0 to "
                    f"{len(place) - 1} after it, found '{part}'"
                )
            step: Any = int(part)
        elif isinstance(place, dict):
            step = part
        else:
            raise RecipeError(f"--set {override}: {so_far} is {place!r}, a value, and has no key '{part}'")
        if last:
            place[step] = _parse_value(text)
        else:
            place = place.setdefault(step, {}) if isinstance(place, dict) else place[step]
    return key


def _write_default_terms(tables: dict[str, Any]) -> None:
    """Make the terms of the task visible, so that `--set distill.terms.0.weight=...` can change one."""
    distill = tables.setdefault("distill", {})
    if isinstance(distill, dict) and "terms" not in distill:
        distill["terms"] = copy.deepcopy(list(DEFAULT_TERMS.get(tables.get("task", "classification"), ())))


def _parse_value(text: str) -> Any:
    try:
        parsed = toml.loads(f"value = {text}\n")
    except toml.TOMLDecodeError:
        return text
    # A text with a line break may hold more than one TOML line: then it is just a text.
    return parsed["value"] if set(parsed) == {"value"} else text


def apply_environment(tables: dict[str, Any], environ: Mapping[str, str], origins: dict[str, str]) -> None:
    """EDGEKD_DATA, EDGEKD_SEED and EDGEKD_THREADS, where `origins` does not say that `--set` spoke."""
    data = tables.get("data")
    root = environ.get("EDGEKD_DATA")
    is_set = "data.root" in origins or ("data" in origins and isinstance(data, dict) and "root" in data)
    if root and isinstance(data, dict) and data.get("kind") in KINDS_IN_EDGEKD_DATA and not is_set:
        data["root"] = str(Path(root).expanduser().absolute())
        origins["data.root"] = f"EDGEKD_DATA={root}"
    for key, variable in (("seed", "EDGEKD_SEED"), ("threads", "EDGEKD_THREADS")):
        value = environ.get(variable)
        if value and key not in origins:
            tables[key] = _parse_value(value)
            origins[key] = f"{variable}={value}"


def resolve_paths(tables: dict[str, Any], folder: Path, environ: Mapping[str, str], *, only: str | None = None) -> None:
    """Make the paths in `tables` absolute, from `folder`; `only` the one with that dotted key.

    Data that are not there, and lie under EDGEKD_DATA by that name, are meant there.
    """
    for section, key in (*PATHS, *NAMES_OR_PATHS):
        table = tables.get(section)
        if only not in (None, section, f"{section}.{key}") or not isinstance(table, dict):
            continue
        value = table.get(key)
        if (section, key) == ("data", "root") and table.get("kind") == "huggingface":
            continue  # a name on the hub; a folder is given from here
        if key == "weights" and isinstance(value, str) and value.startswith(PREFIX):
            continue  # a folder from here or a name on the hub, as with models
        if isinstance(value, str) and ((section, key) in PATHS or value.endswith(".toml")):
            path = folder / Path(value).expanduser()
            shared = environ.get("EDGEKD_DATA")
            if key == "root" and shared and not path.exists():
                there = Path(shared).expanduser().absolute() / value
                path = there if there.exists() else path
            table[key] = str(path)
    preprocess = tables.get("preprocess")
    steps = preprocess.get("steps") if isinstance(preprocess, dict) else None
    for step in steps if isinstance(steps, list) and only in (None, "preprocess", "preprocess.steps") else ():
        # What is not there may lie in an installed package (edgekd.references.locate).
        if isinstance(step, dict) and isinstance(step.get("file"), str):
            found = folder / Path(step["file"]).expanduser()
            step["file"] = str(found) if found.exists() else step["file"]
    further = tables.get("teachers")
    for number, table in enumerate(further if isinstance(further, list) else ()):
        for key in ("weights", "onnx", "logits"):
            is_meant = only in (None, "teachers", f"teachers.{number}", f"teachers.{number}.{key}")
            value = table.get(key) if is_meant and isinstance(table, dict) else None
            if isinstance(value, str) and not value.startswith(PREFIX):
                table[key] = str(folder / Path(table[key]).expanduser())
