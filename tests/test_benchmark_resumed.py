"""`edgekd benchmark` that is interrupted or killed goes on with what it has; what changed is measured anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgekd, refused

from edgekd.results import read_results

sys.path.insert(0, str(Path(__file__).parent / "device"))
from device_models import linear_model, weights, write_bundle

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")

SUITE = "min_calls = 64\nmin_blocks = 12\nlaunches = 6\nmax_seconds = 60.0\nblock_ms = 5\n"
STARTS, NO_STARTS = "cold_starts = 10\nmemory = true\n", "cold_starts = 0\nmemory = false\n"
PATIENCE_S = 120


def laid_out(folder: Path) -> Path:
    """A bundle, a reference, labelled samples, a suite, and the folder for temporary files."""
    bundle = write_bundle(folder / "a.edgekd")
    (folder / "teacher.onnx").write_bytes(linear_model(weights(), shape=(1, 4, 4)))
    raw, answers = bundle.golden()["raw"], bundle.golden()["output.float32.logits"].argmax(axis=1)
    np.savez(folder / "data.npz", x=np.tile(raw, (20, 1, 1, 1)), y=np.tile(answers, 20))
    (folder / "s.toml").write_text(SUITE + STARTS)
    (folder / "temporary").mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What each test needs."""
    return laid_out(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the command that nobody interrupts."""
    folder = laid_out(tmp_path_factory.mktemp("whole"))
    done = edgekd(*WORDS, "out.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resuming" not in done.stderr
    assert "parts" not in done.stdout
    return read_results(folder / "out.json")


WORDS = ("benchmark", "a.edgekd", "--against", "teacher.onnx", "--data", "data.npz", "--suite", "s.toml", "--out")


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    """The command, in a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "edgekd", *WORDS, "out.json", *options],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "temporary"), "COLUMNS": "160"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def records(folder: Path) -> list[Path]:
    """What is kept."""
    return sorted((folder / "out.json.part").glob("[0-9]*.npz"))


def stopped(folder: Path, number: signal.Signals, *, after: int, options: tuple[str, ...] = ()) -> str:
    """Send a signal as soon as that many steps are kept; what the command said."""
    process = started(folder, *options)
    end = time.monotonic() + PATIENCE_S
    while len(records(folder)) < after:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.002)
    if number is signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (-number if number is signal.SIGKILL else 130), said
    return " ".join(said.split())


def shape_of(value: Any) -> Any:
    """Keys and types, all the way down; of lists the kinds of their items."""
    if isinstance(value, Mapping):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, list):
        kinds = [shape_of(item) for item in value]
        return [kind for number, kind in enumerate(kinds) if kind not in kinds[:number]]
    return "number" if type(value) in (int, float) else type(value).__name__


def kept(folder: Path) -> dict[str, Any]:
    """What the last record knows."""
    with np.load(records(folder)[-1]) as record:
        told: dict[str, Any] = json.loads(record["state"].tobytes())
        return told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_same_command_goes_on(number: signal.Signals, folder: Path, whole: dict[str, Any]) -> None:
    # Three records: the checks, and two launches.
    said = stopped(folder, number, after=3)
    before = kept(folder)
    launches = len(before["spans"])
    assert launches >= 2
    if number is not signal.SIGKILL:
        assert "what was measured is in out.json, and reads INVALID; run the same command again to go on" in said
        half = read_results(folder / "out.json")
        assert half["interrupted"] is True
        assert half["verdict"]["reasons"][0].startswith("interrupted")
        assert list((folder / "temporary").glob("edgekd-*")) == [], "only what is killed may leave something"
    # A second time, in a later launch or among the cold starts.
    stopped(folder, number, after=len(records(folder)) + 2)
    middle = kept(folder)
    assert len(middle["parts"]) == 2

    done = edgekd(*WORDS, "out.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    counts = (
        f"resuming: {len(middle['spans'])} of 6 launches and {sum(p['cold_starts'] for p in middle['parts'])} of 10"
    )
    assert f"{counts} cold starts were measured earlier ({before['parts'][0]['started']}, " in done.stderr
    assert "measured in 3 parts: " in done.stdout
    assert not (folder / "out.json.part").exists()
    results = read_results(folder / "out.json")
    assert results["interrupted"] is False
    assert [part["started"] for part in results["parts"][:2]] == [part["started"] for part in middle["parts"]]
    assert sum(part["launches"] for part in results["parts"]) == len(results["samples"]["teacher.onnx"]["launch"]) == 6
    assert sum(part["cold_starts"] for part in results["parts"]) == 10
    assert results["started"] == results["parts"][0]["started"]
    for index, candidate in enumerate(results["candidates"]):
        raw, known = results["samples"][candidate["id"]], middle["measured"][index]
        # Not one block or start was measured twice: what was there stands first, with its place and its milliseconds.
        assert raw["order"][: len(known["order"])] == known["order"]
        assert raw["cold_ms"][: len(known["cold"])] == known["cold"]
        assert len(raw["cold_ms"]) == 10
        assert len(raw["latency_ns"]) == sum(raw["block"])
    both = sorted(place for raw in results["samples"].values() for place in raw["order"])
    assert both == list(range(len(both)))

    assert len(whole["parts"]) == 1
    assert shape_of(_steady(results)) == shape_of(_steady(whole))


def _steady(results: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on how quiet the machine was: whether a percentile could be told, and the reasons."""
    rows = [{**row, "latency_ms": sorted(row["latency_ms"])} for row in results["rows"]]
    return {**results, "rows": rows, "verdict": sorted(results["verdict"])}


def test_timings_of_an_earlier_part_are_in_the_result(folder: Path) -> None:
    (folder / "s.toml").write_text(SUITE + NO_STARTS)
    stopped(folder, signal.SIGKILL, after=3)
    (folder / "out.json.part" / ".tmp-x.npz").write_bytes(b"half a record")
    parts = [np.load(path) for path in records(folder)]
    known = [np.concatenate([part[f"{index}.latency_ns"] for part in parts]).tolist() for index in (0, 1)]
    assert edgekd(*WORDS, "out.json", cwd=folder).returncode == 0
    results = read_results(folder / "out.json")
    for earlier, candidate in zip(known, results["candidates"]):
        assert earlier
        assert results["samples"][candidate["id"]]["latency_ns"][: len(earlier)] == earlier
    assert not (folder / "out.json.part").exists()


@pytest.mark.parametrize("change", ["model", "samples", "suite", "options", "damage", "fresh"])
def test_what_changed_is_measured_anew(change: str, folder: Path) -> None:
    (folder / "s.toml").write_text(SUITE + NO_STARTS)
    stopped(folder, signal.SIGKILL, after=2)
    options: list[str] = []
    if change == "model":
        (folder / "teacher.onnx").write_bytes(linear_model(weights(seed=9), shape=(1, 4, 4)))
    elif change == "samples":
        with np.load(folder / "data.npz") as data:
            np.savez(folder / "data.npz", x=data["x"][:-1], y=data["y"][:-1])
    elif change == "suite":
        (folder / "s.toml").write_text(SUITE.replace("block_ms = 5", "block_ms = 4") + NO_STARTS)
    elif change == "damage":
        records(folder)[0].write_bytes(records(folder)[0].read_bytes()[:-100])
    else:
        options = ["--fresh"] if change == "fresh" else ["--seed", "3"]
    done = edgekd(*WORDS, "out.json", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "resuming" not in done.stderr
    assert ("what an interrupted command measured is discarded" in done.stderr) == (change != "fresh")
    assert len(read_results(folder / "out.json")["parts"]) == 1
    assert not (folder / "out.json.part").exists()


def test_two_at_once_are_refused(folder: Path) -> None:
    process = started(folder)
    try:
        end = time.monotonic() + PATIENCE_S
        while not records(folder) and time.monotonic() < end:
            time.sleep(0.01)
        said = refused(4, *WORDS, "out.json", cwd=folder)
        assert "another benchmark measures for out.json; wait until it ends, or choose another --out" in said
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_what_is_not_ours_stays(folder: Path) -> None:
    (folder / "s.toml").write_text(SUITE + NO_STARTS)
    mine = folder / "out.json.part" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert edgekd(*WORDS, "out.json", cwd=folder).returncode == 0
    assert mine.read_text() == "mine"
    assert records(folder) == []
    (folder / "b.json.part").write_text("a file")
    assert "b.json.part is a file, but what is measured so far goes there" in refused(2, *WORDS, "b.json", cwd=folder)


def test_the_device_of_on_has_no_fresh(folder: Path) -> None:
    assert "leave --fresh out" in refused(2, *WORDS, "out.json", "--on", "ssh://nowhere", "--fresh", cwd=folder)
