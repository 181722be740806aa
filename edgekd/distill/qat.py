"""Quantization-aware distillation: the int8 graph itself is trained, and written back with what it has learned.

Post-training quantization rounds a student that never knew of it. Here the calibrated graph becomes a torch module
that rounds as onnxruntime will, batch norm folded as in the graph; the float teacher teaches it.

    student = fake_quantize("student.onnx", Int8QAT(), calibration=feeds)
    distill(student, [teacher], data, objective, precision="float32", ...)
    write_quantized(student, "int8_qat.onnx", samples=feeds)

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2017,
arXiv:1712.05877.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from edgekd.distill.modules import evaluating
from edgekd.distill.onnx_module import OnnxModule, tidy
from edgekd.distill.rounding import Rounded, RoundedBias, RoundedWeight, Scale
from edgekd.errors import AnswerIsNo, ModelError
from edgekd.files import sha256_bytes
from edgekd.graph import quantizers
from edgekd.graph.clean import save_model
from edgekd.graph.qdq import QdqGraph, calibrated, written
from edgekd.graph.quantization import Int8QAT, QuantizeResult, check_target
from edgekd.graph.rejection import find_rule, with_source
from edgekd.graph.targets import Target, load_target
from edgekd.graph.verification import Tolerance, VerifyResult, verify
from edgekd.spec import Array

# Sums of integers and of floats round differently where a number lies between two steps: a step more, in few samples.
# (share of rows with the same answer, largest difference as a share of the largest output)
AGREEMENT, SHARE = 0.995, 0.25


class FakeQuantized(nn.Module):
    """What `fake_quantize` gives: a plain student for `distill`, of the numbers that its file will give.

    Its parameters are weights and the logarithms of scales; taps other than "logits" see parts of the graph.
    """

    def __init__(self, graph: QdqGraph) -> None:
        super().__init__()
        self.graph = graph
        points = [*graph.activations.values(), *(point for _, point in graph.weights.values())]
        self.scales = nn.ModuleDict({tidy(point.scale): Scale(point.steps) for point in points})
        replaced: dict[str, nn.Module] = {}
        for node in graph.model.graph.node:
            if node.op_type == "QuantizeLinear":
                point = graph.activations[node.input[1]]
                replaced[node.output[0]] = Rounded(self._scale(point.scale), low=point.low, high=point.high)
            elif node.op_type == "DequantizeLinear":
                replaced[node.output[0]] = self._dequantized(node.input[0])
        rule = find_rule(graph.model)
        self._rejects = rule is not None
        model = graph.model if rule is None else with_source(graph.model, rule)
        self.network = OnnxModule(model, replaced=replaced)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Model-ready inputs in the graph's order, (N, ...) each, to its first output.

        In training that is what a reject option at the end reads: the teacher, too, is asked without one.
        """
        outputs = self.network.all_outputs(*inputs)
        return outputs[-1] if self.training and self._rejects else outputs[0]

    def to_onnx(self) -> ModelProto:
        """The graph with the weights and scales as they are now."""
        points = [*self.graph.activations.values(), *(point for _, point in self.graph.weights.values())]
        counts: dict[str, Array] = {}
        with torch.no_grad():
            scales = {point.scale: _numpy(self._scale(point.scale)()) for point in points}
            for node in self.graph.model.graph.node:
                if node.op_type != "DequantizeLinear":
                    continue
                name, part = node.input[0], self.network.parts[tidy(node.output[0])]
                if isinstance(part, (RoundedWeight, RoundedBias)):
                    counts[name] = _numpy(part.counts())
                if isinstance(part, RoundedBias):
                    scales[self.graph.biases[name].scale] = _numpy(part.steps())
        return written(self.graph, scales, counts)

    def _dequantized(self, name: str) -> nn.Module:
        if name in self.graph.weights:
            values, point = self.graph.weights[name]
            return RoundedWeight(values, self._scale(point.scale), low=point.low, high=point.high, axis=point.axis)
        if name in self.graph.biases:
            bias = self.graph.biases[name]
            return RoundedBias(bias.values, self._scale(bias.of_input), self._scale(bias.of_weight))
        return nn.Identity()  # what QuantizeLinear rounded is in float already

    def _scale(self, name: str) -> Scale:
        part: Any = self.scales[tidy(name)]
        return part  # type: ignore[no-any-return]


def fake_quantize(
    model: str | os.PathLike[str] | bytes | ModelProto,
    config: Int8QAT,
    *,
    calibration: Mapping[str, Array] | Iterable[Mapping[str, Array]],
) -> FakeQuantized:
    """The float ONNX `model` as a module that rounds like its int8 graph and can be trained.

    calibration  input name -> (N, ...) model-ready arrays of the train split: where the scales begin. Equal
                 arguments give equal modules.

    Raises `ModelError` for an operator that cannot be trained, `UsageError`, `DataError` and `AnswerIsNo` as
    `edgekd.graph.quantize` does.
    """
    return FakeQuantized(calibrated(model, config, calibration=calibration))


def write_quantized(
    module: FakeQuantized,
    out: str | os.PathLike[str],
    *,
    samples: Mapping[str, Array],
    target: Target | str | None = None,
    labels: bool = True,
) -> QuantizeResult:
    """Write what `module` has learned as one ONNX file, proven on `samples` (input name -> (N, ...)).

    Raises `AnswerIsNo`, and writes nothing, unless onnxruntime gives the module's answer in 99.5 % of the rows;
    `labels` False: the outputs are no scores of classes, so only their size of difference counts.
    """
    started = time.perf_counter()
    model = module.to_onnx()
    limits = load_target(target) if isinstance(target, str) else target
    if limits is not None:
        check_target(model, limits)
    data = model.SerializeToString(deterministic=True)
    try:
        result = compare(module, data, samples, labels=labels)
    except ModelError as error:
        raise AnswerIsNo(f"the trained graph does not load, nothing was written: {error}") from error
    if not result.ok:
        raise AnswerIsNo(f"onnxruntime differs from the trained module, nothing was written: {result.problems[0]}")
    path = save_model(model, out)
    count = quantizers.count_quantized(model)
    return QuantizeResult(
        path, module.graph.config, len(data), sha256_bytes(data), count, time.perf_counter() - started
    )


def compare(
    module: FakeQuantized,
    candidate: str | os.PathLike[str] | bytes,
    samples: Mapping[str, Array],
    *,
    labels: bool = True,
) -> VerifyResult:
    """The trained module beside its ONNX file, at several batch sizes and on all samples."""
    output = module.network.outputs[0]

    def reference(feeds: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad(), evaluating(module):
            given = module(*(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in module.network.inputs))
        return {output: _numpy(given)}

    magnitude = float(np.abs(reference(samples)[output]).max(initial=0.0))
    # Of few samples one may differ, which is more than half a percent of them.
    agreement = min(AGREEMENT, 1 - 1 / len(next(iter(samples.values()))))
    tolerance = Tolerance(max(SHARE * magnitude, 1e-7), 0.0, agreement if labels else None)
    return verify(reference, candidate, samples, tolerance=tolerance)


def _numpy(value: Tensor) -> Array:
    array: Array = value.detach().cpu().numpy()
    return array
