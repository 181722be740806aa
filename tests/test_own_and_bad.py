"""The user's own models, weights and black boxes, and what a user can get wrong, through the command line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgekd, ok_json, refused
from ends import job, rows_of, short

pytestmark = pytest.mark.slow

MODELS = """
from torch import nn


def teacher(num_outputs, input_shape):
    return nn.Sequential(nn.Linear(input_shape[0], 64), nn.ReLU(), nn.Linear(64, num_outputs))


def student(num_outputs, input_shape, width=8):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, num_outputs))


def five(num_outputs, input_shape):
    return nn.Linear(input_shape[0], 5)
"""
OWN = ("teacher.model=own_models:teacher", "student.model=own_models:student", "student.args={width=12}")
FAST = (
    "distill.epochs=15",
    "distill.lr=0.02",
    "distill.batch_size=16",
    "teacher.train.epochs=20",
    "teacher.train.batch_size=16",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the irises as .npz, two models in a module, weights of the teacher in both formats."""
    import torch
    from safetensors.torch import save_file
    from sklearn.datasets import load_iris
    from torch import nn

    folder = tmp_path_factory.mktemp("home")
    data = load_iris()
    np.savez(folder / "iris.npz", x=data.data.astype(np.float32), y=data.target)
    (folder / "own_models.py").write_text(MODELS)
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    x = torch.from_numpy(data.data).float()
    x = (x - x.mean(0)) / x.std(0)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(200):
        loss = nn.functional.cross_entropy(teacher(x), torch.from_numpy(data.target).long())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    save_file(teacher.state_dict(), folder / "teacher.safetensors")
    torch.save(teacher.state_dict(), folder / "teacher.pt")
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options that keep a run to seconds."""
    return short(tmp_path_factory.mktemp("suite"))


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """References start at the folder that the user works in."""
    monkeypatch.chdir(home)


def command(out: Path, quick: tuple[str, ...], *settings: str) -> list[str | Path]:
    """The main job on the irises."""
    sets = [f"--set={setting}" for setting in ("data.root=iris.npz", *FAST, *settings)]
    return ["distill-and-export", "arrays", *quick, *sets, "--out", out]


@pytest.mark.parametrize("weights", ["teacher.safetensors", "teacher.pt"])
def test_own_models_and_weights(weights: str, quick: tuple[str, ...], tmp_path: Path) -> None:
    settings = ("data.root=iris.npz", *FAST, *OWN, f"teacher.weights={weights}", "teacher.licence=MIT")
    results = job("arrays", tmp_path / "run", *settings, options=quick)
    rows = rows_of(results)
    assert rows["teacher-onnx"]["accuracy"]["value"] > 0.9
    assert rows["float32"]["accuracy"]["value"] > 0.7
    teacher = json.loads((tmp_path / "run" / "stages" / "teacher.json").read_text())["result"]
    assert teacher["trained"] is False
    assert teacher["parameters"] == 4 * 64 + 64 + 64 * 3 + 3
    manifest = json.loads((tmp_path / "run" / "student.edgekd" / "bundle.json").read_text())
    assert manifest["provenance"]["teacher"]["licence"] == "MIT"
    student = json.loads((tmp_path / "run" / "stages" / "student.json").read_text())["result"]
    assert student["parameters"] == 4 * 12 + 12 + 12 * 3 + 3


def test_a_pickle_is_refused_and_never_run(home: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'was-run'}",)

    (home / "hostile.pt").write_bytes(pickle.dumps(Hostile()))
    told = refused(3, *command(tmp_path / "run", quick, *OWN, "teacher.weights=hostile.pt"))
    assert "hostile.pt" in told
    assert "safetensors" in told
    assert not (tmp_path / "was-run").exists()


@pytest.fixture(scope="module")
def black_box(home: Path, quick: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher as somebody hands it over: an ONNX file."""
    os.chdir(home)
    out = home / "black_box.onnx"
    if not out.exists():
        done = edgekd(*command(tmp_path_factory.mktemp("box") / "run", quick, *OWN, "teacher.weights=teacher.pt"))
        assert done.returncode == 0, done.stderr
        found = Path(done.stdout.split("report ")[1].split()[0]).parent / "export" / "teacher.onnx"
        out.write_bytes(found.read_bytes())
    return out


def test_a_black_box_is_asked_for_its_licence(black_box: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    told = refused(2, *command(tmp_path / "run", quick, "teacher={onnx='black_box.onnx'}"))
    assert "licence" in told
    done = edgekd(*command(tmp_path / "run", quick, "teacher={onnx='black_box.onnx',licence='CC0-1.0'}"))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "student.edgekd" / "bundle.json").read_text())
    assert manifest["provenance"]["teacher"]["licence"] == "CC0-1.0"
    assert ok_json("verify", tmp_path / "run" / "student.edgekd")["ok"]


def test_a_teacher_of_other_classes(quick: tuple[str, ...], tmp_path: Path) -> None:
    told = refused(3, *command(tmp_path / "run", quick, "teacher.model=own_models:five"))
    assert "5" in told
    assert "3" in told
    assert not (tmp_path / "run" / "student").exists()


def test_labels_out_of_range(home: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    y = np.arange(60) % 3
    y[17] = 9
    np.savez(home / "labels.npz", x=x, y=y)
    names = "data.labels=['a','b','c']"
    told = refused(3, *command(tmp_path / "run", quick, "data.root=labels.npz", names))
    assert "9" in told
    assert "labels.npz" in told or "out of range" in told


def test_a_number_that_is_none(home: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    x[23, 2] = np.nan
    np.savez(home / "nan.npz", x=x, y=np.arange(60) % 3)
    told = refused(3, *command(tmp_path / "run", quick, "data.root=nan.npz"))
    assert "NaN" in told
    assert "23" in told


def test_a_teacher_that_gives_nan(home: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    state = load_file(home / "teacher.safetensors")
    save_file({**state, "0.bias": torch.full_like(state["0.bias"], float("nan"))}, home / "nan.safetensors")
    told = refused(5, *command(tmp_path / "run", quick, *OWN, "teacher.weights=nan.safetensors"))
    assert "NaN" in told


def test_a_loss_that_diverges_and_goes_on(quick: tuple[str, ...], tmp_path: Path) -> None:
    wild = ("distill.optimizer=sgd", "distill.schedule=constant", "distill.warmup_epochs=0")
    run = tmp_path / "run"
    told = refused(5, *command(run, quick, *OWN, "teacher.weights=teacher.pt", *wild, "distill.lr=1e30"))
    assert "diverged" in told
    assert "lr" in told
    teacher = (run / "stages" / "teacher.json").read_bytes()
    done = edgekd(*command(run, quick, *OWN, "teacher.weights=teacher.pt", *wild, "distill.lr=0.01"))
    assert done.returncode == 0, done.stderr
    assert (run / "stages" / "teacher.json").read_bytes() == teacher


def test_limits_that_nothing_meets(quick: tuple[str, ...], tmp_path: Path) -> None:
    settings = (*OWN, "teacher.weights=teacher.pt", "limits.size_kb=0.2", "limits.latency_p90_ms=1e-6")
    done = edgekd(*command(tmp_path / "run", quick, *settings))
    assert done.returncode == 1
    assert "size_kb <= 0.2" in done.stderr
    assert "missed by" in done.stderr
    assert "latency_p90_ms" in done.stderr
    assert (tmp_path / "run" / "student.edgekd" / "bundle.json").is_file(), "the best one is there all the same"


def test_a_folder_that_cannot_be_written(quick: tuple[str, ...]) -> None:
    told = refused(4, *command(Path("/sys/edgekd-run"), quick))
    assert "/sys/edgekd-run" in told


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting a small disk takes root: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_loses_nothing(tiny_disk: Path, quick: tuple[str, ...]) -> None:
    run = tiny_disk / "run"
    told = refused(4, *command(run, quick, "student.args={hidden=[512,256]}", "student.model=mlp"))
    assert "space" in told
    for path in run.rglob("*.json"):
        json.loads(path.read_text())
    assert not list(run.rglob("*.safetensors")) or all(path.stat().st_size for path in run.rglob("*.safetensors"))
    # Room again: it goes on.
    subprocess.run(["mount", "-o", "remount,size=64m", str(tiny_disk)], check=True)
    done = edgekd(*command(run, quick, "student.args={hidden=[512,256]}", "student.model=mlp"))
    assert done.returncode in (0, 1), done.stderr
    assert ok_json("verify", run / "student.edgekd")["ok"]
