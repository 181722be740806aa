"""Files that cannot be used, through the command line: one sentence, its exit code, no traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import edgekd, refused
from onnx import ModelProto, TensorProto, helper, numpy_helper

WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def model(*nodes: onnx.NodeProto, weight: np.ndarray = WEIGHT) -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"), *nodes],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


def last(kind: str, domain: str = "") -> onnx.NodeProto:
    return helper.make_node(kind, ["h"], ["y"], name="last", domain=domain)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    onnx.save(model(last("Relu")), tmp_path / "good.onnx")
    return tmp_path / "good.onnx"


def test_weights_that_lie_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 48)
    bad = model(last("Relu"))
    tensor = bad.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "a/m.onnx").write_bytes(bad.SerializeToString())
    text = refused(3, "inspect", tmp_path / "a/m.onnx")
    assert "'w' are said to lie in '../secret', which is not inside the model's folder" in text
    text = refused(3, "quantize", tmp_path / "a/m.onnx", tmp_path / "q.onnx", "--config", "int8_dynamic")
    assert "which is not inside the model's folder" in text
    assert not (tmp_path / "q.onnx").exists()


def test_a_file_of_three_gigabytes_is_refused_by_its_size(tmp_path: Path, good: Path) -> None:
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(3 << 30)
    assert "has 3,221,225,472 bytes, but one ONNX file holds" in refused(3, "inspect", tmp_path / "huge.onnx")


@pytest.mark.parametrize(
    ("bad", "verb", "text"),
    [
        (model(last("SiLU")), "inspect", "node 'last' (SiLU) is not an operator of opset 18; use Mul with Sigmoid"),
        (model(last("Reluu", "com.example")), "verify", "such as Relu, or as a function inside the model"),
        (model(last("RandomNormalLike")), "verify", "node 'last' (RandomNormalLike) draws random numbers"),
        (model(last("Relu"), weight=WEIGHT * np.float32(np.nan)), "quantize", "the weight 'w' holds 12 NaN"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(tmp_path: Path, bad: ModelProto, verb: str, text: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(bad.SerializeToString())
    more = {"inspect": (), "verify": (path,), "quantize": (tmp_path / "q.onnx", "--config", "int8_dynamic")}[verb]
    done = edgekd(verb, path, *more)
    assert done.returncode == 3, done.stderr
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_damaged_bytes_end_in_a_sentence(tmp_path: Path, good: Path) -> None:
    data = bytearray(good.read_bytes())
    for place in (1, len(data) // 2):
        data[place] ^= 0xFF
    (tmp_path / "bad.onnx").write_bytes(data[:-9])
    done = edgekd("verify", good, tmp_path / "bad.onnx")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1


def test_two_files_that_differ_end_in_the_name_of_the_first_layer(tmp_path: Path, good: Path) -> None:
    onnx.save(model(last("Relu"), weight=WEIGHT * np.float32(1.1)), tmp_path / "other.onnx")
    text = refused(1, "verify", good, tmp_path / "other.onnx")
    assert "the first layer that differs is 'first' (MatMul): by" in text
