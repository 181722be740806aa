"""A training that was stopped, killed or diverged goes on, and ends in the same bytes as one that was not."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from resuming import StopError, data, state_bytes, student, train, without_seconds
from torch import Tensor, nn

import edgekd
from edgekd.distill.engine import distill
from edgekd.distill.objective import Objective, Schedule, Term
from edgekd.distill.programme import Stage
from edgekd.distill.teachers import ModuleTeacher
from edgekd.errors import Diverged, ModelError, StageFailed, StorageError, UsageError
from edgekd.spec import Layout, Scale

SCRIPT = Path(__file__).with_name("killed_training.py")


def stop_after(epoch: int) -> Any:
    def progress(text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if done >= total * epoch // 4:
            raise StopError

    return progress


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw"},
        {"optimizer": "adam", "schedule": "onecycle"},
        {"optimizer": "sgd", "schedule": "linear", "warmup_epochs": 1},
        {"precision": "bfloat16"},
        {"ema": 0.9, "clip_norm": 0.5},
        {"mixup": 0.4, "cutmix": 1.0, "views": 3},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_stopped_and_resumed_is_uninterrupted(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = train(None, **settings)
    with pytest.raises(StopError):
        train(tmp_path, progress=stop_after(2), **settings)
    torch.rand(3)  # whatever happened in between
    again: list[tuple[int, int]] = []
    resumed = train(tmp_path, progress=lambda text, done, total, numbers: again.append((done, total)), **settings)
    assert again == [(12, 16), (16, 16)], "only the last two epochs are trained again"
    assert state_bytes(resumed.student) == state_bytes(whole.student)
    assert without_seconds(resumed) == without_seconds(whole)
    assert (resumed.images_seen, resumed.best, resumed.best_epoch) == (whole.images_seen, whole.best, whole.best_epoch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "weights.safetensors"]


def feature_distillation() -> dict[str, Any]:
    """Everything that a checkpoint must hold: adapters with memories, stages, averages."""
    torch.manual_seed(5)
    teacher = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))
    terms = [
        Term("ce", "cross_entropy"),
        Term("kd", "kd", options={"temperature": Schedule(6.0, 2.0)}),
        Term("hint", mse, student_tap="0", teacher_tap="1", adapter="auto"),
        Term("memory", remembering, student_tap="2", teacher_tap="1@input", adapter=Remembering.build),
    ]
    return {"objective": Objective(terms), "teachers": (ModuleTeacher(teacher),), "ema": 0.9, "clip_norm": 1.0}


STAGED = (Stage("hints", 2, ("hint", "memory")), Stage("all", 2, ("ce", "kd", "hint", "memory"), lr=3e-3))


@pytest.mark.parametrize("stages", [(), STAGED], ids=["together", "staged"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_feature_distillation_resumes_exactly(stages: tuple[Stage, ...], epoch: int, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", **feature_distillation(), stages=stages)
    with pytest.raises(StopError):
        train(tmp_path / "half", progress=stop_after(epoch), **feature_distillation(), stages=stages)
    before = torch.load(tmp_path / "half" / "checkpoint.pt", weights_only=True)
    assert len(json.loads(before["record"])["history"]) == epoch
    assert any(value.any() for name, value in before["adapters"].items() if name.endswith("memory"))
    resumed = train(tmp_path / "half", **feature_distillation(), stages=stages)
    assert state_bytes(resumed.student) == state_bytes(whole.student)
    assert without_seconds(resumed) == without_seconds(whole)
    kept = [(tmp_path / folder / "weights.safetensors").read_bytes() for folder in ("whole", "half")]
    assert kept[0] == kept[1]


def methods_with_memories() -> dict[str, Any]:
    """Adapters of the methods that keep the most: memories of all samples, batch norms, another network's weights."""
    torch.manual_seed(5)
    norm = nn.BatchNorm2d(6)
    teacher = nn.Sequential(nn.Conv2d(1, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))
    crd = {"width": 8, "negatives": 16}
    terms = [
        Term("ce", "cross_entropy"),
        Term("crd", "contrastive", student_tap="3", teacher_tap="3", adapter_options=crd),
        Term("vid", "variational_information", student_tap="2", teacher_tap="2"),
        Term("ofd", "overhaul_partial_l2", weight=1e-2, student_tap="1", teacher_tap="1"),
        Term("hint", "hint", student_tap="2", teacher_tap="2", adapter="regressor"),
        Term("factor", "factor_transfer", student_tap="2", teacher_tap="2"),
        Term("adversarial", "adversarial"),
    ]
    return {"objective": Objective(terms), "teachers": (ModuleTeacher(teacher),)}


def test_methods_with_memories_resume_exactly(tmp_path: Path) -> None:
    whole = train(None, **methods_with_memories())
    with pytest.raises(StopError):
        train(tmp_path, progress=stop_after(2), **methods_with_memories())
    torch.rand(5)
    resumed = train(tmp_path, **methods_with_memories())
    assert state_bytes(resumed.student) == state_bytes(whole.student)
    assert without_seconds(resumed) == without_seconds(whole)


@pytest.mark.parametrize("stages", [(), STAGED], ids=["together", "staged"])
def test_last_checkpoints_are_equal_in_everything(stages: tuple[Stage, ...], tmp_path: Path) -> None:
    """Weights, adapters with their memories, optimizer, average, record: what the next epoch would depend on."""

    def last(folder: Path, *, stop: int | None) -> dict[str, Any]:
        for epoch in [stop, 4] if stop else [4]:
            with pytest.raises(StopError):
                train(folder, progress=stop_after(epoch), **feature_distillation(), stages=stages)
        raw: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
        record = json.loads(raw.pop("record"))
        record.pop("seconds")
        for item in record["history"]:
            item.pop("seconds")
        return {**raw, "record": record}

    whole, resumed = last(tmp_path / "whole", stop=None), last(tmp_path / "half", stop=2)
    assert whole["average"] is not None
    assert len(whole["record"]["history"]) == 4
    assert resumed.pop("record") == whole.pop("record")
    assert resumed.pop("settings") == whole.pop("settings")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_patience_survives_a_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 12, "patience": 2, "lr": 0.05}
    whole = train(None, **settings)
    assert len(whole.history) < 12
    for steps in (4, 4 * len(whole.history)):  # after the first epoch; when it is over already
        folder = tmp_path / str(steps)

        def stop(text: str, done: int, total: int, numbers: Mapping[str, float], steps: int = steps) -> None:
            if done >= steps:
                raise StopError

        with pytest.raises(StopError):
            train(folder, progress=stop, **settings)
        assert without_seconds(train(folder, **settings)) == without_seconds(whole)


def test_adapters_must_fit_the_checkpoint(tmp_path: Path) -> None:
    """After a divergence the terms may change, but not so that what their adapters learned has no place."""
    with pytest.raises(StopError):
        train(tmp_path, progress=stop_after(1), **feature_distillation())
    (tmp_path / "diverged.json").write_text("{}")
    changed = {**feature_distillation(), "objective": Objective([Term("kd", "kd")])}
    with pytest.raises(UsageError, match="holds an unfinished training whose terms have other adapters; take the same"):
        train(tmp_path, **changed)


class Remembering(nn.Module):
    """An adapter with a weight, batch norm, a memory by sample, and something for the loss."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.memory: Tensor
        self.register_buffer("memory", torch.zeros(num_samples))

    @staticmethod
    def build(student_shape: Any, teacher_shape: Any, *, num_samples: int, **modules: Any) -> nn.Module:
        return Remembering(num_samples)

    def forward(
        self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        student = self.norm(student.mean(dim=1, keepdim=True))
        before = self.memory.index_select(0, batch["index"])
        with torch.no_grad():
            self.memory.index_copy_(0, batch["index"], student.mean(dim=(1, 2, 3)) + 0.5 * before + torch.rand(()))
        return student, teacher[..., :6, :6], {"before": before}


def remembering(student: Tensor, teacher: Tensor, before: Tensor) -> Tensor:
    return (
        F.mse_loss(student, teacher.mean(dim=1, keepdim=True)) + (student.mean(dim=(1, 2, 3)) - before).square().mean()
    )


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student, teacher)


def test_checkpoints_every_few_epochs(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        train(tmp_path, checkpoint_epochs=2, progress=stop_after(3))
    raw = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(json.loads(raw["record"])["history"]) == 2
    resumed = train(tmp_path, checkpoint_epochs=2)
    assert state_bytes(resumed.student) == state_bytes(train(None).student)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its child processes are forks, which Windows lacks")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Real processes, real SIGKILL: anywhere in the code, and inside the writing of every kind of file."""
    deaths = [
        ["random"] * 8,
        ["random"] * 8,
        [
            ["half_written", "checkpoint.pt", 2],
            ["half_written", "checkpoint.pt", 0],
            ["half_written", "checkpoint.pt", 3],
        ],
        [["before_rename", "checkpoint.pt", 0], ["before_rename", "checkpoint.pt", 4]],
        [
            ["after_rename", "checkpoint.pt", 0],
            ["after_rename", "checkpoint.pt", 2],
            ["after_rename", "checkpoint.pt", 3],
        ],
        [["half_written", "weights.safetensors", 0], ["after_rename", "weights.safetensors", 0]],
        [["before_rename", "history.json", 0], ["after_rename", "history.json", 0]],
    ]
    environ = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(edgekd.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), json.dumps({"seed": 1, "deaths": deaths})],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert len(told["whole"]["history"]["history"]) == 8
    for number, (outcome, facts) in enumerate(zip(told["resumed"], told["killed"])):
        assert outcome == told["whole"], f"{deaths[number]} ended in other bytes"
        if number >= 2:
            assert facts["kills"] == len(deaths[number])
    assert told["whole"]["files"] == ["history.json", "weights.safetensors"], "nothing is left over"
    assert sum(facts["kills"] for facts in told["killed"][:2]) >= 6
    assert any(0 < epoch < 8 for facts in told["killed"][:2] for epoch in facts["epochs"]), "killed half-way"
    assert told["killed"][2]["epochs"] == [2, 2, 5], "a half-written checkpoint leaves the one before"
    assert told["killed"][3]["epochs"] == [4], "a checkpoint that was not renamed does not count"
    assert told["killed"][4]["epochs"] == [1, 4, 8]


def test_finished_is_not_trained_again(tmp_path: Path) -> None:
    first = train(tmp_path)

    def refuse(text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        raise AssertionError("it is trained again")

    second = train(tmp_path, progress=refuse)
    assert state_bytes(second.student) == state_bytes(first.student)
    assert not second.student.training
    assert (second.history, second.best, second.seconds) == (first.history, first.best, first.seconds)


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(finished: bool, tmp_path: Path) -> None:
    if finished:
        train(tmp_path)
    else:
        with pytest.raises(StopError):
            train(tmp_path, progress=stop_after(2))
    what = "a finished training" if finished else "an unfinished training"
    with pytest.raises(UsageError) as caught:
        train(tmp_path, lr=0.5, seed=1)
    assert str(caught.value) == (
        f"{tmp_path} holds {what} with other settings (lr 0.01 there, 0.5 here; seed 0 there, 1 here); take the same "
        "settings, another folder, or delete this one"
    )
    objective = Objective([Term("ce", "cross_entropy", weight=2.0)])
    for other in ({"epochs": 5}, {"batch_size": 8}, {"augment": {}}, {"objective": objective}, {"optimizer": "sgd"}):
        with pytest.raises(UsageError, match=f"with other settings \\({next(iter(other))} "):
            train(tmp_path, **other)


def taught(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    return {"objective": Objective([Term("kd", "kd")]), "teachers": (ModuleTeacher(teacher),)}


@pytest.mark.parametrize("finished", [True, False])
def test_another_teacher_is_another_training(finished: bool, tmp_path: Path) -> None:
    """Of the same shapes: only its weights say that the student is not the one that is asked for."""
    if finished:
        first = train(tmp_path, **taught(1))
    else:
        with pytest.raises(StopError):
            train(tmp_path, progress=stop_after(2), **taught(1))
        first = train(None, **taught(1))
    with pytest.raises(UsageError, match=r"with other settings \(teachers \['\w{24}'\] there, \['\w{24}'\] here\)"):
        train(tmp_path, **taught(2))
    assert state_bytes(train(tmp_path, **taught(1)).student) == state_bytes(first.student)


@pytest.mark.parametrize("finished", [True, False])
def test_trainings_that_did_not_write_who_taught_go_on(finished: bool, tmp_path: Path) -> None:
    if finished:
        train(tmp_path, **taught(1))
        path = tmp_path / "history.json"
        told = json.loads(path.read_text())
        del told["settings"]["teachers"]
        path.write_text(json.dumps(told))
    else:
        with pytest.raises(StopError):
            train(tmp_path, progress=stop_after(2), **taught(1))
        path = tmp_path / "checkpoint.pt"
        raw = torch.load(path, weights_only=True)
        settings = json.loads(raw["settings"])
        del settings["teachers"]
        torch.save({**raw, "settings": json.dumps(settings)}, path)
    whole = train(None, **taught(1))
    assert state_bytes(train(tmp_path, **taught(1)).student) == state_bytes(whole.student)


def test_a_teacher_that_nobody_asks_is_not_remembered(tmp_path: Path) -> None:
    train(tmp_path, teachers=taught(1)["teachers"])
    train(tmp_path, teachers=taught(2)["teachers"])
    assert "teachers" not in json.loads((tmp_path / "history.json").read_text())["settings"]


def test_threads_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(StopError):
        train(tmp_path, progress=stop_after(2), threads=2)
    with pytest.raises(StageFailed) as caught:
        train(tmp_path, threads=1)
    assert str(caught.value) == (
        f"the checkpoint in {tmp_path} was trained with 2 threads, but 1 are asked for: its weights would no longer be "
        "those of an uninterrupted run. Go on with --threads 2, or delete the checkpoint to train from the beginning"
    )
    seen: list[int] = []
    result = train(tmp_path, threads=None, progress=lambda *step: seen.append(torch.get_num_threads()))
    assert set(seen) == {2}
    assert result.threads == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("damage", ["cut", "garbage", "pickle", "version"])
def test_damaged_checkpoint(damage: str, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        train(tmp_path, progress=stop_after(2))
    path = tmp_path / "checkpoint.pt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "garbage":
        path.write_bytes(b"garbage" * 100)
    elif damage == "pickle":
        torch.save(Trap(str(tmp_path / "sprung")), path)
    else:
        torch.save({**torch.load(path, weights_only=True), "version": 99}, path)
    expected = "has version 99, expected 2" if damage == "version" else "cannot be read"
    with pytest.raises(ModelError, match=expected) as caught:
        train(tmp_path)
    assert "delete it to train from the beginning" in str(caught.value)
    assert not (tmp_path / "sprung").exists(), "a checkpoint must not run code"


class Trap:
    """A pickle that runs code when it is opened."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return (open, (self.path, "w"))


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StopError):
        train(tmp_path, progress=stop_after(2))
    whole = (tmp_path / "checkpoint.pt").read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match=r"no space left while writing .*checkpoint\.pt; free some space"):
            train(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == whole
    assert state_bytes(train(tmp_path).student) == state_bytes(train(None).student)


# Divergence


def breaking(calls_until_nan: int) -> Any:
    """A loss that gives NaN at one call, and is a mean squared logit otherwise."""
    calls = 0

    def fragile(student: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return student.square().mean() * (math.nan if calls == calls_until_nan else 1.0)

    return fragile


def test_diverged_goes_on_with_a_lower_lr(tmp_path: Path) -> None:
    # One call is the check before the first step; then 4 steps per epoch. Call 1 + 2 * 4 + 3 is epoch 3, step 3.
    objective = Objective([Term("ce", "cross_entropy"), Term("fragile", breaking(12), weight=0.5)])
    with pytest.raises(Diverged) as caught:
        train(tmp_path, objective=objective)
    assert str(caught.value) == (
        "training diverged: term 'fragile' became NaN or infinite in epoch 3, step 3 of 4 (lr = 0.01); the checkpoint "
        f"of epoch 2 in {tmp_path} is kept, and the next run goes on from there. Take a lower lr (such as 0.001), more "
        "warmup_epochs or a lower weight of 'fragile', then run the same command again; with the same settings it "
        "would diverge again"
    )
    raw = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(json.loads(raw["record"])["history"]) == 2
    assert all(torch.isfinite(value).all() for value in raw["student"].values())
    assert json.loads((tmp_path / "diverged.json").read_text())["terms"] == ["fragile"]
    with pytest.raises(UsageError, match="with other settings \\(batch_size 16 there, 8 here\\)"):
        train(tmp_path, objective=objective, batch_size=8)
    calm = Objective([Term("ce", "cross_entropy"), Term("fragile", breaking(0), weight=0.1)])
    result = train(tmp_path, objective=calm, lr=1e-3)
    assert [item["epoch"] for item in result.history] == [1, 2, 3, 4]
    assert result.history[1]["lr"] > 0.004 > 0.001 > result.history[2]["lr"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "weights.safetensors"]


def test_diverged_again_with_the_same_settings(tmp_path: Path) -> None:
    texts = []
    for calls in (12, 1 + 3):  # after resuming, epoch 3 is the first; the same step breaks
        objective = Objective([Term("fragile", breaking(calls))])
        with pytest.raises(Diverged) as caught:
            train(tmp_path, objective=objective)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_diverged_before_the_first_checkpoint(tmp_path: Path) -> None:
    model = student()
    with pytest.raises(Diverged, match=r"in epoch 1, step 2 of 4 \(lr = 0.01\); there is no checkpoint in .* yet"):
        train(tmp_path, objective=Objective([Term("fragile", breaking(3))]))
    assert not (tmp_path / "checkpoint.pt").exists()
    with pytest.raises(
        Diverged, match="nothing was written, as no run_dir was given; the student holds the best weights"
    ):
        distill(
            model, (), data(), Objective([Term("fragile", breaking(2))]),
            steps=(Scale(), Layout("CHW")), epochs=2, batch_size=16, device="cpu",
        )  # fmt: skip
    assert state_bytes(model) == state_bytes(student())


def test_weights_that_break_after_the_last_loss_never_reach_a_checkpoint(tmp_path: Path) -> None:
    def steep(student: Tensor) -> Tensor:
        return (student * 0.0).sum().sqrt()  # 0, with an infinite slope

    with pytest.raises(Diverged, match="the weights became NaN or infinite in epoch 1, step 1 of 1"):
        train(tmp_path, objective=Objective([Term("steep", steep)]), batch_size=60)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_huge_learning_rate_diverges_and_names_the_loss(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"training diverged: .* in epoch \d+, step \d of 4 \(lr = 1e\+30\)"):
        train(tmp_path, lr=1e30, optimizer="sgd")
