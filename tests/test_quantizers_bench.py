"""`benchmarks/quantizers.py` runs and gives its JSON; its figures are measured on a quiet machine, not here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def test_the_time_of_export_verify_and_int8_is_told_step_by_step(tmp_path: Path) -> None:
    out = tmp_path / "seconds.json"
    command = [sys.executable, BENCHMARKS / "quantizers.py", "seconds", "--repeats", "1", "--width", "4", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert row["all"] == pytest.approx(row["export"] + row["int8"] + row["verify"])


def test_another_systems_int8_is_made_in_an_interpreter_of_its_own(tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    value = onnx.helper.make_tensor_value_info
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(0, 1, (16, 4)).astype(np.float32), "w")
    ends = [[value(name, 1, ["N", size])] for name, size in (("x", 16), ("y", 4))]
    graph = onnx.helper.make_graph([node], "net", *ends, [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(0, 1, (8, 16)).astype(np.float32))
    script, out = BENCHMARKS / "peers" / "quantize_with.py", tmp_path / "q.onnx"
    command = [sys.executable, script, "onnxruntime", tmp_path / "net.onnx", tmp_path / "x.npz", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "QuantizeLinear" in {item.op_type for item in onnx.load(out).graph.node}
