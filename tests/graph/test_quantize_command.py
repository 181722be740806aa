"""`edgekd quantize` through the command line: mixtures, the calibration cache, samples that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import ok, ok_json, refused
from graphs import load, mlp, samples
from test_mixed import BAD, DEPTH, inputs, planted

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(mlp(), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", **samples(mlp(), 120))
    return tmp_path / "net.onnx"


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, Path]:
    """A model whose int8 is no better than guessing, and samples."""
    onnx.save(planted(), tmp_path / "planted.onnx")
    feeds = inputs(400, seed=5)
    feeds["x"][:, 0] = 0.0
    return tmp_path / "planted.onnx", save(tmp_path / "planted.npz", **feeds)


def test_a_mixture_leaves_the_broken_layers_in_float_and_says_what_it_took(broken, tmp_path: Path) -> None:
    path, data = broken
    out = tmp_path / "q.onnx"
    told = ok_json("quantize", path, out, "--mixed", "--data", data, "--limits", "label_agreement=0.9")
    search = told["search"]
    assert told["config"] == "mixed"
    assert set(BAD) <= set(search["put_back"])
    assert search["evaluations"] <= search["most_evaluations"] == DEPTH + 1 + 8
    assert told["label_agreement"] >= 0.9
    floats = {t.name for t in load(out).graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert {f"w{name.removeprefix('/fc').removesuffix('/Gemm')}" for name in BAD} <= floats


def test_a_limit_that_int8_misses_makes_a_mixture_by_itself(broken, tmp_path: Path) -> None:
    path, data = broken
    said = ok("quantize", path, tmp_path / "q.onnx", "--data", data, "--limits", "label_agreement=0.9")
    assert "layers in mixed" in said
    assert f"evaluations of at most {DEPTH + 9}" in said
    assert all(name in said for name in BAD)


def test_the_calibration_cache_is_kept_used_and_refused_for_another_model(model: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "ranges.json", tmp_path / "q.onnx"
    command = (
        "quantize",
        model,
        out,
        "--data",
        tmp_path / "x.npz",
        "--calibration",
        "mse",
        "--calibration-cache",
        cache,
    )
    first = ok_json(*command)["sha256"]
    told = json.loads(cache.read_text())
    assert [item["method"] for item in told["calibrations"]] == ["mse"]
    assert ok_json(*command)["sha256"] == first
    told["calibrations"][0]["ranges"]["x"] = [-9.0, 9.0]
    cache.write_text(json.dumps(told))
    assert ok_json(*command)["sha256"] != first, "the ranges of the file are used"
    onnx.save(mlp(seed=4), model)
    assert "holds the ranges of another model" in refused(3, *command)


@pytest.mark.parametrize(
    ("arrays", "code", "text"),
    [
        ({"x": np.zeros((40, 16), np.float32)}, 3, "nothing but zeros in all of its 40 samples"),
        ({"x": np.full((40, 16), np.nan, np.float32)}, 3, "holds NaN or infinite numbers (first in sample 0)"),
        ({"x": np.ones((0, 16), np.float32)}, 2, "at least 1"),
        ({"x": np.ones((40, 17), np.float32)}, 2, "samples for 'x' are float32 [40, 17]"),
        ({"x": np.ones((40, 16), np.float64)}, 2, "samples for 'x' are float64 [40, 16]"),
        ({"images": np.ones((40, 16), np.float32)}, 2, "the samples name the inputs ['images']"),
    ],
)
@pytest.mark.parametrize("config", ["int8_static", "mixed"])
def test_samples_that_cannot_calibrate_are_refused(arrays, code, text, config, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    data = save(tmp_path / "bad.npz", **arrays)
    assert text in refused(code, "quantize", model, out, "--config", config, "--data", data)
    assert not out.exists()


def test_options_that_contradict_each_other_are_refused(model: Path, tmp_path: Path) -> None:
    command = ("quantize", model, tmp_path / "q.onnx", "--data", tmp_path / "x.npz")
    assert "--mixed and --config fp16: give one of them" in refused(2, *command, "--mixed", "--config", "fp16")
    assert "--config fp16 is not calibrated" in refused(2, *command, "--config", "fp16", "--calibration", "mse")
    assert "Did you mean 'mse'?" in refused(2, *command, "--calibration", "msee")
    without = ("quantize", model, tmp_path / "q.onnx", "--mixed")
    assert "needs calibration samples as the model sees them: add --data FILE.npz" in refused(2, *without)


@pytest.mark.parametrize("config", ["int8_qat", "int4_qat"])
def test_what_is_trained_is_not_made_here_and_says_where_it_is(model: Path, tmp_path: Path, config: str) -> None:
    text = refused(2, "quantize", model, tmp_path / "q.onnx", "--config", config, "--data", tmp_path / "x.npz")
    assert f"--config {config} is trained on data and a teacher" in text
    assert f"""--set 'quantize.variants=["int8_u8s8", "{config}"]'""" in text
    assert "Without training: --config mixed" in text
    assert not (tmp_path / "q.onnx").exists()
