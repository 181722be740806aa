"""The scaffolded project: complete, valid, and its own test passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekd import assets
from edgekd.data.registry import load_dataset
from edgekd.errors import UsageError
from edgekd.recipe import load_recipe
from edgekd.scaffold import FILES, write_project

ROOT = Path(__file__).parent.parent


def test_the_project_is_written_whole_and_named_after_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "my project"
    paths = write_project(folder)
    assert paths == [folder / name for name in FILES]
    templates = assets.folder("export", "templates") / "project"
    assert sorted(path.relative_to(templates).as_posix() for path in templates.rglob("*.*")) == sorted(FILES)
    recipe = load_recipe(folder / "recipe.toml", environ={}).recipe
    assert recipe.name == "my-project"
    assert "runs/my-project/student.edgekd" in (folder / "README.md").read_text()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"is not empty \(thesis\.txt\); choose a new folder"):
        write_project(tmp_path)
    with pytest.raises(UsageError, match="is a file, expected a new or empty folder"):
        write_project(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_its_data_and_models_fit_its_recipe(tmp_path: Path) -> None:
    from edgekd.distill.models import build_model, count

    write_project(tmp_path)
    loaded = load_recipe(tmp_path / "recipe.toml", environ={})
    recipe = loaded.recipe
    data = load_dataset(kind=recipe.data.kind, labels=recipe.data.labels, search_path=loaded.folder)
    assert data.labels == ("sine", "square")
    assert 0.4 < np.mean(data.train.y) < 0.6
    sizes = []
    for section in (recipe.teacher, recipe.student):
        assert section.model is not None
        shape = data.train.x.shape[1:]
        model = build_model(
            section.model, num_outputs=2, input_shape=shape, args=section.args, search_path=loaded.folder
        )
        sizes.append(count(model, shape)[0])
    assert sizes[0] > 10 * sizes[1]


@pytest.mark.slow
def test_its_own_test_passes(tmp_path: Path) -> None:
    project = tmp_path / "project"
    write_project(project)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
