"""TinyBERT, MiniLM and BERT-PKD through recipes: an encoder teaches a smaller one made from it, in one command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import ok, refused
from real_data import real_data
from safetensors.torch import load_file

from edgekd.recipe import load_recipe
from edgekd.run_folder import Silence
from edgekd.stages.training import substitutes
from edgekd.stages.workspace import Workspace

sys.path.append(str(Path(__file__).parent / "distill"))
from tiny_encoders import encoder, saved

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'text'")

HEAD = """
version = 1
name = "tiny"
seed = 1
[data]
kind = "sst2"
limit = 240
[preprocess]
steps = [{op = "tokenize", file = "bert", max_length = 24, vocabulary = 900}, {op = "trim"}]
[teacher]
model = "hf:bert"
licence = "MIT"
train = {epochs = 1, batch_size = 32, lr = 1e-3}
[student]
model = "hf:bert"
init = {layers = "every 2", hidden_size = 8, intermediate_size = 12, by = "svd", of = "trained"}
[distill]
epochs = 2
batch_size = 32
lr = 1e-3
baseline = false
[quantize]
variants = ["int8_dynamic"]
"""
TINYBERT = """
[[distill.terms]]
name = "hidden"
loss = "hidden_mse"
adapter = "linear"
student_tap = ["model.bert.embeddings", "model.bert.encoder.layer.0", "model.bert.encoder.layer.1"]
teacher_tap = ["model.bert.embeddings", "model.bert.encoder.layer.1", "model.bert.encoder.layer.3"]
[[distill.terms]]
name = "attention"
loss = "attention_mse"
adapter = "attention_scores"
adapter_options = {heads = 4}
student_tap = ["Q1.query", "Q1.key"]
teacher_tap = ["Q3.query", "Q3.key"]
[[distill.terms]]
name = "relation"
loss = "minilm_relation"
options = {heads = 2}
student_tap = ["Q1.query", "Q1.key", "Q1.value"]
teacher_tap = ["Q3.query", "Q3.key", "Q3.value"]
[[distill.terms]]
name = "patient"
loss = "patient"
adapter = "linear"
student_tap = ["model.bert.encoder.layer.0"]
teacher_tap = ["model.bert.encoder.layer.1"]
[[distill.terms]]
name = "prediction"
loss = "kd"
options = {temperature = 1.0}
[[distill.stages]]
name = "inside"
epochs = 1
terms = ["hidden", "attention", "relation", "patient"]
[[distill.stages]]
name = "prediction"
epochs = 1
terms = ["prediction"]
""".replace("Q1", "model.bert.encoder.layer.1.attention.self").replace(
    "Q3", "model.bert.encoder.layer.3.attention.self"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT with the vocabulary of the real one, its tokenizer beside it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = (real_data("bert_vocab") / "vocab.txt").read_text(encoding="utf-8").splitlines()[:4000]
    ids = {word: number for number, word in enumerate(words)}
    saved(encoder(vocab_size=len(words)), tmp_path / "bert")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.save(str(tmp_path / "bert" / "tokenizer.json"))
    (tmp_path / "recipe.toml").write_text(HEAD + TINYBERT)
    return tmp_path


def history(folder: Path, *sets: str) -> list[dict[str, Any]]:
    """What the student's epochs were like, after the command line has done it all."""
    settings = [part for one in sets for part in ("--set", one)]
    ok("distill", folder / "recipe.toml", "--out", folder / "run", *settings, cwd=folder)
    return list(json.loads((folder / "run" / "student" / "history.json").read_text())["history"])


@pytest.mark.slow
def test_a_student_learns_inside_and_then_answers(folder: Path) -> None:
    found = history(folder)
    assert [epoch["stage"] for epoch in found] == ["inside", "prediction"]
    assert found[0]["terms"].keys() == {"hidden", "attention", "relation", "patient"}
    assert all(epoch["terms"][name] > 0 for epoch in found for name in epoch["terms"])
    student, teacher = (load_file(folder / "run" / name / "weights.safetensors") for name in ("student", "teacher"))
    assert student["model.bert.embeddings.word_embeddings.weight"].shape == (900, 8)
    assert teacher["model.bert.embeddings.word_embeddings.weight"].shape == (4000, 16)
    assert teacher["rows"].shape == (900,)
    assert {name.split("layer.")[1][0] for name in student if "layer." in name} == {"0", "1"}


@pytest.mark.slow
def test_texts_are_augmented_and_the_teachers_answers_to_them_kept(folder: Path) -> None:
    cached = ("data.augment.replace_similar=0.4", "data.views=2", "distill.cache=true")
    found = history(folder, *cached, "distill.terms=[{loss='kd'}]", "distill.stages=[]")
    assert [epoch["terms"].keys() for epoch in found] == [{"kd"}, {"kd"}]


def test_alike_words_are_those_of_weights_that_were_trained(folder: Path) -> None:
    (folder / "bare").mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(folder / "bert" / name, folder / "bare" / name)
    augment = "data.augment.replace_similar=0.4"
    for model in ("hf:bare", "hf:electra"):  # a folder without weights, and a kind of transformers
        sets = ("--set", augment, "--set", f"teacher.model={model}")
        told = refused(2, "distill", folder / "recipe.toml", "--out", folder / "run", *sets, cwd=folder)
        assert f"found teacher.model = '{model}' without weights, whose words lie at random" in told
        assert "teacher.weights = FILE; or replace_random" in told

    def found(*sets: str) -> Any:
        known = load_recipe(folder / "recipe.toml", overrides=[augment, *sets])
        space = Workspace(known.recipe, known.folder, folder / "run", Silence(), "cpu", 1, "", "")
        return substitutes(space)

    encoder(vocab_size=4000, num_labels=2).save_pretrained(folder / "bert")
    weights = ("teacher.model=hf:bare", f"teacher.weights={folder / 'bert' / 'model.safetensors'}", "teacher.train={}")
    pretrained = found()
    assert pretrained.similar is not None
    assert found(*weights).sha256 == pretrained.sha256


def test_another_vocabulary_than_the_teachers_is_refused_before_anything_is_trained(folder: Path) -> None:
    saved(encoder(), folder / "other")
    place = (folder / "recipe.toml", "--out", folder / "run")
    found = refused(3, "distill", *place, "--set", "teacher.model=hf:other", cwd=folder)
    assert "tokenized with another tokenizer. Take the model's own in preprocess.steps" in found
