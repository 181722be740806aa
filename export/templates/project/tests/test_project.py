"""The whole way on a small setting: data, teacher, student, ONNX, bundle, and a prediction without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import edgekd

PROJECT = Path(__file__).resolve().parent.parent
SMALL = ["teacher.train.epochs=10", "distill.epochs=15", "distill.baseline=false", "limits.accuracy_drop_points=20"]


def test_the_recipe_ends_in_a_bundle_that_predicts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [sys.executable, "-m", "edgekd", "distill-and-export", str(PROJECT / "recipe.toml"), *settings]
    done = subprocess.run([*command, "--out", str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<svg" in (run / "report.html").read_text()

    sys.path.insert(0, str(PROJECT))
    from data import waves

    samples = waves(200)
    with edgekd.load(run / "student.edgekd") as predictor:
        predictions = predictor.predict_batch(list(samples["x"]))
    right = [prediction.index == label for prediction, label in zip(predictions, samples["y"])]
    assert sum(right) / len(right) > 0.9
