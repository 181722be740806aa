"""The tokenizers of the apps: id for id what Hugging Face's package tokenizers gives, in JavaScript, C++ and Java."""

from __future__ import annotations

import importlib.util
import json
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpp_builds
import pytest
from javascript import run_module
from tokenizer_files import (
    bert_tokenizer,
    character_tokenizer,
    every_character,
    hostile_texts,
    ids_of,
    real_texts,
)

from edgekd import assets

APPS = assets.folder("export", "apps")
MAX_LENGTH = 200
# What BERT's normalizer may leave out; strip_accents unsaid is as lowercase.
NORMALIZERS: dict[str, dict[str, bool | None]] = {
    "uncased": {},
    "cased": {"lowercase": False},
    "lower case with accents": {"strip_accents": False},
    "accents stripped, case kept": {"strip_accents": True, "lowercase": False},
    "controls kept": {"clean_text": False},
    "nothing": {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False},
}
ENCODE = """
import { Tokenizer } from "./student/tokenizer.js";
import { readFileSync as read } from "node:fs";
const tokenizer = new Tokenizer(read(given.path));
const { texts, length } = JSON.parse(read(given.texts, "utf8"));
const all = texts.map((text) => tokenizer.encode(text, length));
console.log(JSON.stringify({
  ids: all.map(({ ids }) => [...ids]), truncated: all.map(({ truncated }) => truncated), pad: tokenizer.pad,
}));
"""

Encode = Callable[[Path, list[str], int], dict[str, Any]]


@pytest.fixture(scope="module")
def in_javascript(tmp_path_factory) -> Encode:
    folder = tmp_path_factory.mktemp("javascript")
    (folder / "student").symlink_to(APPS / "javascript")

    def encode(path: Path, texts: list[str], length: int) -> dict[str, Any]:
        (folder / "texts.json").write_text(json.dumps({"texts": texts, "length": length}))
        return run_module(ENCODE, folder, given={"path": str(path), "texts": str(folder / "texts.json")})

    return encode


@pytest.fixture(scope="module")
def in_cpp(tmp_path_factory) -> Encode:
    program = cpp_builds.compile_cpp(
        Path(__file__).parent / "tokenize_texts.cpp",
        tmp_path_factory.mktemp("cpp") / "tokenize",
        *cpp_builds.SANITIZED,
        f"-I{APPS / 'cpp'}",
    )

    def encode(path: Path, texts: list[str | bytes], length: int) -> dict[str, Any]:
        data = [text if isinstance(text, bytes) else text.encode() for text in texts]
        given = b"".join(b"%d %s" % (len(one), one) for one in data)
        done = subprocess.run([program, path, str(length)], input=given, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        return parsed(done.stdout)

    return encode


@pytest.fixture(scope="module")
def in_java(tmp_path_factory) -> Encode:
    folder = tmp_path_factory.mktemp("java")
    sources = [*(APPS / "android" / "java" / "edgekd").glob("*.java"), Path(__file__).parent / "TokenizeTexts.java"]
    compiled = [cpp_builds.tool("javac"), "--release", "17", "-Xlint:all", "-Werror", "-d", folder, *sources]
    done = subprocess.run(compiled, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def encode(path: Path, texts: list[str], length: int) -> dict[str, Any]:
        data = [text.encode("utf-16-be", "surrogatepass") for text in texts]
        given = b"".join(struct.pack(">i", len(one) // 2) + one for one in data) + struct.pack(">i", -1)
        command = [cpp_builds.tool("java"), "-cp", folder, "edgekd.TokenizeTexts", path, str(length)]
        done = subprocess.run(command, input=given, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        return parsed(done.stdout)

    return encode


def parsed(lines: bytes) -> dict[str, Any]:
    """What the programs print of each text: the padding's id, whether it was too long, its ids."""
    rows = [[int(word) for word in line.split()] for line in lines.splitlines()]
    return {"ids": [row[2:] for row in rows], "truncated": [bool(row[1]) for row in rows], "pad": rows[0][0]}


@pytest.fixture(params=["javascript", "cpp", "java"])
def encode(request) -> Encode:
    return request.getfixturevalue(f"in_{request.param}")


def check(encode: Encode, path: Path, texts: list[str], length: int = MAX_LENGTH) -> None:
    found, wanted = encode(path, texts, length), ids_of(path, texts, length)
    assert len(found["ids"]) == len(wanted)
    for text, one, other in zip(texts, found["ids"], wanted):
        assert one == other, ascii(text[:200])


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_hostile_texts_give_the_same_ids(encode, tmp_path, kind):
    check(encode, character_tokenizer(tmp_path / "tokenizer.json", **NORMALIZERS[kind]), hostile_texts(2000))


@pytest.fixture(scope="module")
def every(tmp_path_factory) -> tuple[Path, list[str], list[list[int]]]:
    path = character_tokenizer(tmp_path_factory.mktemp("every") / "tokenizer.json")
    texts = every_character()
    return path, texts, ids_of(path, texts, 1000)


def test_every_character_of_unicode_is_seen_alike(encode, every):
    path, texts, wanted = every
    assert encode(path, texts, 1000)["ids"] == wanted


def test_ten_thousand_real_texts_give_the_same_ids(encode, tmp_path):
    texts = real_texts(10_000)
    assert len(texts) == 10_000
    check(encode, bert_tokenizer(tmp_path / "tokenizer.json"), texts + hostile_texts(1000, seed=1), 128)


def test_what_is_too_long_is_cut_and_told(encode, tmp_path):
    path = character_tokenizer(tmp_path / "tokenizer.json")
    found = encode(path, ["a" * 6, "a" * 7, "a a" * 50_000, ""], 8)
    assert found["truncated"] == [False, True, True, False]
    assert [len(ids) for ids in found["ids"]] == [8, 8, 8, 2]
    assert found["pad"] == 0


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The tokenizer.json with a change."""
    table = json.loads(path.read_text("utf-8"))
    change(table)
    path.write_text(json.dumps(table), "utf-8")
    return path


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "BPE": (lambda t: t["model"].update(type="BPE"), "model.type is \"BPE\", expected 'WordPiece'"),
    "a sequence": (
        lambda t: t["normalizer"].update(type="Sequence"),
        'normalizer.type is "Sequence", expected \'BertNo',
    ),
    "no normalizer": (lambda t: t.pop("normalizer"), "normalizer is missing, expected a table"),
    "metaspace": (lambda t: t["pre_tokenizer"].update(type="Metaspace"), 'pre_tokenizer.type is "Metaspace", expected'),
    "another ending": (
        lambda t: t["post_processor"].update(type="RobertaProcessing"),
        "post_processor.type is \"RobertaProcessing\", expected 'TemplateProcessing' or 'BertProcessing'",
    ),
    "two texts": (
        lambda t: t["post_processor"].update(single=t["post_processor"]["pair"]),
        "special tokens around one $A",
    ),
    "no vocabulary": (lambda t: t["model"].pop("vocab"), "model.vocab is missing, expected a table"),
    "no unknown token": (lambda t: t["model"].update(unk_token="<none>"), "model.vocab['<none>'] is missing, expected"),
    "a text for an id": (lambda t: t["model"]["vocab"].update(a="1"), 'is "1", expected a whole number from 0'),
    "a negative id": (lambda t: t["model"]["vocab"].update(a=-1), "is -1, expected a whole number from 0"),
    "an id of its own": (lambda t: t["added_tokens"][4].update(id=77), "added_tokens[4].id is 77, expected 4"),
    "whole words": (lambda t: t["added_tokens"][4].update(single_word=True), "added_tokens[4].single_word is true"),
    "an empty token": (lambda t: t["added_tokens"][-1].update(content=""), "is an empty token, expected a text"),
    "no padding": (
        lambda t: (t["added_tokens"].pop(0), t["model"]["vocab"].update(none=t["model"]["vocab"].pop("[PAD]"))),
        "expected a table 'padding', or one of the tokens [PAD], <pad>, <|pad|>, <|endoftext|>",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_tokenizers_are_refused(encode, tmp_path, name):
    change, text = REFUSED[name]
    path = changed(character_tokenizer(tmp_path / "tokenizer.json"), change)
    with pytest.raises(AssertionError) as caught:
        encode(path, ["a"], 8)
    assert text in str(caught.value)
    assert "tokenizer.json: " in str(caught.value)
    assert "run this student in Python" in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"model": {"type": "WordPiece"}', b"[" * 100_000])
def test_what_is_no_tokenizer_is_refused(encode, tmp_path, data):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(
        AssertionError, match=r"tokenizer.json(: the file is .*, expected a table| is not readable as JSON)"
    ):
        encode(path, ["a"], 8)


def test_too_little_room_is_told(encode, tmp_path):
    with pytest.raises(AssertionError, match="max_length = 2 leaves no room beside the special tokens"):
        encode(character_tokenizer(tmp_path / "tokenizer.json"), ["a"], 2)


@pytest.mark.parametrize("language", ["javascript", "java"])
def test_lone_surrogates_are_replaced_as_in_utf8(request, tmp_path, language):
    encode = request.getfixturevalue(f"in_{language}")
    path = character_tokenizer(tmp_path / "tokenizer.json", clean_text=False)
    source = random.Random(4)
    pieces = ("\ud800", "\udfff", "\ud83d", "\ude00", "a", " ", "\u0301", "😀")
    texts = ["".join(source.choice(pieces) for _ in range(source.randint(1, 8))) for _ in range(500)]
    sound = [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]
    assert encode(path, texts, 64)["ids"] == ids_of(path, sound, 64)


@pytest.mark.parametrize(
    "data", [b"\xff", b"abc \xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82 b"]
)
def test_cpp_reads_utf8_only(in_cpp, tmp_path, data):
    with pytest.raises(UnicodeDecodeError) as wanted:
        data.decode()
    with pytest.raises(AssertionError, match=rf"not valid UTF-8 \(byte {wanted.value.start}\); convert it first"):
        in_cpp(character_tokenizer(tmp_path / "tokenizer.json"), ["sound", data], 8)


def test_the_apps_carry_one_table():
    spec = importlib.util.spec_from_file_location("unicode_tables", APPS / "unicode_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tables = {"".join(module.carried(name)) for name in module.PLACES}
    assert len(tables) == 1
    assert len(tables.pop()) > 10_000
