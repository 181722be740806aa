"""Export: proven at many batch sizes on real samples, silent, the same bytes when built twice, or put aside."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from real_data import real_data
from torch import nn

from edgekd.distill.models import MODELS, TEXT_MODELS, build_model
from edgekd.distill.to_onnx import ExportResult, export
from edgekd.errors import AnswerIsNo, ModelError, UsageError
from edgekd.graph.quantization import VARIANTS, quantize
from edgekd.graph.verification import verify
from edgekd.spec import Array, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"mlp": (12,), "cnn": (1, 8, 8), "dscnn": (3, 9, 7), "resnet": (1, 8, 8), "tcn": (16, 3)}


def samples_of(shape: tuple[int, ...], count: int = 11) -> dict[str, Array]:
    return {"input": np.random.default_rng(5).normal(size=(count, *shape)).astype(np.float32)}


def export_plain(module: nn.Module, path: Path, shape: tuple[int, ...] = (4,), **options: object) -> ExportResult:
    given: dict[str, object] = {
        "inputs": (TensorSpec("input", "float32", ("N", *shape)),),
        "samples": samples_of(shape),
        **options,
    }
    return export(module, path, **given)  # type: ignore[arg-type]


def run(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


class Of(nn.Module):
    """A module around one function; the parameter makes it trainable."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, *args: torch.Tensor) -> object:
        return self.function(self.weight, *args)


class Plain(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(x)


# One of each family: the sizes of a family differ in their widths alone.
FAMILIES = ["mlp_s", "mlp_teacher", "cnn_s", "dscnn_s", "resnet_s", "resnet_teacher", "tcn_s", "tcn_teacher"]


def test_the_families_are_all_there_are() -> None:
    sizes = {f"{name[:-1]}{size}" for name in FAMILIES if name.endswith("_s") for size in "sml"}
    assert sizes | set(FAMILIES) | {"mlp"} == MODELS.keys() - TEXT_MODELS


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_exports_agrees_with_torch_and_quantizes(tmp_path: Path, name: str) -> None:
    shape = SHAPES[name.partition("_")[0]]
    torch.manual_seed(0)
    module = build_model(
        name, num_outputs=4, input_shape=shape, args={"depth": 8} if name == "resnet_teacher" else None
    )
    with torch.no_grad():  # fresh batch norm is nearly the identity: give it something to fold
        for part in module.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)
    path = tmp_path / "student.onnx"
    result = export_plain(module, path, shape)
    assert (result.opset, result.ir_version, result.path) == (18, 8, path)
    assert result.size_bytes == path.stat().st_size
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.batch_sizes == (1, 2, 3, 5, 8, 16)
    assert sorted(tmp_path.iterdir()) == [path]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(v.name, v.type.tensor_type.shape.dim[0].dim_param) for v in model.graph.input] == [("input", "N")]
    assert [(v.name, v.type.tensor_type.shape.dim[0].dim_param) for v in model.graph.output] == [("logits", "N")]
    for size in (1, 4, 7, 33):
        x = np.random.default_rng(size).normal(size=(size, *shape)).astype(np.float32)
        with torch.no_grad():
            expected = module.eval()(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(run(path, {"input": x})[0], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    quantize(path, tmp_path / "int8.onnx", VARIANTS["int8_u8s8"], calibration=samples_of(shape, 40))
    compared = verify(path, tmp_path / "int8.onnx", samples_of(shape), tolerance="int8")
    assert compared.batch_sizes == (1, 2, 3, 5, 8, 16)
    assert 0 < compared.max_rel_diff < 0.25


def test_real_images(tmp_path: Path) -> None:
    raw = gzip.decompress((real_data("FashionMNIST") / "raw/t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:200].astype(np.float32) / 255
    torch.manual_seed(0)
    module = build_model("resnet_teacher", num_outputs=10, input_shape=(1, 28, 28), args={"width": 8, "depth": 8})
    result = export_plain(module, tmp_path / "a.onnx", (1, 28, 28), samples={"input": images})
    assert 0 < result.max_abs_diff < 1e-4


SCRIPT = """
import sys, numpy as np, torch
from edgekd.distill.models import build_model
from edgekd.distill.to_onnx import export
from edgekd.errors import AnswerIsNo
from edgekd.spec import TensorSpec
torch.manual_seed(0)
module = build_model("tcn_s", num_outputs=3, input_shape=(16, 2))
samples = {"input": np.linspace(-1, 1, 5 * 32, dtype=np.float32).reshape(5, 16, 2)}
spec = TensorSpec("input", "float32", ("N", 16, 2))
export(module, sys.argv[1] + "/a.onnx", inputs=(spec,), samples=samples)
class Branch(torch.nn.Module):
    def forward(self, x):
        return x[:, 0] if x.sum() > 0 else -x[:, 0]
try:
    export(Branch(), sys.argv[1] + "/b.onnx", inputs=(spec,), samples=samples)
except AnswerIsNo:
    pass
else:
    raise SystemExit("a branch on values came out as a graph")
"""


def test_same_bytes_in_other_processes_and_not_a_word_printed(tmp_path: Path) -> None:
    contents = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT, str(folder)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        contents.append((folder / "a.onnx").read_bytes())
    assert contents[0] == contents[1]
    model = onnx.load_from_string(contents[0])
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # weights may hold any byte
    for trace in (b"/", b"stack_trace", b"pkg.torch", b".py"):
        assert trace not in model.SerializeToString(), trace


def test_same_bytes_in_one_process_and_nothing_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = build_model("cnn_s", num_outputs=3, input_shape=(1, 8, 8))
    first = export_plain(module, tmp_path / "a.onnx", (1, 8, 8))
    again = export_plain(module, tmp_path / "b.onnx", (1, 8, 8))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert first.sha256 == again.sha256
    assert capfd.readouterr() == ("", "")


def test_the_module_is_not_touched(tmp_path: Path) -> None:
    module = build_model("cnn_s", num_outputs=3, input_shape=(1, 8, 8)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    export_plain(module, tmp_path / "a.onnx", (1, 8, 8))
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module(torch.randn(4, 1, 8, 8)).sum().backward()


FROZEN = [
    (
        lambda x: x[:, :2] * float(x.shape[0]),
        "the batch axis 'N' of input 'input' is frozen at 2: the model's forward turns that size into a fixed number",
    ),
    (
        lambda x: x.reshape(2, -1)[:, :2],
        "the batch axis of output 'logits' is frozen at 2: the model's forward writes that size as a fixed number",
    ),
    (lambda x: x[:, :2] - x[:, :2].mean(0) if x.shape[0] > 1 else x[:, :2], "(worst at batch size 1)"),
    (lambda x: x[:, :2] / (x[:, :2] - x[:, :2]), "output 'logits' of the reference is NaN or infinite"),
]


@pytest.mark.parametrize(("function", "text"), FROZEN)
def test_what_is_not_proven_is_put_aside(
    tmp_path: Path, function: Callable[[torch.Tensor], torch.Tensor], text: str
) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"an older file")
    with pytest.raises(AnswerIsNo) as caught:
        export_plain(Plain(function), path)
    assert text in str(caught.value)
    rejected = tmp_path / "student.rejected.onnx"
    assert f"The graph was put aside as {rejected}; student.onnx was not written" in str(caught.value)
    onnx.load(rejected)
    assert path.read_bytes() == b"an older file"
    assert sorted(tmp_path.iterdir()) == [path, rejected]
    # The next export that is proven clears it away.
    export_plain(Plain(lambda x: x[:, :2]), path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_numbers_that_differ_are_put_aside(tmp_path: Path) -> None:
    class Drifts(nn.Module):
        """Every call gives something else: what was traced is not what runs."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(AnswerIsNo, match="output 'logits' differs by up to"):
        export_plain(Drifts(), tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.rejected.onnx"]


def test_tolerance_follows_the_size_of_the_outputs(tmp_path: Path) -> None:
    """The same relative rounding must pass at 1e6 and at 1e-6."""
    torch.manual_seed(0)
    body = build_model("mlp_l", num_outputs=3, input_shape=(12,))
    for scale in (1e6, 1e-6):
        module = nn.Sequential(body, Plain(lambda x, scale=scale: x * scale))  # type: ignore[misc]
        result = export_plain(module, tmp_path / "a.onnx", (12,))
        assert result.max_abs_diff < 1e-5 * scale


def test_a_model_that_cannot_be_traced_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(AnswerIsNo) as caught:
        export_plain(Branching(), tmp_path / "a.onnx")
    message = str(caught.value)
    assert "the model cannot be exported to ONNX: Could not guard on data-dependent expression" in message
    assert f"(test_to_onnx.py, line {Branching.LINE})" in message
    assert "use torch.where" in message
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    LINE = sys._getframe().f_lineno + 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] if x.sum() > 0 else -x[:, :2]


def test_named_outputs_several_inputs_and_a_second_symbolic_axis(tmp_path: Path) -> None:
    def forward(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hidden": left, "logits": weight * left.sum(dim=1) + right, "unused": right}

    rng = np.random.default_rng(0)
    samples = {
        "right": rng.normal(size=(9, 3)).astype(np.float32),
        "left": rng.normal(size=(9, 6, 3)).astype(np.float32),
    }
    path = tmp_path / "two.onnx"
    export(
        Of(forward),
        path,
        inputs=(TensorSpec("left", "float32", ("N", "L", 3)), TensorSpec("right", "float32", ("N", 3))),
        outputs=("logits", "hidden"),
        samples=samples,
    )
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == ["left", "right"]
    assert [value.name for value in model.graph.output] == ["logits", "hidden"]
    left = rng.normal(size=(4, 17, 3)).astype(np.float32)
    logits, hidden = run(path, {"left": left, "right": samples["right"][:4]})
    np.testing.assert_allclose(logits, left.sum(axis=1) + samples["right"][:4], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(hidden, left)


def test_metadata_opset_and_one_sample(tmp_path: Path) -> None:
    result = export_plain(
        build_model("mlp_s", num_outputs=2, input_shape=(4,)),
        tmp_path / "a.onnx",
        samples=samples_of((4,), 1),
        opset=21,
        ir_version=10,
        metadata={"names": "a, b"},
        batch_sizes=(1, 4),
    )
    model = onnx.load(tmp_path / "a.onnx")
    assert {prop.key: prop.value for prop in model.metadata_props} == {"names": "a, b"}
    assert [item.version for item in model.opset_import] == [21] == [result.opset]
    assert model.ir_version == 10
    assert result.batch_sizes == (1, 4)


INPUT = TensorSpec("input", "float32", ("N", 4))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"opset": 17}, UsageError, "found opset 17, expected 18 to 24"),
        ({"inputs": ()}, UsageError, "found no inputs, expected at least one TensorSpec"),
        (
            {"inputs": (TensorSpec("input", "float32", (1, 4)),)},
            UsageError,
            "input 'input' has the shape [1, 4], expected a symbolic batch axis first",
        ),
        ({"samples": {"x": np.zeros((3, 4), np.float32)}}, UsageError, "the samples hold ['x'], expected 'input' too"),
        (
            {"samples": {"input": np.zeros((3, 5), np.float32)}},
            UsageError,
            "samples for 'input' are float32 [3, 5], expected float32 ['N', 4] with at least one sample",
        ),
        ({"samples": {"input": np.zeros((3, 4))}}, UsageError, "samples for 'input' are float64 [3, 4]"),
        ({"samples": {"input": np.zeros((0, 4), np.float32)}}, UsageError, "samples for 'input' are float32 [0, 4]"),
        ({"outputs": ("logits", "hidden")}, ModelError, "the model gives 1 outputs, expected 2: logits, hidden"),
        (
            {"inputs": (TensorSpec("input", "float32", ("N", 5)),), "samples": samples_of((5,))},
            ModelError,
            "the model fails on samples of shape [2, 5]",
        ),
    ],
)
def test_arguments_that_do_not_fit(
    tmp_path: Path, options: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        export_plain(nn.Linear(4, 2), tmp_path / "a.onnx", **options)
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mapping_without_the_output_names_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the model gives \['hidden'\], expected the outputs \['logits'\]"):
        export_plain(Plain(lambda x: {"hidden": x}), tmp_path / "a.onnx")
