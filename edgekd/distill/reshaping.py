"""A network in the shape that pruning and low rank have left of it, for weights that were saved in that shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgekd.distill.channels import CONVOLUTIONS, NORMS

Shapes = Mapping[str, Sequence[int]]


def shaped_like(module: nn.Module, shapes: Shapes) -> nn.Module:
    """`module` itself, its layers cut to `shapes` (name in the state dict -> sizes): the first rows and columns stay.

    A linear layer that is two in `shapes` becomes two with new weights. What `shapes` does not name stays as it is.
    """
    for path, part in list(module.named_modules()):
        if isinstance(part, nn.Linear) and f"{path}.0.weight" in shapes and f"{path}.weight" not in shapes:
            rank, columns = shapes[f"{path}.0.weight"]
            rows = shapes[f"{path}.1.weight"][0]
            parent, _, name = path.rpartition(".")
            pair = nn.Sequential(nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, part.bias is not None))
            setattr(module.get_submodule(parent), name, pair)
        elif isinstance(part, (nn.Linear, *CONVOLUTIONS, *NORMS)):
            _resize(part, path, shapes)
    return module


def _resize(part: nn.Module, path: str, shapes: Shapes) -> None:
    for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
        wanted = tuple(shapes.get(f"{path}.{name}", value.shape))
        if wanted == tuple(value.shape):
            continue
        smaller: Tensor = value.detach()[tuple(slice(size) for size in wanted)].clone()
        if isinstance(value, nn.Parameter):
            setattr(part, name, nn.Parameter(smaller))
        else:
            part.register_buffer(name, smaller)
    rename_sizes(part)


def rename_sizes(part: nn.Module) -> None:
    """Let the sizes that a layer states be those of its weights."""
    first = next(iter([*part.parameters(recurse=False), *part.buffers(recurse=False)]), None)
    if first is None:
        return
    if isinstance(part, NORMS):
        part.num_features = len(first)
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, CONVOLUTIONS):
        depthwise = part.groups > 1 and part.groups == part.in_channels == part.out_channels
        part.out_channels = len(part.weight)
        if depthwise:
            part.groups = part.out_channels
        part.in_channels = part.weight.shape[1] * part.groups


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes in a state dict."""
    return {name: tuple(value.shape) for name, value in state.items()}
