"""The engine through the command line: what can be tapped, and whole runs that learn from features, on real digits."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import ok, ok_json, refused
from ends import job, rows_of, short

from edgekd.device.bundle import Bundle

OWN = """
from torch import nn


def student(num_outputs, input_shape, width=4):
    body = nn.Sequential(nn.Conv2d(input_shape[0], width, 3, padding=1), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_outputs))


def imitate(student_NKHW, teacher_NKHW, *, power=2.0):
    return (student_NKHW - teacher_NKHW).abs().pow(power).mean()


class Mean(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.layer = nn.Conv2d(before, after, 1)

    def forward(self, student, teacher, batch):
        return self.layer(student), sum(teacher) / len(teacher), {}


def mean_of_several(student_shape, teacher_shape, *, student_module, teacher_module, num_samples):
    assert len(teacher_shape) == len(teacher_module) == 2
    return Mean(student_shape[0], teacher_shape[0][0])
"""

RECIPE = """
threads = 1
[data]
kind = "digits"
limit = 900
augment = {shift = 1}
[preprocess]
steps = [{op = "scale"}, {op = "layout", to = "CHW"}]
[teacher]
model = "resnet_teacher"
args = {width = 12, depth = 8}
licence = "Apache-2.0"
train = {epochs = 4, batch_size = 64, lr = 2e-3}
[student]
model = "cnn_s"
licence = "Apache-2.0"
[distill]
batch_size = 64
lr = 5e-3
ema = 0.9
clip_norm = 5.0
mixup = 0.1
[[distill.terms]]
loss = "kd"
weight = {start = 0.2, end = 0.9, until = 0.5}
options = {temperature = {start = 4.0, end = 2.0}}
[[distill.terms]]
loss = "cross_entropy"
weight = 0.1
[[distill.terms]]
name = "at"
loss = "attention_transfer"
weight = 1000
student_tap = "1"
teacher_tap = "2"
[[distill.terms]]
loss = "hint"
weight = 10
student_tap = "2"
teacher_tap = "3"
[[distill.terms]]
name = "own"
loss = "own:imitate"
student_tap = "1.0"
teacher_tap = ["2", "2.residual.2"]
adapter = "own:mean_of_several"
[[distill.stages]]
name = "hints"
epochs = 3
terms = ["hint", "at", "own"]
[[distill.stages]]
name = "soft"
epochs = 15
terms = ["kd", "cross_entropy", "at"]
lr = 1e-2
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "own.py").write_text(OWN)
    (folder / "features.toml").write_text(RECIPE)
    return folder


def paths(tables: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    (table,) = [table for table in tables["models"] if table["name"] == name]
    return {row["path"]: row for row in table["taps"]}


def test_taps_of_a_built_in_and_of_torchvision() -> None:
    text = ok("taps", "cnn_s", "--input", "1,8,8")
    assert "cnn_s, samples of 1x8x8" in text
    assert any(line.split() == ["1.0", "Conv2d", "16x4x4", "1,152"] for line in text.splitlines())
    assert paths(ok_json("taps", "encoder_xs"), "encoder_xs")["layers.1.query"]["outputs"] == [[32, 64]]
    rows = paths(ok_json("taps", "torchvision:resnet18"), "torchvision:resnet18")
    assert rows["layer2.0.conv1"]["outputs"] == [[128, 28, 28]]
    assert rows["layer2.0.conv1"]["inputs"] == [[64, 56, 56]]
    assert rows["fc"]["parameters"] == 512 * 10 + 10
    assert rows["layer1.0.relu"]["calls"] == 2


def test_taps_of_a_recipe_and_of_your_own_model(project: Path) -> None:
    rows = paths(ok_json("taps", "teacher", "--recipe", project / "features.toml"), "teacher")
    assert rows["3"]["outputs"] == [[48, 2, 2]]
    (table,) = json.loads(
        ok("taps", "own:student", "--input", "3,6,6", "--args", '{"width": 7}', "--json", cwd=project)
    )["models"]
    assert table["taps"][0] == {
        "path": "0", "module": "Sequential", "parameters": 7 * 27 + 7, "inputs": [[3, 6, 6]], "outputs": [[7, 6, 6]],
        "calls": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "arguments", "text"),
    [
        (
            2,
            ("own:student",),
            "taps own:student: the shape of a sample is not known; add --input 1,28,28 with your sizes",
        ),
        (2, ("nn:x",), "taps nn:x: the shape of a sample is not known"),
        (2, ("cnn_s", "--input", "1,x"), "--input 1,x: expected the sizes of one sample, such as 1,28,28, without the"),
        (2, ("teacher", "--recipe", "digits", "--input", "1,8,8"), "the recipe says it all; leave out --input"),
        (3, ("cnn_x",), "unknown model 'cnn_x'. Did you mean 'cnn_s'?"),
        (3, ("cnn_s", "--input", "8"), "found samples of shape [8], expected images"),
    ],
)
def test_taps_that_cannot_be_listed(project: Path, code: int, arguments: tuple[str, ...], text: str) -> None:
    assert text in refused(code, "taps", *arguments, cwd=project)


@pytest.mark.parametrize(
    ("code", "override", "text"),
    [
        (3, "distill.terms.2.student_tap=layer1", "the tap 'layer1' leads nowhere: there is no module 'layer1'"),
        (3, "distill.terms.2.teacher_tap='9'", "the tap '9' leads nowhere"),
        (3, "distill.terms.4.adapter=own:mean", "the module own has no 'mean'. Did you mean"),
        (
            2,
            "distill.terms.4.adapter=auto",
            "found [16, 4, 4] of the student and [[24, 4, 4], [24, 4, 4]] of the teacher, expected as many",
        ),
        (2, "distill.terms.1.loss=dkd", "With mixup or cutmix the labels are shares of the classes (N, C)"),
    ],
)
def test_mistakes_are_told_before_the_teacher_is_trained(
    project: Path, tmp_path: Path, code: int, override: str, text: str
) -> None:
    folder = tmp_path / "run"
    sets = (
        (f"--set={override}", "--set=distill.stages.1.terms=['kd', 'dkd', 'at']")
        if "dkd" in override
        else (f"--set={override}",)
    )
    assert text in refused(code, "distill", project / "features.toml", *sets, "--out", folder)
    assert not (folder / "teacher").exists()


@pytest.fixture(scope="module")
def run(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The whole job: hints and attention from inside the teacher, then soft labels, then ONNX, int8, bundle, report."""
    folder = tmp_path_factory.mktemp("features")
    return folder / "run", job(project / "features.toml", folder / "run", options=short(folder))


@pytest.mark.slow
def test_a_run_that_learns_from_features(run: tuple[Path, dict[str, Any]]) -> None:
    path, results = run
    assert rows_of(results)["float32"]["accuracy"]["value"] > 0.6
    history = json.loads((path / "student" / "history.json").read_text())["history"]
    assert [item["stage"] for item in history] == ["hints"] * 3 + ["soft"] * 15
    assert list(history[0]["terms"]) == ["at", "hint", "own"]
    assert list(history[-1]["terms"]) == ["kd", "cross_entropy", "at"]
    assert history[2]["terms"]["hint"] < history[0]["terms"]["hint"]
    assert all(value > 0 for value in history[0]["gradients"].values())
    # Nothing of the adapters is shipped.
    rows = paths(ok_json("taps", "student", "--recipe", path / "recipe.toml"), "student").values()
    assert ok_json("inspect", path / "export" / "student.onnx")["parameters"] <= sum(
        row["parameters"] for row in rows if "." not in row["path"]
    )
    Bundle.open(path / "student.edgekd").verify_files()
    report = (path / "report.html").read_text()
    assert "loss per epoch and term (hints: epochs 1 to 3; soft: 4 to 18)" in report
    assert "Student: norm of each term's gradient, in one step of an epoch" in html.unescape(report)
    assert ">hint<" in report
    assert ">at<" in report


@pytest.mark.slow
def test_taps_of_a_run(run: tuple[Path, dict[str, Any]]) -> None:
    tables = ok_json("taps", run[0])
    assert [table["name"] for table in tables["models"]] == ["student", "teacher"]
    assert paths(tables, "student")["5"]["outputs"] == [[10]]


@pytest.mark.slow
def test_killed_between_stages_it_ends_in_the_same_bytes(
    project: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """kill -9 while the student learns its hints, and again in the stage after."""
    again = tmp_path / "run"
    command = [sys.executable, "-m", "edgekd", "distill", str(project / "features.toml"), *short(tmp_path), "--out",
               str(again)]  # fmt: skip
    for epochs in (1, 4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        end = time.monotonic() + 120
        while trained_epochs(again) < epochs:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert epochs <= trained_epochs(again) < 18
    ok("distill", project / "features.toml", *short(tmp_path), "--out", again)
    for name in ("teacher", "student"):
        assert (again / name / "weights.safetensors").read_bytes() == (
            run[0] / name / "weights.safetensors"
        ).read_bytes()


def trained_epochs(run: Path) -> int:
    import torch

    checkpoint = run / "student" / "checkpoint.pt"
    if not checkpoint.is_file():
        return 0
    return len(json.loads(torch.load(checkpoint, weights_only=True)["record"])["history"])


@pytest.mark.slow
def test_the_cache_keeps_features_of_mixed_samples(project: Path, tmp_path: Path) -> None:
    """Two runs that differ in the student only: the second asks the teacher nothing, and learns from its features."""
    environment = {"EDGEKD_CACHE": str(tmp_path / "cache")}
    settings = (*short(tmp_path), "--set=distill.cache=true", "--set=data.views=2", "--set=distill.cache_dtype=float32")
    first = cached(project, tmp_path / "first", settings, environment)
    second = cached(project, tmp_path / "second", (*settings, "--set=distill.clip_norm=1.0"), environment)
    assert first["cache"]["teacher_passes"] == 2 * first["cache"]["num_samples"]
    assert second["cache"]["teacher_passes"] == 0
    other = cached(project, tmp_path / "third", (*settings, "--set=distill.mixup=0.4"), environment)
    assert other["cache"]["teacher_passes"] > 0, "other mixtures, other answers"


def cached(project: Path, out: Path, settings: tuple[str, ...], environment: dict[str, str]) -> dict[str, Any]:
    from commands import edgekd

    done = edgekd("distill", project / "features.toml", *settings, "--out", out, "--json", env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["stages"]
    return found
