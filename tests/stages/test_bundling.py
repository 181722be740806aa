"""Somebody's ONNX file as a bundle, and two models beside each other: judged by the precision that they compute in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from spaces import write_project

from edgekd.device.selftest import self_test
from edgekd.graph.quantization import Fp16, Int8Static, quantize
from edgekd.stages.alone import verify_models
from edgekd.stages.bundling import bundle_model, bundle_run
from edgekd.stages.shipping import BUNDLE, GOLDEN_SHARE, golden_tolerance


def save_mlp(path: Path, *, batch: int | str = "N") -> Path:
    rng = np.random.default_rng(0)
    tensors = {"w": rng.standard_normal((8, 16)), "v": rng.standard_normal((16, 3))}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def bundle(model: Path, out: Path):
    return bundle_model(
        model, out, name="net", task="classification", labels=None, steps=(), licence="MIT", as_zip=False, seed=0
    )


def test_a_half_precision_model_is_not_held_to_float32(tmp_path: Path) -> None:
    model = save_mlp(tmp_path / "net.onnx")
    quantize(model, tmp_path / "half.onnx", Fp16())
    loose = verify_models(model, tmp_path / "half.onnx", samples=None, strict=False, seed=0)
    assert loose["ok"], loose["problems"]
    assert not verify_models(model, tmp_path / "half.onnx", samples=None, strict=True, seed=0)["ok"]


def test_a_bundled_integer_model_says_what_it_is_and_gets_the_tolerance_of_one(tmp_path: Path) -> None:
    model = save_mlp(tmp_path / "net.onnx")
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    quantize(model, tmp_path / "small.onnx", Int8Static(), calibration={"x": x})
    plain, small = bundle(model, tmp_path / "a.edgekd"), bundle(tmp_path / "small.onnx", tmp_path / "b.edgekd")
    assert (plain.variants, small.variants) == (("float32",), ("int8",))
    assert small.manifest["variants"]["int8"]["precision"] == "int8"
    assert small.manifest["default"] == {"*": "int8"}
    tolerance = [item.manifest["variants"][item.variants[0]]["tolerance"]["abs"] for item in (plain, small)]
    assert tolerance[1] > 100 * tolerance[0]
    assert all(row["ok"] for item in (plain, small) for row in self_test(item))


def test_a_model_with_a_fixed_batch_axis_is_bundled(tmp_path: Path) -> None:
    made = bundle(save_mlp(tmp_path / "net.onnx", batch=1), tmp_path / "a.edgekd")
    assert self_test(made)[0]["ok"]


def test_golden_outputs_allow_a_rounding_step_and_no_saturation() -> None:
    golden = [np.array([[3.0, -10.0]], np.float32)]
    int8 = golden_tolerance("int8", golden)
    assert int8["abs"] == pytest.approx(GOLDEN_SHARE * 10)
    assert 2 * 20 / 256 < int8["abs"] < 0.1 * 10, "more than two steps of the range, less than a tenth of an output"
    assert golden_tolerance("float32", golden)["label_agreement"] == 1.0
    assert golden_tolerance("float32", golden)["abs"] < 1e-3


def test_labelled_samples_travel_in_the_users_units(tmp_path: Path) -> None:
    write_project(tmp_path, "regression")
    bundle(save_mlp(tmp_path / "net.onnx"), tmp_path / BUNDLE)
    written = bundle_run(tmp_path, tmp_path / "out.edgekd", as_zip=True, samples=5)
    found = written.samples()
    assert found is not None
    x, y = found
    assert len(x) == 5
    assert y == pytest.approx(5000 + 300 * x[:, :2], rel=1e-5)
