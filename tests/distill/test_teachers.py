"""Teachers: frozen, constant, and stopped when they give nonsense."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from edgekd.device.postprocess import Denormalize
from edgekd.distill.losses.logits import kd
from edgekd.distill.models import build_model
from edgekd.distill.teachers import EnsembleTeacher, ModuleTeacher, OnnxTeacher, StandardizedTeacher
from edgekd.errors import ModelError, StageFailed, UsageError
from edgekd.graph.clean import save_model


def batch_of(x: Tensor) -> dict[str, Tensor]:
    return {"x": x, "y": torch.zeros(len(x), dtype=torch.int64), "id": torch.arange(100, 100 + len(x))}


def graph(path: Path, op: str, *, batch: int | str = "N", output: str = "scores", inputs: int = 1) -> Path:
    """A graph of one node on (batch, 3): Neg, Softmax, Identity, Log ... or Sum of several inputs."""
    names = [f"in{i}" for i in range(inputs)]
    body = helper.make_graph(
        [helper.make_node(op, names, [output])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in names],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 3])],
    )
    return save_model(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def test_a_module_teacher_is_frozen_and_in_eval_mode() -> None:
    torch.manual_seed(0)
    module = build_model("mlp_teacher", num_outputs=3, input_shape=(4,)).train()
    teacher = ModuleTeacher(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.randn(6, 4)
    first, again = teacher(batch_of(x))["logits"], teacher(batch_of(x))["logits"]
    assert torch.equal(first, again), "dropout or batch norm is still training"
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_student_can_learn_from_a_module_teacher() -> None:
    """Tensors of inference mode may not be saved for backward: the teacher must give ordinary ones."""
    teacher = ModuleTeacher(nn.Linear(4, 3))
    student = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    logits = teacher(batch_of(x))["logits"]
    assert not logits.requires_grad
    assert not logits.is_inference()
    (kd(student(x), logits) + (student(x) * logits).sum()).backward()
    assert student.weight.grad is not None
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


def test_a_teacher_put_back_in_train_mode_is_noticed() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    teacher = ModuleTeacher(module)
    module[1].train()
    with pytest.raises(AssertionError, match="train mode"):
        teacher(batch_of(torch.zeros(2, 4)))


def test_named_outputs_go_through() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"logits": x[:, :2], "hidden": x, "loss": None}

    out = ModuleTeacher(Named())(batch_of(torch.ones(2, 4)))
    assert {name: tuple(value.shape) for name, value in out.items()} == {"logits": (2, 2), "hidden": (2, 4)}


class Poisoned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, torch.nan)


def test_nan_names_the_samples() -> None:
    x = torch.ones(9, 3)
    x[2, 1] = -1.0
    with pytest.raises(
        StageFailed, match=r"for 1 of 9 samples, with the ids 102; expected finite numbers. Check these"
    ):
        ModuleTeacher(Poisoned())(batch_of(x))
    with pytest.raises(StageFailed, match="for 9 of 9 samples, with the ids 100, 101, 102, 103, 104 and 4 more"):
        ModuleTeacher(Poisoned())(batch_of(-x.abs()))
    with pytest.raises(StageFailed, match="with the ids 2;"):
        ModuleTeacher(Poisoned())({"x": x})


def test_infinity_of_an_onnx_teacher_names_samples_and_file(tmp_path: Path) -> None:
    teacher = OnnxTeacher(graph(tmp_path / "log.onnx", "Log"), threads=1)
    x = torch.ones(3, 3)
    x[1, 2] = 0.0
    with pytest.raises(
        StageFailed, match=r"log.onnx gives NaN or infinite logits for 1 of 3 samples, with the ids 101"
    ):
        teacher(batch_of(x))


def test_an_onnx_teacher_gives_what_the_graph_gives(tmp_path: Path) -> None:
    teacher = OnnxTeacher(graph(tmp_path / "neg.onnx", "Neg", output="logits"), threads=1)
    x = torch.randn(5, 3)
    out = teacher(batch_of(x))["logits"]
    assert out.dtype == torch.float32
    assert torch.equal(out, -x)
    teacher.close()
    with pytest.raises(UsageError, match="closed"):
        teacher(batch_of(x))


@pytest.mark.parametrize("rows", [1, 2, 4, 7])
def test_a_fixed_batch_axis_is_fed_in_pieces(tmp_path: Path, rows: int) -> None:
    teacher = OnnxTeacher(graph(tmp_path / "neg.onnx", "Neg", batch=rows), threads=1)
    x = torch.randn(7, 3)
    assert torch.equal(teacher(batch_of(x))["logits"], -x)


def test_probabilities_of_a_black_box_become_logits(tmp_path: Path) -> None:
    x = torch.randn(6, 3) * 4
    logits = OnnxTeacher(graph(tmp_path / "softmax.onnx", "Softmax"), threads=1)(batch_of(x))["logits"]
    assert torch.allclose(torch.softmax(logits / 3, dim=1), torch.softmax(x / 3, dim=1), atol=1e-6)
    hard = torch.eye(3)
    logits = OnnxTeacher(graph(tmp_path / "identity.onnx", "Identity"), threads=1)(batch_of(hard))["logits"]
    assert torch.isfinite(logits).all()
    assert torch.allclose(torch.softmax(logits, dim=1), hard)


def test_what_a_black_box_gives_is_decided_once(tmp_path: Path) -> None:
    """Rounded in 8 bits, a row may sum to 1.01; its batch speaks the same language as all others."""
    sure, rounded = torch.tensor([[0.9, 0.1, 0.0]]), torch.tensor([[0.9, 0.1, 0.01]])
    teacher = OnnxTeacher(graph(tmp_path / "p.onnx", "Identity"), threads=1)
    first = teacher(batch_of(sure))["logits"]
    second = teacher(batch_of(torch.cat([sure, rounded])))["logits"]
    assert torch.equal(first[0], second[0])
    assert torch.softmax(second, dim=1)[1].tolist() == pytest.approx([0.9 / 1.01, 0.1 / 1.01, 0.01 / 1.01])
    with pytest.raises(StageFailed, match=r"gave probabilities before, and now -1; expected numbers from 0 to 1"):
        teacher(batch_of(-sure / 0.9))
    other = OnnxTeacher(graph(tmp_path / "l.onnx", "Identity"), threads=1)
    assert torch.equal(other(batch_of(sure * 3))["logits"], sure * 3)
    assert torch.equal(other(batch_of(sure))["logits"], sure), "logits stay logits"
    shares = OnnxTeacher(graph(tmp_path / "s.onnx", "Identity"), threads=1, task="regression")
    assert torch.equal(shares(batch_of(sure))["logits"], sure), "numbers of a regression are no probabilities"


def test_a_graph_with_two_inputs_cannot_be_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"two.onnx has the inputs \['in0', 'in1'\], expected one"):
        OnnxTeacher(graph(tmp_path / "two.onnx", "Sum", inputs=2))
    with pytest.raises(ModelError, match=r"none\.onnx"):
        OnnxTeacher(tmp_path / "none.onnx")


class Constant:
    def __init__(self, *logits: float) -> None:
        self.logits = torch.tensor([logits])

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"logits": self.logits.expand(len(batch["x"]), -1)}


def test_an_ensemble_by_value() -> None:
    batch = batch_of(torch.zeros(2, 1))
    teachers = [Constant(0.0, 4.0), Constant(2.0, 0.0)]
    assert EnsembleTeacher(teachers)(batch)["logits"].tolist() == [[1.0, 2.0]] * 2
    assert EnsembleTeacher(teachers, [1.0, 3.0])(batch)["logits"].tolist() == [[1.5, 1.0]] * 2
    mixed = EnsembleTeacher(teachers, temperature=2.0)(batch)["logits"]
    expected = (torch.softmax(torch.tensor([0.0, 2.0]), 0) + torch.softmax(torch.tensor([1.0, 0.0]), 0)) / 2
    np.testing.assert_allclose(torch.softmax(mixed / 2.0, dim=1)[0].numpy(), expected.numpy(), rtol=1e-6)


def test_each_for_its_own_classes_also_of_mixed_samples() -> None:
    teachers = [Constant(0.0, 4.0), Constant(2.0, 0.0)]
    ensemble = EnsembleTeacher(teachers, classes=[[0], [1]])
    batch = {**batch_of(torch.zeros(3, 1)), "y": torch.tensor([0, 1, 5])}
    assert ensemble(batch)["logits"].tolist() == [[0.0, 4.0], [2.0, 0.0], [1.0, 2.0]], "nobody knows the last one"
    mixed = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    batch = {**batch_of(torch.zeros(3, 1)), "y": mixed}
    assert ensemble(batch)["logits"].tolist() == [[0.0, 4.0], [1.5, 1.0], [1.0, 2.0]]


def test_a_specialist_is_told_by_its_width_and_speaks_of_its_own_classes() -> None:
    """Its i-th output is the i-th of its classes, whatever their order in the data."""
    teachers = [Constant(0.0, 4.0, 2.0), Constant(5.0, 1.0)]
    ensemble = EnsembleTeacher(teachers, [1.0, 1.0], classes=[[], [2, 0]], num_outputs=3)
    batch = {**batch_of(torch.zeros(4, 1)), "y": torch.tensor([0, 1, 2, -1])}
    given = ensemble(batch)
    assert given["1/logits"].tolist() == [[5.0, 1.0]] * 4, "as it said it"
    # Brought to the mean of the other's: 3 and -1 for the classes 2 and 0.
    both = [(0.0 - 1.0) / 2, 4.0, (2.0 + 3.0) / 2]
    assert given["logits"].tolist() == [both, [0.0, 4.0, 2.0], both, [0.0, 4.0, 2.0]], "hidden labels: who knows all"
    mixed = EnsembleTeacher(teachers, classes=[[], [2, 0]], num_outputs=3, temperature=2.0)(batch)["logits"]
    p, own = torch.softmax(torch.tensor([0.0, 2.0, 1.0]), 0), torch.softmax(torch.tensor([2.5, 0.5]), 0)
    mass = p[0] + p[2]
    expected = [(p[0] + mass * own[1]) / 2, p[1], (p[2] + mass * own[0]) / 2]
    assert torch.softmax(mixed[0] / 2, 0).tolist() == pytest.approx([float(value) for value in expected])
    assert torch.softmax(mixed[1] / 2, 0).tolist() == pytest.approx(p.tolist())
    shares = {**batch, "y": torch.tensor([[0.25, 0.75, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [torch.nan] * 3])}
    got = ensemble(shares)["logits"]
    assert got[0].tolist() == pytest.approx([(0.0 - 0.25) / 1.25, 4.0, (2.0 + 0.25 * 3.0) / 1.25]), "a quarter counts"
    assert got[1:].tolist() == [[0.0, 4.0, 2.0], both, [0.0, 4.0, 2.0]]


def test_what_no_teacher_names_is_judged_by_those_of_all_classes() -> None:
    teachers = [Constant(0.0, 4.0, 2.0), Constant(5.0, 1.0)]
    ensemble = EnsembleTeacher(teachers, classes=[[1], [2, 0]], num_outputs=3)
    batch = {**batch_of(torch.zeros(3, 1)), "y": torch.tensor([1, 2, -1])}
    assert ensemble(batch)["logits"].tolist() == [[0.0, 4.0, 2.0], [1.0, -1e4, 5.0], [0.0, 4.0, 2.0]]
    equal = EnsembleTeacher([Constant(0.0, 4.0), Constant(2.0, 0.0)], classes=[[0], [1, 0]], num_outputs=2)
    batch = {**batch_of(torch.zeros(1, 1)), "y": torch.tensor([1])}
    assert equal(batch)["logits"].tolist() == [[2.0, 0.0]], "as many labels as the data: in the data's order"


def test_a_width_that_is_neither_is_refused() -> None:
    batch = {**batch_of(torch.zeros(2, 1)), "y": torch.tensor([0, 1])}
    ensemble = EnsembleTeacher([Constant(1.0, 2.0, 3.0), Constant(1.0)], classes=[[], [2, 0]], num_outputs=3)
    with pytest.raises(UsageError) as caught:
        ensemble(batch)
    assert str(caught.value) == (
        "teacher 1 gives logits [2, 1], expected [2, 3], one for each class of the data, or [2, 2], one for each of "
        "its own"
    )
    ensemble = EnsembleTeacher([Constant(1.0), Constant(1.0, 2.0)], classes=[[], [2, 0]], num_outputs=3)
    with pytest.raises(UsageError, match=r"teacher 0 gives logits \[2, 1\], expected \[2, 3\], one .* data$"):
        ensemble(batch)


def test_an_ensemble_that_does_not_fit() -> None:
    with pytest.raises(UsageError, match="found no teachers"):
        EnsembleTeacher([])
    with pytest.raises(UsageError, match="found 1 weights for 2 teachers, expected one for each"):
        EnsembleTeacher([Constant(1.0)] * 2, [1.0])
    with pytest.raises(UsageError, match="do all end in the same classes"):
        EnsembleTeacher([Constant(1.0, 2.0), Constant(1.0)])(batch_of(torch.zeros(2, 1)))


def test_a_teacher_in_units_is_brought_to_standardized_targets() -> None:
    inner = ModuleTeacher(nn.Identity())
    teacher = StandardizedTeacher(inner, [Denormalize((10.0, 20.0), (2.0, 4.0)), Denormalize((1.0,), (5.0,))])
    given = teacher(batch_of(torch.tensor([[61.0, 101.0]])))
    assert given["logits"].tolist() == [[1.0, 0.0]], "((61 - 1) / 5 - 10) / 2 and ((101 - 1) / 5 - 20) / 4"
