"""A finished model of texts, as an ONNX file that others exported: bundled with its tokenizer, and asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from commands import edgekd, ok, ok_json, refused
from ends import SUITE

import edgekd as package

sys.path.append(str(Path(__file__).parent / "distill"))
from tiny_encoders import CLASSES, VOCABULARY, WORDS, reviewer, reviews

NAMES = ("input_ids", "attention_mask", "token_type_ids")
LONGEST = 40
LABELS = ("--labels", ",".join(CLASSES), "--licence", "MIT")


class Called(torch.nn.Module):
    """A model of transformers by the places of its arguments; what it gives is called `answer`."""

    def __init__(self, model: Any, answer: str = "logits", kind: torch.dtype = torch.int64) -> None:
        super().__init__()
        self.model, self.answer, self.kind = model, answer, kind

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.model(**dict(zip(NAMES, (each.to(self.kind) for each in inputs))))[self.answer]
        return given


def export(module: torch.nn.Module, path: Path, *, length: int | None = None, dtype: torch.dtype = torch.int64) -> Path:
    """As transformers' own exporters did for years: three inputs."""
    example = tuple(torch.ones(2, length or 7, dtype=dtype) for _ in NAMES)
    axes = {0: "batch", **({} if length else {1: "sequence"})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, example, str(path), input_names=list(NAMES), output_names=["logits"], opset_version=17,
            dynamic_axes={name: axes for name in NAMES} | {"logits": {0: "batch"}}, dynamo=False,
        )  # fmt: skip
    return path


def steps(tokenizer: Path, *, length: int = LONGEST, trim: bool = True, **further: object) -> tuple[str, str]:
    listed: list[dict[str, Any]] = [{"op": "tokenize", "file": str(tokenizer), "max_length": length, **further}]
    return "--preprocess", json.dumps(listed + ([{"op": "trim"}] if trim else []))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as transformers saves it, and its graph."""
    folder = tmp_path_factory.mktemp("texts")
    model = reviewer(folder / "classifier", reviews(300))
    export(Called(model), folder / "three.onnx")
    export(Called(model), folder / "small.onnx", dtype=torch.int32)
    export(Called(model), folder / "fixed.onnx", length=12)
    ok("export", f"hf:{folder / 'classifier'}", folder / "two.onnx")
    return folder


def expected(place: Path, text: str) -> np.ndarray:
    """Probabilities as transformers gives them."""
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(place / "classifier" / "tokenizer.json"))
    model = AutoModelForSequenceClassification.from_pretrained(place / "classifier").eval()
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits
    found: np.ndarray = torch.softmax(logits, dim=1)[0].numpy()
    return found


@pytest.mark.parametrize("name", ["two", "three", "small", "fixed"])
def test_it_says_what_transformers_says(name: str, place: Path, tmp_path: Path) -> None:
    bundle, tokenizer = tmp_path / "b.edgekd", place / "classifier"
    read = steps(tokenizer, length=12, trim=False) if name == "fixed" else steps(tokenizer)
    ok("bundle", place / f"{name}.onnx", bundle, *LABELS, *read)
    ok("verify", bundle)
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert [(spec["name"], spec["dtype"]) for spec in manifest["inputs"]] == [("input_ids", "int64")]
    with package.load(bundle) as student:
        texts = ["a very good film", "bad", "the film is", "", "good bad \U0001f642 unknown"]
        for text, answer in zip(texts, student.predict_batch(texts, top_k=3)):
            wanted = expected(place, text)
            assert answer.label == CLASSES[int(wanted.argmax())]
            found = [dict(answer.top)[label] for label in CLASSES]
            np.testing.assert_allclose(found, wanted, atol=1e-4)
    told = ok_json("predict", bundle, "a very good film")
    assert told["predictions"][0]["label"] == "POSITIVE"


def test_it_is_measured_and_embedded_like_any_other(place: Path, tmp_path: Path) -> None:
    bundle, suite = tmp_path / "b.edgekd", tmp_path / "tiny.toml"
    suite.write_text(SUITE)
    told = edgekd("bundle", place / "three.onnx", bundle, *LABELS, *steps(place / "classifier"))
    assert told.returncode == 0, told.stderr
    assert f"edgekd verify {bundle}" in told.stdout
    rows = ok_json("benchmark", bundle, "--suite", suite, "--out", tmp_path / "r.json")["rows"]
    assert rows[0]["latency_ms"]["p50"]["value"] > 0
    ok("embed", bundle, "--app", "python", "--out", tmp_path / "app")
    done = subprocess.run(
        [sys.executable, "student.py", "--self-test"], cwd=tmp_path / "app", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_does_not_belong_together_is_refused(place: Path, tmp_path: Path) -> None:
    out, tokenizer = tmp_path / "b.edgekd", place / "classifier"
    three = ("bundle", place / "three.onnx", out, *LABELS)
    text = refused(2, *three, *steps(tmp_path / "nowhere"))
    assert "--preprocess: there is no tokenizer" in text
    text = refused(2, *three, *steps(tokenizer, vocabulary=20))
    assert "vocabulary cuts a tokenizer down to a run's data" in text
    text = refused(3, *three, *steps(tokenizer, length=LONGEST + 1))
    assert f"fails on texts of {LONGEST + 1} tokens" in text
    assert "max_length at most what the model reads" in text
    text = refused(2, "bundle", place / "fixed.onnx", out, *LABELS, *steps(tokenizer))
    assert "reads exactly 12 tokens, found max_length = 40 and trim; expected max_length = 12 and no trim" in text
    larger = json.loads((tokenizer / "tokenizer.json").read_text())
    larger["model"]["vocab"] |= {f"word{number}": VOCABULARY + number for number in range(9)}
    (tmp_path / "larger.json").write_text(json.dumps(larger))
    text = refused(3, *three, *steps(tmp_path / "larger.json"))
    assert "Is it the model's own tokenizer" in text
    text = refused(3, "bundle", place / "three.onnx", out, *LABELS)
    assert "A model of texts: say so with --preprocess, whose first step is tokenize" in text
    assert not out.exists()


def test_an_encoder_without_pooling_and_strange_inputs_are_refused(place: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    body = BertModel.from_pretrained(place / "classifier")
    export(Called(body, "last_hidden_state"), tmp_path / "body.onnx")
    read = ("--licence", "MIT", *steps(place / "classifier"))
    text = refused(3, "bundle", tmp_path / "body.onnx", tmp_path / "b.edgekd", *read)
    assert "expected one row of numbers for each text" in text
    model = onnx.load(place / "three.onnx")
    for value in model.graph.input:
        value.name = {"token_type_ids": "position_ids"}.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = ["position_ids" if name == "token_type_ids" else name for name in node.input]
    onnx.save(model, tmp_path / "strange.onnx")
    text = refused(3, "bundle", tmp_path / "strange.onnx", tmp_path / "b.edgekd", *read)
    assert "position_ids int64" in text
    assert "alone or with attention_mask and token_type_ids" in text


def test_ids_alone_are_no_rows_of_numbers(place: Path, tmp_path: Path) -> None:
    from edgekd.graph import inspect
    from edgekd.graph.text_inputs import reading_ids_alone

    for name in ("three", "fixed"):
        specs = inspect(place / f"{name}.onnx").inputs
        alone = reading_ids_alone(onnx.load(place / f"{name}.onnx"), specs, 0)
        if name == "fixed":  # by another name it is known by its table
            onnx.compose.add_prefix(alone, "my_", rename_nodes=False, inplace=True)
        onnx.save(alone, tmp_path / "alone.onnx")
        text = refused(3, "bundle", tmp_path / "alone.onnx", tmp_path / "b.edgekd", *LABELS)
        assert "int64" in text
        assert "which are ids of tokens" in text
        assert "A model of texts: say so with --preprocess, whose first step is tokenize" in text
    assert not (tmp_path / "b.edgekd").exists()


def foreign(tokenizer: Path, out: Path, words: list[str]) -> Path:
    """The tokenizer with other words."""
    table = json.loads((tokenizer / "tokenizer.json").read_text())
    table["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    out.write_text(json.dumps(table))
    return out


def test_what_edgekd_exports_knows_its_own_tokenizer(place: Path, tmp_path: Path) -> None:
    """As export/README.md shows it: an hf: folder, then the bundle."""
    from edgekd.device.tokens import tokens_of
    from edgekd.graph import inspect
    from edgekd.graph.metadata import tokens_sha256

    classifier, out = place / "classifier", tmp_path / "b.edgekd"
    said = inspect(place / "two.onnx").metadata
    assert said["tokens"] == tokens_sha256(tokens_of((classifier / "tokenizer.json").read_text()))
    # What the steps are was not said.
    assert "preprocess" not in said
    for words in ([*WORDS[:5], *WORDS[:4:-1]], WORDS[:-1]):
        other = foreign(classifier, tmp_path / "other.json", words)
        text = refused(2, "bundle", place / "two.onnx", out, *LABELS, *steps(other))
        assert "is not the tokenizer of" in text
    ok("bundle", place / "two.onnx", out, *LABELS, *steps(classifier))


def test_a_folder_with_a_broken_or_a_foreign_tokenizer_is_exported_without_a_word_of_it(
    place: Path, tmp_path: Path
) -> None:
    from edgekd.distill.models.hub import hugging_face_model, stated_tokens

    folder = tmp_path / "folder"
    shutil.copytree(place / "classifier", folder)
    module = hugging_face_model(str(folder), num_outputs=None, args={})
    assert len(stated_tokens(str(folder), module)) == VOCABULARY
    foreign(place / "classifier", folder / "tokenizer.json", [*WORDS, "one", "more"])
    assert stated_tokens(str(folder), module) == ()
    (folder / "tokenizer.json").write_text("{}")
    assert stated_tokens(str(folder), module) == ()
    (folder / "tokenizer.json").unlink()
    assert stated_tokens(str(folder), module) == ()


def test_fewer_tokens_than_rows_are_told(place: Path, tmp_path: Path) -> None:
    """Models with rows to spare are usual, foreign tokenizers too: whoever knows is told."""
    fewer = foreign(place / "classifier", tmp_path / "fewer.json", WORDS[:-1])
    for name in ("three", "small"):  # the ids themselves are looked up, or a cast of them
        told = edgekd("bundle", place / f"{name}.onnx", tmp_path / f"{name}.edgekd", *LABELS, *steps(fewer))
        assert told.returncode == 0, told.stderr
        assert f"has {VOCABULARY - 1} tokens, but {place / name}.onnx a table of {VOCABULARY} rows" in told.stderr
    told = edgekd("bundle", place / "three.onnx", tmp_path / "own.edgekd", *LABELS, *steps(place / "classifier"))
    assert "warning" not in told.stderr


def broken(model: Path, out: Path) -> Path:
    """The same model with other words: all rows of its table but those of [PAD] and [UNK]."""
    loaded = onnx.load(model)
    for tensor in loaded.graph.initializer:
        if "word_embeddings" in tensor.name:
            table = onnx.numpy_helper.to_array(tensor).copy()
            table[2:] = np.random.default_rng(0).normal(size=table[2:].shape) * 5
            tensor.CopyFrom(onnx.numpy_helper.from_array(table, tensor.name))
    onnx.save(loaded, out)
    return out


@pytest.mark.parametrize("name", ["two", "three", "small", "fixed"])
def test_two_models_are_compared_on_texts(name: str, place: Path, tmp_path: Path) -> None:
    """Without samples: of one token that is [PAD] or [UNK] a broken table would be the same."""
    model = place / f"{name}.onnx"
    told = ok_json("verify", model, model)
    assert told["ok"]
    longest = 12 if name == "fixed" else 32
    assert told["samples"] == f"random texts of 8 to {longest} tokens, ids below {VOCABULARY}"
    text = refused(1, "verify", model, broken(model, tmp_path / "broken.onnx"))
    assert "differ" in text


def test_texts_are_no_longer_than_the_model_reads(place: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from edgekd.stages.alone import text_limits

    config = {"max_position_embeddings": 20, "ignore_mismatched_sizes": True}
    short = AutoModelForSequenceClassification.from_pretrained(place / "classifier", **config).eval()
    export(Called(short), tmp_path / "short.onnx")
    limits = text_limits([tmp_path / "short.onnx"])
    assert limits is not None
    assert limits.longest == 16
    # As its metadata say it.
    model = onnx.load(place / "two.onnx")
    entry = model.metadata_props.add()
    entry.key = "preprocess"
    entry.value = json.dumps([{"op": "tokenize", "file": "t", "max_length": 11}, {"op": "trim", "pad": 1}])
    onnx.save(model, tmp_path / "said.onnx")
    said = text_limits([tmp_path / "said.onnx"])
    assert said is not None
    assert (said.ids, said.longest, said.pad) == (VOCABULARY, 11, 1)


def test_samples_are_asked_for_where_the_table_is_not_found(place: Path, tmp_path: Path) -> None:
    model = onnx.load(place / "two.onnx")
    # Looked up with ids that a sum gave.
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "zero")
    model.graph.initializer.append(zero)
    for node in model.graph.node:
        node.input[:] = ["summed" if name == "input_ids" else name for name in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Add", ["input_ids", "zero"], ["summed"]))
    onnx.save(model, tmp_path / "hidden.onnx")
    text = refused(2, "verify", tmp_path / "hidden.onnx", tmp_path / "hidden.onnx")
    assert "no table is looked up by input_ids. Give real ones" in text


def test_a_model_of_texts_is_timed_on_texts(place: Path, tmp_path: Path) -> None:
    suite = tmp_path / "tiny.toml"
    suite.write_text(SUITE)
    results = ok_json("benchmark", place / "three.onnx", "--suite", suite)
    assert results["candidates"][0]["timed_on"] == f"random texts of 8 to 32 tokens, ids below {VOCABULARY}"
    assert results["rows"][0]["latency_ms"]["p50"]["value"] > 0


@pytest.mark.parametrize("graph", ["three.onnx", "two.onnx", "small.onnx", "fixed.onnx"])
def test_raw_texts_calibrate_and_compare(place: Path, tmp_path: Path, graph: str) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text for text, _ in reviews(60)) + "\n")
    length, trim = (12, False) if graph == "fixed.onnx" else (LONGEST, True)
    told = steps(place / "classifier" / "tokenizer.json", length=length, trim=trim)
    small = tmp_path / "small.onnx"
    made = ok_json("quantize", place / graph, small, "--data", texts, *told, "--json")
    assert made["label_agreement"] > 0.9
    assert made["num_quantized"] > 0
    table = tmp_path / "texts.csv"
    table.write_text("mark,text\n" + "".join(f"1,{text}\n" for text, _ in reviews(60)))
    found = ok_json("verify", place / graph, small, "--samples", table, *told, "--json")
    assert found["label_agreement"] == made["label_agreement"], "the same texts, mask and types"
    assert 'add --preprocess, for example \'[{"op":"tokenize"' in refused(
        2, "quantize", place / graph, tmp_path / "no.onnx", "--data", texts
    )
