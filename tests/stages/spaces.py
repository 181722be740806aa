"""Workspaces on small data of one's own, without a command line and without a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekd.device.machine import available_cores
from edgekd.recipe import load_recipe
from edgekd.run_folder import Record, Silence
from edgekd.stages.workspace import Workspace

RECIPE = """
task = "{task}"
[data]
kind = "arrays"
root = "data.npz"
[teacher]
model = "mlp_s"
[student]
model = "mlp_s"
"""


def write_project(folder: Path, task: str, *, extra: str = "") -> Path:
    """A table of 4 columns with a rule that a linear model gets right, and a recipe beside it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 4)).astype(np.float32)
    y = {
        "classification": (x[:, 0] > 0).astype(np.int64),
        "multilabel": (x[:, :3] > 0.3).astype(np.uint8),
        "regression": (5000.0 + 300.0 * x[:, :2]).astype(np.float32),
    }[task]
    np.savez(folder / "data.npz", x=x, y=y)
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(task=task) + extra)
    return path


def make_space(recipe: Path, *overrides: str, threads: int = 1) -> Workspace:
    """The workspace of a run beside the recipe."""
    loaded = load_recipe(recipe, overrides=overrides, environ={})
    path = recipe.parent / "run"
    assert threads <= available_cores()
    return Workspace(loaded.recipe, loaded.folder, path, Silence(), "cpu", threads, "2026-01-01T00:00:00+00:00", "")


def record(result: dict[str, object]) -> Record:
    """A stage that ended with `result`."""
    return Record("", {}, result, 0.0)


TEXTS = """
[data]
kind = "text"
root = "texts.csv"
[preprocess]
steps = [{{op = "tokenize", file = "tokenizer.json", max_length = 12}}{trim}]
[teacher]
model = "bow_s"
[student]
model = "bow_s"
"""


def write_texts(folder: Path, *, trim: bool = True) -> Path:
    """Texts of one to nineteen words in two classes, a tokenizer of their words, and a recipe that cuts them at 12
    tokens, one for each word."""
    import tokenizers

    rng = np.random.default_rng(0)
    rows = [
        f"{' '.join(rng.choice(['good', 'fine'] if label else ['bad', 'dull'], 1 + number % 19))},{label}"
        for number, label in enumerate(rng.integers(0, 2, 190))
    ]
    (folder / "texts.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    trained = tokenizers.BertWordPieceTokenizer()
    trained.train_from_iterator(rows, vocab_size=60, show_progress=False)
    trained.save(str(folder / "tokenizer.json"))
    path = folder / "recipe.toml"
    path.write_text(TEXTS.format(trim=', {op = "trim"}' if trim else ""))
    return path
