"""Texts for recipes that do not fit: the place, what was found, what was expected."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

# Keys that people look for and that lie elsewhere (articles write alpha for either term's weight).
ELSEWHERE = {
    "temperature": "distill.terms.options.temperature",
    "alpha": "distill.terms.weight",
    "learning_rate": "distill.lr",
}
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-' only",
    "string_too_long": "at most {max_length} letters",
    "literal_error": "{expected}",
}


def find_unknown_key(
    model: type[BaseModel], tables: Mapping[str, Any], *, source: str, origins: Mapping[str, str]
) -> str | None:
    """The error text for the first key that `model` does not know; `origins` name the keys set from outside."""
    for section, path, key in _unknown_keys(model, tables, ()):
        dotted = ".".join((*path, key))
        known = list(section.model_fields)
        return f"{_source(dotted, source, origins)}: unknown key '{dotted}'. {_hint(model, key, known)}"
    return None


def explain(error: ValidationError, *, source: str, origins: Mapping[str, str]) -> str:
    """One line per value that does not fit: `fashion.toml: distill.epochs: found "ten" (a text), expected ...`."""
    lines = []
    for item in error.errors(include_url=False):
        # Where a key may hold either of two kinds, pydantic names the kind in brackets.
        dotted = ".".join(str(part) for part in item["loc"] if not str(part).startswith("("))
        prefix = f"{_source(dotted, source, origins)}: "
        if item["type"] == "missing":
            lines.append(f"{prefix}'{dotted}' is missing; {_missing(dotted)}")
            continue
        expected = EXPECTED.get(item["type"], item["msg"]).format(**item.get("ctx", {}))
        lines.append(f"{prefix}{dotted}: found {_found(item['input'])}, expected {expected}")
    return "\n".join(lines)


def _unknown_keys(
    model: type[BaseModel], table: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[type[BaseModel], tuple[str, ...], str]]:
    for key, value in table.items():
        if key not in model.model_fields:
            yield model, path, key
            continue
        inner = _section_in(model.model_fields[key].annotation)
        if inner is None:
            continue
        if isinstance(value, Mapping):
            yield from _unknown_keys(inner, value, (*path, key))
        elif isinstance(value, Sequence):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from _unknown_keys(inner, item, (*path, key, str(index)))


def _section_in(annotation: object) -> type[BaseModel] | None:
    """The section inside an annotation such as `tuple[Section, ...]`, or None."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for part in typing.get_args(annotation):
        found = _section_in(part)
        if found is not None:
            return found
    return None


def _hint(model: type[BaseModel], key: str, known: Sequence[str]) -> str:
    listed = f"Known keys: {', '.join(known)}"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'? {listed}"
    elsewhere = {**_places(model), **ELSEWHERE}
    close = difflib.get_close_matches(key, list(elsewhere), n=1, cutoff=0.75)
    return f"Did you mean '{close[0]}'? Its place is '{elsewhere[close[0]]}'. {listed}" if close else listed


def _places(model: type[BaseModel], path: tuple[str, ...] = ()) -> dict[str, str]:
    places: dict[str, str] = {}
    for key, field in model.model_fields.items():
        places.setdefault(key, ".".join((*path, key)))
        inner = _section_in(field.annotation)
        if inner is not None:
            for name, place in _places(inner, (*path, key)).items():
                places.setdefault(name, place)
    return places


def _source(dotted: str, source: str, origins: Mapping[str, str]) -> str:
    """Where the value came from: `--set` and the environment are named, else the file."""
    for key, origin in origins.items():
        if dotted == key or dotted.startswith(f"{key}."):
            return origin
    return source


def _missing(dotted: str) -> str:
    first, _, last = dotted.rpartition(".")
    examples = {
        "data": '[data] with kind = "digits", for example',
        "data.kind": 'for example kind = "digits"',
        "teacher": '[teacher] with model = "NAME" (built in, or your own "module:function"), or onnx, logits or url',
        "student": '[student] with model = "NAME" (built in, or your own "package.module:function")',
        "student.model": 'model = "NAME" (built in, or your own "package.module:function")',
    }
    return f"expected {examples[dotted]}" if dotted in examples else f"add '{last}' to [{first}]"


def _found(value: object) -> str:
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        (bool, "true or false"),
        (str, "a text"),
        (int, "a whole number"),
        (float, "a number"),
        ((list, tuple), "a list"),
        (dict, "a table"),
    ]
    kind = next((name for types_, name in kinds if isinstance(value, types_)), type(value).__name__)
    shown = {True: "true", False: "false"}.get(value, "") if isinstance(value, bool) else ""
    shown = shown or (f'"{value}"' if isinstance(value, str) else repr(value))
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({kind})"
