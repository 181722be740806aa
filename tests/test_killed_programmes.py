"""Recipes of several models or stages, killed in each of them by a real SIGKILL: the bytes of an undisturbed run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="its child processes are forks, which Windows lacks"),
]

BEGINNING = """
version = 1
name = "killed"
task = "classification"
[data]
kind = "arrays"
root = "noise.npz"
labelled = 0.7
augment = {shift = 1}
"""
# Two teachers, an assistant and a generation; dropout, the average of the weights, easy samples first.
CHAIN = """
[preprocess]
steps = [{op = "scale"}, {op = "layout", to = "flat"}]
[teacher]
model = "mlp"
args = {hidden = [48]}
train = {epochs = 3, batch_size = 32, lr = 5e-3}
[[teachers]]
model = "mlp"
args = {hidden = [32]}
weight = 2.0
train = {epochs = 3, batch_size = 32, lr = 5e-3}
[[assistant]]
model = "mlp"
args = {hidden = [24]}
epochs = 3
[[assistant]]
model = "mlp"
args = {hidden = [16], dropout = 0.2}
[student]
model = "mlp"
args = {hidden = [16], dropout = 0.2}
[distill]
epochs = 4
batch_size = 32
ema = 0.9
baseline = false
[[distill.terms]]
loss = "trusted_kd"
[[distill.terms]]
loss = "curriculum_kd"
options = {share = {start = 0.3, end = 1.0}}
[[distill.terms]]
loss = "cross_entropy"
"""
# Peers and a slow copy of the student; adapters that are new in the second stage.
STAGES = """
[preprocess]
steps = [{op = "scale"}, {op = "layout", to = "CHW"}]
[teacher]
model = "cnn_s"
train = {epochs = 1, batch_size = 32}
[student]
model = "cnn_s"
[distill]
batch_size = 32
epochs = 4
accumulate = 2
baseline = false
stages = [
  {name = "peers", epochs = 1, terms = ["mutual", "slow"]},
  {name = "inside", epochs = 3, terms = ["slow", "hint", "adversarial"]},
]
[[distill.terms]]
name = "mutual"
loss = "mutual_learning"
[[distill.terms]]
name = "slow"
loss = "kd"
adapter = "average_teacher"
[[distill.terms]]
name = "hint"
loss = "hint"
student_tap = "2"
teacher_tap = "2"
adapter = "regressor"
[[distill.terms]]
name = "adversarial"
loss = "adversarial"
"""
# Behind which write of which file, and how many steps later; an epoch of the students has 6 steps.
DEATHS = {
    "chain": [
        ("teacher_2/checkpoint.pt", 1, 2),
        ("assistant_1/checkpoint.pt", 2, 3),
        ("assistant_2/checkpoint.pt", 1, 0),
        ("student/checkpoint.pt", 2, 4),
        ("student/checkpoint.pt", 1, 0),
    ],
    "stages": [("student/checkpoint.pt", 1, 0), ("student/checkpoint.pt", 1, 3), ("student/checkpoint.pt", 1, 0)],
}
RECIPES = {"chain": CHAIN, "stages": STAGES}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per recipe the run "NAME-whole", and "NAME-killed" after all its deaths. One process imports torch for all."""
    folder = tmp_path_factory.mktemp("killed")
    rng = np.random.default_rng(0)
    np.savez(folder / "noise.npz", x=rng.integers(0, 256, (300, 8, 8, 1)).astype(np.uint8), y=rng.integers(0, 3, 300))
    plan: list[tuple[list[str], tuple[str, int, int] | None]] = []
    for name, text in RECIPES.items():
        recipe = folder / f"{name}.toml"
        recipe.write_text(BEGINNING + text)
        command = ["distill", str(recipe), "--set=threads=1", "--student-only", "--out"]
        plan.append(([*command, str(folder / f"{name}-whole")], None))
        plan += [([*command, str(folder / f"{name}-killed")], death) for death in (*DEATHS[name], None)]
    script = Path(__file__).with_name("killed_commands.py")
    done = subprocess.run([sys.executable, str(script), json.dumps(plan)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for (args, death), (code, told) in zip(plan, json.loads(done.stdout), strict=True):
        assert code == (0 if death is None else -signal.SIGKILL), f"{args}, {death}: {told}"
    return folder


def trained(run: Path) -> dict[str, Any]:
    """Weights and history of all that was trained, without timings."""
    found: dict[str, Any] = {}
    for path in sorted(run.glob("*/history.json")):
        told = json.loads(path.read_text())
        for item in (told, *told["history"]):
            del item["seconds"]
        found[path.parent.name] = told, path.with_name("weights.safetensors").read_bytes()
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_killed_in_each_model_it_ends_in_the_same_bytes(name: str, runs: Path) -> None:
    whole, killed = trained(runs / f"{name}-whole"), trained(runs / f"{name}-killed")
    assert {Path(file).parent.name for file, _, _ in DEATHS[name]} <= whole.keys()
    assert killed == whole
    assert not list(runs.rglob("checkpoint.pt"))
