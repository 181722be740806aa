"""bundle.json: read as somebody else's text, checked field by field before anything is believed.

Unknown keys are ignored, so that later versions of edgekd may add some within version 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from edgekd.device.archive import MAX_FILE_BYTES, name_problem
from edgekd.device.postprocess import parse_post_steps
from edgekd.device.preprocess import split_steps
from edgekd.errors import BundleError, RecipeError, nearest
from edgekd.spec import TASKS, TensorSpec, parse_steps

MANIFEST = "bundle.json"
SIGNATURE = "bundle.json.sig"
VERSION = 1
MAX_MANIFEST_BYTES = 1_000_000
DTYPES = (
    "float16",
    "float32",
    "float64",
    "bool",
    "str",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXTS = ("id", "created", "edgekd_version", "licence", "intended_use")
_TABLES = ("provenance", "metrics")


def parse_manifest(data: bytes) -> dict[str, Any]:
    """The checked manifest in the bytes of a bundle.json. Raises `BundleError` that names the field."""
    try:
        manifest = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        _check_values(manifest)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{MANIFEST} is not readable as JSON ({error}); get a fresh copy of the bundle") from error
    check_manifest(manifest)
    checked: dict[str, Any] = manifest
    return checked


def check_manifest(manifest: object) -> None:
    """Check the types and the inner consistency of a manifest. Raises `BundleError` that names the field."""
    table = _table(manifest, "the manifest")
    version = table.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise BundleError(
            f"this bundle has version {version}, but this edgekd reads version {VERSION}; "
            "upgrade it with: pip install --upgrade edgekd"
        )
    _expect(type(version) is int and version == VERSION, "version", version, f"the number {VERSION}")
    _expect(isinstance(table.get("name"), str), "name", table.get("name"), "a text")
    _expect(table.get("task") in TASKS, "task", table.get("task"), f"one of {', '.join(TASKS)}")
    for key in _TEXTS:
        _expect(isinstance(table.get(key, ""), str), key, table.get(key), "a text")
    for key in _TABLES:
        _table(table.get(key, {}), key)
    provenance = table.get("provenance", {})
    for key in ("teacher", "data"):
        origin = _table(provenance.get(key, {}), f"provenance.{key}")
        for name in ("name", "licence", "sha256"):
            _expect(isinstance(origin.get(name, ""), str), f"provenance.{key}.{name}", origin.get(name), "a text")
    for index, label in enumerate(_list(table.get("labels"), "labels")):
        _expect(isinstance(label, str), f"labels[{index}]", label, "a text")
    for index, limit in enumerate(_list(table.get("limits", []), "limits")):
        _table(limit, f"limits[{index}]")
    for side in ("inputs", "outputs"):
        tensor_specs(table, side)
    _check_steps(table)
    files = _check_files(table)
    _check_tokenizers(table, files)
    _check_variants(table, files)
    _check_arrays(table, files)


def tensor_specs(manifest: Mapping[str, Any], side: str) -> tuple[TensorSpec, ...]:
    """The manifest's "inputs" or "outputs" as specs. Raises `BundleError` when they are none."""
    specs = []
    raw = _list(manifest.get(side), side)
    _expect(bool(raw), side, raw, "at least one tensor")
    for index, item in enumerate(raw):
        where = f"{side}[{index}]"
        tensor = _table(item, where)
        name, dtype, shape = tensor.get("name"), tensor.get("dtype"), _list(tensor.get("shape"), f"{where}.shape")
        _expect(isinstance(name, str) and bool(name), f"{where}.name", name, "a text")
        _expect(dtype in DTYPES, f"{where}.dtype", dtype, f"one of {', '.join(DTYPES)}")
        for size in shape:
            fits = (isinstance(size, str) and bool(size)) or (_is_count(size) and size > 0)
            _expect(fits, f"{where}.shape", shape, "whole numbers from 1 and names of axes")
        specs.append(TensorSpec(name, dtype, tuple(shape)))
    names = [spec.name for spec in specs]
    _expect(len(set(names)) == len(names), side, names, "each name once")
    return tuple(specs)


def spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    """A tensor as bundle.json states it; `axes` names the symbolic ones."""
    axes = {str(index): size for index, size in enumerate(spec.shape) if isinstance(size, str)}
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "axes": axes}


def _check_steps(table: Mapping[str, Any]) -> None:
    parsers: dict[str, Callable[[Any, str], object]] = {
        "preprocess": lambda steps, where: split_steps(parse_steps(steps, where=where)),
        "postprocess": lambda steps, where: parse_post_steps(steps, where=where),
    }
    for side, parse in parsers.items():
        for key in (side, f"{side}_in_graph"):
            steps = _list(table.get(key) if key == side else table.get(key, []), key)
            for index, step in enumerate(steps):
                _table(step, f"{key}[{index}]")
            try:
                parse(steps, key)
            except RecipeError as error:
                raise BundleError(
                    f"{MANIFEST}: {error}; a newer edgekd may know it: pip install --upgrade edgekd"
                ) from error
            for index, step in enumerate(steps):
                for word in ("train", "calibrated"):
                    fits = word not in step.values()
                    _expect(fits, f"{key}[{index}]", step, f'figures, not "{word}", which only a recipe may say')


def _check_tokenizers(table: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    for index, step in enumerate(table["preprocess"]):
        if step["op"] == "tokenize":
            _check_listed(step["file"], f"preprocess[{index}].file", files)
        fits = step["op"] != "trim" or step.get("pad") is not None
        _expect(fits, f"preprocess[{index}]", step, "the id of the padding, pad")


def _check_files(table: Mapping[str, Any]) -> Mapping[str, Any]:
    files = _table(table.get("files"), "files")
    for name, entry in files.items():
        problem = name_problem(name) or ("expected any name but this" if name in (MANIFEST, SIGNATURE) else None)
        if problem is not None:
            raise BundleError(f"{MANIFEST}: files names {name!r}: {problem}; get the bundle from somewhere else")
        record = _table(entry, f"files['{name}']")
        digest, size = record.get("sha256"), record.get("size_bytes")
        fits = isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
        _expect(fits, f"files['{name}'].sha256", digest, "64 hexadecimal digits")
        _expect(_is_count(size), f"files['{name}'].size_bytes", size, "a whole number")
        if size > MAX_FILE_BYTES:
            raise BundleError(f"{MANIFEST}: {name} would have {size} bytes, expected at most {MAX_FILE_BYTES}")
    checked: Mapping[str, Any] = files
    return checked


def _check_variants(table: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    variants = _table(table.get("variants"), "variants")
    _expect(bool(variants), "variants", variants, "at least one variant")
    for name, entry in variants.items():
        where = f"variants['{name}']"
        _expect(_NAME.fullmatch(name) is not None, "variants", name, "names of letters, digits, '_' and '-'")
        variant = _table(entry, where)
        graphs = _table(variant.get("graphs"), f"{where}.graphs")
        _expect(bool(graphs), f"{where}.graphs", graphs, "at least one graph")
        for role, file in graphs.items():
            _check_listed(file, f"{where}.graphs['{role}']", files)
        _expect(_is_count(variant.get("size_bytes", 0)), f"{where}.size_bytes", variant.get("size_bytes"), "a number")
        for key, value in _table(variant.get("tolerance", {}), f"{where}.tolerance").items():
            _expect(_is_number(value) and value >= 0, f"{where}.tolerance['{key}']", value, "a number from 0")
        for key in ("metrics", "min_runtime"):
            _table(variant.get(key, {}), f"{where}.{key}")
    for kind, name in _table(table.get("default", {}), "default").items():
        _expect(isinstance(name, str) and name in variants, f"default['{kind}']", name, f"one of {', '.join(variants)}")


def _check_arrays(table: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    golden = _table(table.get("golden"), "golden")
    _check_listed(golden.get("file"), "golden.file", files)
    _check_names(golden.get("inputs"), "golden.inputs")
    for variant, names in _table(golden.get("outputs"), "golden.outputs").items():
        _expect(variant in table["variants"], "golden.outputs", variant, f"one of {', '.join(table['variants'])}")
        _check_names(names, f"golden.outputs['{variant}']")
    _expect(
        isinstance(golden.get("synthetic", True), bool), "golden.synthetic", golden.get("synthetic"), "true or false"
    )
    if table.get("samples") is not None:
        samples = _table(table["samples"], "samples")
        _check_listed(samples.get("file"), "samples.file", files)
        _expect(_is_count(samples.get("count")), "samples.count", samples.get("count"), "a whole number")


def _check_names(value: object, where: str) -> None:
    for name in _list(value, where):
        _expect(isinstance(name, str), where, name, "names of tensors")


def _check_listed(name: object, where: str, files: Mapping[str, Any]) -> None:
    if not isinstance(name, str) or name not in files:
        raise BundleError(
            f"{MANIFEST}: {where} is {name!r}, expected a file that 'files' lists. {nearest(str(name), files)}"
        )


def _expect(fits: bool, where: str, found: object, expected: str) -> None:
    if not fits:
        text = repr(found)
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise BundleError(f"{MANIFEST}: {where} is {shown}, expected {expected}; get a fresh copy of the bundle")


def _table(value: object, where: str) -> Any:
    """The value as a dict: typed Any, because what is in it is checked by the caller, field by field."""
    _expect(isinstance(value, dict), where, value, "a table")
    return value


def _list(value: object, where: str) -> Any:
    _expect(isinstance(value, list), where, value, "a list")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice in one table")
    return table


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _check_values(value: object) -> None:
    """Only values that every language reads alike: finite, 64-bit, valid Unicode."""
    if isinstance(value, str):
        value.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, a ValueError
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large")
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("a whole number is too large")
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode("utf-8")
            _check_values(item)
    elif isinstance(value, list):
        for item in value:
            _check_values(item)
