"""A Hugging Face tokenizer.json cut down to the tokens that some texts use: most of a small text model is its table.

Tokens are only taken away, so that each one that stays is still what a model with the whole vocabulary knows by that
name. What was one token may become several, or, of characters that are gone, the unknown one.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import ModelError, RecipeError

# Kept whether the texts have them or not: the next text may. Every keyboard types them.
_ASCII = frozenset(map(chr, range(0x21, 0x7F)))
# BERT's empty places, and the bytes of tokenizers that fall back on them.
_UNUSED = re.compile(r"\[unused\d+\]")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# As many as there are bytes: byte-level BPE writes everything with these.
_FEW = 512


def shrink(content: str, counts: NDArray[np.int64], size: int) -> tuple[str, NDArray[np.int64]]:
    """(the tokenizer.json with at most `size` tokens, (new size,) the old id of each new one).

    content  a tokenizer.json whose model is WordPiece, BPE or Unigram
    counts   (old size,) how often the texts have each token

    Always stay: special and added tokens, the characters that make up the tokens of the texts, alone and as the
    continuation of a word (##a), those of ASCII, and all bytes of a tokenizer that knows bytes. Then come the tokens
    that are used most, and, where there is room, unused ones of the same characters in the order of their ids, which is
    that of how common they were where the tokenizer was made. The order of the ids stays.

    No text becomes unknown that was not: each used token that goes can be written with those that stay.

    Raises `ModelError` for another kind of tokenizer, and `RecipeError` for a size below that of what always stays.
    """
    table = json.loads(content)
    model = table["model"]
    kind = str(model.get("type") or ("BPE" if "merges" in model else "WordPiece"))
    if kind not in _KINDS:
        raise ModelError(
            f"the vocabulary of a tokenizer of type '{kind}' cannot be cut: a word that goes could not be written any "
            f"more; expected {', '.join(_KINDS)}. Leave 'vocabulary' out of the step tokenize"
        )
    read, write = _KINDS[kind]
    tokens = read(model)
    added = {str(item["content"]): int(item["id"]) for item in table.get("added_tokens") or ()}
    old = {**added, **tokens.ids}
    if len(counts) <= max(old.values()):
        raise ModelError(
            f"found counts of {len(counts)} tokens for ids up to {max(old.values())}; expected one for each: were the "
            "texts tokenized with another tokenizer?"
        )
    if size >= len(old):
        return content, np.array(sorted(old.values()), np.int64)
    kept = _choose(tokens, set(added) | {name for name in (model.get("unk_token"),) if name}, old, counts, size)
    # Of those that only stand beside the model, `tokenizers` expects the ids behind the model's.
    order = sorted(kept, key=lambda name: (name not in tokens.ids, old[name]))
    new = {name: number for number, name in enumerate(order)}
    result = copy.deepcopy(table)
    write(result["model"], new)
    _renumber(result, new)
    return json.dumps(result, ensure_ascii=False), np.array([old[name] for name in order], np.int64)


@dataclass(frozen=True)
class _Tokens:
    """What a kind of tokenizer says of its tokens.

    ids        of the model itself, without the added tokens
    atoms      token -> the tokens of single characters (or bytes) that it is made of; one may be missing from `ids`
    parts      token -> what has to be there for it to be made; nothing for most kinds
    always     stay, whatever the texts hold
    """

    ids: Mapping[str, int]
    atoms: Callable[[str], Iterable[str]]
    parts: Callable[[str], Iterable[str]]
    always: frozenset[str]


def _choose(
    tokens: _Tokens, special: set[str], old: Mapping[str, int], counts: NDArray[np.int64], size: int
) -> set[str]:
    used = [name for name, number in old.items() if counts[number] and name not in special]
    atoms = {atom for name in used for atom in tokens.atoms(name)}
    kept = special | tokens.always | (atoms & tokens.ids.keys())
    if not atoms <= tokens.ids.keys():
        # Some character is there inside of longer tokens only: without these it could not be written.
        kept |= set(used)
    for name in list(kept):
        kept |= _closure(tokens, name, kept)
    if len(kept) > size:
        raise RecipeError(
            f"preprocess.steps (tokenize): found vocabulary = {size}, but {len(kept)} tokens have to stay: special "
            f"tokens and the characters of the texts; take at least {len(kept)}"
        )
    common = sorted(old, key=lambda name: (-int(counts[old[name]]), old[name]))
    for name in common:
        is_foreign = not counts[old[name]] and not set(tokens.atoms(name)) <= kept
        if name in kept or is_foreign or _UNUSED.fullmatch(name):
            continue
        further = _closure(tokens, name, kept) | {name}
        if len(kept) + len(further) <= size:
            kept |= further
        if len(kept) == size:
            break
    return kept


def _closure(tokens: _Tokens, name: str, kept: set[str]) -> set[str]:
    """What has to be there for `name` and is not yet."""
    missing: set[str] = set()
    waiting = list(tokens.parts(name))
    while waiting:
        part = waiting.pop()
        if part not in kept and part not in missing:
            missing.add(part)
            waiting.extend(tokens.parts(part))
    return missing


def _word_piece(model: Mapping[str, Any]) -> _Tokens:
    ids: dict[str, int] = model["vocab"]
    prefix = str(model.get("continuing_subword_prefix", "##"))

    def atoms(name: str) -> list[str]:
        is_inside = name.startswith(prefix) and len(name) > len(prefix)
        text = name[len(prefix) :] if is_inside else name
        return [prefix + letter if is_inside or place else letter for place, letter in enumerate(text)]

    ascii_names = {name for letter in _ASCII for name in (letter, prefix + letter)}
    return _Tokens(ids, atoms, lambda name: (), frozenset(ascii_names & ids.keys()))


def _unigram(model: Mapping[str, Any]) -> _Tokens:
    names = [str(name) for name, _ in model["vocab"]]
    ids = {name: number for number, name in enumerate(names)}
    unknown = model.get("unk_id")
    always = {name for name in names if name in _ASCII or _BYTE.fullmatch(name)}
    always |= set() if unknown is None else {names[unknown]}
    return _Tokens(
        ids, lambda name: [name] if _BYTE.fullmatch(name) else list(name), lambda name: (), frozenset(always)
    )


def _byte_pair(model: Mapping[str, Any]) -> _Tokens:
    ids: dict[str, int] = model["vocab"]
    made: dict[str, tuple[str, str]] = {}
    prefix = str(model.get("continuing_subword_prefix") or "")
    for first, second in map(_pair, model["merges"]):
        made.setdefault(_merged(first, second, prefix), (first, second))
    base = {name for name in ids if name not in made}

    def parts(name: str) -> tuple[str, ...]:
        return made.get(name, ())

    def atoms(name: str) -> list[str]:
        waiting, found = [name], []
        while waiting:
            one = waiting.pop()
            if one in made:
                waiting.extend(made[one])
            else:
                found.append(one)
        return found

    always = base if len(base) <= _FEW else {name for name in base if name in _ASCII or _BYTE.fullmatch(name)}
    return _Tokens(ids, atoms, parts, frozenset(name for name in always if not _UNUSED.fullmatch(name)))


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """Files of today hold pairs, older ones texts with a space between."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _merged(first: str, second: str, prefix: str) -> str:
    return first + (second[len(prefix) :] if prefix and second.startswith(prefix) else second)


def _write_table(model: dict[str, Any], new: Mapping[str, int]) -> None:
    model["vocab"] = {name: new[name] for name in sorted(model["vocab"].keys() & new.keys(), key=new.__getitem__)}


def _write_byte_pair(model: dict[str, Any], new: Mapping[str, int]) -> None:
    _write_table(model, new)
    prefix = str(model.get("continuing_subword_prefix") or "")
    kept = model["vocab"]
    merges = [(merge, *_pair(merge)) for merge in model["merges"]]
    model["merges"] = [merge for merge, a, b in merges if a in kept and b in kept and _merged(a, b, prefix) in kept]


def _write_unigram(model: dict[str, Any], new: Mapping[str, int]) -> None:
    unknown = model.get("unk_id")
    name = None if unknown is None else model["vocab"][unknown][0]
    model["vocab"] = [item for item in model["vocab"] if item[0] in new]
    model["unk_id"] = None if name is None else new[name]


_KINDS: dict[
    str, tuple[Callable[[Mapping[str, Any]], _Tokens], Callable[[dict[str, Any], Mapping[str, int]], None]]
] = {
    "WordPiece": (_word_piece, _write_table),
    "BPE": (_byte_pair, _write_byte_pair),
    "Unigram": (_unigram, _write_unigram),
}


def _renumber(table: dict[str, Any], new: Mapping[str, int]) -> None:
    """The new ids wherever a tokenizer.json holds some beside its model's."""
    for item in table.get("added_tokens") or ():
        item["id"] = new[item["content"]]
    if table.get("added_tokens"):
        table["added_tokens"].sort(key=lambda item: item["id"])
    padding = table.get("padding")
    if padding:
        padding["pad_id"] = new[padding["pad_token"]]
    processor = table.get("post_processor") or {}
    for part in processor.get("processors") or [processor]:
        for key in ("sep", "cls"):
            if key in part:
                part[key] = [part[key][0], new[part[key][0]]]
        templates = part.get("special_tokens")
        for item in templates.values() if isinstance(templates, dict) else ():
            item["ids"] = [new[name] for name in item["tokens"]]
