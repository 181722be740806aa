"""An ONNX graph as a torch module: the same nodes in the same order, with gradients.

It computes what onnxruntime computes, within rounding, so that what is trained here is what ships.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from edgekd.distill.onnx_operators import OPERATORS
from edgekd.errors import ModelError
from edgekd.graph.clean import load_model
from edgekd.graph.traversal import sort_nodes

# Smaller ones are constants of the graph (a clip's bound, an epsilon), not weights.
_LEAST_WEIGHTS = 2


class OnnxModule(nn.Module):
    """The graph of an ONNX file, float or (given `replaced`) fake-quantized.

    replaced  name of a value -> the module that gives it in the place of its node: called with the node's first
              input, or without arguments where that is a constant

    Float tensors of the graph are parameters under their names (with "/" for "."), but for the statistics of batch
    norm; whole numbers stay on the CPU. Inputs come in the graph's order; its first output is given. Raises
    `ModelError` for an operator that has no row in `OPERATORS`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | ModelProto,
        *,
        replaced: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        source = ModelProto()
        source.CopyFrom(model if isinstance(model, ModelProto) else load_model(model))
        sort_nodes(source.graph)
        replaced = dict(replaced or {})
        self.inputs = [value.name for value in source.graph.input]
        self.outputs = [value.name for value in source.graph.output]
        self.parts = nn.ModuleDict({tidy(name): part for name, part in replaced.items()})
        self.weights = nn.ParameterDict()
        self.whole: dict[str, Tensor] = {}
        self.sources: list[str] = []
        self.nodes: list[tuple[str, dict[str, Any], list[str], list[str]]] = []
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
        arrays |= {node.output[0]: _constant(node) for node in source.graph.node if node.op_type == "Constant"}
        fixed: set[str] = set()
        for node in source.graph.node:
            reads, makes = list(node.input), list(node.output)
            if node.op_type == "Constant":
                continue
            if makes[0] in replaced:
                if reads[0] in arrays:
                    self.sources.append(makes[0])
                else:
                    self.nodes.append(("", {}, reads[:1], makes[:1]))
                continue
            if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
                raise ModelError(
                    f"node '{node.name}' is a {node.op_type}, which cannot be trained; take a student without it, or a "
                    "variant that needs no training"
                )
            if node.op_type == "BatchNormalization":
                fixed.update(reads[3:])
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            self.nodes.append((node.op_type, attributes, reads, makes))
        used = {name for _, _, reads, _ in self.nodes for name in reads}
        self.weight_names = []
        self.fixed_names = []
        for name in sorted(used & arrays.keys()):
            tensor = torch.tensor(arrays[name])
            if not tensor.is_floating_point():
                self.whole[name] = tensor
            elif name in fixed or tensor.numel() < _LEAST_WEIGHTS:
                self.register_buffer(f"fixed/{tidy(name)}", tensor, persistent=False)
                self.fixed_names.append(name)
            else:
                self.weights[tidy(name)] = nn.Parameter(tensor)
                self.weight_names.append(name)
        last: dict[str, int] = {}
        for index, (_, _, reads, _) in enumerate(self.nodes):
            last.update(dict.fromkeys(reads, index))
        self.done: list[list[str]] = [[] for _ in self.nodes]
        for name, index in last.items():
            if name not in self.outputs:
                self.done[index].append(name)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The inputs in the graph's order, (N, ...) each, to its first output."""
        return self._compute(inputs, self.outputs[:1])[0]

    def all_outputs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The same, to all outputs in the graph's order."""
        return self._compute(inputs, self.outputs)

    def _compute(self, inputs: tuple[Tensor, ...], wanted: list[str]) -> tuple[Tensor, ...]:
        values: dict[str, Tensor | None] = {"": None, **dict(zip(self.inputs, inputs)), **self.whole}
        values.update({name: self.weights[tidy(name)] for name in self.weight_names})
        values.update({name: self.get_buffer(f"fixed/{tidy(name)}") for name in self.fixed_names})
        values.update({name: self.parts[tidy(name)]() for name in self.sources})
        for (operator, attributes, reads, makes), done in zip(self.nodes, self.done):
            read = [values[name] for name in reads]
            made = OPERATORS[operator](attributes, read) if operator else self.parts[tidy(makes[0])](read[0])
            values.update(zip(makes, made if isinstance(made, tuple) else (made,)))
            for name in done:
                del values[name]
        found = []
        for name in wanted:
            value = values.get(name)
            if not isinstance(value, Tensor):
                raise ModelError(f"the graph gives no tensor for its output '{name}'; expected one that a node makes")
            found.append(value)
        return tuple(found)


def tidy(name: str) -> str:
    """A graph's name as the name of a part of a module, which may hold no dots."""
    return name.replace(".", "/")


def _constant(node: NodeProto) -> np.ndarray[Any, Any]:
    for item in node.attribute:
        value = onnx.helper.get_attribute_value(item)
        if item.name == "value":
            return numpy_helper.to_array(value)
        if item.name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if item.name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    raise ModelError(f"the constant '{node.output[0]}' is no tensor of numbers; it cannot be trained")
