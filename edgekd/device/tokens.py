"""Texts to token ids, by a Hugging Face tokenizer.json, as in training so on the device.

The package `tokenizers` does the work (extra `text`); it is asked for when the first text comes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import DataError, MissingExtra, ModelError
from edgekd.spec import Array, Step, Tokenize, Trim, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The name of the file in a bundle.
TOKENIZER = "tokenizer.json"
# Of one text: what nobody reads on a phone, but an attacker may send.
MAX_TEXT = 10_000_000
MAX_FILE = 100_000_000
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


def encode(step: Tokenize, raw: object) -> NDArray[np.int32]:
    """The ids (max_length,) of one text: with the tokenizer's special tokens, cut and padded on the right.

    An array of whole numbers is taken for ids already. Raises `DataError` for anything that is neither, and for a text
    of more than ten million characters.
    """
    vocabulary = vocabulary_of(step)
    if isinstance(raw, np.ndarray):
        ids = _given(step, raw, vocabulary)
    else:
        ids = np.array(_tokenizer(step.content, step.max_length).encode(as_text(raw)).ids, np.int32)
    row = np.full(step.max_length, vocabulary.pad, np.int32)
    row[: len(ids)] = ids
    return row


def is_cut(step: Tokenize, text: object, ids: Array) -> bool:
    """Whether the text, of which `encode` made `ids`, has more tokens than the model reads."""
    if isinstance(text, np.ndarray) or ids[-1] == vocabulary_of(step).pad:
        return False
    return bool(_tokenizer(step.content, step.max_length).encode(as_text(text)).overflowing)


def as_text(raw: object) -> str:
    """The text itself; half of a surrogate pair becomes U+FFFD, as in every other language's UTF-8."""
    if isinstance(raw, bytes):
        try:
            raw = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"the text is not valid UTF-8 (byte {error.start}); decode it first, for example with errors='replace'"
            ) from error
    if not isinstance(raw, str):
        kind = "a path" if isinstance(raw, os.PathLike) else f"{type(raw).__name__}"
        raise DataError(f"found {kind}, expected a text: this model reads texts, not files; pass the text itself")
    if len(raw) > MAX_TEXT:
        raise DataError(f"the text has {len(raw):,} characters, expected at most {MAX_TEXT:,}; pass a part of it")
    return raw.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def texts_of(steps: Iterable[Step], rows: Array) -> list[str]:
    """Rows of ids (N, T) as texts, without special tokens; of a model of something else none."""
    step = tokenize_step(steps)
    return [] if step is None else _tokenizer(step.content, step.max_length).decode_batch(rows.tolist())


def is_ids(array: Array) -> bool:
    """Whether samples are ids of tokens: bytes are pixels, all other whole numbers are ids."""
    return bool(array.dtype.kind in "iu" and array.dtype.itemsize > 1)


def vocabulary_of(step: Tokenize) -> Vocabulary:
    """The vocabulary of the step's tokenizer. Raises `ModelError` for one without padding, or no tokenizer at all."""
    return _vocabulary(step.content)


def tokens_of(content: str) -> tuple[str, ...]:
    """What each id of a tokenizer.json stands for, "" where none does. Raises `ModelError` for what is no tokenizer."""
    return _in_order(_parse(content).get_vocab(with_added_tokens=True))


def with_tokenizers(steps: Iterable[Step], read: Callable[[str], bytes]) -> tuple[Step, ...]:
    """The steps with the content of their tokenizer files, and with the padding that belongs to it.

    `read` gives the bytes of a file by its name. Raises `ModelError` for a file that is no tokenizer.
    """
    found: list[Step] = []
    pad: int | None = None
    for step in steps:
        if isinstance(step, Tokenize):
            data = step.content.encode() if step.content else read(step.file)
            step = replace(step, content=_as_json(data, step.file))
            pad = vocabulary_of(step).pad
        elif isinstance(step, Trim):
            step = replace(step, pad=pad if step.pad is None else step.pad)
        found.append(step)
    return tuple(found)


def files_of(steps: Iterable[Step]) -> tuple[str, ...]:
    """The names of the files that the steps read."""
    return tuple(step.file for step in steps if isinstance(step, Tokenize))


def tokenize_step(steps: Iterable[Step]) -> Tokenize | None:
    """The step that makes ids of texts; None for a model of something else."""
    return next((step for step in steps if isinstance(step, Tokenize)), None)


def _given(step: Tokenize, ids: Array, vocabulary: Vocabulary) -> NDArray[np.int32]:
    if ids.dtype.kind not in "iu" or ids.ndim != 1 or not 0 < len(ids) <= step.max_length:
        raise DataError(
            f"found an array of {ids.dtype} {list(ids.shape)}, expected a text, or 1 to {step.max_length} ids of tokens"
        )
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary.size:
        raise DataError(f"found the id {int(ids.max())}, expected 0 to {vocabulary.size - 1}")
    return ids.astype(np.int32)


def _as_json(data: bytes, name: str) -> str:
    if len(data) > MAX_FILE:
        raise ModelError(f"{name} has {len(data):,} bytes, expected a tokenizer.json of at most {MAX_FILE:,}")
    try:
        text = data.decode("utf-8")
        table: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is no JSON ({error}); expected a Hugging Face tokenizer.json") from error
    if not isinstance(table, dict) or not isinstance(table.get("model"), dict):
        raise ModelError(
            f"{name} is no tokenizer.json: it has no table 'model'. Save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        )
    return text


@lru_cache(maxsize=8)
def _vocabulary(content: str) -> Vocabulary:
    names = _parse(content).get_vocab(with_added_tokens=True)
    tokens = _in_order(names)
    padding = json.loads(content).get("padding") or {}
    pad = next((names[token] for token in (padding.get("pad_token"), *_PADS) if token in names), None)
    if pad is None:
        raise ModelError(
            f"the tokenizer has no padding token: neither a table 'padding' nor one of {', '.join(_PADS)} is there; "
            "give it one with tokenizer.enable_padding(pad_token=...) before saving it"
        )
    return Vocabulary(len(tokens), pad, tokens)


def _in_order(names: Mapping[str, int]) -> tuple[str, ...]:
    tokens = [""] * (1 + max(names.values(), default=-1))
    for token, number in names.items():
        tokens[number] = token
    return tuple(tokens)


@lru_cache(maxsize=8)
def _tokenizer(content: str, max_length: int) -> Tokenizer:
    tokenizer = _parse(content)
    tokenizer.no_padding()
    if max_length <= tokenizer.num_special_tokens_to_add(is_pair=False):
        raise ModelError(
            f"tokenize: max_length = {max_length} leaves no room beside the tokenizer's own special tokens; take more"
        )
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _parse(content: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", "text", purpose="models of texts") from error
    if not content:
        raise ModelError("the tokenizer was not read: these steps are those of a recipe; open them with its bundle")
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the Rust library raises bare Exception for every unknown part
        raise ModelError(f"the tokenizer.json cannot be used: {error}; expected one that `tokenizers` wrote") from error
