"""Texts to ids: the tokenizer's own answer, cut and padded, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgekd.device.preprocess import apply_arithmetic, as_fed, prepare, preprocess, split_steps
from edgekd.device.tokens import MAX_TEXT, as_text, is_cut, vocabulary_of, with_tokenizers
from edgekd.errors import DataError, ModelError, RecipeError
from edgekd.spec import Step, Tokenize, parse_steps, steps_to_json

tokenizers = pytest.importorskip("tokenizers", reason="models of texts need the extra text")

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "film", "##s", "bad"]


def file(*, pad: str | None = "[PAD]") -> bytes:
    """A WordPiece tokenizer of nine tokens."""
    tokens = {token: number for number, token in enumerate(TOKENS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(tokens, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    text = made.to_str()
    return (text if pad == "[PAD]" else text.replace("[PAD]", "[NOTHING]")).encode()


def steps(*, max_length: int = 8, trim: bool = True, content: bytes | None = None) -> tuple[Step, ...]:
    plain = [{"op": "tokenize", "file": "t.json", "max_length": max_length}, *([{"op": "trim"}] if trim else [])]
    return with_tokenizers(parse_steps(plain), lambda name: file() if content is None else content)


def ids(text: object, **options: int) -> list[int]:
    row: np.ndarray = prepare(split_steps(steps(**options))[0], text)  # type: ignore[arg-type]
    assert row.dtype == np.int32
    return row.tolist()


def test_a_text_becomes_the_ids_of_the_tokenizer_padded_to_the_length() -> None:
    assert ids("A good FILMS!") == [2, 4, 5, 6, 7, 1, 3, 0]
    assert ids("") == [2, 3, 0, 0, 0, 0, 0, 0]
    assert ids(b"good") == ids("good")


def test_a_long_text_is_cut_and_keeps_its_last_special_token() -> None:
    assert ids("good " * 50, max_length=4) == [2, 5, 5, 3]
    step = steps(max_length=4)[0]
    assert isinstance(step, Tokenize)
    for text, cut in (("good film", False), ("good film bad", True)):
        assert is_cut(step, text, prepare((step,), text)) is cut


def test_a_batch_is_as_long_as_its_longest_text_and_ids_stay_whole() -> None:
    spatial, arithmetic = split_steps(steps())
    rows = np.stack([prepare(spatial, text) for text in ("good", "a good film", "")])
    ready = apply_arithmetic(arithmetic, rows)
    assert ready.dtype == np.int64
    assert ready.tolist() == [[2, 5, 3, 0, 0], [2, 4, 5, 6, 3], [2, 3, 0, 0, 0]]
    assert as_fed(arithmetic, rows, "int64").shape == (3, 5)
    assert apply_arithmetic(split_steps(steps(trim=False))[1], rows).shape == (3, 8)
    assert preprocess(steps(), "good").tolist() == [2, 5, 3]
    assert apply_arithmetic(arithmetic, np.zeros((2, 8), np.int32)).shape == (2, 1), "one column stays"


def test_ids_of_the_caller_are_taken_as_they_are() -> None:
    assert ids(np.array([2, 5, 3])) == [2, 5, 3, 0, 0, 0, 0, 0]
    for wrong in (np.array([2.0, 3.0]), np.array([[2, 3]]), np.arange(9), np.array([99]), np.array([-1])):
        with pytest.raises(DataError, match=r"found (an array of|the id)"):
            ids(wrong)


def test_half_of_a_surrogate_pair_is_the_replacement_character() -> None:
    assert as_text("a\ud83db") == "a�b"
    assert ids("good \ud83d film") == ids("good � film"), "which this tokenizer cleans away"


def test_what_is_no_text_is_refused_with_the_reason(tmp_path) -> None:
    with pytest.raises(DataError, match="not valid UTF-8"):
        ids(b"\xff good")
    with pytest.raises(DataError, match="found a path, expected a text"):
        ids(tmp_path)
    with pytest.raises(DataError, match="10,000,001 characters"):
        ids("a" * (MAX_TEXT + 1))


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]", b'{"model": 3}', b'{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"expected a Hugging Face tokenizer\.json|is no tokenizer\.json"):
        steps(content=content)


def test_a_tokenizer_with_parts_that_are_not_known_is_refused() -> None:
    table = json.loads(file())
    table["model"]["type"] = "Oracle"
    with pytest.raises(ModelError, match="cannot be used"):
        steps(content=json.dumps(table).encode())


def test_a_tokenizer_without_padding_is_refused() -> None:
    with pytest.raises(ModelError, match="no padding token"):
        steps(content=file(pad=None))


def test_no_room_beside_the_special_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="leaves no room"):
        ids("good", max_length=2)


def test_the_content_is_not_written_and_the_padding_is() -> None:
    assert steps_to_json(steps()) == [
        {"op": "tokenize", "file": "t.json", "max_length": 8},
        {"op": "trim", "pad": 0},
    ]
    found = vocabulary_of(next(step for step in steps() if isinstance(step, Tokenize)))
    assert (found.size, found.pad, found.tokens) == (9, 0, tuple(TOKENS))


@pytest.mark.parametrize(
    ("plain", "told"),
    [
        ([{"op": "tokenize", "file": "t"}, {"op": "scale"}], "stands beside 'tokenize'"),
        ([{"op": "trim"}], "'trim' needs 'tokenize' first"),
        ([{"op": "trim"}, {"op": "tokenize", "file": "t"}], "stands after"),
        ([{"op": "tokenize", "file": "t"}, {"op": "tokenize", "file": "t"}], "twice"),
        ([{"op": "tokenize"}], '"file" is missing'),
        ([{"op": "tokenize", "file": "t", "max_length": 1}], "max_length"),
        ([{"op": "tokenize", "file": "t", "content": "{}"}], "unknown key 'content'"),
        ([{"op": "tokenize", "file": "t"}, {"op": "trim", "pad": -1}], "the id of the padding token"),
    ],
)
def test_steps_that_do_not_fit_are_refused(plain: list[dict[str, object]], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        split_steps(parse_steps(plain))
