"""Tokenizers and texts for the tests of the apps: hostile ones that are made up here, real ones from EDGEKD_DATA."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from real_data import real_data
from tokenizers import BertWordPieceTokenizer, Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Characters that one-character vocabularies know: scripts with marks, case, punctuation, and some of every plane.
BLOCKS = (
    *(0xA000, 0xAC00, 0xF900, 0xFB00, 0x10000, 0x10A00, 0x11000, 0x16E00, 0x1D100, 0x1D400, 0x1E000, 0x1E900, 0x1F600),
    *(0x20000, 0x2F800, 0xE0100),
)
KNOWN = (*range(0x3100), *(code for first in BLOCKS for code in range(first, first + 256)))
WORDS = (
    *("[MASK]", "[SEP]", "[SEP]x", "[CLS]", "[UNK]", "[", "<x>", "Äpfel", "äpfel", "ÄPFEL", "A\u0308pfel", "Äp"),
    *(" ", "  ", "\t", "\u3000", "\x00", "\n", "\x85", "\u200b", "\ufeff", "x", "the", "İ", "ı", "ΑΣ", "Σ", "ß", "ẞ"),
    *("👩‍👩‍👧", "❤️", "🇩🇪", "ﬁ", "ǅ", "e\u0301", "e\u0323\u0301", "e\u0301\u0323", "한국어", "\u1112\u1161\u11ab"),
    *("中文", "שלום", "مرحبا"),
)
LONG = (
    *("", " ", " \t\n ", "\x00", "\x00\x00", "\u200b", "a" * 100, "a" * 101, "a" * 100_000, "é" * 100, "é" * 101),
    *("e\u0301" * 100, "e\u0301" * 101, "word " * 20_000, "中" * 101, "𝒜" * 100, "𝒜" * 101, "\u0301" * 1000 + "a"),
    *("a" + "\u0301\u0323" * 20_000, "[MASK]" * 50, "!" * 5000, "a\ufffdb", "\U0010ffff", "\U0001d15e"),
)


def hostile_texts(count: int, *, seed: int = 0) -> list[str]:
    """Texts of characters of all planes, marks beside marks, special tokens in their midst, and very long words."""
    source = random.Random(seed)
    everything = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    marks = (
        *range(0x300, 0x370),
        0x5B0,
        0x94D,
        0x9CD,
        0xF71,
        0xF72,
        0x302A,
        0x345,
        0x1D165,
        0x1D16D,
        0xE0101,
        0x41,
        0x61,
    )

    def piece() -> str:
        kind = source.random()
        if kind < 0.25:
            return source.choice(WORDS)
        return chr(source.choice(everything if kind < 0.35 else marks if kind < 0.55 else KNOWN))

    return [*("".join(piece() for _ in range(source.randint(1, 50))) for _ in range(count)), *LONG]


def every_character() -> list[str]:
    """Each code point that a text may hold, between letters and for itself, in texts of 64 of them."""
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    words = [f"x{chr(code)}x {chr(code)}" for code in codes]
    return [" ".join(words[at : at + 64]) for at in range(0, len(words), 64)]


def character_tokenizer(
    path: Path, *, known: Iterable[int] = KNOWN, more: bool = True, **normalizer: bool | None
) -> Path:
    """A tokenizer.json that tells most characters from each other, each token one character, and `more` of them."""
    vocabulary = {token: at for at, token in enumerate(SPECIAL)}
    for code in known:
        for token in (chr(code), f"##{chr(code)}"):
            vocabulary.setdefault(token, len(vocabulary))
    added: list[dict[str, Any]] = [
        _added(token, vocabulary[token], special=True, lstrip=token == "[MASK]", rstrip=token == "[SEP]")
        for token in SPECIAL
    ]
    for token, normalized in (("Äpfel", True), ("Äp", True), ("<x>", False)) if more else ():
        added.append(_added(token, len(vocabulary) + len(added) - len(SPECIAL), normalized=normalized))
    ends = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]")]
    middle = {"Sequence": {"id": "A", "type_id": 0}}
    table = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            **{"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None},
            **{"lowercase": True, **normalizer},
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [ends[0], middle, ends[1]],
            "pair": [ends[0], middle, ends[1], {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {
            **{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"},
            **{"max_input_chars_per_word": 100, "vocab": vocabulary},
        },
    }
    path.write_text(json.dumps(table, ensure_ascii=False), "utf-8")
    Tokenizer.from_file(str(path))
    return path


def _added(content: str, number: int, **options: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": number, "content": content, **flags, **options}


def bert_tokenizer(path: Path) -> Path:
    """BERT's own, as the package tokenizers writes it from its vocabulary of 30,522 tokens."""
    BertWordPieceTokenizer(vocab=str(real_data("bert_vocab") / "vocab.txt"), lowercase=True).save(str(path))
    return path


def real_texts(count: int) -> list[str]:
    """Sentences, questions, reviews, news and lines of books, in equal parts."""
    each = count // 5
    rows = (real_data("sst2") / "train.tsv").read_text("utf-8").splitlines()[1:]
    intents = json.loads((real_data("clinc150") / "data_full.json").read_text("utf-8"))["train"]
    with (real_data("ag_news") / "test.csv").open(encoding="utf-8", newline="") as file:
        news = [" ".join(row[1:]) for row in csv.reader(file)]
    with gzip.open(real_data("imdb") / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        reviews = [json.loads(line)["text"] for line, _ in zip(file, range(each))]
    with gzip.open(real_data("gutenberg_en") / "train.txt.gz", "rt", encoding="utf-8") as file:
        books = [line for line, _ in zip(file, range(each))]
    found = [[row.split("\t")[0] for row in rows], [text for text, _ in intents], news, reviews, books]
    return [text for texts in found for text in texts[:each]]


def ids_of(path: Path, texts: list[str], max_length: int) -> list[list[int]]:
    """What the package tokenizers gives."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return [encoded.ids for encoded in tokenizer.encode_batch(texts)]
