"""Augmentation of texts on their token ids: words become other words, as a pure function of (seed, view, sample id).

After Jiao et al., "TinyBERT", 2019, arXiv:1909.10351 (algorithm 1), which replaces each word with probability 0.4 by
one of the 15 words that BERT thinks most likely in its place, or, where the word has several tokens, by one of the 15
nearest in GloVe. Here the nearest are those in the teacher's own table of embeddings, whatever the sentence; words of
several tokens stay; and instead of 20 changed copies of each text that are made once there is another one in every
epoch, or one of `views` that come again, whose teacher's answers may be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd.distill.randomness import Words, uniforms
from edgekd.errors import DataError
from edgekd.files import sha256_bytes

NEIGHBOURS = 15
_CHUNK = 512
_STARTS = ("▁", "Ġ")
_INSIDE = "##"


@dataclass(frozen=True)
class Substitutes:
    """What may stand in the place of a word.

    words     (C,) the ids that are words of one token, each of which may be replaced
    inside    (V,) bool: tokens that go on with the word before them
    similar   (C, K) for each word its nearest others; None where they are not known
    """

    words: NDArray[np.int32]
    inside: NDArray[np.bool_]
    similar: NDArray[np.int32] | None = None

    @property
    def sha256(self) -> str:
        """Changes with anything that it may do."""
        similar = b"" if self.similar is None else self.similar.tobytes()
        return sha256_bytes(self.words.tobytes() + self.inside.tobytes() + similar)


def substitutes_of(tokens: Sequence[str], embedding_VD: NDArray[np.float32] | None = None) -> Substitutes:
    """The words among `tokens`: those of letters that begin a word, in WordPiece, SentencePiece and byte-level BPE.

    embedding_VD  their vectors, of which the nearest are known by the cosine, at most `NEIGHBOURS` of them

    Raises `DataError` for a vocabulary that has fewer than two words.
    """
    counts = {mark: sum(token.startswith(mark) for token in tokens) for mark in (*_STARTS, _INSIDE)}
    # What most tokens bear: WordPiece may know a letter such as Ġ, and byte-level BPE a heading's ##.
    marked = tuple(start for start in _STARTS if counts[start] > counts[_INSIDE])
    if marked:
        begins = [token.startswith(marked) for token in tokens]
        texts = [token.lstrip("".join(marked)) for token in tokens]
    else:
        begins = [not token.startswith(_INSIDE) for token in tokens]
        texts = list(tokens)
    is_word = np.array([start and text.isalpha() for start, text in zip(begins, texts)], np.bool_)
    # Special tokens and punctuation end a word as well.
    inside = np.array(
        [not start and text.removeprefix(_INSIDE).isalnum() for start, text in zip(begins, texts)], np.bool_
    )
    words = np.flatnonzero(is_word).astype(np.int32)
    if len(words) < 2:
        raise DataError(f"found {len(words)} words among the {len(tokens)} tokens of the vocabulary, expected several")
    return Substitutes(words, inside, None if embedding_VD is None else _nearest(words, embedding_VD))


def replace_random(ids_NT: NDArray[np.int32], share: float, words_N: Words, table: Substitutes) -> NDArray[np.int32]:
    """Each word of one token, with the probability `share`, becomes any other."""
    chosen, which, rows = _drawn(ids_NT, share, words_N, table)
    # Not itself: one of the C - 1 others.
    place = np.floor(which * (len(table.words) - 1)).astype(np.intp)
    place += place >= rows
    return np.where(chosen, table.words[place], ids_NT)


def replace_similar(ids_NT: NDArray[np.int32], share: float, words_N: Words, table: Substitutes) -> NDArray[np.int32]:
    """Each word of one token, with the probability `share`, becomes one of those that are nearest to it."""
    assert table.similar is not None, "checked by check_augment"
    chosen, which, rows = _drawn(ids_NT, share, words_N, table)
    place = np.floor(which * table.similar.shape[1]).astype(np.intp)
    return np.where(chosen, table.similar[rows, place], ids_NT)


def _drawn(
    ids_NT: NDArray[np.int32], share: float, words_N: Words, table: Substitutes
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.intp]]:
    """(N, T) each: which tokens are replaced, a number in [0, 1) for what by, and their places among the words."""
    count, length = ids_NT.shape
    drawn = uniforms(words_N, 2 * length).reshape(count, 2, length)
    rows = np.minimum(np.searchsorted(table.words, ids_NT), len(table.words) - 1)
    goes_on = np.zeros((count, length), np.bool_)
    goes_on[:, :-1] = table.inside[ids_NT[:, 1:]]
    chosen = (table.words[rows] == ids_NT) & ~goes_on & (drawn[:, 0] < share)
    return chosen, drawn[:, 1], rows


def _nearest(words: NDArray[np.int32], embedding_VD: NDArray[np.float32]) -> NDArray[np.int32]:
    """(C, K) the words with the largest cosine, in the order of their ids so that ties of rounding do not show."""
    vectors = embedding_VD[words].astype(np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = min(NEIGHBOURS, len(words) - 1)
    found = np.empty((len(words), count), np.int32)
    for start in range(0, len(words), _CHUNK):
        cosines = vectors[start : start + _CHUNK] @ vectors.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -np.inf
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        found[start : start + _CHUNK] = np.sort(words[nearest], axis=1)
    return found
