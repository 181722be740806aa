"""Graphs that quantize activations at run time are judged as they are timed: one sample at a time, without padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from spaces import make_space, write_texts

from edgekd.device import worker
from edgekd.device.runtimes import open_session
from edgekd.device.runtimes.chunks import rows_at_once
from edgekd.graph.quantization import Fp16, Int8Dynamic, quantize
from edgekd.spec import steps_to_json
from edgekd.stages.graphs import answers
from edgekd.stages.shipping import make_golden
from edgekd.stages.workspace import Workspace

pytest.importorskip("tokenizers", reason="models of texts need the extra text")


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return make_space(write_texts(tmp_path))


def write_graph(folder: Path) -> Path:
    """ids (N, L) -> rows of a table, of which that of the padding is far larger -> a matrix -> sum over L."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((60, 16)).astype(np.float32)
    table[0] *= 30
    weights = {"table": table, "w": rng.standard_normal((16, 2)).astype(np.float32), "axes": np.array([1])}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["each"], name="matrix"),
        helper.make_node("ReduceMax", ["each", "axes"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "texts",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "L"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    quantize(model, folder / "dynamic.onnx", Int8Dynamic())
    quantize(model, folder / "half.onnx", Fp16())
    return folder / "dynamic.onnx"


def one_by_one(path: Path, rows_NT: np.ndarray) -> np.ndarray:
    """What a loop over texts of their own lengths gives."""
    session = open_session(path, threads=1)
    texts = (row[row != 0][np.newaxis].astype(np.int64) for row in rows_NT)
    return np.concatenate([session.run({"input_ids": ids})["logits"] for ids in texts])


def test_a_run_judges_them_one_by_one(space: Workspace, tmp_path: Path) -> None:
    path, val = write_graph(tmp_path), space.prepared.dataset.val
    wanted = one_by_one(path, val.x[:])
    together = open_session(path, threads=1).run(space.prepared.feeds(val))["logits"]
    assert np.abs(together - wanted).max() > 0.1, "padding and neighbours change answers"
    np.testing.assert_array_equal(answers(path, space.prepared, val), wanted)


@pytest.mark.parametrize("kind", ["file", "bundle"])
def test_a_benchmark_judges_them_one_by_one(space: Workspace, tmp_path: Path, kind: str, monkeypatch) -> None:
    path, val = write_graph(tmp_path), space.prepared.dataset.val
    model = path
    if kind == "bundle":  # whose graphs come as bytes
        model = tmp_path / "one.edgekd"
        found = type("Fake", (), {"graph": lambda self, variant: path.read_bytes()})()
        monkeypatch.setattr(worker, "looks_like_bundle", lambda place: place == model)
        monkeypatch.setattr(worker, "open_session", lambda *_, **options: open_session(path, threads=1))
        monkeypatch.setattr(worker.Bundle, "open", lambda place: found)
    np.save(tmp_path / "x.npy", val.x[:])
    state = worker.State()
    command = {"model": str(model), "variant": "int8_dynamic", "runtime": "onnxruntime", "threads": 1, "options": {}}
    command |= {"batch": 1, "samples": str(tmp_path / "x.npy"), "golden": None, "seed": 0, "memory": False}
    if kind == "file":
        command["variant"] = None
    worker.load(state, {**command, "preprocess": steps_to_json(space.prepared.arithmetic)})
    worker.evaluate(state, {"samples": str(tmp_path / "x.npy"), "out": str(tmp_path / "y.npy")})
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), one_by_one(path, val.x[:]))


def test_golden_vectors_are_one_batch_as_every_loader_proves_them(space: Workspace, tmp_path: Path) -> None:
    path = write_graph(tmp_path)
    golden = make_golden(space.prepared, {"int8_dynamic": path}, seed=0)
    together = open_session(path, threads=1).run({"input_ids": golden["input.input_ids"]})["logits"]
    np.testing.assert_array_equal(golden["output.int8_dynamic.logits"], together)


def test_only_graphs_that_measure_at_run_time_are_run_one_by_one(tmp_path: Path) -> None:
    path = write_graph(tmp_path)
    assert rows_at_once(path, 64) == rows_at_once(path.read_bytes(), 64) == 1
    assert rows_at_once(tmp_path / "half.onnx", 64) == 64
    (tmp_path / "empty").write_bytes(b"")
    assert rows_at_once(tmp_path / "empty", 64) == rows_at_once(tmp_path, 64) == 64
