"""Figures of each epoch in CSV and TensorBoard, once each, whatever was killed in between."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import DATA, mlp

from edgekd.distill import trackers
from edgekd.distill.engine import TrainResult, distill
from edgekd.distill.objective import Objective, Term
from edgekd.distill.programme import Stage
from edgekd.distill.teachers import ModuleTeacher
from edgekd.errors import MissingExtra, MissingHere, UsageError
from edgekd.spec import Layout, Scale

BOTH = ("csv", "tensorboard")


class Killed(Exception):
    """Stands for a process that is gone."""


def train(folder: Path, *, epochs: int = 4, killed_after: int | None = None, **changed: Any) -> TrainResult:
    """A training whose files lie in `folder`; killed when epoch `killed_after` begins to report."""

    def progress(text: str, done: int, total: int, numbers: object) -> None:
        if killed_after is not None and done > killed_after * 5:
            raise Killed

    settings: dict[str, Any] = {
        "steps": (Scale(), Layout("CHW")),
        "epochs": epochs,
        "batch_size": 20,
        "device": "cpu",
        "threads": 1,
        "run_dir": folder / "student",
        "log_dir": folder / "logs" / "student",
        "trackers": BOTH,
        "progress": progress,
        **changed,
    }
    terms = Objective([Term("ce", "cross_entropy"), Term("kd", "kd", weight=0.5)])
    return distill(mlp(seed=1), (ModuleTeacher(mlp(seed=2)),), DATA, terms, **settings)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "student" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: its own reader, which drops what a restart has purged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "logs" / "student"))
    events.Reload()
    return {tag: [(item.step, item.value) for item in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_figure_of_every_epoch(tmp_path: Path) -> None:
    result = train(tmp_path)
    found = rows(tmp_path)
    names = ["epoch", "stage", "loss", "lr", "terms/ce", "terms/kd", "gradients/ce", "gradients/kd"]
    assert list(found[0]) == [*names, "validation/accuracy", "seconds"]
    assert [int(row["epoch"]) for row in found] == [1, 2, 3, 4]
    for row, item in zip(found, result.history):
        assert float(row["loss"]) == item["loss"]
        assert float(row["lr"]) == item["lr"]
        assert float(row["terms/kd"]) == item["terms"]["kd"]
        assert float(row["validation/accuracy"]) == item["val"]
    assert [row["gradients/kd"] == "" for row in found] == [item["gradients"] is None for item in result.history]
    shown = curves(tmp_path)
    assert set(shown) == set(found[0]) - {"epoch", "stage"}
    assert [step for step, _ in shown["loss"]] == [1, 2, 3, 4]
    assert [value for _, value in shown["validation/accuracy"]] == pytest.approx([i["val"] for i in result.history])


def test_a_training_that_goes_on_has_no_epoch_twice(tmp_path: Path) -> None:
    with pytest.raises(Killed):  # epoch 3 was logged, but its checkpoint is that of epoch 2
        train(tmp_path, killed_after=2, checkpoint_epochs=2)
    assert [int(row["epoch"]) for row in rows(tmp_path)] == [1, 2, 3]
    result = train(tmp_path, checkpoint_epochs=2)
    assert [int(row["epoch"]) for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert [float(row["loss"]) for row in rows(tmp_path)] == [item["loss"] for item in result.history]
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2, 3, 4]


def test_a_training_from_the_beginning_forgets_the_one_before(tmp_path: Path) -> None:
    train(tmp_path, epochs=3)
    (tmp_path / "logs" / "student" / "notes.txt").write_text("mine")
    train(tmp_path, epochs=2, run_dir=tmp_path / "again")
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2]
    assert [int(row["epoch"]) for row in rows(tmp_path)] == [1, 2]
    assert (tmp_path / "logs" / "student" / "notes.txt").read_text() == "mine"


def test_stages_have_a_column_and_their_own_terms(tmp_path: Path) -> None:
    stages = (Stage("soft", 1, ("kd",)), Stage("both", 1, ("ce", "kd")))
    train(tmp_path, epochs=2, stages=stages, trackers=("csv",))
    assert [row["stage"] for row in rows(tmp_path)] == ["soft", "both"]
    assert [row["terms/ce"] == "" for row in rows(tmp_path)] == [True, False]
    assert not list((tmp_path / "logs").rglob("events*"))


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    train(tmp_path, epochs=1, trackers=())
    assert not (tmp_path / "logs").exists()


def test_where_logs_go_without_a_place_of_their_own(tmp_path: Path) -> None:
    train(tmp_path, epochs=1, trackers=("csv",), log_dir=None)
    assert (tmp_path / "student" / "logs" / "metrics.csv").is_file()
    with pytest.raises(UsageError, match="the trackers csv need a place: give log_dir or run_dir"):
        train(tmp_path, epochs=1, trackers=("csv",), log_dir=None, run_dir=None)


def test_a_tracker_that_is_not_there_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"unknown tracker 'tensorbord'. Did you mean 'tensorboard'\? Known: aim,"):
        train(tmp_path, trackers=("tensorbord",))
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(MissingHere, match=r"the tracker 'comet_ml' needs .* pip install comet-ml; or take it out"):
        train(tmp_path, trackers=("csv", "comet_ml"))
    monkeypatch.setitem(sys.modules, "accelerate.tracking", None)
    with pytest.raises(MissingExtra, match=r"the tracker mlflow needs the package 'accelerate'.*edgekd\[train\]"):
        train(tmp_path, trackers=("mlflow",))
    assert not tmp_path.joinpath("logs").exists()


def test_every_tracker_of_accelerate_is_known_by_its_name() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(trackers.PACKAGES) == set(LOGGER_TYPE_TO_CLASS)


heard: list[Any] = []


class Service:
    """Stands at the seam for one of Accelerate's trackers that talks to a service."""

    requires_logging_directory = False

    def __init__(self, run_name: str) -> None:
        heard.append(run_name)

    def start(self) -> None:
        heard.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        heard.append(values["batch_size"])

    def log(self, values: dict[str, float], step: int) -> None:
        heard.append((step, max(values)))

    def finish(self) -> None:
        heard.append("finish")


def test_any_tracker_of_accelerate_hears_name_settings_epochs_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [type("Kind", (), {"value": "wandb"})])
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Service)
    train(tmp_path / "digits", epochs=2, trackers=("wandb",))
    assert heard == ["digits-student", "start", 20, (1, "validation/accuracy"), (2, "validation/accuracy"), "finish"]


def test_a_student_with_gradients_that_were_never_measured_still_has_rows() -> None:
    item = {"epoch": 1, "stage": None, "lr": 0.1, "loss": 1.0, "terms": {"ce": 1.0}, "gradients": None, "val": None}
    assert trackers.figures({**item, "seconds": 2.0}, "regression") == {
        "loss": 1.0, "lr": 0.1, "terms/ce": 1.0, "seconds": 2.0
    }  # fmt: skip
