"""Where two computations part: the first layer whose inputs are still right and whose output is not.

Layers are matched by the numbers that they give, not by names: exporters rename, fuse and reorder. A layer that the
other side has fused away (a convolution before its batch norm) gives numbers that are found nowhere, but those of the
layer that reads them are, so it is not to blame.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto

from edgekd.graph.clean import load_model
from edgekd.graph.operators import label
from edgekd.graph.sessions import RUNTIME_ERRORS, open_graph
from edgekd.graph.traversal import reads
from edgekd.spec import Array

# Of the largest number of a tensor; rounding in the middle of a net is not yet averaged out.
FLOAT_SHARE = 1e-3


@dataclass(frozen=True)
class Layer:
    """One layer as it ran: what it is called, and the tensors that it read and gave (weights left out)."""

    name: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]


@dataclass(frozen=True)
class Difference:
    """The first layer that differs, and by how much where the other side has a tensor of that name."""

    layer: str
    difference: float | None = None
    magnitude: float | None = None

    def __str__(self) -> str:
        said = f"the first layer that differs is {self.layer}"
        return said if self.difference is None else f"{said}: by {self.difference:.3g} of up to {self.magnitude:.3g}"


def every_tensor(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs and the output of every node of the main graph for these feeds. Empty where that cannot be run."""
    open_up = ModelProto()
    open_up.CopyFrom(model)
    shown = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in shown:
                open_up.graph.output.append(onnx.ValueInfoProto(name=name))
                shown.add(name)
    try:
        return {**feeds, **open_graph(open_up, name="the graph with all its tensors").run(feeds)}
    except RUNTIME_ERRORS:
        return {}


def layers_of(model: ModelProto, tensors: Mapping[str, Array]) -> list[Layer]:
    """The nodes of the main graph in their order, with what they read and gave."""
    return [
        Layer(
            label(node),
            tuple(tensors[name] for name in reads(node) if name in tensors),
            tuple(tensors[name] for name in node.output if name in tensors),
        )
        for node in model.graph.node
    ]


def first_layer(layers: Iterable[Layer], others: Iterable[Array], *, share: float = FLOAT_SHARE) -> Difference | None:
    """The first of `layers` whose inputs are found among `others` and whose outputs are not, nor those of any layer
    that reads them. None where every layer's output is found."""
    known: dict[tuple[int, ...], list[Array]] = {}
    for array in others:
        known.setdefault(array.shape, []).append(array)
    seen: dict[int, bool] = {}

    def found(array: Array) -> bool:
        if id(array) not in seen:
            seen[id(array)] = any(_near(array, other, share) for other in known.get(array.shape, ()))
        return seen[id(array)]

    def all_found(arrays: Sequence[Array]) -> bool:
        return all(found(array) for array in arrays)

    run = list(layers)
    first = None
    for place, layer in enumerate(run):
        if not layer.outputs or all_found(layer.outputs):
            continue
        ours = {id(array) for array in layer.outputs}
        readers = [other for other in run[place + 1 :] if ours & {id(array) for array in other.inputs}]
        if readers and any(all_found(other.outputs) for other in readers):
            continue
        first = first or Difference(layer.name)
        if all_found(layer.inputs):
            return Difference(layer.name)
    return first


def compare_graphs(
    reference: str | os.PathLike[str] | bytes,
    candidate: str | os.PathLike[str] | bytes,
    feeds: Mapping[str, Array],
    *,
    share: float = FLOAT_SHARE,
) -> Difference | None:
    """The first node of `reference` whose output `candidate` has not, by the tensor's name where both have it (a
    quantized graph keeps the names of what it was made from). None where none differs, or they cannot be run so."""
    first, second = load_model(reference), load_model(candidate)
    expected, other = every_tensor(first, feeds), every_tensor(second, feeds)
    if not expected or not other:
        return None
    common = [name for node in first.graph.node for name in node.output if name in expected and name in other]
    if len(common) <= len(first.graph.output):
        return first_layer(layers_of(first, expected), other.values(), share=share)
    for node in first.graph.node:
        for name in node.output:
            if name not in expected or name not in other or _near(expected[name], other[name], share):
                continue
            # A quantizer may give a name to the tensor before the activation that it joined with the layer.
            if not any(_near(expected[name], array, share) for array in other.values()):
                return _measured(label(node), expected[name], other[name])
    return None


def _measured(name: str, expected: Array, found: Array) -> Difference:
    if expected.shape != found.shape or expected.dtype.kind not in "fiu" or not expected.size:
        return Difference(name)
    difference = np.abs(expected.astype(np.float64) - found.astype(np.float64)).max()
    return Difference(name, float(difference), float(np.abs(expected.astype(np.float64)).max()))


def _near(left: Array, right: Array, share: float) -> bool:
    if left.shape != right.shape:
        return False
    if left.dtype.kind != "f" or right.dtype.kind != "f":
        return left.dtype.kind == right.dtype.kind and bool(np.array_equal(left, right))
    if not left.size:
        return True
    one, two = left.astype(np.float64), right.astype(np.float64)
    scale = float(np.abs(one, where=np.isfinite(one), out=np.zeros_like(one)).max())
    return bool(np.allclose(one, two, rtol=0.0, atol=max(share * scale, 1e-7), equal_nan=True))
