"""A bundle of test_embed as if its model told labels or targets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

OTHER_TASKS = {
    "multilabel": [{"op": "sigmoid"}, {"op": "threshold", "value": 0.6}],
    "regression": [{"op": "denormalize", "mean": [1.0, 20.0, 300.0], "std": [0.5, 2.0, 7.0]}],
}


def with_task(bundle: Path, place: Path, task: str) -> Path:
    """A copy of `bundle` at `place` for one of `OTHER_TASKS`."""
    shutil.copytree(bundle, place)
    manifest = json.loads((place / "bundle.json").read_text())
    changed = {**manifest, "task": task, "postprocess": OTHER_TASKS[task]}
    (place / "bundle.json").write_text(json.dumps(changed))
    return place
