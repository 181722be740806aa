"""The recipes that travel with edgekd: valid, a screen long, headed by the command that runs them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edgekd import assets
from edgekd.recipe import load_recipe, recipe_to_toml

NAMES = ("arrays", "digits", "fashion_mnist", "image_folder", "mnist")


def test_these_recipes_are_shipped() -> None:
    assert set(assets.names("export", "recipes")) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_short_and_headed_by_its_command(name: str, tmp_path: Path) -> None:
    text = assets.find("export", "recipes", name).read_text()
    lines = text.splitlines()
    assert lines[0].startswith(f"# edgekd distill-and-export {name}")
    assert len(lines) <= 60
    head = text.split("\n\n")[0]
    assert "# Printed " in head and "(chosen)" in head, "a recipe tells what it prints"
    assert max(map(len, lines)) <= 120
    overrides = ["data.root=somewhere"] if "--set data.root=" in lines[0] else []
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
    assert {recipe.teacher.model, recipe.student.model} <= set(MODELS)
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
