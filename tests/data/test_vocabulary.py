"""A tokenizer cut down to its texts: nothing becomes unknown, ids are dense, what stays means what it meant."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from real_data import real_data

from edgekd.data.vocabulary import shrink
from edgekd.errors import ModelError, RecipeError

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'text'")
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def texts() -> list[str]:
    lines = (real_data("sst2") / "train.tsv").read_text(encoding="utf-8").splitlines()[1:801]
    return [line.split("\t")[0] for line in lines]


def word_piece() -> Tokenizer:
    vocabulary = (real_data("bert_vocab") / "vocab.txt").read_text(encoding="utf-8").splitlines()
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.enable_padding(pad_id=ids["[PAD]"], pad_token="[PAD]")
    return tokenizer


def byte_pair() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    return tokenizer


def letters() -> Tokenizer:
    """BPE of characters with an end of word, as the first ones were."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=2000, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "word_piece": word_piece,
    "byte_pair": byte_pair,
    "letters": letters,
    "unigram": unigram,
}


def counted(tokenizer: Tokenizer, lines: list[str]) -> NDArray[np.int64]:
    ids = [number for line in tokenizer.encode_batch(lines) for number in line.ids]
    return np.bincount(ids, minlength=1 + max(tokenizer.get_vocab().values())).astype(np.int64)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_becomes_unknown(kind: str) -> None:
    old, lines, size = KINDS[kind](), texts(), 600
    content, kept = shrink(old.to_str(), counted(old, lines), size)
    new = Tokenizer.from_str(content)
    ids = new.get_vocab()
    assert len(kept) == len(ids) == size
    assert sorted(ids.values()) == list(range(size))
    assert new.get_vocab_size(with_added_tokens=True) == size
    names = {number: token for token, number in old.get_vocab().items()}
    assert all(names[int(kept[number])] == token for token, number in ids.items())
    unknown_old, unknown_new = old.token_to_id("[UNK]"), new.token_to_id("[UNK]")
    old.no_padding()
    new.no_padding()
    changed = 0
    for line, before, after in zip(lines, old.encode_batch(lines), new.encode_batch(lines)):
        assert (unknown_new in after.ids) == (unknown_old in before.ids) or unknown_new is None, line
        assert max(after.ids) < size
        # The first and the last one are special, where there is a processor.
        assert names[int(kept[after.ids[0]])] == after.tokens[0]
        assert old.decode(before.ids) == new.decode(after.ids), line
        if set(before.tokens) <= ids.keys() and kind != "byte_pair":
            assert before.tokens == after.tokens, line
        changed += before.tokens != after.tokens
    assert 0 < changed < len(lines)


def test_the_tokens_that_stay_are_those_used_most() -> None:
    tokenizer = word_piece()
    counts = counted(tokenizer, texts())
    names = tokenizer.get_vocab()
    _, kept = shrink(tokenizer.to_str(), counts, 1500)
    assert list(kept) == sorted(kept)
    gone = set(names.values()) - set(map(int, kept))
    words = [number for token, number in names.items() if token.isalpha() and len(token) > 1 and number in kept]
    assert min(counts[number] for number in words) >= max(counts[number] for number in gone) > 0
    assert {names[token] for token in SPECIAL} <= set(map(int, kept))


def test_unused_tokens_fill_the_room_that_is_left() -> None:
    tokenizer = word_piece()
    counts = counted(tokenizer, ["a good film"] * 3)
    content, kept = shrink(tokenizer.to_str(), counts, 1000)
    tokens = Tokenizer.from_str(content).get_vocab()
    assert len(kept) == 1000
    assert {"a", "good", "film", "the", "of", "##s"} <= tokens.keys()
    assert not [token for token in tokens if token.startswith("[unused")]
    assert {"~", "Z".lower(), "##9"} <= tokens.keys()  # what a keyboard types
    every, whole = shrink(tokenizer.to_str(), counts, 10**6)
    assert every == tokenizer.to_str()
    assert list(whole) == sorted(tokenizer.get_vocab().values())


def test_special_tokens_padding_and_templates_get_their_new_ids() -> None:
    tokenizer = word_piece()
    counts = counted(tokenizer, texts())
    table = json.loads(tokenizer.to_str())
    table["post_processor"] = {"type": "Sequence", "processors": [table["post_processor"]]}
    for form in (tokenizer.to_str(), json.dumps(table)):
        content, _ = shrink(form, counts, 900)
        new = Tokenizer.from_str(content)
        batch = new.encode_batch(["a film", "what a very good film it is"])
        assert batch[0].tokens[:4] == ["[CLS]", "a", "film", "[SEP]"]
        assert batch[0].ids == [new.token_to_id(token) for token in batch[0].tokens]
        assert set(batch[0].tokens[4:]) == {"[PAD]"}
        assert new.encode("[MASK]", add_special_tokens=False).tokens == ["[MASK]"]


def test_tokens_beside_the_model_come_behind_it() -> None:
    tokenizer = byte_pair()
    tokenizer.add_tokens(["qwertyuiop"])
    lines = [*texts(), "say qwertyuiop to me"]
    content, kept = shrink(tokenizer.to_str(), counted(tokenizer, lines), 500)
    new = Tokenizer.from_str(content)
    assert new.token_to_id("qwertyuiop") == 499
    assert int(kept[499]) == tokenizer.token_to_id("qwertyuiop")
    assert "qwertyuiop" in new.encode(lines[-1]).tokens


def test_a_character_that_stands_in_no_token_alone_is_not_lost() -> None:
    ids = {
        token: number for number, token in enumerate(["[UNK]", "naïve", "na", "n", "##a", "##v", "##e", "dog", "cat"])
    }
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    counts = np.array([0, 1, 0, 0, 0, 0, 0, 9, 0])
    content, _ = shrink(tokenizer.to_str(), counts, 7)
    assert Tokenizer.from_str(content).encode("naïve dog").tokens == ["naïve", "dog"]


def test_what_cannot_be_cut_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    with pytest.raises(ModelError, match=r"type 'WordLevel' cannot be cut.*Leave 'vocabulary' out"):
        shrink(tokenizer.to_str(), np.zeros(3, np.int64), 2)
    whole = word_piece()
    with pytest.raises(RecipeError, match=r"found vocabulary = 50, but \d+ tokens have to stay.*take at least"):
        shrink(whole.to_str(), counted(whole, texts()), 50)
    with pytest.raises(ModelError, match="found counts of 5 tokens for ids up to 30521; expected one for each"):
        shrink(whole.to_str(), np.ones(5, np.int64), 1000)
