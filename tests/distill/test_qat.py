"""Quantization-aware distillation: what is trained is what onnxruntime runs, and it makes up for the rounding."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekd.data.registry import load_dataset
from edgekd.device.preprocess import apply_arithmetic
from edgekd.distill.engine import TrainResult, distill
from edgekd.distill.models import build_model
from edgekd.distill.objective import Objective, Term
from edgekd.distill.qat import FakeQuantized, compare, fake_quantize, write_quantized
from edgekd.distill.rounding import Rounded, RoundedWeight, Scale
from edgekd.distill.teachers import ModuleTeacher
from edgekd.distill.to_onnx import export
from edgekd.errors import AnswerIsNo, ModelError, UsageError
from edgekd.graph.qdq import least_error_steps
from edgekd.graph.quantization import Int8QAT, Int8Static, quantize
from edgekd.graph.targets import load_target
from edgekd.spec import Array, Dataset, TensorSpec, parse_steps

STEPS = parse_steps([{"op": "scale"}, {"op": "layout", "to": "CHW"}])
SOFT = Objective([Term("kd", "kd", weight=0.9), Term("cross_entropy", "cross_entropy", weight=0.1)])
PER_TENSOR = Int8QAT(per_channel=False)


class Trained:
    """A float student of real digits, depthwise separable, and its ONNX file."""

    def __init__(self, folder: Path) -> None:
        self.data: Dataset = load_dataset(kind="digits")
        torch.manual_seed(1)
        self.module = build_model("dscnn_s", num_outputs=10, input_shape=(1, 8, 8))
        hard = Objective([Term("ce", "cross_entropy")])
        distill(self.module, [], self.data, hard, steps=STEPS, epochs=8, batch_size=64, lr=5e-3, threads=1)
        self.test = {"input": apply_arithmetic(STEPS, self.data.test.x)}
        self.calibration = {"input": apply_arithmetic(STEPS, self.data.train.x[:128])}
        self.path = folder / "student.onnx"
        spec = TensorSpec("input", "float32", ("N", 1, 8, 8))
        export(self.module, self.path, inputs=[spec], samples=self.test)

    def teach(self, student: FakeQuantized, run_dir: Path | None = None, **changed: Any) -> TrainResult:
        settings: dict[str, Any] = {"epochs": 3, "lr": 2e-3, "weight_decay": 0.0, "batch_size": 64, **changed}
        teacher = ModuleTeacher(self.module)
        return distill(
            student,
            [teacher],
            self.data,
            SOFT,
            steps=STEPS,
            precision="float32",
            threads=1,
            run_dir=run_dir,
            **settings,
        )

    def logits(self, path: Path) -> Array:
        return run(path, self.test["input"])

    def errors(self, path: Path) -> int:
        return int((self.logits(path).argmax(1) != self.data.test.y).sum())


def run(path: Path | onnx.ModelProto, x: Array, name: str = "input") -> Array:
    source = str(path) if isinstance(path, Path) else path.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    value: Array = session.run(None, {name: x})[0]
    return value


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("qat"))


def test_rounding_is_that_of_onnxruntime() -> None:
    x = np.concatenate([np.arange(-300, 300) * 0.05, np.random.default_rng(0).normal(size=400) * 9]).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    for zero, scale in ((0, 0.125), (128, 0.1), (37, 0.0317)):
        point = Rounded(Scale(np.float32(scale)), low=-zero, high=255 - zero)
        with torch.no_grad():
            given, step = point(torch.from_numpy(x)).numpy(), point.scale().numpy()
        assert float(step) == pytest.approx(scale, rel=1e-6)
        constants = [numpy_helper.from_array(step, "s"), numpy_helper.from_array(np.uint8(zero), "z")]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
        graph = helper.make_graph(nodes, "main", values[:1], values[1:], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        assert np.array_equal(given, run(model, x, "x")), "to the bit, ties too"


def test_gradients_of_rounding() -> None:
    """Straight through in range; of a scale: round(v) - v in range, the bound outside, times s ln 2 for its log."""
    rng = np.random.default_rng(1)
    values, scale = rng.normal(size=(3, 5)).astype(np.float32), Scale(np.float32([0.1, 0.3, 2.0]))
    weight = RoundedWeight(values, scale, low=-7, high=7, axis=0)
    upstream = torch.from_numpy(rng.normal(size=(3, 5)).astype(np.float32))
    (weight() * upstream).sum().backward()
    w, g = weight.values.detach().double().numpy(), upstream.double().numpy()
    s = weight.scale().detach().double().numpy()[:, None]
    v = w / s
    inside = (v >= -7) & (v <= 7)
    assert 0 < inside.sum() < inside.size
    np.testing.assert_allclose(weight.values.grad, g * inside)
    of_scale = (g * np.where(inside, np.round(v) - v, np.clip(np.round(v), -7, 7))).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weight.scale.log2.grad, (of_scale * s * np.log(2)).reshape(-1), rtol=1e-4)


def test_least_error_steps_are_the_best_of_many() -> None:
    values = np.random.default_rng(2).standard_t(3, size=(4, 200)).astype(np.float32)
    steps = least_error_steps(values, most=7, axis=0)

    def error(row: Array, step: float) -> float:
        return float(np.square(row - np.clip(np.round(row / step), -7, 7) * step).sum())

    for row, step in zip(values, steps):
        largest = float(np.abs(row).max())
        assert error(row, float(step)) <= 1.02 * min(
            error(row, largest / 7 * share) for share in np.linspace(0.3, 1, 500)
        )
        assert error(row, float(step)) < 0.8 * error(row, largest / 7), "cut the tail"
    assert least_error_steps(values, most=7, axis=None).shape == ()


@pytest.mark.parametrize("scheme", [Int8Static(), Int8Static(per_channel=False), Int8Static(weight="uint8")])
def test_before_training_it_is_the_static_graph(trained: Trained, scheme: Int8Static, tmp_path: Path) -> None:
    config = Int8QAT(weight=scheme.weight, per_channel=scheme.per_channel)
    static = quantize(trained.path, tmp_path / "static.onnx", scheme, calibration=trained.calibration)
    module = fake_quantize(trained.path, config, calibration=trained.calibration)
    assert compare(module, static.path, trained.test).label_agreement == 1.0
    own = write_quantized(module, tmp_path / "qat.onnx", samples=trained.test)
    graphs = [onnx.load(path).graph for path in (static.path, own.path)]
    first, second = ([node.SerializeToString() for node in graph.node] for graph in graphs)
    assert first == second, "the same nodes"
    assert own.num_quantized == static.num_quantized == 6
    a, b = ({tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer} for graph in graphs)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_allclose(a[name].astype(float), b[name].astype(float), rtol=1e-5, atol=1.001)


@pytest.mark.parametrize(
    "config", [Int8QAT(), PER_TENSOR, Int8QAT(activation="int8"), Int8QAT(weight_bits=4, per_channel=False)]
)
def test_what_was_trained_is_what_runs(trained: Trained, config: Int8QAT, tmp_path: Path) -> None:
    module = fake_quantize(trained.path, config, calibration=trained.calibration)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trained.teach(module, epochs=1)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == before.keys(), "weights, biases and scales learn"
    result = write_quantized(module, tmp_path / "q.onnx", samples=trained.test, target="cpu")
    with torch.no_grad():
        own = module(torch.from_numpy(trained.test["input"])).argmax(1).numpy()
    agreement = float((own == trained.logits(result.path).argmax(1)).mean())
    assert len(own) > 300
    assert agreement >= 0.995
    assert write_quantized(module, tmp_path / "again.onnx", samples=trained.test).sha256 == result.sha256
    optimized = tmp_path / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(optimized), 4
    onnxruntime.InferenceSession(str(result.path), options, providers=["CPUExecutionProvider"])
    kernels = [node.op_type for node in onnx.load(optimized).graph.node]
    assert kernels.count("QLinearConv") == 5, "int8 kernels, whatever the bits of the file"


def test_four_bits_take_half_the_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = build_model("cnn_l", num_outputs=10, input_shape=(1, 8, 8))
    x = {"input": np.random.default_rng(0).normal(size=(32, 1, 8, 8)).astype(np.float32)}
    path = tmp_path / "s.onnx"
    export(student, path, inputs=[TensorSpec("input", "float32", ("N", 1, 8, 8))], samples=x)
    sizes = {}
    for bits in (8, 4):
        module = fake_quantize(path, Int8QAT(weight_bits=bits), calibration=x)  # type: ignore[arg-type]
        written = write_quantized(module, tmp_path / f"{bits}.onnx", samples=x)
        sizes[bits] = written.size_bytes
        kinds = {TensorProto.DataType.Name(t.data_type) for t in onnx.load(written.path).graph.initializer}
        assert ("INT4" in kinds) == (bits == 4)
    weights = sum(value.numel() for value in student.parameters() if value.dim() > 1)
    assert sizes[8] - sizes[4] == pytest.approx(weights / 2, rel=0.02)
    target = replace(load_target("cpu"), name="old", max_opset=18)
    with pytest.raises(UsageError, match="opset 21, but the target 'old' takes at most 18"):
        write_quantized(module, tmp_path / "no.onnx", samples=x, target=target)
    assert not (tmp_path / "no.onnx").exists()


def uneven(module: nn.Module) -> nn.Module:
    """The same function with channels of very different size, as depthwise networks come to have them: what a batch
    norm multiplies a channel with, the depthwise convolution behind it divides by (ReLU lets it through)."""
    changed = copy.deepcopy(module)
    blocks: Any = changed
    with torch.no_grad():
        for norm, convolution in ((blocks[0][1], blocks[1][0]), (blocks[2][1], blocks[3][0])):
            order = torch.randperm(norm.num_features, generator=torch.Generator().manual_seed(0))
            factors = 2.0 ** torch.linspace(-3, 3, norm.num_features)[order]
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            convolution.weight.div_(factors[:, None, None, None])
    return changed


def test_training_makes_up_for_what_rounding_lost(trained: Trained, tmp_path: Path) -> None:
    """A depthwise student with one scale per tensor: the loss is real, and at least half of it comes back."""
    spec = TensorSpec("input", "float32", ("N", 1, 8, 8))
    source, path = tmp_path / "uneven.onnx", tmp_path / "q.onnx"
    export(uneven(trained.module), source, inputs=[spec], samples=trained.test)
    module = fake_quantize(source, PER_TENSOR, calibration=trained.calibration)
    float_errors = trained.errors(source)
    write_quantized(module, path, samples=trained.test)
    lost = trained.errors(path) - float_errors
    trained.teach(module, epochs=5)
    write_quantized(module, path, samples=trained.test)
    left = trained.errors(path) - float_errors
    assert lost > 30, "otherwise this shows nothing"
    assert left <= lost / 2


def test_a_training_that_was_stopped_ends_in_the_same_bytes(trained: Trained, tmp_path: Path) -> None:
    class StopError(Exception):
        """Stands for Ctrl-C."""

    def stop(text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if done >= total / 2:
            raise StopError

    def fresh() -> FakeQuantized:
        return fake_quantize(trained.path, PER_TENSOR, calibration=trained.calibration)

    whole, stopped = fresh(), fresh()
    trained.teach(whole, tmp_path / "whole", epochs=2)
    with pytest.raises(StopError):
        trained.teach(stopped, tmp_path / "cut", epochs=2, progress=stop)
    resumed = fresh()
    result = trained.teach(resumed, tmp_path / "cut", epochs=2)
    assert len(result.history) == 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert whole.to_onnx().SerializeToString() == resumed.to_onnx().SerializeToString()


def test_what_cannot_be_trained_is_refused_by_name(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weight_bits is 5; expected 4 or 8"):
        fake_quantize(trained.path, Int8QAT(weight_bits=5), calibration=trained.calibration)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="4-bit weights are signed; expected weight = 'int8'"):
        fake_quantize(trained.path, Int8QAT(weight_bits=4, weight="uint8"), calibration=trained.calibration)
    quantize(trained.path, tmp_path / "q.onnx", Int8Static(), calibration=trained.calibration)
    with pytest.raises((ModelError, AnswerIsNo)):
        fake_quantize(tmp_path / "q.onnx", Int8QAT(), calibration=trained.calibration)
    with pytest.raises(UsageError, match="found the configuration Int8QAT"):
        quantize(trained.path, tmp_path / "no.onnx", Int8QAT(), calibration=trained.calibration)  # type: ignore[arg-type]


def test_a_file_that_differs_is_not_written(trained: Trained, tmp_path: Path) -> None:
    module = fake_quantize(trained.path, Int8QAT(), calibration=trained.calibration)
    honest = module.to_onnx()
    for tensor in honest.graph.initializer:
        if tensor.name == "7.weight_quantized":
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    module.to_onnx = lambda: honest  # type: ignore[method-assign]
    with pytest.raises(AnswerIsNo, match="onnxruntime differs from the trained module, nothing was written"):
        write_quantized(module, tmp_path / "wrong.onnx", samples=trained.test)
    assert not (tmp_path / "wrong.onnx").exists()
