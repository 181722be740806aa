"""Models of texts as exporters make them: which inputs follow from the ids, and what they are fed for lack of samples.

Axes: N texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekd.errors import InputRefused
from edgekd.spec import Array, TensorSpec

# As transformers and optimum call them.
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
# Tokens of a random text, where the model reads as many.
SHORTEST, LONGEST = 8, 32


@dataclass(frozen=True)
class TextLimits:
    """What random texts for a model may hold: ids below `ids`, at most `longest` tokens, `pad` behind them.

    known  whether a file said so. Without it they are the ids 0 and 1, which every table has
    """

    ids: int = 2
    longest: int = LONGEST
    pad: int = 0
    known: bool = False


def ids_of(specs: Sequence[TensorSpec]) -> TensorSpec:
    """The input that reads the ids. Raises `InputRefused` for inputs that do not all follow from it."""
    ids = next((spec for spec in specs if spec.name == IDS), specs[0])
    others = {spec.name for spec in specs if spec is not ids}
    if not others <= {MASK, TYPES} or ids.dtype not in ("int64", "int32") or len(ids.shape) != 2:
        found = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs)
        raise InputRefused(
            f"the graph reads {found}; expected of a model of texts: {IDS} (N, L) in int64 or int32, alone or with "
            f"{MASK} and {TYPES}"
        )
    return ids


def all_inputs(specs: Sequence[TensorSpec], ids_NL: Array, pad: int) -> dict[str, Array]:
    """What the graph reads: ids with their mask and types, each in the dtype of its input."""
    made = {ids_of(specs).name: ids_NL, MASK: ids_NL != pad, TYPES: np.zeros_like(ids_NL)}
    return {spec.name: made[spec.name].astype(spec.dtype) for spec in specs}


def reads_texts(specs: Sequence[TensorSpec]) -> bool:
    """Whether the inputs are called as those of models of texts, and all follow from ids."""
    try:
        return any(spec.name == IDS for spec in specs) and bool(ids_of(specs))
    except InputRefused:
        return False


def random_texts(lengths_N: Array, limits: TextLimits, rng: np.random.Generator) -> Array:
    """(N, L) int64 texts of these lengths. All ids come before one comes again; L is the length of the longest."""
    is_token = np.arange(lengths_N.max()) < lengths_N[:, None]
    texts = np.full(is_token.shape, limits.pad, np.int64)
    ids = rng.permutation(np.setdiff1d(np.arange(limits.ids), [limits.pad]))
    texts[is_token] = np.resize(ids, is_token.sum()) if len(ids) else limits.pad
    return texts


def random_batches(
    specs: Sequence[TensorSpec], limits: TextLimits, *, batch: int, count: int, rng: np.random.Generator
) -> list[dict[str, Array]]:
    """`count` batches for timing, each of texts of one length, short and long ones in turn."""
    n, length = ids_of(specs).shape
    limits = within(specs, limits)
    shortest = min(SHORTEST, limits.longest)
    # A step that shares no factor with the number of batches, as of real texts.
    places = np.arange(count) * 13 % count / max(count - 1, 1)
    found = []
    for tokens in np.rint(shortest + places * (limits.longest - shortest)).astype(np.int64):
        texts = random_texts(np.full(n if isinstance(n, int) else batch, tokens), limits, rng)
        texts = padded(texts, length, limits.pad)
        found.append(all_inputs(specs, texts, limits.pad))
    return found


def padded(texts_NL: Array, length: int | str, pad: int) -> Array:
    """The texts with padding behind them, where the axis of the tokens is a number."""
    more = length - texts_NL.shape[1] if isinstance(length, int) else 0
    return np.pad(texts_NL, ((0, 0), (0, more)), constant_values=pad)


def within(specs: Sequence[TensorSpec], limits: TextLimits) -> TextLimits:
    """The limits with texts that fit an axis of tokens that is a number."""
    length = ids_of(specs).shape[1]
    return replace(limits, longest=min(limits.longest, length)) if isinstance(length, int) else limits


def longest_that_runs(
    run: Callable[[Mapping[str, Array]], object],
    specs: Sequence[TensorSpec],
    limits: TextLimits,
    failures: tuple[type[Exception], ...],
) -> int | None:
    """How many tokens of those that `limits` allow the model takes, halving them; None where it fails on one."""
    (n, length), tokens = ids_of(specs).shape, limits.longest
    while tokens:
        texts = random_texts(np.full(n if isinstance(n, int) else 1, tokens), limits, np.random.default_rng(0))
        try:
            run(all_inputs(specs, padded(texts, length, limits.pad), limits.pad))
        except failures:
            tokens //= 2
        else:
            return tokens
    return None


def described(specs: Sequence[TensorSpec], limits: TextLimits) -> str:
    """What a model was timed on, for its result."""
    longest = within(specs, limits).longest
    ids = f"ids below {limits.ids}" if limits.known else "the ids 0 and 1 alone: how many there are is not known here"
    return f"random texts of {min(SHORTEST, longest)} to {longest} tokens, {ids}"
