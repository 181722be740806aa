"""`edgekd benchmark` over several runtimes, threads and batch sizes; converted files; Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import edgekd, ok, ok_json, refused

from edgekd.device.machine import available_cores
from edgekd.results import read_results

sys.path.insert(0, str(Path(__file__).parent / "device"))
from device_models import linear_model, weights, write_bundle
from make_models import FOLDER, litert_model

SUITE = (
    "min_calls = 64\nmin_blocks = 4\nlaunches = 2\nmax_seconds = 20.0\nblock_ms = 1\ncold_starts = 0\nmemory = false\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, a larger teacher, the bundle's model for LiteRT and ncnn, and labelled samples."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tiny.toml").write_text(SUITE)
    bundle = write_bundle(folder / "a.edgekd")
    (folder / "teacher.onnx").write_bytes(linear_model(weights(), shape=(1, 4, 4)))
    for name in ("linear.tflite", "linear.param", "linear.bin"):
        shutil.copy(FOLDER / name, folder / name)
    (folder / "wrong.tflite").write_bytes(litert_model(weights() * 1.01))
    raw, answers = bundle.golden()["raw"], bundle.golden()["output.float32.logits"].argmax(axis=1)
    np.savez(folder / "data.npz", x=np.tile(raw, (20, 1, 1, 1)), y=np.tile(answers, 20))
    return folder


def test_candidates_times_runtimes_times_threads_times_batches(folder: Path) -> None:
    threads = "1,2" if available_cores() > 1 else "1"
    results = ok_json(
        "benchmark", folder / "a.edgekd", "--against", folder / "teacher.onnx", "--suite", folder / "tiny.toml",
        "--runtime", "onnxruntime,openvino", "--threads", threads, "--batch", "1,4", "--data", folder / "data.npz",
    )  # fmt: skip
    count = 2 * 2 * 2 * len(threads.split(","))
    assert len(results["rows"]) == count
    # Not the percentiles: on a busy machine the calls may be too much alike in time to tell them.
    assert all(row["n"] >= 64 for row in results["rows"])
    assert all(row["accuracy"]["value"] == 1.0 for row in results["rows"])
    kinds = {(item["runtime"], item["threads"], item["batch"]) for item in results["candidates"]}
    assert len(kinds) == count // 2
    assert {item["golden"] for item in results["candidates"] if item["variant"]} == {"ok"}
    assert results["interrupted"] is False


def test_converted_files_are_proven_before_they_are_timed(folder: Path) -> None:
    out = folder / "converted.json"
    done = edgekd(
        "benchmark", folder / "a.edgekd", folder / "linear.tflite", folder / "linear.param", folder / "wrong.tflite",
        "--same-as", folder / "a.edgekd", "--suite", folder / "tiny.toml", "--data", folder / "data.npz", "--out", out,
    )  # fmt: skip
    assert done.returncode == 1
    assert "wrong.tflite: does not give its golden outputs here (output 'logits' differs by up to" in done.stderr
    results = read_results(out)
    golden = {item["id"]: (item["runtime"], item["golden"]) for item in results["candidates"]}
    assert golden == {
        "a.edgekd:float32": ("onnxruntime", "ok"),
        "linear.tflite": ("litert", "ok"),
        "linear.param": ("ncnn", "ok"),
        "wrong.tflite": ("litert", "WRONG"),
    }
    rows = {row["candidate"]: row for row in results["rows"]}
    assert rows["linear.tflite"]["accuracy"]["value"] == rows["linear.param"]["accuracy"]["value"] == 1.0
    assert rows["linear.param"]["size_bytes"] == sum(
        (FOLDER / f"linear.{end}").stat().st_size for end in ("param", "bin")
    )
    assert rows["wrong.tflite"]["n"] == 0
    assert {item["label"] for item in rows["linear.tflite"]["per_class"]} <= {"cat", "dog", "owl"}
    assert rows["linear.tflite"]["metrics"]["f1_macro"] == 1.0
    ok("report", out, "--md", folder / "converted.md")
    assert "## Accuracy in detail: linear.tflite" in (folder / "converted.md").read_text()
    assert "WRONG" in done.stdout


def test_a_profile_is_printed_kept_and_reported(folder: Path) -> None:
    out = folder / "profile.json"
    models = (folder / "a.edgekd", folder / "linear.tflite")
    text = ok("benchmark", *models, "--suite", folder / "tiny.toml", "--profile", "--out", out)
    assert "ms in operators, median of 50 calls" in text
    assert "linear.tflite: no profile; its runtime cannot tell" in text
    operators = read_results(out)["rows"][0]["profile"]["operators"]
    assert operators[0]["kind"] in text
    ok("report", out, "--md", folder / "profile.md")
    assert "## Costliest operators: a.edgekd:float32" in (folder / "profile.md").read_text()


def test_a_suite_names_runtimes_and_threads(folder: Path) -> None:
    suite = folder / "mine.toml"
    suite.write_text(SUITE + 'runtimes = ["onnxruntime", "onnxruntime-qnn"]\nthreads = [1, 4096]\nbatches = [1, 2]\n')
    done = edgekd("benchmark", folder / "teacher.onnx", "--suite", suite, "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [item["id"] for item in results["candidates"]] == ["teacher.onnx b1", "teacher.onnx b2"]
    assert "left out of the suite mine: onnxruntime-qnn: this onnxruntime has no QNN" in done.stderr
    assert "left out of the suite mine: 4096 threads" in done.stderr


def test_mistakes_end_in_a_sentence(folder: Path) -> None:
    model = folder / "teacher.onnx"
    assert "Did you mean 'openvino'" in refused(2, "benchmark", model, "--runtime", "openvin")
    assert "none of the candidates is a file that it opens" in refused(2, "benchmark", model, "--runtime", "ncnn")
    assert "--threads: found 'x'" in refused(2, "benchmark", model, "--threads", "x")
    assert "found threads=4096" in refused(2, "benchmark", model, "--threads", "4096")
    assert "has no variant 'int9'" in refused(2, "benchmark", model, "--same-as", f"{folder / 'a.edgekd'}:int9")
    assert "nowhere.tflite is not there; expected a bundle" in refused(3, "benchmark", folder / "nowhere.tflite")


STOP = """
import os, signal, sys
from edgekd.cli import main
from edgekd.cli.progress import Counter

told = []

def stop(self, text, done, total):
    told.append(text)
    if told.count("timing") == 2:
        os.kill(os.getpid(), signal.SIGINT)

Counter.__call__ = stop
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals to oneself are POSIX")
def test_ctrl_c_keeps_what_was_measured(folder: Path) -> None:
    out = folder / "stopped.json"
    arguments = ("benchmark", folder / "a.edgekd", "--suite", folder / "tiny.toml", "--out", out)
    done = subprocess.run(
        [sys.executable, "-c", STOP, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 130, done.stderr
    assert f"interrupted; what was measured is in {out}" in " ".join(done.stderr.split())
    results = read_results(out)
    assert results["interrupted"] is True
    assert results["rows"][0]["n"] > 0
    assert "interrupted" in results["verdict"]["reasons"][0]
