"""Every programme of distillation, stopped anywhere, goes on to the bytes of a training that nobody stopped.

Compared are the weights, the history, and the last checkpoint: optimizer, adapters (peers, slow copies, discriminators
and memories among them) and the average, which is all that a further epoch would depend on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resuming import StopError, state_bytes, train, without_seconds
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from edgekd.distill.engine import TrainResult
from edgekd.distill.objective import Objective, Schedule, Term
from edgekd.distill.programme import Stage
from edgekd.distill.teachers import EnsembleTeacher, ModuleTeacher

EPOCHS, STEPS = 4, 4
CE = Term("ce", "cross_entropy")
KD = Term("kd", "kd", options={"temperature": 2.0})
HINT = Term("hint", "hint", student_tap="2", teacher_tap="2", adapter="regressor")


def teacher(*, seed: int = 5, channels: int = 6) -> ModuleTeacher:
    torch.manual_seed(seed)
    body = (nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten())
    return ModuleTeacher(nn.Sequential(*body, nn.Linear(channels * 36, 3)))


def taught(*terms: Term, **settings: Any) -> dict[str, Any]:
    """The settings of a training with these terms and one teacher."""
    return {"objective": Objective(terms), "teachers": (teacher(),), **settings}


def peers() -> dict[str, Any]:
    return taught(CE, KD, Term("mutual", "mutual_learning", adapter_options={"count": 2}))


def ema_teacher() -> dict[str, Any]:
    """The student's own average teaches it, in stages too: it follows also where its term is not asked."""
    slow = Term("slow", "kd", weight=Schedule(0.2, 1.0), adapter="average_teacher", adapter_options={"decay": 0.9})
    stages = (Stage("labels", 1, ("ce",)), Stage("both", 3, ("ce", "slow")))
    return {"objective": Objective([CE, slow]), "stages": stages}


def curriculum() -> dict[str, Any]:
    easy_first = {"by": "loss", "share": Schedule(0.2, 1.0)}
    return taught(
        Term("easy_kd", "curriculum_kd", options=easy_first),
        Term("easy_labels", "curriculum_cross_entropy", options=easy_first),
    )


def several_teachers() -> dict[str, Any]:
    """Of other weights, each for classes of its own, and one of them looked into."""
    several = EnsembleTeacher([teacher(), teacher(seed=6, channels=8)], [1.0, 3.0], classes=[[0, 1], [1, 2]])
    hint = Term("hint", "hint", student_tap="2", teacher_tap="1/2")
    return {"objective": Objective([CE, KD, hint]), "teachers": (several,)}


def trust() -> dict[str, Any]:
    return taught(Term("kd", "trusted_kd"), Term("labels", "trusted_cross_entropy"))


def progressive() -> dict[str, Any]:
    """What hints and attention need is new in the second stage, and goes on in the third."""
    inside = Term("attention", "attention_transfer", weight=10.0, student_tap="1", teacher_tap="1")
    stages = (
        Stage("logits", 1, ("ce", "kd")),
        Stage("inside", 2, ("hint", "attention"), lr=3e-3),
        Stage("both", 1, ("ce", "kd", "hint", "attention")),
    )
    return taught(CE, KD, HINT, inside, stages=stages)


def discriminators() -> dict[str, Any]:
    maps = Term("maps", "adversarial", weight=0.1, student_tap="2", teacher_tap="2", adapter_options={"hidden": 8})
    return taught(CE, KD, Term("logits", "adversarial", weight=0.1), maps)


def averaged() -> dict[str, Any]:
    return taught(CE, KD, ema=0.9)


def mixed() -> dict[str, Any]:
    return taught(CE, KD, mixup=0.4, cutmix=1.0, views=3)


def accumulated() -> dict[str, Any]:
    """The last batch holds 12 rows, which is less than two for each micro-batch."""
    return taught(CE, KD, Term("rkd", "rkd", weight=0.1), accumulate=7)


def labelled() -> dict[str, Any]:
    known = np.random.default_rng(1).random(60) < 0.4
    return taught(CE, KD, Term("mutual", "mutual_learning"), extras={"labelled": known})


def together() -> dict[str, Any]:
    """What a recipe may ask for at once."""
    slow = Term("slow", "kd", adapter="average_teacher")
    mutual = Term("mutual", "mutual_learning")
    memory = Term(
        "memory", "contrastive", student_tap="3", teacher_tap="3", adapter_options={"width": 8, "negatives": 16}
    )
    return taught(
        CE, KD, HINT, slow, mutual, memory, Term("adversarial", "adversarial"),
        stages=(Stage("begin", 1, ("ce", "mutual")), Stage("rest", 3, ("kd", "hint", "slow", "memory", "adversarial"))),
        extras={"labelled": np.arange(60) % 3 > 0}, views=2, ema=0.8, clip_norm=1.0, optimizer="sgd", accumulate=2,
    )  # fmt: skip


PROGRAMMES: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        peers,
        ema_teacher,
        curriculum,
        several_teachers,
        trust,
        progressive,
        discriminators,
        averaged,
        mixed,
        accumulated,
        labelled,
        together,
    )
}

# How a process dies: ("step", n) behind its n-th step, before adapters and average follow it; ("epoch", n) behind
# epoch n of the training, which is saved. And how many epochs are saved then.
Death = tuple[str, int, int]
DEATHS: dict[str, list[Death]] = {
    "within an epoch": [("step", 2 * STEPS + 2, 2)],
    "before it is validated": [("step", 2 * STEPS, 1)],
    "at its end": [("epoch", 2, 2)],
    "again and again": [("step", 3, 0), ("epoch", 1, 1), ("step", STEPS + 1, 2), ("epoch", 3, 3), ("step", 1, 3)],
}


def without_times(checkpoint: Path) -> dict[str, Any]:
    raw: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    record = json.loads(raw.pop("record"))
    for item in (record, *record["history"]):
        del item["seconds"]
    return {**raw, "record": record}


def to_the_end(folder: Path, settings: dict[str, Any]) -> tuple[TrainResult, dict[str, Any], list[int]]:
    """The result, the last checkpoint, and the epochs that were trained."""
    found: dict[str, Any] = {}
    epochs: list[int] = []

    def progress(text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        epochs.append(done // STEPS)
        if done == total:
            found.update(without_times(folder / "checkpoint.pt"))

    return train(folder, progress=progress, **settings), found, epochs


def stopped(folder: Path, settings: dict[str, Any], death: Death) -> None:
    what, number, _ = death
    steps = 0

    def step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if what == "step" and steps == number:
            raise StopError

    def progress(text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if what == "epoch" and done == number * STEPS:
            raise StopError

    handle = register_optimizer_step_post_hook(step)
    try:
        with pytest.raises(StopError):
            train(folder, progress=progress, **settings)
    finally:
        handle.remove()


@pytest.fixture(scope="module", params=PROGRAMMES)
def programme(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A programme's settings, and what it gives when nobody stops it."""
    settings = PROGRAMMES[request.param]
    folder = tmp_path_factory.mktemp("whole")
    result, last, epochs = to_the_end(folder, settings())
    assert epochs == list(range(1, EPOCHS + 1))
    return settings, result, last, (folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("deaths", DEATHS.values(), ids=DEATHS)
def test_it_goes_on_to_the_same_bytes(programme: Any, deaths: list[Death], tmp_path: Path) -> None:
    settings, whole, last, weights = programme
    for death in deaths:
        stopped(tmp_path, settings(), death)
        checkpoint = tmp_path / "checkpoint.pt"
        saved = len(without_times(checkpoint)["record"]["history"]) if checkpoint.is_file() else 0
        assert saved == death[2]
        torch.rand(3)  # whatever happened in between
    resumed, found, epochs = to_the_end(tmp_path, settings())
    assert epochs == list(range(saved + 1, EPOCHS + 1)), "what was saved is not trained again"
    texts = {"record", "settings"}
    assert {name: found[name] for name in texts} == {name: last[name] for name in texts}
    tensors = [{name: state[name] for name in state.keys() - texts} for state in (found, last)]
    torch.testing.assert_close(*tensors, rtol=0, atol=0)
    assert state_bytes(resumed.student) == state_bytes(whole.student)
    assert (tmp_path / "weights.safetensors").read_bytes() == weights
    assert without_seconds(resumed) == without_seconds(whole)
    same = ("best", "best_epoch", "last", "images_seen", "teacher_passes", "warnings")
    assert [getattr(resumed, name) for name in same] == [getattr(whole, name) for name in same]
