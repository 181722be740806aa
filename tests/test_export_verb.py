"""`edgekd export` on models of all kinds: several inputs and outputs, timm, Hugging Face, targets, refusals."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commands import edgekd, refused

from edgekd.distill.models.hub import hugging_face_model
from edgekd.errors import MissingExtra, ModelError, UsageError
from edgekd.graph.metadata import metadata as make_metadata
from edgekd.spec import parse_steps
from edgekd.stages.exporting import ExportRequest, export_model, parse_axis, parse_input

ROOT = Path(__file__).parent.parent


def needs(package: str) -> None:
    """Skip without `package`; in CI that is a failure."""
    if importlib.util.find_spec(package) is None:
        text = f"{package} is not installed"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)


ENCODER = """
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(2, 8), nn.Linear(8, 3)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids, mask):
        x = self.embed(ids)
        hidden = x + self.attend(x, x, x, key_padding_mask=mask == 0, need_weights=False)[0]
        shown = mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * shown).sum(1) / shown.sum(1).clamp(min=1)), hidden

class Drifts(nn.Module):
    calls = 0
    def forward(self, x):
        Drifts.calls += 1
        return x * Drifts.calls

def encoder():
    return Encoder()

def drifting(num_outputs):
    return nn.Sequential(nn.Linear(4, 6), Drifts(), nn.Linear(6, num_outputs))
"""


def metadata(path: Path) -> dict[str, str]:
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def test_a_transformer_with_two_inputs_and_two_outputs_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(ENCODER)
    (tmp_path / "labels.txt").write_text("cat\ndog\nbird\n")
    np.savez(
        tmp_path / "s.npz",
        ids=np.random.default_rng(0).integers(0, 2, (300, 6)),
        mask=(np.arange(6) < np.random.default_rng(1).integers(2, 7, (300, 1))).astype(np.int64),
    )
    done = edgekd(
        "export", "my_models:encoder", "net.onnx", "--inputs", "ids:N,L:int64", "--inputs", "mask:N,L:int64",
        "--outputs", "logits,hidden", "--samples", "s.npz", "--labels", "labels.txt", "--meta", "license=MIT",
        "--opset", "20", "--target", "raspberry_pi", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["opset"], found["ir_version"], found["num_samples"]) == (18, 8, 300)
    assert len(found["axes"]["L"]) >= 5
    model = onnx.load(tmp_path / "net.onnx")
    shapes = {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert shapes == {"ids": ["N", "L"], "mask": ["N", "L"]}
    assert [value.name for value in model.graph.output] == ["logits", "hidden"]
    told = metadata(tmp_path / "net.onnx")
    assert ast.literal_eval(told["names"]) == {0: "cat", 1: "dog", 2: "bird"}
    assert told["license"] == "MIT"
    text = model.SerializeToString()
    assert str(tmp_path).encode() not in text
    assert b"my_models.py" not in text


def test_a_graph_that_differs_is_refused_with_its_first_layer(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(ENCODER)
    text = refused(
        1, "export", "my_models:drifting", "net.onnx", "--inputs", "x:N,4", "--num-outputs", "3", cwd=tmp_path
    )
    assert "the first layer that differs is '1' (Drifts)" in text
    assert "put aside as net.rejected.onnx; net.onnx was not written" in text
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["net.rejected.onnx"]


def test_timm_by_name_with_symbolic_height_and_width(tmp_path: Path) -> None:
    needs("timm")
    request = ExportRequest(
        "timm:test_efficientnet", inputs=("image:N,3,H,W",), num_outputs=7, samples=images(tmp_path, 20)
    )
    found = export_model(request, tmp_path / "a.onnx")
    assert all(len(found.axes[name]) >= 5 for name in ("H", "W"))
    with pytest.raises(ModelError, match=r"timm has no model 'test_efficientnot'. Did you mean 'test_efficientnet'\?"):
        export_model(ExportRequest("timm:test_efficientnot", inputs=("x:N,3,8,8",)), tmp_path / "b.onnx")


def images(folder: Path, size: int) -> Path:
    path = folder / "images.npz"
    np.savez(path, image=np.random.default_rng(0).normal(size=(6, 3, size, size)).astype(np.float32))
    return path


def bert(folder: Path) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_is_proven_within_its_longest_text(tmp_path: Path) -> None:
    needs("transformers")
    folder = bert(tmp_path / "bert")
    found = export_model(ExportRequest(f"hf:{folder}"), tmp_path / "a.onnx")
    assert found.num_samples == 256
    assert len(found.axes["L"]) >= 5
    assert max(found.axes["L"]) <= 40
    ids = np.random.default_rng(0).integers(0, 30, (4, 13))
    mask = np.ones((4, 13), np.int64)
    module = hugging_face_model(str(folder), num_outputs=None, args={})
    with torch.no_grad():
        expected = module(torch.from_numpy(ids), torch.from_numpy(mask))["logits"].numpy()
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input_ids": ids, "attention_mask": mask})[0], expected, atol=1e-5)
    assert hugging_face_model(str(folder), num_outputs=5, args={}).model.config.num_labels == 5
    with pytest.raises(ModelError, match=r"holds no config\.json; expected a folder that save_pretrained wrote"):
        hugging_face_model(str(tmp_path), num_outputs=None, args={})


def test_arguments_of_the_command_line_are_read_or_refused() -> None:
    spec = parse_input("ids:N,L:int64")
    assert (spec.name, spec.dtype, spec.shape) == ("ids", "int64", ("N", "L"))
    assert parse_input("x:N,1,28,28").shape == ("N", 1, 28, 28)
    assert parse_axis("L=4,8,16") == ("L", (4, 8, 16))
    for text in ("x:N,4:int46", "x:4,4", "x", ":N", "x:N,4,"):
        with pytest.raises(UsageError, match="--inputs"):
            parse_input(text)
    for text in ("L", "L=", "L=a", "4=4", "L=4,"):
        with pytest.raises(UsageError, match=r"--axes .*expected NAME=SIZE,SIZE"):
            parse_axis(text)


def test_metadata_are_read_as_ultralytics_reads_them() -> None:
    steps = parse_steps([{"op": "scale"}, {"op": "layout", "to": "CHW"}])
    told = make_metadata(
        name="digits", task="classification", labels=["0", "1"], licence="MIT", sample_shape=(1, 28, 30), steps=steps
    )
    assert told["task"] == "classify"
    assert ast.literal_eval(told["names"]) == {0: "0", 1: "1"}
    assert ast.literal_eval(told["imgsz"]) == [28, 30]
    assert (int(told["stride"]), int(told["batch"]), int(told["channels"])) == (1, 1, 1)
    assert [step["op"] for step in json.loads(told["preprocess"])] == ["scale", "layout"]
    assert told["license"] == "MIT"
    assert "imgsz" not in make_metadata(name="x", task="regression", sample_shape=(4,))


def test_optimum_is_an_extra_of_its_own(tmp_path: Path) -> None:
    """Its graph is proven like ours; it needs another transformers, so an environment of its own."""
    needs("transformers")
    folder = bert(tmp_path / "bert")
    python = os.environ.get("EDGEKD_OPTIMUM_PYTHON")
    if python is None:
        with pytest.raises(MissingExtra, match=r"needs the package 'optimum-onnx'.*edgekd\[optimum\]"):
            export_model(ExportRequest(f"hf:{folder}", exporter="optimum"), tmp_path / "a.onnx")
    else:
        command = [python, "-m", "edgekd", "export", f"hf:{folder}", tmp_path / "a.onnx", "--exporter", "optimum"]
        done = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["axes"]["sequence_length"]) >= 5
    with pytest.raises(UsageError, match="optimum exports hf: models only"):
        export_model(ExportRequest("cnn_s", inputs=("x:N,1,8,8",), exporter="optimum"), tmp_path / "a.onnx")
