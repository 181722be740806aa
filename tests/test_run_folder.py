"""The stage graph: what is done is skipped, what changed runs again, what was killed keeps its half-finished files."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import StorageError, UsageError
from edgekd.run_folder import RunFolder, Silence, Stage, locked


class Recorder(Silence):
    """Remembers which stages ran and which were skipped."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.skipped: list[str] = []

    def stage_started(self, name: str, index: int, total: int) -> None:
        self.ran.append(name)

    def stage_skipped(self, name: str) -> None:
        self.skipped.append(name)


def make_stages(path: Path, *, first: object = 1, content: str = "a", other: object = 1) -> tuple[Stage, ...]:
    def write(name: str, text: str) -> tuple[Mapping[str, Any], str]:
        (path / name).mkdir(exist_ok=True)
        (path / name / "out.txt").write_text(text)
        return {"length": len(text)}, name

    return (
        Stage("one", (), ("one",), lambda: {"first": first}, lambda: write("one", content)),
        Stage("two", ("one",), ("two",), dict, lambda: write("two", content + "!")),
        Stage("side", (), ("side",), lambda: {"other": other}, lambda: write("side", "s")),
    )


def run(path: Path, stages: tuple[Stage, ...], force: str | None = None) -> Recorder:
    recorder = Recorder()
    RunFolder(path, listener=recorder, force=force).run(stages)
    return recorder


def test_second_run_does_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, make_stages(tmp_path)).ran == ["one", "two", "side"]
    again = run(tmp_path, make_stages(tmp_path))
    assert again.ran == []
    assert again.skipped == ["one", "two", "side"]


def test_changed_input_runs_only_what_depends_on_it(tmp_path: Path) -> None:
    run(tmp_path, make_stages(tmp_path))
    assert run(tmp_path, make_stages(tmp_path, other=2)).ran == ["side"]
    assert run(tmp_path, make_stages(tmp_path, other=2, first=2, content="b")).ran == ["one", "two"]


def test_same_output_after_a_changed_input_stops_the_chain(tmp_path: Path) -> None:
    """Stages depend on what others made, not on how."""
    run(tmp_path, make_stages(tmp_path))
    assert run(tmp_path, make_stages(tmp_path, first=2)).ran == ["one"]


@pytest.mark.parametrize("damage", ["change", "delete", "record"])
def test_damaged_output_runs_again(tmp_path: Path, damage: str) -> None:
    run(tmp_path, make_stages(tmp_path))
    if damage == "change":
        (tmp_path / "two" / "out.txt").write_text("tampered")
    elif damage == "delete":
        (tmp_path / "two" / "out.txt").unlink()
    else:
        (tmp_path / "stages" / "two.json").write_text('{"stage": "two", "fing')
    assert run(tmp_path, make_stages(tmp_path)).ran == ["two"]
    assert (tmp_path / "two" / "out.txt").read_text() == "a!"


def test_force_runs_a_stage_again_and_names_unknown_ones(tmp_path: Path) -> None:
    run(tmp_path, make_stages(tmp_path))
    assert run(tmp_path, make_stages(tmp_path), force="one").ran == ["one"]
    with pytest.raises(UsageError, match=r"--force tow: there is no such stage\. Did you mean 'two'\?"):
        run(tmp_path, make_stages(tmp_path), force="tow")


def test_killed_stage_keeps_its_files_only_for_the_same_inputs(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def die() -> tuple[Mapping[str, Any], str]:
        folder = tmp_path / "long"
        folder.mkdir(exist_ok=True)
        seen.append(sorted(path.name for path in folder.iterdir()))
        (folder / "checkpoint").write_text("half")
        raise KeyboardInterrupt

    def stages(value: int) -> tuple[Stage, ...]:
        return (Stage("long", (), ("long",), lambda: {"value": value}, die),)

    for value in (1, 1, 2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stages(value))
    assert seen == [[], ["checkpoint"], []]


def test_pending_names_what_would_run(tmp_path: Path) -> None:
    run(tmp_path, make_stages(tmp_path))
    folder = RunFolder(tmp_path, listener=Silence())
    assert folder.pending(make_stages(tmp_path, first=2)) == ["one", "two"]
    assert folder.path == tmp_path


def test_record_is_readable_json(tmp_path: Path) -> None:
    run(tmp_path, make_stages(tmp_path))
    record = json.loads((tmp_path / "stages" / "one.json").read_text())
    assert record["result"] == {"length": 1}
    assert list(record["outputs"]) == ["one/out.txt"]


def _hold(path: str, ready: Any, leave: Any) -> None:
    with locked(Path(path)):
        ready.set()
        leave.wait(60)


def test_two_processes_in_one_folder_are_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, leave))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(StorageError, match="another edgekd process works in"), locked(tmp_path):
            pass
    finally:
        leave.set()
        other.join(60)
    with locked(tmp_path):
        pass
