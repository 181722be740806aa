"""Masked language models through the command line: DistilBERT's programme, and the task that goes on from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import ok, ok_json, refused
from ends import SUITE

from edgekd.distill.masking import likelihoods
from edgekd.spec import Vocabulary

tokenizers = pytest.importorskip("tokenizers", reason="models of texts need the extra text")
transformers = pytest.importorskip("transformers", reason="masked language models need the extra hf")

NOUNS, VERBS = ("cat", "dog", "bird", "fish", "horse"), ("runs", "sleeps", "sings", "swims", "jumps")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
RECIPE = """
version = 1
name = "masked"
task = "masked_lm"
[data]
kind = "text"
root = "lines.txt"
[preprocess]
steps = [{op = "tokenize", file = "tokenizer.json", max_length = 12}, {op = "trim"}]
[teacher]
model = "hf:bert"
args = {hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2, intermediate_size = 64}
train = {epochs = 30, batch_size = 32, lr = 3e-3}
[student]
model = "hf:bert"
args = {hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2, intermediate_size = 64}
init = {layers = "every 2", of = "trained"}
[distill]
epochs = 3
batch_size = 32
lr = 1e-3
"""
TASK = """
version = 1
name = "task"
[data]
kind = "text"
root = "labels.csv"
[preprocess]
steps = [{op = "tokenize", file = "run/student/model", max_length = 12}, {op = "trim"}]
[teacher]
model = "hf:run/teacher/model"
train = {epochs = 3, batch_size = 32, lr = 1e-3}
[student]
model = "hf:run/student/model"
[distill]
epochs = 3
batch_size = 32
lr = 1e-3
baseline = false
[quantize]
variants = ["int8_dynamic"]
[benchmark]
suite = "tiny.toml"
"""


# A teacher with its answers kept, and a student that is a smaller one of its kind.
KEPT = """
version = 1
name = "kept"
[data]
kind = "text"
root = "labels.csv"
[preprocess]
steps = [{op = "tokenize", file = "tokenizer.json", max_length = 12}, {op = "trim"}]
[teacher]
model = "hf:bert"
args = {hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2, intermediate_size = 64}
train = {epochs = 2, batch_size = 32, lr = 1e-3}
[student]
model = "hf:bert"
args = {hidden_size = 16, num_hidden_layers = 1, num_attention_heads = 2, intermediate_size = 32}
[distill]
epochs = 2
batch_size = 32
lr = 1e-3
baseline = false
cache = true
"""
LAYER = "model.bert.encoder.layer.0"
INSIDE = f'distill.terms=[{{loss="hidden_mse", adapter="linear", student_tap="{LAYER}", teacher_tap="{LAYER}"}}]'


def write_project(folder: Path, *, mask: bool = True, special: tuple[str, ...] = SPECIAL) -> Path:
    """Sentences in which the verb follows from the noun, and a tokenizer of whole words."""
    rng = np.random.default_rng(0)
    pairs = [(noun, rng.integers(0, 5)) for noun in rng.choice(NOUNS, 700)]
    lines = [f"the {'small ' if odd % 2 else ''}{noun} {VERBS[NOUNS.index(noun)]}" for noun, odd in pairs]
    (folder / "lines.txt").write_text("\n".join(lines) + "\n")
    rows = [f"{line},{'yes' if 'cat' in line or 'dog' in line else 'no'}" for line in lines]
    (folder / "labels.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    special = special if mask else special[:-1]
    tokens = {token: number for number, token in enumerate((*special, "the", "small", *NOUNS, *VERBS))}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(tokens, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", tokens["[SEP]"]), ("[CLS]", tokens["[CLS]"]))
    made.add_special_tokens(list(special))
    made.save(str(folder / "tokenizer.json"))
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "task.toml").write_text(TASK)
    (folder / "kept.toml").write_text(KEPT)
    (folder / "tiny.toml").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("masked"))
    printed = ok("distill", folder / "recipe.toml", "--out", folder / "run", cwd=folder)
    assert "distill-and-export sst2" in printed, "the next command goes on with the folders"
    return folder / "run"


def test_the_student_learns_what_follows_from_what(run: Path) -> None:
    scores = {
        name: json.loads((run / "stages" / f"{name}.json").read_text())["result"] for name in ("teacher", "student")
    }
    # A token by chance: log(1 / 17) = -2.8.
    assert scores["teacher"]["best"] > -1.0
    assert scores["student"]["best"] > -1.3
    assert scores["student"]["parameters"] < scores["teacher"]["parameters"]
    terms = scores["student"]["history"][-1]["terms"]
    assert set(terms) == {"kd", "cross_entropy", "cosine"}


def test_its_folder_is_one_of_transformers_and_says_the_same(run: Path) -> None:
    import torch

    from edgekd.distill.masking import Masking
    from edgekd.distill.models import build_masked

    folder = run / "student" / "model"
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    size = len(tokenizer)
    ours = build_masked(
        f"hf:{folder}", vocabulary=Vocabulary(size, 0, tuple(tokenizer.convert_ids_to_tokens(range(size))))
    )
    batch = tokenizer(["the cat runs", "the small fish swims"], padding=True, return_tensors="pt")
    masking = Masking(4, np.arange(5, size), size, 0.5)
    x, y, asked = masking(batch["input_ids"], np.arange(2), seed=0, view=0)
    with torch.inference_mode():
        own = ours.eval()(x)["logits"]
        whole = theirs(input_ids=x[:, 0], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(own, whole[x[:, 1].bool()], rtol=1e-5, atol=1e-5)
    assert likelihoods(own, y, asked).shape == (2, 2)


def test_a_finished_teacher_is_taken_as_it_is(run: Path) -> None:
    folder = run.parent
    sets = (f"teacher.weights={run / 'teacher' / 'model' / 'model.safetensors'}", "distill.epochs=1")
    options = [part for one in sets for part in ("--set", one)]
    told = ok_json("distill", folder / "recipe.toml", *options, "--student-only", "--out", folder / "finished")
    trained = json.loads((run / "stages" / "teacher.json").read_text())["result"]
    taken = told["stages"]["teacher"]
    assert taken["trained"] is False
    assert taken["best"] == pytest.approx(trained["best"], abs=1e-5), "the same masks, the same weights"
    assert not (run / "teacher" / "model.json").exists(), "the benchmark could not open it"


def test_the_task_begins_with_teacher_and_student(run: Path) -> None:
    folder = run.parent
    ok("distill-and-export", folder / "task.toml", "--out", folder / "task", cwd=folder)
    found = ok_json("predict", folder / "task" / "student.edgekd", "the cat runs")
    assert "yes" in json.dumps(found)


def test_again_nothing_is_trained_and_no_bundle_is_made_of_it(run: Path) -> None:
    folder = run.parent
    assert ok_json("distill", folder / "recipe.toml", "--out", run)["worked"] == []
    error = refused(2, "distill-and-export", folder / "recipe.toml", "--out", run, cwd=folder)
    assert "edgekd distill" in error
    assert "student/model" in error


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("distill.cache=true", "distill.cache"),
        ("distill.mixup=0.2", "distill.mixup"),
        ('student={model="bow_s"}', "student.model"),
        ('teacher={onnx="x.onnx", licence="MIT"}', "teacher.model"),
        ("data.labelled=0.5", "data.labelled"),
        ("masked_lm.probability=1.5", "probability"),
        ('preprocess.steps=[{op="tokenize", file="tokenizer.json"}]', "trim"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, override: str, named: str) -> None:
    folder = write_project(tmp_path)
    assert named in refused(2, "distill", folder / "recipe.toml", "--set", override, "--out", folder / "r", cwd=folder)


def test_texts_longer_than_the_model_reads_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    for side, recipe in (("teacher", "recipe.toml"), ("student", "kept.toml")):
        options = ("--set", f"{side}.args.max_position_embeddings=10", "--out", folder / side)
        told = refused(3, "distill", folder / recipe, *options, cwd=folder)
        assert "found max_length = 12 in preprocess.steps (tokenize), but the model reads at most 10 tokens" in told
        assert told.endswith("set max_length = 10")
        assert not (folder / side / "teacher" / "weights.safetensors").exists()


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    folder = write_project(tmp_path, mask=False)
    assert "[MASK]" in refused(3, "distill", folder / "recipe.toml", "--out", folder / "run", cwd=folder)


def test_tinybert_s_general_stage_learns_hidden_states_and_attention_of_raw_text(run: Path) -> None:
    folder = run.parent
    layer, last = "model.bert.encoder.layer.0", "model.bert.encoder.layer.1"
    attention = [[f"{place}.attention.self.{part}" for part in ("query", "key")] for place in (layer, last)]
    hidden = '{loss = "hidden_mse", student_tap = "hidden", teacher_tap = "hidden"}'
    scores = (
        f'{{loss = "attention_mse", adapter = "attention_scores", adapter_options = {{heads = 2}}, '
        f"student_tap = {json.dumps(attention[0])}, teacher_tap = {json.dumps(attention[1])}}}"
    )
    sets = ("--set", f"distill.terms=[{hidden}, {scores}]", "--student-only")
    out = folder / "general"
    told = ok_json(
        "distill", folder / "recipe.toml", *sets, "--set", "data.root=" + str(folder / "lines.txt"), "-o", out
    )
    history = told["stages"]["student"]["history"]
    assert history[-1]["terms"]["hidden_mse"] < history[0]["terms"]["hidden_mse"]
    assert history[-1]["terms"]["attention_mse"] < history[0]["terms"]["attention_mse"]


def test_texts_of_which_nothing_can_be_asked_are_left_out(tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    with (folder / "lines.txt").open("a") as file:
        file.write("⁂ ⁂\n" * 300)
    sets = ("teacher.train.epochs=1", "distill.epochs=1", "distill.batch_size=4")
    told = ok_json("distill", folder / "recipe.toml", *(f"--set={one}" for one in sets), "--out", folder / "run")
    assert sum(told["stages"]["data"]["counts"].values()) == 700
    assert told["stages"]["data"]["left_out"] == 300
    (folder / "lines.txt").write_text("⁂ ⁂\n" * 300)
    error = refused(3, "distill", folder / "recipe.toml", "--out", folder / "none")
    assert "has a token that could be hidden" in error


def test_answers_are_kept_whatever_the_id_of_the_padding(tmp_path: Path) -> None:
    folder = write_project(tmp_path, special=("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"))
    where = ("--out", folder / "run", "--cache", folder / "cache")
    told = ok_json("distill", folder / "kept.toml", *where)
    assert told["stages"]["student"]["teacher_passes"] == 0
    # What is as long as each text is not kept: said before anything is trained.
    error = refused(2, "distill", folder / "kept.toml", "--set", INSIDE, "--out", folder / "inside")
    assert f"'{LAYER}' of the teacher is as long as each text" in error
    assert not (folder / "inside" / "teacher").exists()


def test_padding_is_never_learned_from_with_or_without_trim(tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    found = []
    whole = 'preprocess.steps=[{op = "tokenize", file = "tokenizer.json", max_length = 12}]'
    for name, more in (("trimmed", ()), ("whole", ("--set", whole))):
        options = ("--set", "distill.cache=false", "--set", INSIDE, *more, "--out", folder / name)
        ok("distill", folder / "kept.toml", *options, cwd=folder)
        found.append(
            [item["loss"] for item in json.loads((folder / name / "student/history.json").read_text())["history"]]
        )
    assert found[0] == found[1]


def test_a_student_that_cannot_be_made_of_its_teacher_is_refused_before_that_is_trained(tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    options = ("--set", 'student.init={of="trained"}', "--out", folder / "run")
    assert "is of another shape" in refused(2, "distill", folder / "kept.toml", *options)
    assert not (folder / "run" / "teacher").exists()


def table(path: Path) -> np.ndarray:
    """The words' table in a folder of a training stage."""
    from safetensors.numpy import load_file

    (found,) = [value for name, value in load_file(path / "weights.safetensors").items() if "word_embeddings" in name]
    return found


def test_a_student_of_its_teachers_kind_begins_elsewhere_or_with_the_trained_teacher(tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    still = ("distill.cache=false", "distill.epochs=1", "distill.lr=1e-12", "teacher.train.epochs=1")
    same = "student.args={hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64}"
    made = 'student.init={layers="every 2", of="trained"}'
    runs = {
        "fresh": ("teacher.train.lr=1e-12",),
        "cut": ("teacher.train.lr=0.01", made, "student.low_rank={energy=0.9}"),
    }
    for name, more in runs.items():
        options = [part for one in (*still, same, *more) for part in ("--set", one)]
        ok("distill", folder / "kept.toml", *options, "--out", folder / name, cwd=folder)
    assert not np.allclose(table(folder / "fresh" / "student"), table(folder / "fresh" / "teacher"), atol=1e-3)
    np.testing.assert_allclose(table(folder / "cut" / "student_whole"), table(folder / "cut" / "teacher"), atol=1e-6)
