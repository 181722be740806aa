"""A classifier that transformers saved, as the teacher: through the command line, without training it again."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import edgekd, ok, refused
from safetensors.torch import load_file, save_file

sys.path += [str(Path(__file__).parent / folder) for folder in ("distill", "stages")]
from spaces import make_space
from tiny_encoders import CLASSES, WORDS, reviewer, reviews

from edgekd.distill.cache import differences
from edgekd.run_folder import Record
from edgekd.stages.caching import facts_of

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'text'")

RECIPE = """
version = 1
name = "reviews"
[data]
kind = "text"
root = "reviews.csv"
[preprocess]
steps = [{op = "tokenize", file = "classifier", max_length = 12}, {op = "trim"}]
[teacher]
model = "hf:classifier"
weights = "classifier/model.safetensors"
licence = "MIT"
[student]
model = "bow_s"
[distill]
epochs = 1
baseline = false
[quantize]
variants = ["int8_dynamic"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT that knows its classes, its tokenizer beside it, and a table of texts."""
    place = tmp_path_factory.mktemp("finished")
    rows = reviews(300)
    reviewer(place / "classifier", rows)
    with (place / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, CLASSES[number].lower()) for text, number in rows)])
    (place / "recipe.toml").write_text(RECIPE)
    return place


def teacher_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "stages" / "teacher.json").read_text())["result"])


def test_it_teaches_as_it_is_in_the_order_of_the_data(folder: Path) -> None:
    run = folder / "run"
    done = edgekd("distill-and-export", folder / "recipe.toml", "--out", run, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "its classes brought into the order of the data" in done.stderr
    told = teacher_of(run)
    assert (told["trained"], told["source"], told["epochs"]) == (False, "weights", 0)
    assert told["best"] > 0.95
    original, taken = (
        load_file(run.parent / "classifier" / "model.safetensors"),
        load_file(run / "teacher" / "weights.safetensors"),
    )
    names = {f"model.{name}" for name in original}
    assert names <= set(taken)
    for name, value in original.items():
        wanted = value[[1, 2, 0]] if name.startswith("classifier.") else value
        assert torch.equal(taken[f"model.{name}"], wanted), name
    manifest = json.loads((run / "student.edgekd" / "bundle.json").read_text())
    assert manifest["labels"] == ["negative", "neutral", "positive"]
    assert "Traceback" not in done.stderr


def test_answers_are_asked_for_again_when_its_configuration_changes(folder: Path) -> None:
    """The same weights, and the same place: another activation gives other answers."""
    shutil.copytree(folder / "classifier", folder / "changing")
    teacher = ["--set=teacher.model=hf:changing", "--set=teacher.weights=changing/model.safetensors"]
    command = ("build", "--recipe", folder / "recipe.toml", *teacher, "--cache", folder / "answers", "--json")

    def asked(run: str) -> int:
        return int(json.loads(ok("cache", *command, "--out", folder / run, cwd=folder))["asked"])

    assert asked("kept") > 0
    assert asked("other") == 0, "another run finds them"
    config = json.loads((folder / "changing" / "config.json").read_text())
    (folder / "changing" / "config.json").write_text(json.dumps({**config, "transformers_version": "4.0.0"}))
    assert asked("kept") == 0, "by whom it was written changes nothing"
    assert config["hidden_act"] == "gelu"
    (folder / "changing" / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert asked("kept") > 0
    assert len(list((folder / "answers").iterdir())) == 2


def test_answers_belong_to_the_version_of_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = make_space(folder / "recipe.toml", "distill.cache=true")
    space.records["teacher"] = Record("", {"teacher/weights.safetensors": "a"}, {"config": "b"}, 0.0)
    installed, theirs = facts_of(space, "train"), importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == "transformers" else theirs(name))
    told = differences(installed, facts_of(space, "train"))
    assert told == [f"teacher.transformers {theirs('transformers')} there, 0.0.1 here"]


def test_what_edgekd_wrote_of_it_is_taken_again(folder: Path) -> None:
    """Its weights lie in the data's order there, though config.json still names the other one."""
    ok("distill", folder / "recipe.toml", "--out", folder / "first", cwd=folder)
    again = f"teacher.weights={folder / 'first' / 'teacher' / 'weights.safetensors'}"
    ok("distill", folder / "recipe.toml", "--out", folder / "again", "--set", again, cwd=folder)
    assert teacher_of(folder / "again")["best"] == teacher_of(folder / "first")["best"]


def test_other_classes_are_refused_and_the_line_that_mends_it_does(folder: Path) -> None:
    table = (folder / "reviews.csv").read_text()
    for name, letter in (("positive", "p"), ("negative", "n"), ("neutral", "o")):
        table = table.replace(f",{name}", f",{letter}")
    (folder / "letters.csv").write_text(table)
    command = ("distill", folder / "recipe.toml", "--out", folder / "letters", "--set", "data.root=letters.csv")
    told = refused(3, *command, cwd=folder)
    assert (
        'the teacher hf:classifier answers with the classes ["POSITIVE", "NEGATIVE", "NEUTRAL"], but the data has the '
        'labels ["n", "o", "p"]'
    ) in told
    ok(*command, "--set", 'teacher.args.id2label={0="p", 1="n", 2="o"}', cwd=folder)
    assert teacher_of(folder / "letters")["best"] > 0.95


def test_a_classifier_of_two_of_the_classes_is_a_specialist(folder: Path) -> None:
    """Its head alone is narrower; its folder names its own classes, in another order than the recipe does."""
    shutil.copytree(folder / "classifier", folder / "pair")
    state = load_file(folder / "pair" / "model.safetensors")
    heads = [name for name in state if name.startswith("classifier.")]
    save_file(
        {name: value[:2] if name in heads else value for name, value in state.items()},
        folder / "pair" / "model.safetensors",
    )
    config = json.loads((folder / "pair" / "config.json").read_text())
    named = {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}, "label2id": {"POSITIVE": 0, "NEGATIVE": 1}}
    (folder / "pair" / "config.json").write_text(json.dumps({**config, **named}))
    more = '[[teachers]]\nmodel = "hf:pair"\nweights = "pair/model.safetensors"\nlabels = LABELS\n[student]'
    text = RECIPE.replace("[student]", more)
    recipe, run = folder / "pair.toml", folder / "both"
    recipe.write_text(text.replace("LABELS", '["negative", "positive"]'))
    done = edgekd("distill", recipe, "--set=distill.cache=true", "--cache", folder / "kept", "--out", run, cwd=folder)
    assert done.returncode == 0, done.stderr
    told = json.loads((run / "stages" / "teacher_2.json").read_text())["result"]
    assert told["outputs"] == 2
    assert told["best"] > 0.95
    taken = load_file(run / "teacher_2" / "weights.safetensors")
    for name in heads:
        assert torch.equal(taken[f"model.{name}"], state[name][[1, 0]]), name
    recipe.write_text(text.replace("LABELS", '["negative", "neutral"]'))
    told = refused(3, "distill", recipe, "--out", folder / "wrong", cwd=folder)
    assert 'hf:pair answers with the classes ["POSITIVE", "NEGATIVE"], but the recipe gives it the labels' in told


def test_fewer_classes_are_refused_by_name(folder: Path) -> None:
    rows = [line for line in (folder / "reviews.csv").read_text().splitlines() if not line.endswith("neutral")]
    (folder / "two.csv").write_text("\n".join(rows) + "\n")
    command = ("distill", folder / "recipe.toml", "--out", folder / "two", "--set", "data.root=two.csv")
    assert 'the data has the labels ["negative", "positive"]' in refused(3, *command, cwd=folder)


def test_another_tokenizer_is_refused(folder: Path) -> None:
    table = json.loads((folder / "classifier" / "tokenizer.json").read_text())
    table["model"]["vocab"] = {word: number for number, word in enumerate((*WORDS[:4], *reversed(WORDS[4:])))}
    (folder / "other.json").write_text(json.dumps(table))
    steps = "preprocess.steps=[{op='tokenize', file='other.json', max_length=12}, {op='trim'}]"
    told = refused(3, "distill", folder / "recipe.toml", "--out", folder / "other", "--set", steps, cwd=folder)
    assert "classifier numbers its tokens in another order: the texts were tokenized with another" in told


def test_a_graph_that_does_not_name_its_tokens(folder: Path, tmp_path: Path) -> None:
    """Its ids are those of its own tokenizer, whatever the recipe makes of them."""
    import onnx

    from edgekd.graph import inspect
    from edgekd.graph.text_inputs import reading_ids_alone

    ok("export", f"hf:{folder / 'classifier'}", tmp_path / "two.onnx")
    two = onnx.load(tmp_path / "two.onnx")
    del two.metadata_props[:]
    onnx.save(reading_ids_alone(two, inspect(tmp_path / "two.onnx").inputs, 0), tmp_path / "alone.onnx")
    text = (folder / "recipe.toml").read_text()
    own = 'model = "hf:classifier"\nweights = "classifier/model.safetensors"'
    assert own in text
    labels = json.dumps([name.lower() for name in CLASSES])
    text = text.replace(own, f'onnx = "{tmp_path / "alone.onnx"}"').replace("[data]", f"[data]\nlabels = {labels}")
    (folder / "graph.toml").write_text(text)

    def run(name: str, tokenizer: Path, further: str = "") -> tuple[str | Path, ...]:
        step = f'{{op = "tokenize", file = "{tokenizer}", max_length = 12{further}}}'
        options = ("--set", f'preprocess.steps=[{step}, {{op = "trim"}}]', "--student-only")
        return ("distill", folder / "graph.toml", "--out", tmp_path / name, *options)

    told = refused(3, *run("cut", folder / "classifier", f", vocabulary = {len(WORDS) - 2}"))
    assert f"keep {len(WORDS) - 2} of the tokenizer's (vocabulary), which gives them other ids" in told
    table = json.loads((folder / "classifier" / "tokenizer.json").read_text())
    words = table["model"]["vocab"]
    table["model"]["vocab"] = {**words, "more": len(WORDS)}
    (tmp_path / "larger.json").write_text(json.dumps(table))
    told = refused(3, *run("larger", tmp_path / "larger.json"))
    assert f"a table of {len(WORDS)} rows, but the texts have {len(WORDS) + 1} tokens" in told
    table["model"]["vocab"] = {word: number for word, number in words.items() if number < len(WORDS) - 1}
    (tmp_path / "smaller.json").write_text(json.dumps(table))
    done = edgekd(*run("smaller", tmp_path / "smaller.json"))
    assert done.returncode == 0, done.stderr
    assert f"a table of {len(WORDS)} rows, but the texts have {len(WORDS) - 1} tokens" in done.stderr
    done = edgekd(*run("own", folder / "classifier"))
    assert done.returncode == 0, done.stderr
    assert "rows" not in done.stderr
