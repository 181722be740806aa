"""Students of vectors: the teacher's own sentence vectors, shorter where asked for, from texts without labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import ok, ok_json, refused
from in_optimum import through_optimum
from model_hub import files_below, model_hub
from safetensors.numpy import load_file, save_file
from text_bundle import said_of

import edgekd
from edgekd.device.bundle import Bundle
from edgekd.device.metrics import contributions, drop_points, score
from edgekd.errors import ModelError
from edgekd.recipe import load_recipe
from edgekd.stages.vectors import pooling_of, principal_components, unit
from edgekd.stages.workspace import prepare_data

tokenizers = pytest.importorskip("tokenizers", reason="models of texts need the extra text")
transformers = pytest.importorskip("transformers", reason="a teacher of vectors needs the extra hf")

WORDS = ("red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "sings", "here", "there", "now")
NEVER_SAID = ("sun", "moon")

RECIPE = """
version = 1
name = "vectors"
task = "embedding"
[data]
kind = "text"
root = "lines.txt"
[preprocess]
steps = [{op = "tokenize", file = "teacher", max_length = 12}, {op = "trim"}]
[teacher]
model = "hf:teacher"
licence = "MIT"
[embedding]
dimensions = 8
[student]
model = "bow_s"
[distill]
epochs = 60
batch_size = 32
lr = 1e-2
cache = true
[quantize]
variants = ["int8_dynamic"]
"""


def write_project(folder: Path) -> Path:
    """Lines of a dozen words, and a random encoder of width 16 with its tokenizer, as save_pretrained writes them."""
    import torch

    random = np.random.default_rng(0)
    lines = {" ".join(random.choice(WORDS, random.integers(2, 7))) for _ in range(500)}
    (folder / "lines.txt").write_text("\n".join(sorted(lines)) + "\n\n")
    tokens = {token: at for at, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *NEVER_SAID))}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(tokens, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=1.0,
    )
    transformers.BertModel(config).save_pretrained(folder / "teacher")
    made.save(str(folder / "teacher" / "tokenizer.json"))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("vectors"))
    ok("distill-and-export", folder / "recipe.toml", "--out", folder / "run", cwd=folder)
    return folder / "run"


def test_the_student_says_nearly_what_the_teacher_says(run: Path) -> None:
    import gzip
    import json

    path = run / "results.json.gz"
    text = gzip.decompress(path.read_bytes()) if path.is_file() else (run / "results.json").read_bytes()
    rows = {row["candidate"]: row for row in json.loads(text)["rows"]}
    assert rows["teacher-onnx"]["accuracy"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert 0.7 < rows["float32"]["accuracy"]["value"] < 1.0
    assert "student-alone" not in rows, "without a teacher there is nothing to learn"


def test_a_prediction_is_a_vector_of_length_one(run: Path) -> None:
    assert Bundle.open(run / "student.edgekd").manifest["task"] == "embedding"
    with edgekd.load(run / "student.edgekd") as predictor:
        near, far = (predictor.predict_batch(["red cat runs", text]) for text in ("cat runs red", "blue bird sings"))
        vectors = [[one.outputs["logits"] for one in pair] for pair in (near, far)]
    assert near[0].label is None
    assert near[0].score == pytest.approx(1.0, abs=1e-5)
    assert vectors[0][0].shape == (8,)
    assert float(vectors[0][0] @ vectors[0][1]) > float(vectors[1][0] @ vectors[1][1])
    told = ok_json("predict", run / "student.edgekd", "red cat runs")["predictions"][0]
    np.testing.assert_allclose(told["outputs"]["logits"], vectors[0][0], atol=1e-5)
    told = ok("predict", run / "student.edgekd", "red cat runs", "here")
    assert told.splitlines()[0] == f"red cat runs: {said_of(vectors[0][0])} (--json: all)"
    assert told.splitlines()[1].startswith("here: 8 numbers: ")


def test_the_shortened_vectors_are_those_of_the_teachers_graph(run: Path) -> None:
    from edgekd.device.runtimes import open_session

    session = open_session(run / "export" / "teacher.onnx", threads=1)
    found = session.run({"input_ids": np.array([[2, 4, 7, 10, 3]], np.int64)})["logits"]
    session.close()
    assert found.shape == (1, 8)
    assert float(np.linalg.norm(found)) == pytest.approx(1.0, abs=1e-5)


OPTIMUM = """
import json, sys
from edgekd.distill.models.vision import import_torchvision
import_torchvision()
from optimum.onnxruntime import ORTModelForCustomTasks
from transformers import AutoTokenizer
bundle, texts, variant = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
model = ORTModelForCustomTasks.from_pretrained(bundle, subfolder="graphs", file_name=f"{variant}.onnx")
tokenizer = AutoTokenizer.from_pretrained(bundle)
print(json.dumps([model(**tokenizer(text, return_tensors="pt"))["logits"][0].tolist() for text in texts]))
"""


@pytest.mark.parametrize("variant", ["float32", "int8_dynamic"])
def test_the_bundle_opens_in_optimum(run: Path, variant: str) -> None:
    texts = ["red cat runs", "here"]
    found = through_optimum(OPTIMUM, run / "student.edgekd", json.dumps(texts), variant)
    with edgekd.load(run / "student.edgekd", variant=variant) as predictor:
        own = [predictor.predict(text).outputs["logits"] for text in texts]
    np.testing.assert_allclose(found, own, atol=1e-5)


def test_vectors_are_learned_by_their_squared_error_too(run: Path, tmp_path: Path) -> None:
    terms = "distill.terms=[{loss='cosine_embedding', weight=0.5}, {loss='logit_mse', weight=0.5}]"
    sets = ("--set", terms, "--set", "distill.epochs=20")
    command = ["distill", run.parent / "recipe.toml", "--student-only", "--out", tmp_path / "run", *sets]
    ok(*command, cwd=run.parent)
    history = json.loads((tmp_path / "run" / "student" / "history.json").read_text())["history"]
    assert history[-1]["terms"]["logit_mse"] < 0.5 * history[0]["terms"]["logit_mse"]


@pytest.mark.parametrize("changes", [(), ("embedding.pooling=first",), ("embedding={}",)])
def test_a_student_of_all_layers_of_its_teacher_begins_as_its_teacher(
    run: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    made = (*changes, "student={model='hf:teacher', init={of='trained'}}", "distill.epochs=1", "distill.lr=1e-9")
    sets = [part for change in made for part in ("--set", change)]
    ok("distill", run.parent / "recipe.toml", "--student-only", "--out", tmp_path / "run", *sets, cwd=run.parent)
    told = json.loads((tmp_path / "run" / "student" / "history.json").read_text())
    assert told["history"][-1]["val"] == pytest.approx(1.0, abs=1e-5), "the same layers, pooling and dimensions"


def test_a_student_made_of_its_teacher_becomes_a_bundle(run: Path, tmp_path: Path) -> None:
    steps = 'preprocess.steps=[{op="tokenize", file="teacher", max_length=12, vocabulary=16}, {op="trim"}]'
    student = 'student={model="hf:teacher", init={intermediate_size=16, of="trained"}}'
    sets = ("--set", steps, "--set", student, "--set", "distill.epochs=5")
    command = ("distill-and-export", run.parent / "recipe.toml", "--out", tmp_path / "run", *sets)
    ok(*command, cwd=run.parent)
    weights = load_file(tmp_path / "run" / "student" / "weights.safetensors")
    assert weights["body.embeddings.word_embeddings.weight"].shape == (16, 16)
    assert weights["project.weight"].shape == (8, 16)
    assert not [name for name in weights if "pooler" in name or "classifier" in name], "nothing would learn them"
    for variant in ("float32", "int8_dynamic"):
        with edgekd.load(tmp_path / "run" / "student.edgekd", variant=variant) as predictor:
            near, far = (predictor.predict_batch(["red cat runs", text]) for text in ("cat runs red", "blue bird"))
        vectors = [one.outputs["logits"] for one in (*near, *far)]
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        assert vectors[0] @ vectors[1] > vectors[2] @ vectors[3]


def test_principal_components_are_those_of_numpy_and_ordered() -> None:
    random = np.random.default_rng(1)
    vectors = (random.standard_normal((400, 6)) * [5, 4, 3, 2, 1, 0.1]).astype(np.float32)
    matrix = principal_components(vectors, 3)
    _, _, known = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs((matrix * known[:3].T).sum(axis=0)), 1.0, atol=1e-4)
    assert (matrix[np.abs(matrix).argmax(axis=0), np.arange(3)] > 0).all()
    np.testing.assert_allclose(np.linalg.norm(unit(vectors), axis=1), 1.0, atol=1e-6)
    assert np.isfinite(unit(np.zeros((1, 3), np.float32))).all()


def test_the_metric_is_the_mean_cosine() -> None:
    wanted = np.array([[1.0, 0.0], [0.0, 2.0]])
    same, turned = contributions("embedding", 3 * wanted, wanted), contributions("embedding", wanted[:, ::-1], wanted)
    assert score("embedding", same) == pytest.approx(1.0)
    assert score("embedding", turned) == pytest.approx(0.0)
    assert drop_points("embedding", same, turned).value == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("embedding.dimensions=17", "the teacher's vectors have 16 numbers"),
        ("teacher.model=hf:empty", "hf:empty comes without weights, so its vectors say nothing"),
        ("teacher.model=bow_s", "takes one teacher"),
        ("teacher.weights=teacher/model.safetensors", "without teacher.weights"),
        ("task=classification", "embedding is for task"),
        ('preprocess.steps=[{op="scale"}]', "put tokenize into preprocess.steps"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, change: str, told: str) -> None:
    folder = write_project(tmp_path)
    (folder / "empty").mkdir()
    shutil.copyfile(folder / "teacher" / "config.json", folder / "empty" / "config.json")
    from commands import edgekd as command

    done = command("distill-and-export", folder / "recipe.toml", "--out", folder / "run", "--set", change, cwd=folder)
    assert done.returncode in (2, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert told in " ".join(done.stderr.split())


def test_a_text_that_is_a_path_is_refused_by_python(run: Path) -> None:
    with edgekd.load(run / "student.edgekd") as predictor, pytest.raises(edgekd.errors.DataError, match="found a path"):
        predictor.predict(run)
    assert refused(3, "predict", run / "nothing.edgekd", "red")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode_max_tokens": True}, "made by 'max_tokens', expected mean_tokens or cls_token"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "made by 'cls_token + mean_tokens'"),
        ({"pooling_mode_cls_token": False}, "does not say how the teacher pools"),
        ([], "does not say how the teacher pools"),
    ],
)
def test_the_teacher_says_how_its_vectors_are_pooled(tmp_path: Path, config: object, expected: str) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "teacher" / "1_Pooling").mkdir(parents=True)
    if config is not None:
        (tmp_path / "teacher" / "1_Pooling" / "config.json").write_text(json.dumps(config))
    recipe = load_recipe(tmp_path / "recipe.toml").recipe
    if expected in ("mean", "first"):
        assert pooling_of(recipe, tmp_path) == expected
    else:
        with pytest.raises(ModelError, match=expected.replace("+", r"\+")):
            pooling_of(recipe, tmp_path)
    own = load_recipe(tmp_path / "recipe.toml", overrides=["embedding.pooling=first"]).recipe
    assert pooling_of(own, tmp_path) == "first", "the recipe's word counts more"


def test_a_teacher_of_the_first_token_is_asked_for_the_first_token(run: Path, tmp_path: Path) -> None:
    import torch

    shutil.copytree(run.parent / "teacher", tmp_path / "teacher")
    (tmp_path / "teacher" / "1_Pooling").mkdir()
    (tmp_path / "teacher" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "lines.txt").write_text((run.parent / "lines.txt").read_text())
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("dimensions = 8", "").replace("epochs = 60", "epochs = 1"))
    ok("distill", tmp_path / "recipe.toml", "--student-only", "--out", tmp_path / "run", cwd=tmp_path)
    loaded = load_recipe(tmp_path / "recipe.toml")
    train = prepare_data(loaded.recipe, loaded.folder).dataset.train
    model = transformers.BertModel.from_pretrained(tmp_path / "teacher").eval()
    ids = torch.from_numpy(train.x[:20].astype(np.int64))
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    np.testing.assert_allclose(train.y[:20], unit(states[:, 0].numpy()), atol=1e-5)


def test_a_teacher_told_to_compute_something_else_is_asked_anew(tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    config = folder / "teacher" / "config.json"

    def targets() -> np.ndarray:
        loaded = load_recipe(folder / "recipe.toml")
        return np.asarray(prepare_data(loaded.recipe, loaded.folder).dataset.train.y)

    before = targets()
    np.testing.assert_array_equal(targets(), before)
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    assert not np.allclose(targets(), before), "the same weights under another configuration"


def test_how_a_teacher_on_the_hub_pools_is_asked_there(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)

    def file(model: str, name: str) -> bytes | None:
        is_there = (model, name) == ("me/first", "1_Pooling/config.json")
        return b'{"pooling_mode_cls_token": true}' if is_there else None

    def pools(name: str) -> str:
        code = "import sys; from pathlib import Path; from edgekd.recipe import load_recipe\n"
        code += "from edgekd.stages.vectors import pooling_of; from edgekd.errors import EdgekdError\n"
        code += "recipe = load_recipe('recipe.toml', overrides=[f'teacher.model=hf:{sys.argv[1]}']).recipe\n"
        code += "try: print(pooling_of(recipe, Path()))\nexcept EdgekdError as error: print(error)"
        command = [sys.executable, "-c", code, name]
        environment = {**os.environ, **hub.environment(tmp_path / "hub")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with model_hub(file) as hub:
        assert pools("me/first") == "first"
        assert pools("me/none") == "mean"
        assert pools("me/nobody") == "mean", "whoever loads the model says that there is none"
    assert pools("me/first") == "first", "what was fetched is kept"
    assert pools("me/none") == "mean", "and what is not there, too"
    told = pools("me/other")
    assert "the hub cannot be asked" in told
    assert 'embedding.pooling = "mean"' in told


def test_a_teacher_that_changes_on_the_hub_is_asked_anew(tmp_path: Path) -> None:
    from commands import edgekd as command

    folder = write_project(tmp_path)
    sets = ("--set", "teacher.model=hf:me/teacher", "--set", "distill.epochs=1")

    def distil(out: Path) -> float:
        environment = hub.environment(tmp_path / "hub")
        done = command("distill", folder / "recipe.toml", "--out", out, *sets, cwd=folder, env=environment)
        assert done.returncode == 0, done.stderr
        state = json.loads((out / "stages" / "teacher.json").read_text())
        return float(state["result"]["best"])

    run, other = folder / "run", folder / "other"
    with model_hub(files_below(folder / "teacher")) as hub:
        assert distil(run) == pytest.approx(1.0, abs=1e-5)
        weights = folder / "teacher" / "model.safetensors"
        save_file({name: value[::-1].copy() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
        assert distil(other) == pytest.approx(1.0, abs=1e-5), "scored against its own vectors, not its predecessor's"
    assert distil(run) == pytest.approx(1.0, abs=1e-5), "without a network the model on this machine counts"
    taken = [(one / "teacher" / "weights.safetensors").read_bytes() for one in (run, other)]
    assert taken[0] == taken[1], "a run that goes on takes the new one too"
