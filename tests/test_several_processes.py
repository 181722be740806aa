"""The real command line on several processes of a CPU, as torchrun and accelerate launch start them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from commands import edgekd
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow

# 1079 samples for training: the last batch holds 79. No batch norm, no dropout.
RECIPE = """
version = 1
task = "classification"
[data]
kind = "digits"
augment = { shift = 1 }
[preprocess]
steps = [{ op = "scale" }, { op = "layout", to = "flat" }]
[teacher]
model = "mlp"
args = { hidden = [64] }
train = { epochs = 3, batch_size = 100, lr = 0.005 }
[student]
model = "mlp"
args = { hidden = [16] }
[distill]
epochs = 3
batch_size = 100
lr = 0.01
trackers = ["csv", "tensorboard"]
[[distill.terms]]
loss = "cross_entropy"
[[distill.terms]]
loss = "kd"
[[distill.terms]]
loss = "rkd"
weight = 0.02
"""
OWN_LOSS = """
import os
from edgekd.errors import DataError
calls = 0
def fails(student, teacher):
    global calls
    calls += 1
    if os.environ.get("RANK") == "1" and calls > 5:
        raise {error}
    return (student - teacher).square().mean()
"""
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--rdzv_backend", "c10d", "--main_process_port", "0",
)  # fmt: skip
PATIENCE_S = 600


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seconds."""
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    done = edgekd("distill", recipe, "--out", run, "--threads", "1", "--quiet")
    assert done.returncode == 0, done.stderr
    return run


def start(launcher: Sequence[str], *args: str | Path) -> subprocess.Popen[str]:
    """The command line on two processes."""
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "edgekd", *map(str, args), "--device", "cpu", "--threads", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; no process of it is left."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def errors(stderr: str) -> list[str]:
    """What the command line itself complained about."""
    return [line for line in stderr.splitlines() if line.startswith(("error:", "this is a bug", "interrupted"))]


def weights(run: Path) -> dict[str, Any]:
    names = ("teacher", "student", "student_alone")
    return {f"{n}.{k}": v for n in names for k, v in load_file(run / n / "weights.safetensors").items()}


def files(run: Path) -> set[str]:
    """Names, without the time and the process that TensorBoard writes into its own."""
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    return {name.split(".tfevents")[0] for name in found}


def assert_same(run: Path, other: Path) -> None:
    expected = weights(other)
    for name, value in weights(run).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_two_processes_leave_what_one_leaves(recipe: Path, alone: Path, tmp_path: Path) -> None:
    code, out, err = finish(start(TORCHRUN, "distill", recipe, "--out", tmp_path / "run", "--json"))
    assert code == 0, err
    assert_same(tmp_path / "run", alone)
    # One object on stdout, one line for each stage on stderr, one file of each kind: the other process is silent.
    assert set(json.loads(out)["stages"]) == {"data", "teacher", "student", "student_alone"}
    assert err.count("✓ student ") == 1
    assert files(tmp_path / "run") == files(alone)
    events = list((tmp_path / "run" / "logs").rglob("events*"))
    assert sorted(path.parent.name for path in events) == ["student", "student_alone", "teacher"]
    with (tmp_path / "run" / "logs" / "student" / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert all(float(row["terms/rkd"]) > 0 for row in table)
    assert json.loads((tmp_path / "run" / "student" / "history.json").read_text())["processes"] == 2
    # Nothing changed: nothing is done, and nobody waits for a call that never comes.
    code, out, err = finish(start(TORCHRUN, "distill", recipe, "--out", tmp_path / "run", "--json"))
    assert (code, json.loads(out)["worked"]) == (0, []), err


def test_accelerate_launch(recipe: Path, alone: Path, tmp_path: Path) -> None:
    code, _, err = finish(start(ACCELERATE, "distill", recipe, "--out", tmp_path / "run", "--quiet"))
    assert code == 0, err
    assert_same(tmp_path / "run", alone)


def test_accelerate_launch_on_a_cpu_that_silently_starts_one_process(recipe: Path, tmp_path: Path) -> None:
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", "2")
    code, _, err = finish(start(launcher, "distill", recipe, "--out", tmp_path / "run"))
    assert code != 0
    assert errors(err) == [
        "error: accelerate launch was asked for several processes, but has started one: on a CPU it has no launcher of "
        "its own. Take torchrun --standalone --nproc_per_node N -m edgekd ... --device cpu"
    ]


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < end, "the run never came there"
        time.sleep(0.002)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_is_killed_and_one_goes_on(killed: int, recipe: Path, tmp_path: Path) -> None:
    """The other one ends at once with one clear error; a single process finishes the run, and says so."""
    run = tmp_path / "run"
    longer = ("--set", "distill.epochs=60", "--student-only")
    process = start(TORCHRUN, "distill", recipe, "--out", run, *longer)
    wait_for((run / "student" / "checkpoint.pt").is_file, process)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "RANK" in p.environ()]
    victim = next(worker for worker in workers if worker.environ()["RANK"] == str(killed))
    victim.send_signal(signal.SIGKILL)
    code, _, err = finish(process)
    assert code != 0
    assert len(errors(err)) == 1
    assert f"process {1 - killed} of 2" in errors(err)[0]
    assert "What was finished is kept: run the same command again to go on" in errors(err)[0]
    assert f"exitcode  : 5 (pid: {next(w.pid for w in workers if w.pid != victim.pid)})" in err
    assert not any(worker.is_running() for worker in workers)
    done = edgekd("distill", recipe, "--out", run, "--threads", "1", *longer)
    assert done.returncode == 0, done.stderr
    assert "were trained by 2 processes, those after it by 1" in " ".join(done.stderr.split())
    history = json.loads((run / "student" / "history.json").read_text())
    assert len(history["history"]) == 60
    assert history["processes"] == 1
    with (run / "logs" / "student" / "metrics.csv").open(newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, 61))


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        ("DataError('the samples of this process are rotten')", 3, "process 1 of 2: the samples of this process are"),
        ("KeyError('oh')", 70, "process 1 of 2: KeyError: 'oh'"),
    ],
)
def test_an_error_in_another_process_is_said_by_the_first(
    error: str, code: int, text: str, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "own_loss.py").write_text(OWN_LOSS.replace("{error}", error))
    own = tmp_path / "own.toml"
    own.write_text(recipe.read_text().replace('loss = "kd"', 'loss = "own_loss:fails"'))
    _, _, err = finish(start(TORCHRUN, "distill", own, "--out", tmp_path / "run", "--student-only"))
    said = [line for line in errors(err) if line.startswith("error:")]
    assert len(said) == 1
    assert said[0].startswith(f"error: {text}")
    assert err.count(f"exitcode  : {code} ") == 2, err


VIEWS = 40  # of 1079 samples: six shards


@pytest.fixture(scope="module")
def answers(recipe: Path, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A run with a trained teacher, and the files of its cache as one process builds it."""
    folder = tmp_path_factory.mktemp("answers")
    shutil.copytree(alone, folder / "run")
    done = edgekd(*cache_build(recipe, folder / "run", folder / "kept"), "--threads", "1")
    assert done.returncode == 0, done.stderr
    return folder / "run", kept_in(folder / "kept")


def cache_build(recipe: Path, run: Path, kept: Path) -> tuple[str | Path, ...]:
    return (
        "cache",
        "build",
        "--recipe",
        recipe,
        "--out",
        run,
        "--cache",
        kept,
        "--set",
        f"data.views={VIEWS}",
        "--json",
    )


def kept_in(folder: Path) -> dict[str, bytes]:
    """The one cache in a folder: its files by their names."""
    [path] = folder.iterdir()
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "build.lock"}


def test_two_processes_build_the_cache_of_one(recipe: Path, answers: tuple[Path, Any], tmp_path: Path) -> None:
    run, expected = answers
    code, out, err = finish(start(TORCHRUN, *cache_build(recipe, run, tmp_path / "kept")))
    assert code == 0, err
    assert json.loads(out)["asked"] == VIEWS * 1079
    assert kept_in(tmp_path / "kept") == expected
    assert len(expected) == 2 + 2 * 6
    code, out, err = finish(start(ACCELERATE, *cache_build(recipe, run, tmp_path / "kept")))
    assert (code, json.loads(out)["asked"]) == (0, 0), err


def test_two_processes_build_the_caches_of_two_teachers(recipe: Path, tmp_path: Path) -> None:
    second = (
        '[[teachers]]\nmodel = "mlp"\nargs = { hidden = [32] }\ntrain = { epochs = 1, batch_size = 100 }\n[student]'
    )
    several, run = tmp_path / "several.toml", tmp_path / "run"
    several.write_text(recipe.read_text().replace("[student]", second))
    built = []
    for folder, launcher in ((tmp_path / "one", None), (tmp_path / "two", TORCHRUN)):
        command = (*cache_build(several, run, folder), "--threads", "1")
        if launcher is None:
            done = edgekd(*command)
            code, out, err = done.returncode, done.stdout, done.stderr
        else:
            code, out, err = finish(start(launcher, *command))
        assert code == 0, err
        told = json.loads(out)
        assert [row["asked"] for row in (told, *told["more"])] == [VIEWS * 1079] * 2
        built.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.npy")})
    assert len(built[0]) == 2 * (1 + 2 * 6)
    assert built[0] == built[1]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_is_killed_while_the_cache_is_built_and_the_next_build_completes_it(
    killed: int, recipe: Path, answers: tuple[Path, Any], tmp_path: Path
) -> None:
    run, expected = answers
    process = start(TORCHRUN, *cache_build(recipe, run, tmp_path / "kept"))
    wait_for(lambda: bool(list(tmp_path.glob("kept/*/index.json"))), process)
    assert kill_one(process, killed) == 1
    code, _, err = finish(process)
    assert code != 0
    assert len(errors(err)) == 1
    assert f"process {1 - killed} of 2" in errors(err)[0]
    done = edgekd(*cache_build(recipe, run, tmp_path / "kept"), "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout)["asked"] < VIEWS * 1079, "what was in whole shards is not asked for again"
    assert kept_in(tmp_path / "kept") == expected


def kill_one(process: subprocess.Popen[str], rank: int) -> int:
    """Kill the process of this rank, as a power cut would; how many there were of it."""
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "RANK" in p.environ()]
    victims = [worker for worker in workers if worker.environ()["RANK"] == str(rank)]
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    return len(victims)


def test_too_few_samples_for_the_processes(recipe: Path, tmp_path: Path) -> None:
    code, _, err = finish(
        start(TORCHRUN, "distill", recipe, "--out", tmp_path / "run", "--set", "distill.accumulate=51")
    )
    assert code != 0
    assert [line.split(";")[0] for line in errors(err)] == [
        "error: a batch holds 100 samples, too few for 2 processes with 51 micro-batches each"
    ]
    assert err.count("exitcode  : 2 ") == 2, err
