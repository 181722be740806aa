"""A classifier on the Hugging Face hub as a teacher, by its id alone: weights, configuration and tokenizer."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from commands import edgekd, ok_json
from ends import short
from model_hub import files_below, model_hub

import edgekd as library

sys.path.insert(0, str(Path(__file__).parent / "distill"))
pytest.importorskip("tokenizers", reason="models of texts need the extra text")
from tiny_encoders import CLASSES, reviewer, reviews

RECIPE = """
version = 1
name = "films"
task = "classification"
[data]
kind = "text"
root = "films.csv"
[preprocess]
steps = [{op = "tokenize", file = "hf:me/teacher", max_length = 12}, {op = "trim"}]
[teacher]
model = "hf:me/teacher"
weights = "hf:me/teacher"
licence = "MIT"
[student]
model = "hf:me/teacher"
init = {layers = [0, 3]}
[distill]
epochs = 2
lr = 1e-3
"""


@pytest.fixture(scope="module")
def hub_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that knows the reviews of the project, and copies without its tokenizer and without its weights."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "teacher").mkdir()
    reviewer(folder / "teacher", reviews(200))
    for name, absent in (("no-tokenizer", "tokenizer.json"), ("no-weights", "model.safetensors")):
        shutil.copytree(folder / "teacher", folder / name)
        (folder / name / absent).unlink()
    return folder


def table() -> str:
    """Two hundred reviews and what they are, as a .csv."""
    return "text,label\n" + "".join(f"{text},{CLASSES[number].lower()}\n" for text, number in reviews(200))


def write_project(folder: Path, *changes: tuple[str, str]) -> Path:
    """The reviews, and a recipe, whose path is returned."""
    (folder / "films.csv").write_text(table())
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


def test_an_id_on_the_hub_is_all_that_a_recipe_needs(hub_files: Path, tmp_path: Path) -> None:
    recipe, bundle = write_project(tmp_path), tmp_path / "run" / "student.edgekd"
    run = ("distill-and-export", recipe, "--out", tmp_path / "run", *short(tmp_path))
    with model_hub(files_below(hub_files)) as hub:
        environment = hub.environment(tmp_path / "fetched")
        done = edgekd(*run, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        assert {"me/teacher/config.json", "me/teacher/model.safetensors", "me/teacher/tokenizer.json"} <= {*hub.asked}
    assert "teacher        loaded, its classes brought into the order of the data, validation 1.0000" in done.stderr
    with library.load(bundle) as predictor:
        assert predictor.predict("the good is very").label in ("positive", "negative", "neutral")
    again = edgekd(*run, cwd=tmp_path, env=environment)
    assert again.returncode == 0, again.stderr
    assert ok_json("predict", bundle, "a bad is", "--json"), "the bundle needs no hub"


def test_data_by_a_name_on_the_hub(hub_files: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the kind huggingface needs the extra datasets")
    recipe = write_project(tmp_path, ('kind = "text"\nroot = "films.csv"', 'kind = "huggingface"\nroot = "me/data"'))
    (tmp_path / "films.csv").unlink()
    with model_hub(files_below(hub_files), data={"train.csv": table().encode()}) as hub:
        environment = hub.environment(tmp_path / "fetched")
        done = edgekd("distill", recipe, "--out", tmp_path / "run", cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        assert "datasets/me/data/train.csv" in hub.asked
    again = edgekd("distill", recipe, "--out", tmp_path / "again", cwd=tmp_path, env=environment)
    assert again.returncode == 0, again.stderr
    assert "teacher        loaded, its classes brought into the order of the data, validation 1.0000" in again.stderr
    elsewhere = {**hub.environment(tmp_path / "none"), "HF_HUB_OFFLINE": "1"}
    recipe.write_text(recipe.read_text().replace("hf:me", f"hf:{hub_files}"))
    refused = edgekd("distill", recipe, "--out", tmp_path / "other", cwd=tmp_path, env=elsewhere)
    assert refused.returncode == 3
    assert "huggingface: 'me/data' cannot be loaded" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_was_never_fetched_needs_a_network(hub_files: Path, tmp_path: Path) -> None:
    recipe = write_project(tmp_path)
    environment = {"HF_HOME": str(tmp_path / "none"), "HF_HUB_OFFLINE": "1"}
    done = edgekd("distill", recipe, "--out", tmp_path / "run", cwd=tmp_path, env=environment)
    assert done.returncode == 3
    assert "tokenizer.json of me/teacher is not on this machine, and the hub cannot be asked" in done.stderr


@pytest.mark.parametrize(
    ("key", "name", "told"),
    [
        ("file", "hf:me/no-tokenizer", "there is no tokenizer hf:me/no-tokenizer; expected a tokenizer.json"),
        ("file", "hf:me/nobody", "there is no tokenizer hf:me/nobody; expected a tokenizer.json"),
        ("weights", "hf:me/no-weights", "weights = 'hf:me/no-weights': there is no model.safetensors"),
        ("weights", "hf:../../etc", "weights = 'hf:../../etc': there is no model.safetensors"),
    ],
)
def test_what_a_model_on_the_hub_lacks_is_told(hub_files: Path, tmp_path: Path, key: str, name: str, told: str) -> None:
    recipe = write_project(tmp_path, (f'{key} = "hf:me/teacher"', f'{key} = "{name}"'))
    files = files_below(hub_files)
    with model_hub(lambda model, file: None if model == "me/nobody" else files(model, file)) as hub:
        environment = hub.environment(tmp_path / "fetched")
        done = edgekd("distill", recipe, "--out", tmp_path / "run", cwd=tmp_path, env=environment)
    assert done.returncode == 3
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_local_folder_may_have_the_prefix_too(hub_files: Path, tmp_path: Path) -> None:
    recipe = write_project(tmp_path, ("hf:me/teacher", "hf:models/teacher"))
    shutil.copytree(hub_files, tmp_path / "models")
    done = edgekd("distill", recipe, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "teacher        loaded" in done.stderr
