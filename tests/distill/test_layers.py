"""Export names the layer at which the graph parts from the module, and proves each symbolic axis at several sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekd.distill.to_onnx import export
from edgekd.errors import AnswerIsNo, ModelError, UsageError
from edgekd.graph.targets import Target
from edgekd.graph.verification import verify
from edgekd.spec import Array, TensorSpec


def tokens(count: int = 9, length: int = 6) -> dict[str, Array]:
    return {"x": np.random.default_rng(3).normal(size=(count, length, 4)).astype(np.float32)}


SEQUENCE = TensorSpec("x", "float32", ("N", "L", 4))


class Remembers(nn.Module):
    """Scales by the length that it saw first: what was traced is right at one length only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: float | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The length is known to Python only, as in caches of position encodings.
        length = len(x[0].detach().tolist()) if not torch.compiler.is_compiling() else 6
        return x / length


class Freezes(nn.Module):
    """torch's exporter turns the length into a number, and its own check passes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.shape[1])


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def student(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), middle, nn.Linear(8, 5), Mean())


def test_an_axis_is_proven_at_five_sizes_and_the_graph_is_folded(tmp_path: Path) -> None:
    found = export(student(nn.Identity()), tmp_path / "a.onnx", inputs=(SEQUENCE,), samples=tokens())
    assert len(found.axes["L"]) >= 5
    assert found.num_samples == 9
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert not {node.op_type for node in model.graph.node} & {"Identity", "Constant", "BatchNormalization", "Dropout"}


def test_an_axis_that_the_exporter_freezes_without_a_word_is_found(tmp_path: Path) -> None:
    with pytest.raises(AnswerIsNo) as caught:
        export(student(Freezes()), tmp_path / "a.onnx", inputs=(SEQUENCE,), samples=tokens())
    assert "axis 1 ('L') of input 'x' is frozen at 6" in str(caught.value)
    assert "x.shape[1]" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.rejected.onnx"]


def test_an_axis_that_is_kept_but_wrong_at_other_sizes_is_found_and_its_layer_named(tmp_path: Path) -> None:
    with pytest.raises(AnswerIsNo) as caught:
        export(student(Remembers()), tmp_path / "a.onnx", inputs=(SEQUENCE,), samples=tokens())
    assert "(worst at L = " in str(caught.value)
    assert "the first layer that differs is '2' (Remembers)" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.rejected.onnx"]


def test_a_torchscript_trace_that_keeps_its_axis_is_found_too(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(1) / float(x.shape[1])

    with torch.no_grad(), pytest.warns():
        torch.onnx.export(
            Scaled(), (torch.zeros(2, 6, 4),), str(tmp_path / "t.onnx"), dynamo=False, input_names=["x"],
            output_names=["logits"], dynamic_axes={"x": {0: "N", 1: "L"}},
        )  # fmt: skip

    def reference(feeds: dict[str, Array]) -> dict[str, Array]:
        return {"logits": feeds["x"].mean(axis=1)}

    result = verify(reference, tmp_path / "t.onnx", tokens())  # type: ignore[arg-type]
    assert not result.ok
    assert "(worst at L = " in result.problems[0]


class Drifts(nn.Module):
    """Every call gives something else."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


def test_the_first_layer_that_differs_is_named_also_beside_a_right_branch_and_a_folded_norm(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
            self.left, self.drift, self.right = nn.Conv2d(4, 4, 1), Drifts(), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head((self.drift(self.left(x)) + self.right(x)).mean((2, 3)))

    torch.manual_seed(0)
    module = Branches()
    module.stem[1].running_var.uniform_(2, 3)
    samples = {"x": np.random.default_rng(0).normal(size=(6, 1, 8, 8)).astype(np.float32)}
    with pytest.raises(AnswerIsNo, match=r"the first layer that differs is 'drift' \(Drifts\)"):
        export(module, tmp_path / "a.onnx", inputs=(TensorSpec("x", "float32", ("N", 1, 8, 8)),), samples=samples)


def test_weights_that_are_nan_are_named(tmp_path: Path) -> None:
    module = student(nn.Identity())
    with torch.no_grad():
        module[3].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"the weight '3\.weight' holds 1 NaN of 40 numbers; expected a trained model"):
        export(module, tmp_path / "a.onnx", inputs=(SEQUENCE,), samples=tokens())


def test_too_few_sizes_are_no_proof(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"axes: 'L' has the sizes \[4, 8\], expected at least 5 different ones"):
        export(student(nn.Identity()), tmp_path / "a.onnx", inputs=(SEQUENCE,), samples=tokens(), axes={"L": [4, 8]})


def test_a_target_lowers_the_opset(tmp_path: Path) -> None:
    board = Target("board", "an old one", "onnxruntime", ("float32",), {"*": ("float32",)}, max_opset=16, max_ir=7)
    found = export(
        student(nn.Identity()), tmp_path / "a.onnx", inputs=(SEQUENCE,), samples=tokens(), target=board, opset=20
    )
    assert (found.opset, found.ir_version) == (16, 7)
    model = onnx.load(tmp_path / "a.onnx")
    assert [item.version for item in model.opset_import] == [16]
    norm = nn.Sequential(nn.LayerNorm(4), Mean())  # opset 17 brought LayerNormalization
    with pytest.raises(AnswerIsNo, match="the target 'board' loads opset 16 at most, and the graph of opset 18 cannot"):
        export(norm, tmp_path / "b.onnx", inputs=(SEQUENCE,), samples=tokens(), target=board)
