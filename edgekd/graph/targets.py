"""Targets: what a kind of device can load and which variant it should prefer. One TOML file each, in export/targets."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd import assets, toml
from edgekd.errors import UsageError, nearest

FLOAT = "float32"
_KEYS = ("version", "description", "runtime", "variants", "max_opset", "max_ir", "default")


@dataclass(frozen=True)
class Target:
    """A kind of device.

    runtime   name of the runtime adapter that it uses
    variants  what is made for it, "float32" (the unquantized file) among them
    default   pattern of a CPU kind (`x86_64-vnni`, `x86_64*`, `*`) -> variants in the order to prefer them
    """

    name: str
    description: str
    runtime: str
    variants: tuple[str, ...]
    default: Mapping[str, tuple[str, ...]]
    max_opset: int
    max_ir: int

    def preference(self, cpu_kind: str) -> tuple[str, ...]:
        """The variants to prefer on `cpu_kind`: of the patterns that match, the longest counts."""
        matching = [pattern for pattern in self.default if fnmatch.fnmatchcase(cpu_kind, pattern)]
        return self.default[max(matching, key=len)]


def load_target(name: str | os.PathLike[str]) -> Target:
    """The target `name` of export/targets, or of one's own TOML file (a path, or a name that ends in .toml).

    Raises `UsageError` for an unknown name, and for a file with unknown keys, variants or values.
    """
    from edgekd.graph.quantization import VARIANTS

    text = os.fspath(name)
    own = text.endswith(".toml") or os.sep in text
    path = Path(text) if own else assets.find("export", "targets", text)
    try:
        raw = toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no target file {path}; expected a TOML file like export/targets/cpu.toml"
        ) from error
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is not TOML: {error}; compare it with export/targets/cpu.toml") from error
    return _parse(raw, path, (FLOAT, *VARIANTS))


def target_names() -> list[str]:
    """The names that `load_target` knows without a file, sorted."""
    return assets.names("export", "targets")


def _parse(raw: Mapping[str, Any], path: Path, known_variants: tuple[str, ...]) -> Target:
    where = path.name
    for key in raw:
        if key not in _KEYS:
            raise UsageError(f"{where}: unknown key '{key}'. {nearest(key, _KEYS)}")
    for key in _KEYS:
        if key not in raw:
            raise UsageError(f"{where}: the key '{key}' is missing; expected the keys {', '.join(_KEYS)}")
    if raw["version"] != 1:
        raise UsageError(f"{where}: version is {raw['version']!r}, expected 1; a newer edgekd may read it")
    for key in ("description", "runtime"):
        if not isinstance(raw[key], str) or not raw[key]:
            raise UsageError(f"{where}: {key} is {raw[key]!r}, expected a text")
    for key in ("max_opset", "max_ir"):
        if type(raw[key]) is not int or raw[key] < 1:
            raise UsageError(f"{where}: {key} is {raw[key]!r}, expected a whole number")
    variants = _names(raw["variants"], f"{where}: variants", known_variants)
    if FLOAT not in variants:
        raise UsageError(f"{where}: variants lack '{FLOAT}', which every other variant is compared with; add it")
    default = raw["default"]
    if not isinstance(default, Mapping) or "*" not in default:
        raise UsageError(f"{where}: [default] lacks the pattern '*', which holds for every other CPU; add it")
    preferences = {
        pattern: _names(order, f"{where}: default.{pattern}", variants) for pattern, order in default.items()
    }
    return Target(
        name=path.stem,
        description=raw["description"],
        runtime=raw["runtime"],
        variants=variants,
        default=preferences,
        max_opset=raw["max_opset"],
        max_ir=raw["max_ir"],
    )


def _names(value: object, where: str, known: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where} is {value!r}, expected a list of variants: {', '.join(known)}")
    for item in value:
        if item not in known:
            raise UsageError(f"{where}: unknown variant {item!r}. {nearest(str(item), known)}")
    if len(set(value)) != len(value):
        raise UsageError(f"{where} names a variant twice: {value}")
    return tuple(value)
