"""Structured pruning: whole channels go, and what remains is a smaller dense network of the same kind.

    pruned = prune(student, 0.5, input_shape=(1, 28, 28))
    distill(pruned.module, [teacher], data, objective, ...)      # gives back most of what the cut cost

Li et al., "Pruning Filters for Efficient ConvNets", 2016, arXiv:1608.08710 ("l1"); Liu et al., "Learning Efficient
Convolutional Networks through Network Slimming", 2017, arXiv:1708.06519 ("batch_norm"); Molchanov et al., "Importance
Estimation for Neural Network Pruning", 2019, arXiv:1906.10771 ("taylor").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from edgekd.distill.channels import CONVOLUTIONS, NORMS, Channels, find_channels, places
from edgekd.distill.modules import evaluating
from edgekd.errors import ModelError, UsageError, nearest

IMPORTANCE = ("l1", "batch_norm", "taylor")


@dataclass(frozen=True)
class Pruned:
    """A smaller copy of a network.

    channels  the groups of channels that were found, `kept` (group -> indices) what stays of those that were cut
    fixed     path of a layer -> why its outputs were left as they are
    """

    module: nn.Module
    channels: Channels
    kept: Mapping[int, Tensor]
    fixed: Mapping[str, str]


def prune(
    module: nn.Module,
    amount: float,
    *,
    input_shape: Sequence[int],
    by: str = "l1",
    loss: Callable[[nn.Module], Tensor] | None = None,
) -> Pruned:
    """A copy of `module` without the share `amount` of the channels of every layer, the least important ones.

    Channels that are added to one another go together; the network's outputs stay, and so do channels that cannot be
    followed (`Pruned.fixed` says why). At least one channel of each group stays.

    by    "l1": size of the weights that make a channel, relative to the layer's mean; "batch_norm": what batch norm
          multiplies it with; "taylor": how much `loss` would change without it, to first order
    loss  for "taylor": gives a loss of the network that it is called with, on some training samples

    Raises `UsageError` for an amount outside 0..1 or another name, `ModelError` when the network cannot be followed,
    has no channels that can go, or no batch norm where "batch_norm" needs one.
    """
    if not 0 < amount < 1:
        raise UsageError(f"found prune = {amount}, expected a share of the channels between 0 and 1, such as 0.5")
    if by not in IMPORTANCE:
        raise UsageError(f"found prune_by = '{by}'. {nearest(by, IMPORTANCE)}")
    if by == "taylor" and loss is None:
        raise UsageError("prune_by = 'taylor' needs a loss: how much it changes is what importance means there")
    channels = find_channels(module, input_shape)
    fixed = {
        path: channels.reasons[segments[0].group]
        for path, segments in channels.outputs.items()
        if segments[0].group in channels.reasons
    }
    if not channels.free:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in fixed.items()) or "it has no layers with channels"
        raise ModelError(f"no channel of the student can go ({reasons}); expected hidden layers whose channels can")
    gradients = _gradients(module, loss) if by == "taylor" and loss is not None else {}
    kept: dict[int, Tensor] = {}
    for group in channels.free:
        scores = _scores(module, channels, group, by, gradients)
        count = min(round(amount * len(scores)), len(scores) - 1)
        stays = torch_prune.L1Unstructured(count).compute_mask(scores, torch.ones_like(scores))  # type: ignore[no-untyped-call]
        kept[group] = torch.nonzero(stays).reshape(-1)
    smaller = copy.deepcopy(module)
    _cut(smaller, channels, kept)
    return Pruned(smaller, channels, kept, fixed)


def masked(module: nn.Module, pruned: Pruned) -> nn.Module:
    """A copy of `module` in its full size whose pruned channels are zero, by torch's own masks.

    It computes what `pruned.module` computes: that is what pruning means, and what tests compare.
    """
    copied = copy.deepcopy(module)
    for path, segments in pruned.channels.outputs.items():
        _mask(copied.get_submodule(path), places(segments, dict(pruned.kept)), axis=0)
    for path, segments in pruned.channels.along.items():
        _mask(copied.get_submodule(path), places(segments, dict(pruned.kept)), axis=0)
    for path, segments in pruned.channels.inputs.items():
        layer = copied.get_submodule(path)
        stays = torch.zeros_like(layer.get_parameter("weight")) if not torch_prune.is_pruned(layer) else None
        mask = torch.zeros_like(layer.weight) if stays is None else stays  # type: ignore[arg-type]
        mask[:, places(segments, dict(pruned.kept))] = 1
        torch_prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]
    return copied


def _mask(layer: nn.Module, stay: Tensor, *, axis: int) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        mask = torch.zeros_like(parameter)
        mask[stay] = 1
        torch_prune.custom_from_mask(layer, name, mask)  # type: ignore[no-untyped-call]


def _scores(module: nn.Module, channels: Channels, group: int, by: str, gradients: Mapping[str, Tensor]) -> Tensor:
    """How important each channel of `group` is, (channels,)."""
    total = torch.zeros(channels.sizes[group])
    found = False
    for place in (channels.outputs, channels.along):
        for path, segments in place.items():
            layer = module.get_submodule(path)
            if by == "batch_norm" and not isinstance(layer, NORMS):
                continue
            start = 0
            for segment in segments:
                rows = slice(start, start + segment.size * segment.block)
                start = rows.stop
                if segment.group != group:
                    continue
                values = _of_rows(layer, path, rows, by, gradients)
                if values is None:
                    continue
                found = True
                own = values.reshape(segment.size, segment.block).sum(dim=1)
                total += own if by == "taylor" else own / own.mean().clamp_min(1e-12)
    if not found:
        names = [path for path, segments in channels.outputs.items() if segments[0].group == group]
        raise ModelError(
            f"prune_by = '{by}' finds nothing to judge the channels of {', '.join(names)} by; expected a batch norm "
            "behind them; take prune_by = 'l1'"
        )
    return total


def _of_rows(layer: nn.Module, path: str, rows: slice, by: str, gradients: Mapping[str, Tensor]) -> Tensor | None:
    """One number per row of a layer; None where it has no weights."""
    weight = layer.weight
    if not isinstance(weight, Tensor):
        return None
    own = weight.detach().cpu()[rows]
    if by == "taylor":
        own = own * gradients[f"{path}.weight"][rows]
    return own.reshape(len(own), -1).sum(dim=1).abs() if by == "taylor" else own.reshape(len(own), -1).abs().sum(dim=1)


def _gradients(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """The gradient of the loss on every weight, in eval mode; the module is left as it was."""
    own = copy.deepcopy(module).requires_grad_()
    with torch.enable_grad(), evaluating(own):
        torch.autograd.backward(loss(own))
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.cpu()
        for name, value in own.named_parameters()
    }


def _cut(module: nn.Module, channels: Channels, kept: dict[int, Tensor]) -> None:
    """Take rows and columns out of every layer, in place."""
    for path, segments in channels.outputs.items():
        layer = module.get_submodule(path)
        _take(layer, ("weight", "bias"), places(segments, kept), axis=0)
        setattr(layer, "out_channels" if isinstance(layer, CONVOLUTIONS) else "out_features", len(layer.weight))  # type: ignore[arg-type]
    for path, segments in channels.inputs.items():
        layer = module.get_submodule(path)
        _take(layer, ("weight",), places(segments, kept), axis=1)
        columns = layer.get_parameter("weight").shape[1]
        setattr(layer, "in_channels" if isinstance(layer, CONVOLUTIONS) else "in_features", columns)
    for path, segments in channels.along.items():
        layer = module.get_submodule(path)
        stay = places(segments, kept)
        _take(layer, ("weight", "bias", "running_mean", "running_var"), stay, axis=0)
        names = ("in_channels", "out_channels", "groups") if isinstance(layer, CONVOLUTIONS) else ("num_features",)
        for name in names:
            setattr(layer, name, len(stay))


def _take(layer: nn.Module, names: Sequence[str], stay: Tensor, *, axis: int) -> None:
    for name in names:
        value = getattr(layer, name, None)
        if not isinstance(value, Tensor):
            continue
        smaller = value.detach().index_select(axis, stay.to(value.device)).clone()
        if isinstance(value, nn.Parameter):
            setattr(layer, name, nn.Parameter(smaller, requires_grad=value.requires_grad))
        else:
            layer.register_buffer(name, smaller)
