"""The layers of a torch module as they run, to find the one at which an exported graph parts from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from onnx import ModelProto
from torch import nn

from edgekd.graph.first_difference import Difference, Layer, every_tensor, first_layer
from edgekd.spec import Array


def run_layers(module: nn.Module, args: Sequence[torch.Tensor]) -> list[Layer]:
    """Run `module` and give its innermost modules in the order in which they ended, the whole one last."""
    layers: list[Layer] = []
    # Tensors are told apart by identity: they must live until the end, and each be turned into one array.
    kept: dict[int, tuple[torch.Tensor, Array]] = {}

    def arrays(value: object) -> tuple[Array, ...]:
        found = []
        for tensor in _tensors(value):
            if id(tensor) not in kept:
                kept[id(tensor)] = (tensor, tensor.detach().numpy().copy())
            found.append(kept[id(tensor)][1])
        return tuple(found)

    def hook(title: str):  # type: ignore[no-untyped-def]
        def ended(part: nn.Module, given: tuple[object, ...], named: dict[str, object], output: object) -> None:
            layers.append(Layer(title, arrays((given, named)), arrays(output)))

        return ended

    handles = []
    for path, part in module.named_modules():
        if path and not any(True for _ in part.children()):
            title = f"'{path}' ({type(part).__name__})"
            handles.append(part.register_forward_hook(hook(title), with_kwargs=True))
    whole = f"the model's own forward ({type(module).__name__})"
    handles.append(module.register_forward_hook(hook(whole), with_kwargs=True))
    try:
        with torch.no_grad():
            module(*args)
    finally:
        for handle in handles:
            handle.remove()
    return layers


def first_difference(module: nn.Module, model: ModelProto, feeds: Mapping[str, Array]) -> Difference | None:
    """The first layer of `module` whose output the graph has not; `feeds` in the order of forward's arguments.

    None where none differs, or the graph cannot be run with all its tensors shown.
    """
    others = every_tensor(model, feeds)
    if not others:
        return None
    layers = run_layers(module, [torch.from_numpy(array) for array in feeds.values()])
    return first_layer(layers, others.values())


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
