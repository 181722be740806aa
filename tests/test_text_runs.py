"""Models of texts through the command line: teacher, student, int8, bundle, predict; and texts that are no good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgekd, ok, ok_json, refused
from ends import SUITE, rows_of
from in_optimum import through_optimum
from real_data import real_data

import edgekd as package
from edgekd.device.bundle import Bundle
from edgekd.results import read_results

tokenizers = pytest.importorskip("tokenizers", reason="models of texts need the extra text")

RECIPE = """
version = 1
name = "reviews"
[data]
kind = "text"
root = "reviews"
[preprocess]
steps = [{{op = "tokenize", file = "tokenizer.json", max_length = 24}}, {{op = "trim"}}]
[teacher]
model = "text_cnn_s"
train = {{epochs = 3, batch_size = 32, lr = 3e-3}}
[student]
model = "{student}"
[distill]
epochs = 3
batch_size = 32
lr = 3e-3
[quantize]
variants = ["int8_dynamic", "int8_u8s8"]
[benchmark]
suite = "tiny.toml"
"""


def write_reviews(folder: Path, count: int = 600) -> Path:
    """Short sentences of the SST-2 set, and a tokenizer that was trained on them."""
    source = real_data("sst2")
    place = folder / "reviews"
    place.mkdir(parents=True)
    for name, lines in (("train", count), ("dev", count // 3), ("test", count // 3)):
        rows = (source / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[: lines + 1]
        (place / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    trained = tokenizers.BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(
        [line.split("\t")[0] for line in (place / "train.tsv").read_text().splitlines()[1:]],
        vocab_size=1500,
        show_progress=False,
    )
    trained.save(str(folder / "tokenizer.json"))
    (folder / "tiny.toml").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_reviews(tmp_path_factory.mktemp("texts"))
    (folder / "recipe.toml").write_text(RECIPE.format(student="bow_s"))
    ok("distill-and-export", folder / "recipe.toml", "--out", folder / "run", cwd=folder)
    return folder / "run"


def test_a_run_ends_in_a_bundle_that_holds_its_tokenizer(run: Path) -> None:
    bundle = Bundle.open(run / "student.edgekd")
    manifest = bundle.manifest
    assert manifest["preprocess"] == [
        {"op": "tokenize", "file": "tokenizer.json", "max_length": 24},
        {"op": "trim", "pad": 0},
    ]
    assert [(spec["name"], spec["dtype"], spec["shape"]) for spec in manifest["inputs"]] == [
        ("input_ids", "int64", ["N", "L"])
    ]
    assert bundle.files()["tokenizer.json"] == (run.parent / "tokenizer.json").read_bytes()
    assert "tokenizer.json" in manifest["files"]
    ok("verify", run / "student.edgekd")


def test_labels_and_confidence_come_from_the_command_line_as_from_python(run: Path) -> None:
    texts = ["a wonderful film", "", "dull // and / boring", "x" * 400, "🙂 \x00 ok"]
    told = ok_json("predict", run / "student.edgekd", *(text.replace("\x00", "") for text in texts))["predictions"]
    with package.load(run / "student.edgekd") as predictor:
        alone = [predictor.predict(text) for text in texts]
        together = predictor.predict_batch(texts)
    for row, one, other in zip(told, alone, together):
        assert row["label"] == one.label == other.label
        assert row["score"] == pytest.approx(one.score, abs=1e-6)
        assert other.score == pytest.approx(one.score, abs=1e-5), "padding to the longest of a batch changes nothing"
    assert [row["truncated"] for row in told] == [False] * 5


@pytest.mark.parametrize("file", ["teacher.weights=teacher/weights.safetensors", "teacher.onnx=export/teacher.onnx"])
def test_a_teacher_of_another_vocabulary_is_refused(run: Path, file: str, tmp_path: Path) -> None:
    """As many tokens in another order: every id has a row, but that of another word."""
    folder = run.parent
    key, _, path = file.partition("=")
    table = json.loads((folder / "tokenizer.json").read_text())
    words = table["model"]["vocab"]
    words["film"], words["movie"] = words["movie"], words["film"]
    (tmp_path / "other.json").write_text(json.dumps(table))
    (tmp_path / "tiny.toml").write_text(SUITE)
    recipe = RECIPE.format(student="bow_s").replace('root = "reviews"', f'root = "{folder / "reviews"}"')
    if key == "teacher.onnx":
        own = 'model = "text_cnn_s"\ntrain = {epochs = 3, batch_size = 32, lr = 3e-3}'
        assert own in recipe
        recipe = recipe.replace(own, 'licence = "MIT"')
    (tmp_path / "recipe.toml").write_text(recipe)
    command = ["distill", tmp_path / "recipe.toml", "--student-only", "--set", f"{key}={run / path}"]
    reads = 'preprocess.steps=[{{op="tokenize", file="{}", max_length=24}}, {{op="trim"}}]'
    told = refused(3, *command, "--out", tmp_path / "other", "--set", reads.format(tmp_path / "other.json"))
    assert "reads the ids of another vocabulary" in told
    ok(*command, "--out", tmp_path / "own", "--set", reads.format(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", ["raw.txt", "raw.csv", "one_class.csv"])
def test_texts_without_labels_teach_a_student(run: Path, name: str, tmp_path: Path) -> None:
    """Raw texts in place of the data's: nobody but the teacher is asked about them."""
    texts = [line.split("\t")[0] for line in (run.parent / "reviews" / "train.tsv").read_text().splitlines()[1:]]
    quoted = [json.dumps(text.replace('"', "")) for text in texts]
    files = {
        "raw.txt": "\n".join(texts),
        "raw.csv": "\n".join(["sentence", *quoted]),
        "one_class.csv": "\n".join(["sentence,label", *(f"{text}," for text in quoted)]),
    }
    (tmp_path / name).write_text(files[name] + "\n", encoding="utf-8")
    transfer = f'transfer={{kind="text", root="{tmp_path / name}", limit=200}}'
    command = ["distill", run.parent / "recipe.toml", "--student-only", "--out", tmp_path / "run", "--set", transfer]
    terms = 'distill.terms=[{loss="kd"}]'
    shared = ["--set", f"teacher.weights={run / 'teacher' / 'weights.safetensors'}", "--set", "distill.epochs=1"]
    done = edgekd(*command, *shared, "--set", terms, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "200 samples of text in place of the data" in done.stdout + done.stderr
    told = refused(2, *command[:4], tmp_path / "other", *command[5:], *shared, cwd=run.parent)
    assert "the samples of [transfer] have no labels" in told


def test_a_top_k_of_answers_to_texts_teaches(run: Path, tmp_path: Path) -> None:
    largest = '{loss="topk_cross_entropy", teacher_tap=["topk_indices", "topk_probabilities"]}'
    sets = ["distill.cache=true", "distill.cache_top_k=1", f"distill.terms=[{largest}]", "distill.epochs=1"]
    sets += [f"teacher.weights={run / 'teacher' / 'weights.safetensors'}"]
    options = [part for setting in sets for part in ("--set", setting)]
    command = ["distill", run.parent / "recipe.toml", "--student-only", "--cache", tmp_path / "answers", *options]
    done = edgekd(*command, "--out", tmp_path / "run", cwd=run.parent)
    assert done.returncode == 0, done.stderr


def test_layers_of_a_student_of_texts_go_back_into_float(run: Path, tmp_path: Path) -> None:
    sets = ['quantize.variants=["int8_u8s8", "mixed"]', "distill.epochs=1", "distill.baseline=false"]
    sets += [f"teacher.weights={run / 'teacher' / 'weights.safetensors'}", "student.model=text_cnn_s"]
    options = [part for setting in sets for part in ("--set", setting)]
    ok("distill-and-export", run.parent / "recipe.toml", "--out", tmp_path / "run", *options, cwd=run.parent)
    results = read_results(tmp_path / "run")
    assert "mixed" in rows_of(results)
    assert results["run"]["mixtures"]["mixed"]


def test_texts_are_read_from_standard_input(run: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-m", "edgekd", "predict", str(run / "student.edgekd"), "-", "--json"]
    done = subprocess.run(command, input=b"good\nbad film\n\n", capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [row["input"] for row in json.loads(done.stdout)["predictions"]] == ["good", "bad film", ""]
    done = subprocess.run(command, input=b"good\n\xff\nbad\n" + 6 * b"\xe9\n", capture_output=True, timeout=120)
    assert done.returncode == 3
    assert b"standard input, line 2, 4, 5, 6, 7 and 2 more: not valid UTF-8" in done.stderr
    done = subprocess.run([*command[:-2], "good", b"caf\xe9"], capture_output=True, timeout=120)
    assert done.returncode == 2
    assert b"is not text in utf-8" in done.stderr


def test_a_label_that_training_never_saw_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\ngood,1\nbad,0\n" * 30)
    (tmp_path / "test.csv").write_text("text,label\nnew,perhaps\n")
    told = refused(
        3, "distill", run.parent / "recipe.toml", "--set", f"data={{kind='text', root='{tmp_path}'}}", cwd=run.parent
    )
    assert "perhaps" in told
    assert "training samples of it" in told


def test_a_text_that_is_too_long_is_cut_and_that_is_said(run: Path) -> None:
    done = edgekd("predict", run / "student.edgekd", "good film " * 10_000)
    assert done.returncode == 0
    assert "longer than the model reads" in done.stderr
    with package.load(run / "student.edgekd") as predictor:
        found = predictor.predict("good film " * 10_000)
        assert found.truncated
        assert found.score == pytest.approx(predictor.predict("good film " * 50).score, abs=1e-6)


def test_every_variant_answers_alike_at_any_padding(run: Path) -> None:
    bundle = Bundle.open(run / "student.edgekd")
    assert set(bundle.variants) >= {"float32", "int8_dynamic"}
    for variant in bundle.variants:
        with package.load(run / "student.edgekd", variant=variant) as predictor:
            ids = predictor.session.run({"input_ids": np.array([[2, 9, 3]], np.int64)})["logits"]
            padded = predictor.session.run({"input_ids": np.array([[2, 9, 3, 0, 0, 0, 0]], np.int64)})["logits"]
        np.testing.assert_allclose(ids, padded, atol=1e-5)


def test_latencies_are_those_of_texts_of_all_lengths(run: Path, tmp_path: Path) -> None:
    from edgekd.device.worker import timed_texts
    from edgekd.spec import Trim

    rows = np.zeros((100, 24), np.int32)
    for number in range(100):
        rows[number, : 1 + number % 20] = 5
    chosen = timed_texts(rows, (Trim(0),), 1)
    lengths = [int((rows[one] != 0).sum()) for one in chosen]
    assert len(set(lengths)) >= 18
    assert np.mean(lengths) == pytest.approx(10.5, abs=0.7)
    results = ok_json("benchmark", run / "student.edgekd", "--suite", run.parent / "tiny.toml")
    assert {row["candidate"] for row in results["rows"]}


def test_no_graph_is_proven_on_longer_texts_than_the_recipes(run: Path) -> None:
    exported = run / "export" / "student.onnx"
    told = [ok_json("verify", exported, run / "variants" / "int8_dynamic.onnx")["axes"]]
    parity = json.loads((run / "stages" / "verify.json").read_text())["result"]["parity"]
    told += [parity[name]["axes"] for name in ("float32", "int8_dynamic")]
    for axes in told:
        assert {1, 2, 24} <= set(axes["L"])
        assert len(axes["L"]) >= 5
        assert max(axes["L"]) == 24


def test_the_bundle_opens_elsewhere_and_as_a_zip_with_samples(run: Path, tmp_path: Path) -> None:
    ok("bundle", run, tmp_path / "again.zip", "--zip", "--samples", "5", cwd=tmp_path)
    opened = Bundle.open(tmp_path / "again.zip")
    samples = opened.samples()
    assert samples is not None
    assert samples[0].shape == (5, 24)
    assert ok_json("predict", tmp_path / "again.zip", "good")["predictions"][0]["label"] in ("0", "1")


def test_a_bundle_without_its_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken.edgekd"
    shutil.copytree(run / "student.edgekd", broken)
    (broken / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(3, "predict", broken, "good")
    shutil.copyfile(run.parent / "tokenizer.json", broken / "tokenizer.json")
    content = (broken / "tokenizer.json").read_text()
    (broken / "tokenizer.json").write_text(content.replace("[UNK]", "[XNK]"))
    assert "was changed after the bundle was written" in refused(3, "predict", broken, "good")
    manifest: dict[str, Any] = json.loads((broken / "bundle.json").read_text())
    manifest["preprocess"][0]["file"] = "../../etc/passwd"
    (broken / "bundle.json").write_text(json.dumps(manifest))
    assert "expected a file that 'files' lists" in refused(3, "predict", broken, "good")


OPTIMUM = """
import json, sys
from edgekd.distill.models.vision import import_torchvision
import_torchvision()  # before transformers does: the CPU build needs help
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
bundle, texts, variant = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
model = ORTModelForSequenceClassification.from_pretrained(bundle, subfolder="graphs", file_name=f"{variant}.onnx")
tokenizer = AutoTokenizer.from_pretrained(bundle)
answer = pipeline("text-classification", model=model, tokenizer=tokenizer)
print(json.dumps(answer(texts, truncation=True, padding=True)))
"""


@pytest.mark.parametrize("variant", ["float32", "int8_dynamic", "int8_u8s8"])
def test_the_bundle_opens_in_a_pipeline_of_transformers_through_optimum(run: Path, variant: str) -> None:
    # Of an empty text this tokenizer makes no token at all, for which onnxruntime's static int8 ends the process.
    texts = ["a wonderful film", "." if variant == "int8_u8s8" else "", "dull " * 100]
    answers = through_optimum(OPTIMUM, run / "student.edgekd", json.dumps(texts), variant)
    with package.load(run / "student.edgekd", variant=variant) as predictor:
        for found, text in zip(answers, texts):
            own = predictor.predict(text)
            assert found["label"] == own.label
            if "calibrated" not in str(predictor.bundle.manifest["postprocess"]):
                temperature = predictor.bundle.manifest["postprocess"][0].get("temperature", 1.0)
                if temperature == 1.0:
                    assert found["score"] == pytest.approx(own.score, abs=1e-5)


def test_transformers_reads_the_tokenizer_of_the_bundle(run: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    from edgekd.device.preprocess import preprocess

    theirs = transformers.AutoTokenizer.from_pretrained(run / "student.edgekd")
    steps = Bundle.open(run / "student.edgekd").steps()
    for text in ("A wonderful FILM!", "", "🙂 ok", "dull " * 100):
        wanted = theirs(text, truncation=True)["input_ids"]
        assert preprocess(steps, text).tolist() == (wanted or [0]), "one column stays"


def test_nothing_is_trained_again_and_a_new_tokenizer_trains_again(run: Path) -> None:
    again = edgekd("distill-and-export", run.parent / "recipe.toml", "--out", run, cwd=run.parent)
    assert again.returncode == 0
    assert "trained" not in again.stdout


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('preprocess.steps=[{op="tokenize",file="absent.json"}]', "there is no tokenizer absent.json"),
        ("preprocess.steps=[]", "nothing says how they become numbers"),
        ('preprocess.steps=[{op="tokenize",file="recipe.toml"}]', "expected a Hugging Face tokenizer.json"),
        ("data.root=nowhere", "there is nothing at"),
        ("student.model=cnn_s", "cnn_s reads no texts"),
        ("student.model=mlp_s", "mlp_s reads no texts"),
    ],
)
def test_recipes_that_cannot_work_are_refused_at_once(tmp_path: Path, change: str, told: str) -> None:
    folder = write_reviews(tmp_path)
    (folder / "recipe.toml").write_text(RECIPE.format(student="bow_s"))
    done = edgekd("distill-and-export", folder / "recipe.toml", "--out", folder / "run", "--set", change, cwd=folder)
    assert done.returncode in (2, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert told in " ".join(done.stderr.split())
