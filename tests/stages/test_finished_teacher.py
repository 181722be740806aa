"""Teachers that were trained elsewhere: taken as they are, or refused before a student learns nonsense from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from spaces import make_space, write_project
from torch import nn

from edgekd.errors import ModelError
from edgekd.stages.training import is_probabilities, load_teacher, teacher_for_student, work_on_teacher

MODULE = """
from torch import nn


def build(num_outputs, softmax=False):
    last = [nn.Softmax(dim=1)] if softmax else []
    return nn.Sequential(nn.Linear(4, num_outputs), *last)
"""


def save_linear(path: Path, weight: np.ndarray, bias: np.ndarray) -> None:
    layer = nn.Linear(4, len(bias))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    torch.save({f"0.{key}": value for key, value in layer.state_dict().items()}, path)


@pytest.fixture
def regression(tmp_path: Path) -> Path:
    (tmp_path / "finished_models.py").write_text(MODULE)
    save_linear(tmp_path / "t.pt", 300 * np.eye(4, dtype=np.float32)[:2], np.array([5000.0, 5000.0], np.float32))
    return write_project(tmp_path, "regression")


def finished(recipe: Path, *more: str):
    return make_space(recipe, "teacher.model=finished_models:build", f"teacher.weights={recipe.parent / 't.pt'}", *more)


def test_a_regression_teacher_in_units_teaches_standardized_targets(regression: Path) -> None:
    space = finished(regression)
    result, _ = work_on_teacher(space)
    assert result["best"] == pytest.approx(1.0, abs=1e-6)
    val = space.prepared.dataset.val
    batch = {"x": torch.from_numpy(val.x), "id": torch.from_numpy(val.ids)}
    assert load_teacher(space)(batch)["logits"].numpy() == pytest.approx(space.prepared.labelled(val).y, rel=1e-5)
    assert teacher_for_student(space)(batch)["logits"].numpy() == pytest.approx(val.y, abs=1e-3)


def test_a_regression_teacher_in_other_units_is_refused(regression: Path) -> None:
    space = finished(regression, "postprocess.steps=[{op='denormalize', mean=[5000.0], std=[300.0]}]")
    with pytest.raises(ModelError, match=r"teacher's r2 on validation is -.*worse than always answering with the mean"):
        work_on_teacher(space)


def test_a_teacher_that_ends_in_softmax_is_refused(tmp_path: Path) -> None:
    (tmp_path / "finished_models.py").write_text(MODULE)
    save_linear(tmp_path / "t.pt", np.ones((2, 4), np.float32), np.zeros(2, np.float32))
    recipe = write_project(tmp_path, "classification")
    with pytest.raises(ModelError, match="the teacher gives probabilities, expected logits"):
        work_on_teacher(finished(recipe, "teacher.args={softmax=true}"))
    assert 0 <= work_on_teacher(finished(recipe))[0]["best"] <= 1


def test_only_probabilities_look_like_probabilities() -> None:
    shares = np.array([[0.2, 0.8], [1.0, 0.0]], np.float32)
    assert is_probabilities(shares, "classification")
    assert not is_probabilities(shares * 0.9, "classification")
    assert is_probabilities(shares * 0.9, "multilabel")
    assert not is_probabilities(shares - 0.5, "multilabel")
