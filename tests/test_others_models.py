"""quantize, verify and inspect on models and pictures of somebody else, in an environment without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from commands import ok_json, refused
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from test_no_torch import BLOCK

sys.path.insert(0, str(Path(__file__).parent / "graph"))
from graphs import build

from edgekd.device.preprocess import preprocess
from edgekd.errors import DataError, UsageError
from edgekd.spec import TensorSpec, parse_steps
from edgekd.stages.inputs import read_feeds

STEPS = (
    '[{"op":"decode"},{"op":"to_grey"},{"op":"resize","size":[8,8]},{"op":"scale","factor":0.0625},'
    '{"op":"layout","to":"flat"}]'
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's own network, trained on real digits, as a file of opset 12; digits as pictures of odd sizes."""
    folder = tmp_path_factory.mktemp("others")
    x, y = load_digits(return_X_y=True)
    trained = MLPClassifier((48,), random_state=0)
    for _ in range(40):
        trained.partial_fit(x[:1000], y[:1000], classes=np.arange(10))
    nodes, weights, last = [], {}, "x"
    for index, (matrix, bias) in enumerate(zip(trained.coefs_, trained.intercepts_, strict=True)):
        weights |= {f"w{index}": matrix.astype(np.float32), f"b{index}": bias.astype(np.float32)}
        is_last = index + 1 == len(trained.coefs_)
        out = "scores" if is_last else f"h{index}"
        nodes.append(onnx.helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [out], name=f"fc{index}"))
        if not is_last:
            nodes.append(onnx.helper.make_node("Relu", [out], [f"a{index}"]))
            last = f"a{index}"
    model = build(nodes, weights, inputs={"x": ["N", 64]}, outputs={"scores": ["N", 10]}, opset=12, ir_version=6)
    onnx.save(model, folder / "net.onnx")
    random = np.random.default_rng(0)
    for index in range(1000, 1120):
        pixels = np.minimum(x[index].reshape(8, 8) * 16, 255).astype(np.uint8)
        size = tuple(int(side) for side in random.integers(8, 40, 2))
        (folder / "pictures" / str(y[index])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize(size).save(folder / "pictures" / str(y[index]) / f"{index}.png")
    np.savez(folder / "samples.npz", x=x[1000:1300].astype(np.float32))
    return folder


def without_torch(*args: str | Path) -> Any:
    """The command line where torch and all that belongs to it are blocked: its JSON."""
    code = BLOCK + "\nimport json\nsys.argv = ['edgekd', *sys.argv[2:]]\nfrom edgekd.cli.main import main\nmain()\n"
    done = subprocess.run(
        [sys.executable, "-c", code, "torch,torchvision,onnxscript,transformers,accelerate", *map(str, args), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_quantized_from_a_folder_of_pictures(place: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "int8.onnx", tmp_path / "report.json"
    told = without_torch(
        *("quantize", place / "net.onnx", out, "--config", "int8_u8s8", "--data", place / "pictures"),
        *("--preprocess", STEPS, "--limits", "size_kb=12,label_agreement=0.9", "--report", report),
    )
    assert out.stat().st_size == told["size_bytes"] < 12_000
    assert told["label_agreement"] >= 0.9
    assert json.loads(report.read_text())["sha256"] == told["sha256"]
    samples = np.load(place / "samples.npz")["x"]
    answers = [
        onnxruntime.InferenceSession(path).run(None, {"x": samples})[0].argmax(axis=1)
        for path in (place / "net.onnx", out)
    ]
    assert (answers[0] == answers[1]).mean() > 0.9


def test_a_missed_limit_ends_with_1_and_a_report(place: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "int8.onnx", tmp_path / "report.json"
    text = refused(
        1,
        *("quantize", place / "net.onnx", out, "--config", "int8_u8s8", "--data", place / "samples.npz"),
        *("--limits", "size_kb=1", "--report", report),
    )
    assert "size_kb is" in text
    assert not out.exists()
    written = json.loads(report.read_text())
    assert written["missed"][0].startswith("size_kb is")
    assert Path(written["path"]).is_file()


def test_verified_on_pictures_and_on_random_numbers(place: Path, tmp_path: Path) -> None:
    other = onnx.load(place / "net.onnx")
    for tensor in other.graph.initializer:
        if tensor.name == "b1":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(3.0), "b1"))
    onnx.save(other, tmp_path / "other.onnx")
    same = without_torch("verify", place / "net.onnx", place / "net.onnx")
    assert same["ok"]
    assert same["samples"] == "random"
    real = without_torch(
        "verify", place / "net.onnx", place / "net.onnx", "--samples", place / "pictures", "--preprocess", STEPS
    )
    assert (real["ok"], real["num_samples"]) == (True, 120)
    text = refused(1, "verify", place / "net.onnx", tmp_path / "other.onnx", "--samples", place / "samples.npz")
    assert "'scores'" in text


def test_inspected_with_what_each_runtime_says(place: Path) -> None:
    found = without_torch("inspect", place / "net.onnx")
    assert found["opset"] == 12
    assert found["ops"] == {"Gemm": 2, "Relu": 1}
    assert found["macs"] == 64 * 48 + 48 * 10
    assert found["parameters"] == 64 * 48 + 48 + 48 * 10 + 10
    assert found["runtimes"]["onnxruntime"] == "loads it"
    assert "edgekd convert" in found["runtimes"]["ncnn"]
    openvino = found["runtimes"]["openvino"]
    assert openvino == "loads it" or openvino.startswith("not known: openvino is not installed")


SPEC = TensorSpec("x", "float32", ("N", 64))


def test_feeds_are_what_the_steps_make(place: Path) -> None:
    steps = json.loads(STEPS)
    feeds = read_feeds(place / "pictures", [SPEC], steps)
    first = sorted((place / "pictures").rglob("*.png"))[0]
    np.testing.assert_array_equal(feeds["x"][0], preprocess(parse_steps(steps), first))
    assert feeds["x"].shape == (120, 64)


def test_data_that_do_not_fit(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="how the model reads them is not known: add --preprocess, for example"):
        read_feeds(place / "pictures", [SPEC], None)
    with pytest.raises(DataError, match="holds no image"):
        read_feeds(tmp_path, [SPEC], json.loads(STEPS))
    with pytest.raises(DataError, match=r"samples end in \[49\], but 'x' reads \['N', 64\]; check resize and layout"):
        read_feeds(place / "pictures", [SPEC], json.loads(STEPS.replace("[8,8]", "[7,7]")))
    with pytest.raises(DataError, match="expected one; add resize to --preprocess"):
        read_feeds(place / "pictures", [SPEC], [{"op": "decode"}, {"op": "to_grey"}])
    with pytest.raises(UsageError, match="unknown op 'resiz'"):
        read_feeds(place / "pictures", [SPEC], [{"op": "resiz"}])
    with pytest.raises(UsageError, match=r"is one array, but the model reads x, x; give an \.npz"):
        read_feeds(place / "pictures", [SPEC, SPEC], json.loads(STEPS))
    assert ok_json("inspect", place / "net.onnx")["inputs"][0]["name"] == "x"
