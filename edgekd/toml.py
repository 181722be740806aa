"""TOML in and out, with the same result on every Python that edgekd supports.

Reading is the standard library's (tomli before Python 3.11). Writing covers what recipes hold: texts, numbers,
booleans, dates, lists and tables; `loads(dumps(value)) == value`.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOMLDecodeError = tomllib.TOMLDecodeError
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LINE_LENGTH = 110


def loads(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises `TOMLDecodeError` (a ValueError) with the line and column."""
    return tomllib.loads(text)


def dumps(value: Mapping[str, Any]) -> str:
    """`value` as TOML: plain keys first, then `[table]` and `[[list of tables]]`; deeper tables are inline."""
    blocks = [_lines(value)]
    for key, item in value.items():
        if _is_table(item):
            blocks += _table(_key(key), item, header=f"[{_key(key)}]")
        elif _is_tables(item):
            for table in item:
                blocks += _table(_key(key), table, header=f"[[{_key(key)}]]")
    return "\n".join("\n".join(block) + "\n" for block in blocks if block)


def _table(path: str, table: Mapping[str, Any], *, header: str) -> list[list[str]]:
    """One table; lists of tables that do not fit a line become `[[path.key]]` blocks below it."""
    below = {key: item for key, item in table.items() if _is_tables(item) and any(map(_holds_table, item))}
    blocks = [[header, *_lines({key: item for key, item in table.items() if key not in below}, inline=True)]]
    for key, items in below.items():
        for item in items:
            blocks.append([f"[[{path}.{_key(key)}]]", *_lines(item, inline=True)])
    return blocks


def _lines(table: Mapping[str, Any], *, inline: bool = False) -> list[str]:
    lines = []
    for key, item in table.items():
        if not inline and (_is_table(item) or _is_tables(item)):
            continue
        line = f"{_key(key)} = {_value(item)}"
        if len(line) > _LINE_LENGTH and _is_tables(item):
            line = "\n".join([f"{_key(key)} = [", *(f"  {_value(part)}," for part in item), "]"])
        lines.append(line)
    return lines


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: object) -> bool:
    return _is_list(value) and bool(value) and all(map(_is_table, value))  # type: ignore[call-overload]


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _holds_table(table: Mapping[str, Any]) -> bool:
    return any(map(_is_table, table.values()))


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _text(value: str) -> str:
    # JSON escapes what TOML asks to be escaped, all but DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"{value}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "[" + ", ".join(map(_value, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no form in TOML; use texts, numbers, booleans, lists and tables")
