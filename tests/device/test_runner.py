"""The runner: one small file that measures with nothing but numpy and a runtime around it."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from device_models import linear_model, weights, write_bundle
from make_models import FOLDER

from edgekd.device import runner
from edgekd.device.candidates import Candidate, Samples
from edgekd.device.plans import Request, read_plan, to_json
from edgekd.device.postprocess import Sigmoid, Threshold
from edgekd.device.suites import Suite, load_suite
from edgekd.device.zipapp import MAIN, MAX_BYTES, runner_bytes, write_runner
from edgekd.errors import InputRefused, UsageError
from edgekd.spec import Layout, Scale

TINY = Suite("tiny", min_calls=16, max_seconds=1.0, block_ms=1.0, cold_starts=0, memory=False, min_blocks=4, launches=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stick: the runner, a bundle, models beside it and labelled samples."""
    folder = tmp_path_factory.mktemp("stick")
    write_runner(folder / "bench.pyz")
    bundle = write_bundle(folder / "a.edgekd")
    for name in ("linear.tflite", "linear.param", "linear.bin"):
        shutil.copy(FOLDER / name, folder / name)
    raw, y = bundle.golden()["raw"], bundle.golden()["output.float32.logits"].argmax(axis=1)
    np.savez(folder / "data.npz", x=raw, y=y)
    return folder


def call(folder: Path, *args: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Run the runner; -I keeps it from finding this checkout."""
    command = [python, "-I", "bench.pyz", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_it_is_small_deterministic_and_holds_the_device_side_only(folder: Path) -> None:
    data = (folder / "bench.pyz").read_bytes()
    assert data == runner_bytes()
    assert len(data) <= MAX_BYTES
    assert data.startswith(b"#!/usr/bin/env python3\n")
    names = zipfile.ZipFile(folder / "bench.pyz").namelist()
    assert "edgekd/device/benchmark.py" in names
    assert not [name for name in names if "/cli/" in name or "/graph/" in name or "/distill/" in name]
    assert os.access(folder / "bench.pyz", os.X_OK)


def test_a_bundle_on_a_stick(folder: Path) -> None:
    done = call(folder, "a.edgekd", "linear.tflite", "linear.param", "--same-as", "a.edgekd", "--data", "data.npz")
    assert done.returncode == 0, done.stderr
    for text in ("a.edgekd:float32", "linear.tflite", "linear.param", "p50 ms", "benchmark ", "wrote result.json"):
        assert text in done.stdout
    results = json.loads((folder / "result.json").read_text())
    assert results["schema"] == "edgekd.results/1"
    assert [item["golden"] for item in results["candidates"]] == ["ok"] * 3
    assert [row["accuracy"]["value"] for row in results["rows"]] == [1.0] * 3
    assert all(row["n"] >= 128 for row in results["rows"])


def test_it_says_what_the_machine_is(folder: Path) -> None:
    found = json.loads(call(folder, "--probe").stdout)
    assert found["cores"] >= 1
    assert found["machine"]["cpu"]
    assert "onnxruntime" not in found["missing"]
    assert "onnxruntime-qnn" in found["missing"]


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ((), 2, "found no candidate; expected a bundle or a model"),
        (("nowhere.edgekd",), 3, "nowhere.edgekd is not there"),
        (("a.edgekd", "--suite", "quik"), 2, "no suite is called 'quik'. Did you mean 'quick'?"),
        (("a.edgekd", "--out", "result.txt"), 3, "expected a name that ends in .json or .json.gz"),
        (("--plan", "data.npz"), 3, "expected a plan that edgekd wrote"),
    ],
)
def test_mistakes_end_in_a_sentence(folder: Path, args: tuple[str, ...], code: int, text: str) -> None:
    done = call(folder, *args)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_candidate_that_fails_ends_with_one(folder: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"no model")
    done = call(folder, "broken.onnx", "--out", "broken.json")
    assert done.returncode == 1
    assert "cannot load" in done.stdout


def test_old_pythons_and_those_without_numpy_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    ast.parse(MAIN, feature_version=(3, 4))  # an old Python must be able to read it before it can say so
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "numpy", None)
        with pytest.raises(SystemExit, match="error: this runner needs numpy and an inference runtime: pip"):
            exec(MAIN, {"__name__": "main"})  # noqa: S102  our own text
        patched.setattr(sys, "version_info", (3, 8, 18))
        patched.setattr(sys, "version", "3.8.18 (main)")
        with pytest.raises(SystemExit, match=r"error: this runner needs Python 3\.10 or newer, found 3\.8\.18"):
            exec(MAIN, {"__name__": "main"})  # noqa: S102  our own text


def test_every_file_inside_is_read_by_the_oldest_python() -> None:
    with zipfile.ZipFile(io.BytesIO(runner_bytes())) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                ast.parse(archive.read(name), name, feature_version=(3, 10))


def _request(folder: Path) -> Request:
    (folder / "net.onnx").write_bytes(linear_model(weights()))
    return Request(
        (
            Candidate("a", str(folder / "a.edgekd"), variant="float32", threads=1, batch=2),
            Candidate(
                "net",
                str(folder / "net.onnx"),
                preprocess=(Scale(0.5), Layout("flat")),
                postprocess=(Sigmoid(), Threshold(0.25)),
                options={"session_config": {"session.x": "1"}},
                same_as=(str(folder / "a.edgekd"), "float32"),
            ),
        ),
        TINY,
        "a",
        Samples(np.arange(8).reshape(4, 2), np.arange(4), "classification", ("x", "y")),
        7,
        True,
    )


def test_a_plan_is_read_as_it_was_written(folder: Path) -> None:
    request = _request(folder)
    assert request.samples is not None
    np.savez(folder / "samples.npz", x=request.samples.x, y=request.samples.y)
    plan = to_json(request, place=lambda model: Path(model).name, samples_file="samples.npz")
    (folder / "plan.json").write_text(json.dumps(plan))
    found = read_plan(folder / "plan.json")
    assert found.candidates == request.candidates
    assert (found.suite, found.against, found.seed, found.profile) == (TINY, "a", 7, True)
    assert found.samples is not None
    np.testing.assert_array_equal(found.samples.x, request.samples.x)
    assert (found.samples.task, found.samples.labels) == ("classification", ("x", "y"))
    again = to_json(found, place=lambda model: Path(model).name, samples_file="samples.npz")
    assert again == plan


def test_a_plan_of_another_version_or_damaged_is_refused(folder: Path, tmp_path: Path) -> None:
    plan = to_json(_request(folder), place=lambda model: model, samples_file="samples.npz")
    path = tmp_path / "plan.json"
    for broken, text in (
        ({**plan, "schema": "edgekd.plan/2"}, "is no plan of the version edgekd.plan/1"),
        ([], "is no plan of the version"),
        ({key: value for key, value in plan.items() if key != "suite"}, "lacks 'suite'"),
        ({**plan, "candidates": [{"id": "a"}]}, "lacks 'same_as'"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(InputRefused, match=text):
            read_plan(path)


def test_a_plan_is_measured_and_the_result_packed(folder: Path) -> None:
    request = Request((Candidate("a", str(folder / "a.edgekd"), variant="float32"),), TINY)
    plan = to_json(request, place=lambda model: Path(model).name, samples_file="")
    (folder / "short.json").write_text(json.dumps(plan))
    assert call(folder, "--plan", "short.json", "--out", "short.json.gz").returncode == 0
    results = json.loads(gzip.decompress((folder / "short.json.gz").read_bytes()))
    assert results["suite"]["name"] == "tiny"
    assert results["rows"][0]["n"] >= 16


STOP = """
import os, signal, sys
sys.path.insert(0, "bench.pyz")
from edgekd.device import runner

def measure(request):
    def stop(text, done, total):
        if text == "timing":
            os.kill(os.getpid(), signal.SIGTERM)
    return runner.benchmark(request.candidates, suite=request.suite, keep_partial=True, progress=stop)

runner.measure = measure
sys.exit(runner.main(["a.edgekd", "--out", "stopped.json"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM to oneself is POSIX")
def test_being_ended_keeps_what_was_measured(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", STOP], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    assert json.loads((folder / "stopped.json").read_text())["interrupted"] is True


def test_suites_inside_and_outside_the_file(folder: Path) -> None:
    assert runner.find_suite("quick") == load_suite("quick")
    with pytest.raises(UsageError, match="no suite is called 'quik'"):
        runner.find_suite("quik")
    with zipfile.ZipFile(folder / "bench.pyz") as archive:
        packed = json.loads(archive.read("edgekd/_runner/suites.json"))
    assert set(packed) == {"quick", "full", "cpu", "cuda", "mobile", "web"}
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "importing changes nothing"
