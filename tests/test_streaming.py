"""Whole runs on data that is not held in memory, through the command line: tar shards and Arrow files of digits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgekd, ok, ok_json, refused
from digit_files import digit_shards, digits, png
from ends import rows_of, short

import edgekd as package
from edgekd.results import read_results

pytestmark = pytest.mark.slow

RECIPE = """
version = 1
task = "classification"
[data]
kind = "webdataset"
root = "shards"
augment = { shift = 1 }
views = 2
[preprocess]
steps = [{ op = "decode" }, { op = "scale" }, { op = "normalize", mean = "train", std = "train" },
  { op = "layout", to = "flat" }]
[teacher]
model = "mlp"
args = { hidden = [64] }
train = { epochs = 5, lr = 0.01 }
[student]
model = "mlp"
args = { hidden = [32] }
[distill]
epochs = 6
lr = 0.01
cache = true
[quantize]
variants = ["int8_u8s8"]
"""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and the shards that it names."""
    folder = tmp_path_factory.mktemp("streaming")
    digit_shards(folder / "shards", shards=5, words=WORDS)
    (folder / "tars.toml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_CACHE", str(folder / "cache"))


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run."""
    options = short(tmp_path_factory.mktemp("suite"))
    env = {"EDGEKD_CACHE": str(folder / "cache")}
    ran = edgekd("distill-and-export", folder / "tars.toml", *options, "--out", folder / "run", env=env)
    assert ran.returncode == 0, ran.stderr
    return folder / "run"


def test_the_main_job_on_tar_shards(done: Path) -> None:
    results = read_results(done)
    rows = rows_of(results)
    assert rows["teacher-onnx"]["accuracy"]["value"] > 0.7, "six short epochs"
    assert {"float32", "int8_u8s8"} <= set(rows)
    # The bundle reads what the shards held: image files, as they were encoded.
    student = package.load(done / "student.edgekd")
    x, y = digits(100)
    assert list(student.bundle.manifest["labels"]) == sorted(WORDS)
    right = sum(student.predict(png(pixels)).label == WORDS[label] for pixels, label in zip(x, y))
    assert right > 65
    assert results["run"]["budget"]["teacher_passes"] == 2 * 1079


def test_nothing_changed_is_nothing_done_and_samples_are_decoded_once(folder: Path, done: Path, tmp_path: Path) -> None:
    stores = {path: path.stat().st_mtime_ns for path in (folder / "cache" / "data").rglob("rows")}
    assert len(stores) == 1
    told = ok_json("distill", folder / "tars.toml", "--student-only", "--set=threads=1", "--out", tmp_path / "other")
    assert told["stages"]["cache"]["teacher_passes"] == 0, "the same teacher, samples and views: the answers are there"
    assert {path: path.stat().st_mtime_ns for path in stores} == stores
    weights = [(run / "student" / "weights.safetensors").read_bytes() for run in (done, tmp_path / "other")]
    assert weights[0] == weights[1]


def test_killed_and_run_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """In the middle of the decoding, and in the middle of the training."""
    env = {**os.environ, "EDGEKD_CACHE": str(tmp_path / "cache")}
    sets = ("--student-only", "--set=threads=1", "--set=distill.epochs=12", "--set=distill.cache=false")
    command = [sys.executable, "-m", "edgekd", "distill", str(folder / "tars.toml"), *sets]

    def killed_when(*marks: str) -> None:
        process = subprocess.Popen([*command, "--out", str(tmp_path / "cut")], env=env, stderr=subprocess.PIPE)
        end = time.monotonic() + 120
        while not any(list(tmp_path.glob(mark)) for mark in marks):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < end
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    killed_when("cache/data/*/*/index.json")
    killed_when("cut/student/checkpoint.pt")
    for out in ("cut", "whole"):
        assert subprocess.run([*command, "--out", str(tmp_path / out)], env=env, capture_output=True).returncode == 0
    names = ("teacher/weights.safetensors", "student/weights.safetensors")
    assert all((tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    histories = [json.loads((tmp_path / out / "student" / "history.json").read_text()) for out in ("cut", "whole")]
    assert len(histories[0]["history"]) == 12


def test_arrow_gives_what_the_same_pixels_give_from_memory(folder: Path, tmp_path: Path) -> None:
    """The ids are the places in both, and so is all else to the last bit."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'hf'")
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'hf'")
    x, y = digits(400)
    table = pyarrow.table({"image": [png(pixels) for pixels in x], "label": y})
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=64)
    np.savez(tmp_path / "in.npz", x=x[..., None], y=y)
    steps = "preprocess.steps=[{op='scale'}, {op='layout', to='flat'}]"
    sets = ("--set=distill.epochs=1", "--set=teacher.train.epochs=1", "--set=threads=1", "--set=distill.cache=false")
    common: tuple[Any, ...] = ("distill", folder / "tars.toml", "--student-only", *sets)
    from_memory = (f"--set={steps}", "--set=data.kind=arrays", f"--set=data.root={tmp_path / 'in.npz'}")
    from_disk = (f"--set={steps.replace('[', '[{op=' + repr('decode') + '}, ', 1)}", "--set=data.kind=arrow")
    ok(*common, *from_memory, "--out", tmp_path / "memory")
    ok(*common, *from_disk, f"--set=data.root={tmp_path / 'in.parquet'}", "--out", tmp_path / "disk")
    for name in ("teacher", "student"):
        weights = [(tmp_path / run / name / "weights.safetensors").read_bytes() for run in ("memory", "disk")]
        assert weights[0] == weights[1]


def test_what_is_wrong_is_said_in_one_error(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    digit_shards(bad, count=40, shards=1)
    with (bad / "digits-000.tar").open("r+b") as file:
        file.seek(512 + 20)  # inside the first image
        file.write(b"\0" * 40)
    text = refused(3, "distill", folder / "tars.toml", f"--set=data.root={bad}", "--out", tmp_path / "run")
    assert text.startswith("1 sample cannot be used; repair or remove:")
    assert "digits-000.tar: 00000.png: the encoded image cannot be decoded as an image" in text
    text = refused(2, "distill", folder / "tars.toml", "--set=data.root=''", "--set=data.kind=tar")
    assert "data.kind: found 'tar'." in text
    recipe = tmp_path / "rootless.toml"
    recipe.write_text(RECIPE.replace('root = "shards"\n', ""))
    text = refused(2, "distill", recipe)
    assert "data.root is missing: data.kind = 'webdataset' needs the .tar file, or a folder of them" in text
