"""Words become other words: a function of ids and seed, only whole words, never special tokens or padding."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_encoders import VOCABULARY, WORDS, ids_of

from edgekd.distill.augmentation import augment_batch, check_augment
from edgekd.distill.batches import Batches
from edgekd.distill.replacement import NEIGHBOURS, substitutes_of
from edgekd.errors import DataError, RecipeError
from edgekd.spec import Split, Trim

IDS = ids_of(50, 9, seed=2).numpy().astype(np.int32)
NAMES = np.arange(50)


def augmented(share: float, *, name: str = "replace_random", epoch: int = 0, rows: slice = slice(None)) -> np.ndarray:
    table = substitutes_of(WORDS, np.random.default_rng(0).normal(size=(VOCABULARY, 8)).astype(np.float32))
    active = check_augment({name: share}, IDS, table)
    return augment_batch(IDS[rows], NAMES[rows], active, seed=3, epoch=epoch, substitutes=table)


@pytest.mark.parametrize("name", ["replace_random", "replace_similar"])
def test_every_single_word_is_replaced_by_another_and_nothing_else(name: str) -> None:
    found = augmented(1.0, name=name)
    words = {number for number, word in enumerate(WORDS) if word.isalpha()}
    assert "[PAD]" not in {WORDS[number] for number in words}
    for row, before in zip(found, IDS):
        for place, (new, old) in enumerate(zip(row, before)):
            goes_on = place + 1 < len(before) and WORDS[before[place + 1]].startswith("##")
            if int(old) in words and not goes_on:
                assert new != old
                assert int(new) in words
            else:
                assert new == old
    assert found.dtype == IDS.dtype


def test_about_the_share_is_replaced() -> None:
    whole = (augmented(1.0) != IDS).sum()
    assert 0.3 < (augmented(0.4) != IDS).sum() / whole < 0.5
    assert np.array_equal(augmented(0.0), IDS)


@pytest.mark.parametrize("name", ["replace_random", "replace_similar"])
def test_a_text_becomes_the_same_in_any_batch_and_another_in_another_epoch(name: str) -> None:
    whole = augmented(0.5, name=name)
    assert np.array_equal(augmented(0.5, name=name, rows=slice(7, 20)), whole[7:20])
    assert not np.array_equal(augmented(0.5, name=name, epoch=1), whole)


def test_similar_words_are_the_nearest_by_the_cosine() -> None:
    tokens = ["[PAD]", "[CLS]", ".", "##s", *(f"w{chr(97 + n)}" for n in range(26))]
    vectors = np.random.default_rng(1).normal(size=(len(tokens), 6)).astype(np.float32)
    table = substitutes_of(tokens, vectors * 7)
    assert table.words.tolist() == list(range(4, 30))
    assert table.similar is not None
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, word in enumerate(table.words):
        others = sorted(
            (int(other) for other in table.words if other != word), key=lambda other: -unit[word] @ unit[other]
        )
        assert table.similar[row].tolist() == sorted(others[:NEIGHBOURS])
    assert table.inside.tolist() == [False] * 3 + [True] + [False] * 26


def test_words_of_other_tokenizers() -> None:
    table = substitutes_of(["<pad>", "▁film", "▁", "s", "▁good", ".", "ly"])
    assert table.words.tolist() == [1, 4]
    assert np.flatnonzero(table.inside).tolist() == [3, 6]
    assert substitutes_of(["<s>", "Ġa", "Ġfilm", "s"]).words.tolist() == [1, 2]
    assert table.sha256 != substitutes_of(["<pad>", "▁film", "▁", "s", "▁good", ".", "▁ly"]).sha256
    with pytest.raises(DataError, match="found 1 words among the 2 tokens of the vocabulary"):
        substitutes_of(["film", "##s"])


def test_batches_of_texts_are_augmented_before_they_are_trimmed() -> None:
    split = Split(IDS, np.zeros(50, np.int64), NAMES)
    batches = Batches(
        split,
        (Trim(pad=0),),
        batch_size=10,
        seed=3,
        augment={"replace_random": 0.5},
        views=2,
        substitutes=substitutes_of(WORDS),
    )
    first, again = (list(batches.epoch(number)) for number in (0, 2))
    seen = {}
    for batch in first:
        assert batch["x"].shape[1] == int(batch["mask"].sum(dim=1).max())
        for name, row in zip(batch["id"].tolist(), batch["x"]):
            seen[name] = [number for number in row.tolist() if number]
    for batch in again:  # view 0 again, whatever the order
        for name, row in zip(batch["id"].tolist(), batch["x"]):
            assert seen[name] == [number for number in row.tolist() if number]
    plain = {int(name): row[row != 0].tolist() for name, row in zip(NAMES, IDS)}
    assert {name: len(row) for name, row in seen.items()} == {name: len(row) for name, row in plain.items()}
    assert seen != plain


@pytest.mark.parametrize(
    ("augment", "images", "message"),
    [
        ({"replace_random": 1.5}, False, "found 1.5, expected the share of the words that are replaced, 0 to 1"),
        ({"replace_similar": 0.4}, False, "which words are alike is known of an hf: teacher only"),
        ({"noise": 0.1}, False, "the samples are texts, which have replace_random, replace_similar; remove it"),
        ({"replace_random": 0.4}, True, "the samples are no texts, which have shift, flip, scale, noise; remove it"),
        ({"replace_randm": 0.4}, False, "unknown key 'replace_randm'. Did you mean 'replace_random'"),
    ],
)
def test_what_does_not_fit_is_named(augment: dict[str, float], images: bool, message: str) -> None:
    x = np.zeros((2, 4, 4, 1), np.uint8) if images else IDS
    with pytest.raises(RecipeError, match=message):
        check_augment(augment, x, substitutes_of(WORDS))


def test_one_stray_token_does_not_change_the_kind_of_the_vocabulary() -> None:
    wordpiece = ["[PAD]", "Ġ", "red", "cat", "##s", "##ly"]
    assert [wordpiece[word] for word in substitutes_of(wordpiece).words] == ["Ġ", "red", "cat"]
    assert substitutes_of(wordpiece).inside.tolist() == [False, False, False, False, True, True]
    for start in ("Ġ", "▁"):
        pieces = ["<pad>", "##", f"{start}red", f"{start}cat", "s", "ly"]
        assert [pieces[word] for word in substitutes_of(pieces).words] == [f"{start}red", f"{start}cat"]
        assert substitutes_of(pieces).inside.tolist() == [False, False, False, False, True, True]
