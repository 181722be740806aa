"""Masked language models in one run: which token is the mask, and the folder that other recipes begin with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.device.tokens import vocabulary_of
from edgekd.errors import DataError
from edgekd.recipe import Recipe
from edgekd.rows import pieces
from edgekd.spec import Dataset, Split, Tokenize

if TYPE_CHECKING:
    from edgekd.distill.masking import Masking

MASKS = ("[MASK]", "<mask>")
# Of each model of the run: what transformers, and other recipes as hf:FOLDER, begin with.
FOLDER = "model"


def labels_of(step: Tokenize) -> tuple[str, ...]:
    """The names of the outputs: what each id stands for."""
    return tuple(token or f"unused {number}" for number, token in enumerate(vocabulary_of(step).tokens))


def askable(dataset: Dataset, masking: Masking) -> Dataset:
    """The data set without texts of which no token can be asked for, such as those of nothing but unknown ones.

    Raises `DataError` when a split has no others.
    """
    parts: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        split: Split = getattr(dataset, name)
        can_N = np.concatenate([np.isin(piece, masking.others).any(axis=1) for piece in pieces(split.x)])
        if not can_N.any():
            raise DataError(
                f"{dataset.name}: none of the {len(split)} texts of {name} has a token that could be hidden; are they "
                "written in the language of the tokenizer?"
            )
        parts[name] = split if can_N.all() else split.take(np.flatnonzero(can_N))
    return replace(dataset, **parts)


def masking_of(step: Tokenize, recipe: Recipe) -> Masking:
    """How the texts are masked. Raises `DataError` for a tokenizer without a mask."""
    from edgekd.distill.masking import Masking

    vocabulary = vocabulary_of(step)
    token = next((vocabulary.tokens.index(name) for name in MASKS if name in vocabulary.tokens), None)
    if token is None:
        raise DataError(
            f"{step.file} has no token for a mask ({' or '.join(MASKS)}), which task = 'masked_lm' needs; take the "
            "tokenizer of a model such as BERT"
        )
    added = json.loads(step.content).get("added_tokens") or ()
    special = {item["id"] for item in added if item.get("special")} | {token, vocabulary.pad}
    others = [number for number, name in enumerate(vocabulary.tokens) if name and number not in special]
    return Masking(token, np.array(others, np.int64), vocabulary.size, recipe.masked_lm.probability)
