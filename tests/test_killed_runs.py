"""Killed at any moment and run again, through the command line: the same bytes as a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import edgekd, refused
from ends import short

from edgekd.results import read_results

pytestmark = pytest.mark.slow

SETTINGS = (
    "data.limit=600",
    "teacher.args={width=8,depth=8}",
    "teacher.train.epochs=4",
    "distill.epochs=12",
    "distill.baseline=true",
)
PATIENCE_S = 120


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A run of a few seconds with all its stages, the student alone among them."""
    sets = tuple(f"--set={setting}" for setting in SETTINGS)
    return (*short(tmp_path_factory.mktemp("suite")), *sets)


@pytest.fixture(scope="module")
def undisturbed(options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its beginning to its end."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = edgekd("distill-and-export", "digits", *options, "--out", run)
    assert done.returncode == 0, done.stderr
    return run


def start(run: Path, *options: str) -> subprocess.Popen[str]:
    """The same command in a process group of its own, so that all its processes can be killed at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgekd", "distill-and-export", "digits", *options, "--out", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return as soon as the run has come there."""
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, f"the run ended before: {process.stderr.read() if process.stderr else ''}"
        assert time.monotonic() < end, "the run never came there"
        time.sleep(0.002)


def kill(process: subprocess.Popen[str]) -> None:
    """As a power cut: no handler runs."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def made(run: Path) -> dict[str, bytes]:
    """Everything that must not depend on whether the run was disturbed. Timings, and what tells them, are left out."""
    files = [
        *(run / name / "weights.safetensors" for name in ("teacher", "student", "student_alone")),
        *sorted((run / "export").glob("*.onnx")),
        *sorted((run / "variants").glob("*.onnx")),
        *sorted((run / "student.edgekd").rglob("*.onnx")),
        run / "student.edgekd" / "golden.npz",
    ]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def record(run: Path, stage: str) -> dict[str, Any]:
    """What an ended stage left."""
    found: dict[str, Any] = json.loads((run / "stages" / f"{stage}.json").read_text())
    return found


def trained_epochs(checkpoint: Path) -> list[dict[str, Any]]:
    """The epochs that a checkpoint holds, with the seconds that each took."""
    import torch

    history: list[dict[str, Any]] = json.loads(torch.load(checkpoint, weights_only=True)["record"])["history"]
    return history


@pytest.mark.parametrize("name", ["teacher", "student", "student_alone"])
def test_a_half_trained_model_goes_on_from_its_checkpoint(
    name: str, undisturbed: Path, options: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    checkpoint = run / name / "checkpoint.pt"
    process = start(run, *options)
    wait_for(checkpoint.is_file, process)
    kill(process)
    before = trained_epochs(checkpoint)
    assert before, "killed between two epochs"
    assert not (run / "stages" / f"{name}.json").exists()

    done = edgekd("distill-and-export", "digits", *options, "--out", run)
    assert done.returncode == 0, done.stderr
    after = json.loads((run / name / "history.json").read_text())["history"]
    assert after[: len(before)] == before, "not one epoch was trained twice: even its seconds are the same"
    assert made(run) == made(undisturbed)


@pytest.mark.parametrize("stage", ["quantize", "bundle", "benchmark"])
def test_killed_in_a_later_stage_nothing_is_trained_again(
    stage: str, undisturbed: Path, options: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(run, *options)
    wait_for((run / "stages" / f"{stage}.started").is_file, process)
    kill(process)
    assert not (run / "stages" / f"{stage}.json").exists(), f"{stage} was not over"
    trained = {name: record(run, name) for name in ("teacher", "student", "student_alone")}

    done = edgekd("distill-and-export", "digits", *options, "--out", run)
    assert done.returncode == 0, done.stderr
    assert {name: record(run, name) for name in trained} == trained
    assert made(run) == made(undisturbed)
    assert read_results(run)["verdict"]["value"] in {"VALID", "INVALID"}
    assert not list(run.rglob(".tmp-*")), "what the killed process was writing is gone"


def test_kill_after_kill_ends_in_the_same_bytes(undisturbed: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("teacher", "student"):
        for epochs in (1, 3):
            process = start(run, *options)
            checkpoint = run / name / "checkpoint.pt"
            wait_for(lambda file=checkpoint, n=epochs: file.is_file() and len(trained_epochs(file)) >= n, process)  # type: ignore[misc]
            kill(process)
    done = edgekd("distill-and-export", "digits", *options, "--out", run)
    assert done.returncode == 0, done.stderr
    assert made(run) == made(undisturbed)


def test_interrupted_by_the_user(options: tuple[str, ...], undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *options)
    wait_for((run / "student" / "checkpoint.pt").is_file, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert "again" in told, "it says how to go on"
    done = edgekd("distill-and-export", "digits", *options, "--out", run)
    assert done.returncode == 0, done.stderr
    assert made(run) == made(undisturbed)


def test_interrupted_in_the_benchmark_no_process_is_left(options: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *options)
    wait_for((run / "stages" / "benchmark.started").is_file, process)
    time.sleep(0.5)  # its workers are starting, or run
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    group = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert group == []


def test_two_runs_in_one_folder(options: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *options)
    try:
        wait_for((run / "stages" / "teacher.started").is_file, process)
        told = refused(4, "distill-and-export", "digits", *options, "--out", run)
        assert "another edgekd process" in told
        assert "--out" in told
    finally:
        kill(process)


def test_half_trained_with_another_number_of_threads(options: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run, *options)
    wait_for((run / "student" / "checkpoint.pt").is_file, process)
    kill(process)
    more = tuple(option for option in options if "threads=" not in option)
    done = edgekd("distill-and-export", "digits", *more, "--threads", "2", "--out", run)
    assert "Traceback" not in done.stderr
    if done.returncode == 0:  # trained anew as a whole, never half with one number and half with the other
        seen = {json.loads((run / name / "history.json").read_text())["threads"] for name in ("teacher", "student")}
        assert seen == {2}
    else:
        assert done.returncode == 5, done.stderr
        assert "--threads 1" in done.stderr
