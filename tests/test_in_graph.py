"""A run whose bundle does its preprocessing and postprocessing inside the graph, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from commands import edgekd, ok, ok_json, refused
from PIL import Image
from sklearn.datasets import load_digits

import edgekd as package
from edgekd.device.bundle import Bundle
from edgekd.device.postprocess import apply_post, parse_post_steps
from edgekd.device.preprocess import preprocess
from edgekd.spec import parse_steps

RECIPE = """
version = 1
name = "odd"
task = "classification"
[data]
kind = "image_folder"
root = "{root}"
licence = "CC BY 4.0"
[preprocess]
steps = [{{op = "decode", alpha = "white"}}, {{op = "to_grey"}}, {{op = "resize", size = 18}},
         {{op = "center_crop", size = [16, 16]}}, {{op = "scale"}}, {{op = "normalize", mean = "train", std = "train"}},
         {{op = "layout", to = "flat"}}]
[postprocess]
steps = [{{op = "softmax", temperature = "calibrated"}}, {{op = "top_k", k = 3}}]
[teacher]
model = "mlp_s"
train = {{epochs = 2}}
[student]
model = "mlp_s"
[distill]
epochs = 3
baseline = false
[export]
preprocess_in_graph = true
postprocess_in_graph = true
formats = ["ort", "openvino"]
[quantize]
variants = ["int8_u8s8"]
[limits]
size_kb = 60
[benchmark]
suite = "{suite}"
"""
SUITE = (
    "min_calls = 8\nmin_blocks = 2\nlaunches = 1\nmax_seconds = 1.0\nblock_ms = 1\ncold_starts = 0\nmemory = false\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits as image files of many sizes and kinds: grey, colour, transparent."""
    place = tmp_path_factory.mktemp("odd")
    x, y = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    for index in range(240):
        pixels = (255 - np.minimum(x[index].reshape(8, 8) * 16, 255)).astype(np.uint8)
        width, height = (int(side) for side in random.integers(9, 70, 2))
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        if index % 3 == 1:
            image = image.convert("RGB")
        if index % 3 == 2:
            image = image.convert("RGBA")
            image.putalpha(Image.fromarray(random.integers(200, 256, (height, width), dtype=np.uint8)))
        target = place / "photos" / f"digit{y[index]}"
        target.mkdir(parents=True, exist_ok=True)
        image.save(target / f"{index}.png")
    (place / "suite.toml").write_text(SUITE)
    (place / "recipe.toml").write_text(RECIPE.format(root=place / "photos", suite=place / "suite.toml"))
    done = edgekd("distill-and-export", place / "recipe.toml", "--out", place / "run", "--threads", 1)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Any:
    return json.loads((folder / "run" / "student.edgekd" / "bundle.json").read_text())


def test_the_bundle_says_what_lies_inside(folder: Path, manifest: Any) -> None:
    assert [step["op"] for step in manifest["preprocess"]] == ["decode"]
    ops = [step["op"] for step in manifest["preprocess_in_graph"]]
    assert ops == ["decode", "to_grey", "resize", "center_crop", "scale", "normalize", "layout"]
    assert [item["shape"] for item in manifest["inputs"]] == [["N", "H", "W", "C"]]
    assert manifest["inputs"][0]["dtype"] == "uint8"
    assert [item["name"] for item in manifest["outputs"]] == [
        "probabilities",
        "top_scores",
        "top_indices",
        "top_labels",
    ]
    assert manifest["postprocess"] == [{"op": "top_k", "k": 3}]
    rows = ok_json("verify", folder / "run" / "student.edgekd")["variants"]
    assert {row["variant"]: row["ok"] for row in rows} == dict.fromkeys(manifest["variants"], True)
    assert "int8_u8s8" in manifest["variants"]


def test_the_temperature_is_calibrated_and_reported(folder: Path, manifest: Any) -> None:
    calibration = manifest["metrics"]["calibration"]
    softmax = manifest["postprocess_in_graph"][0]
    assert softmax == {"op": "softmax", "temperature": calibration["temperature"]}
    assert calibration["temperature"] != 1
    assert calibration["nll_after"] <= calibration["nll_before"]
    report = (folder / "run" / "report.md").read_text()
    assert "ece before" in report
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["run"]["calibration"] == calibration
    # Judged by the file that ships, which is larger than the network.
    sizes = {item["name"]: item["value"] for item in results["run"]["limits"]}
    shipped = manifest["variants"][results["run"]["chosen"]]["size_bytes"] / 1000
    assert sizes["size_kb"] == pytest.approx(shipped, abs=0.5)


def test_every_file_gets_the_answer_of_numpy_and_the_network(folder: Path, manifest: Any) -> None:
    """The network that the run kept, with numpy before and after it: what other bundles are."""
    network = onnxruntime.InferenceSession(folder / "run" / "export" / "student.onnx")
    steps = parse_steps(manifest["preprocess_in_graph"])
    post = parse_post_steps(manifest["postprocess_in_graph"])
    files = sorted((folder / "photos").rglob("*.png"))[::6]
    with package.load(folder / "run" / "student.edgekd", variant="float32") as predictor:
        predictor.warm_up()
        answers = predictor.predict_batch(files, top_k=3)  # of all sizes at once
        for path, answer in zip(files, answers, strict=True):
            logits = network.run(None, {"input": preprocess(steps, path)[np.newaxis]})[0]
            expected = apply_post(post, logits)[0]
            np.testing.assert_allclose(answer.outputs["probabilities"], expected, atol=0.02)
            assert answer.outputs["top_labels"].tolist() == [label for label, _ in answer.top]
            alone = predictor.predict(path)
            assert alone.label == answer.label
            np.testing.assert_allclose(alone.outputs["probabilities"], answer.outputs["probabilities"], atol=1e-6)


def test_arrays_as_an_app_has_them(folder: Path) -> None:
    files = sorted((folder / "photos").rglob("*.png"))[:9]
    bundle = folder / "run" / "student.edgekd"
    with package.load(bundle) as predictor:
        for path in files:
            with Image.open(path) as image:
                array = np.asarray(image)
            np.testing.assert_array_equal(
                predictor.predict(array).outputs["probabilities"], predictor.predict(path).outputs["probabilities"]
            )
        with pytest.raises(package.errors.DataError, match="found samples of float32, but the model reads uint8"):
            predictor.predict(np.zeros((20, 20, 3), np.float32))


def test_benchmark_and_predict_take_such_a_bundle(folder: Path, tmp_path: Path) -> None:
    bundle, out = folder / "run" / "student.edgekd", tmp_path / "r.json"
    ok("benchmark", bundle, "--suite", folder / "suite.toml", "--out", out)
    candidate = json.loads(out.read_text())["candidates"][0]
    assert candidate["golden"] == "ok"
    assert candidate.get("error") is None
    path = next((folder / "photos").rglob("*.png"))
    [row] = ok_json("predict", bundle, path, "--top-k", 3)["predictions"]
    assert row["outputs"]["top_labels"] == [label for label, _ in row["top"]]


def test_export_of_the_run_is_the_graph_of_its_bundle(folder: Path, manifest: Any, tmp_path: Path) -> None:
    out = tmp_path / "whole.onnx"
    ok("export", folder / "run", out, "--preprocess-in-graph", "--postprocess-in-graph")
    golden = Bundle.open(folder / "run" / "student.edgekd").golden()
    found = onnxruntime.InferenceSession(out).run(["probabilities"], {"input": golden["input.input"]})[0]
    np.testing.assert_allclose(found, golden["output.float32.probabilities"], atol=1e-5)
    text = refused(2, "export", "mlp", tmp_path / "m.onnx", "--inputs", "input:N,8", "--preprocess-in-graph")
    assert "need the steps of a run's recipe; export the network, then: edgekd bundle MODEL.onnx" in text


def test_a_bundle_is_not_wrapped_twice(folder: Path, tmp_path: Path) -> None:
    text = refused(2, "bundle", folder / "run", tmp_path / "b.edgekd", "--preprocess-in-graph")
    assert "the graphs of this bundle do their preprocessing themselves already" in text
    text = refused(2, "bundle", folder / "run", tmp_path / "b.edgekd", "--samples", 3)
    assert "the data are kept after resize and crop" in text


def test_somebody_elses_model_becomes_such_a_bundle(folder: Path, tmp_path: Path) -> None:
    """The exported network alone, as a file that came from elsewhere."""
    steps = [
        {"op": "decode"},
        {"op": "to_grey"},
        {"op": "resize", "size": [16, 16], "filter": "bicubic"},
        {"op": "scale"},
        {"op": "layout", "to": "flat"},
    ]
    out = tmp_path / "b.edgekd"
    made = ok_json(
        *("bundle", folder / "run" / "export" / "student.onnx", out, "--licence", "MIT"),
        *("--labels", ",".join(f"digit{number}" for number in range(10)), "--preprocess", json.dumps(steps)),
        *("--postprocess", '[{"op": "softmax", "temperature": 2}, {"op": "top_k", "k": 2}]'),
        *("--preprocess-in-graph", "--postprocess-in-graph"),
    )
    assert made["variants"] == ["float32"]
    path = next((folder / "photos").rglob("*.png"))
    network = onnxruntime.InferenceSession(folder / "run" / "export" / "student.onnx")
    logits = network.run(None, {"input": preprocess(parse_steps(steps), path)[np.newaxis]})[0][0]
    shares = np.exp(logits / 2) / np.exp(logits / 2).sum()
    [row] = ok_json("predict", out, path)["predictions"]
    np.testing.assert_allclose(row["outputs"]["probabilities"], shares, atol=0.02)
    assert len(row["outputs"]["top_labels"]) == 2
    assert ok_json("verify", out)["ok"]


def test_other_runtimes_get_the_whole_graph_too(folder: Path, manifest: Any) -> None:
    """What the recipe asked for lies beside the bundle, or it was said why not; never a file that answers otherwise."""
    record = json.loads((folder / "run" / "stages" / "bundle.json").read_text())["result"]["formats"]
    made = sorted(path.name for path in (folder / "run" / "formats").iterdir() if path.suffix != ".bin")
    assert made == sorted(record["made"])
    assert "float32.ort" in made
    for file, reason in record["refused"].items():
        assert file.endswith(".xml"), (file, reason)
