"""The runner on 64-bit ARM, emulated: every variant gives its golden outputs, integers to the bit. Never for timing."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import ok
from ends import IRIS, job, short, write_iris

PYTHON = os.environ.get("EDGEKD_AARCH64")
REASON = "EDGEKD_AARCH64 names no `python` of tests/device/make_aarch64.sh"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason=REASON)]

ANSWER = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
x = numpy.load(sys.argv[2])
numpy.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: x})[0])
"""


def emulated(*args: str | Path) -> subprocess.CompletedProcess[str]:
    assert PYTHON is not None
    return subprocess.run([PYTHON, *map(str, args)], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aarch64")
    variants = 'quantize.variants=["int8_u8s8", "int8_s8s8", "int8_dynamic"]'
    table = write_iris(folder / "iris.csv")
    job("arrays", folder / "run", f"data.root={table}", *IRIS, variants, options=short(folder))
    return folder / "run"


def test_the_runner_proves_every_variant_there(run: Path, tmp_path: Path) -> None:
    ok("runner", tmp_path / "bench.pyz")
    out = tmp_path / "result.json.gz"
    done = emulated(tmp_path / "bench.pyz", run / "student.edgekd", "--out", out)
    assert out.exists(), done.stdout + done.stderr
    with gzip.open(out) as file:
        results = json.load(file)
    assert results["machine"]["cpu_kind"] == "aarch64"
    golden = {item["id"].partition(":")[2]: item["golden"] for item in results["candidates"]}
    assert set(golden) >= {"float32", "int8_u8s8", "int8_s8s8", "int8_dynamic"}
    assert set(golden.values()) == {"ok"}, results["candidates"]
    assert all(row["n"] >= 16 for row in results["rows"])


def test_static_int8_answers_the_same_bits_there(run: Path, tmp_path: Path) -> None:
    import onnxruntime

    (model,) = (run / "student.edgekd").rglob("*int8_u8s8*.onnx")
    session = onnxruntime.InferenceSession(model)
    spec = session.get_inputs()[0]
    x = np.random.default_rng(0).normal(size=(64, *spec.shape[1:])).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "answer.py").write_text(ANSWER)
    done = emulated(tmp_path / "answer.py", model, tmp_path / "x.npy", tmp_path / "y.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), session.run(None, {spec.name: x})[0])
