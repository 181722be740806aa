"""Linear layers as the product of two thin ones: fewer weights and products where a layer's matrix has little rank.

Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation", 2014,
arXiv:1404.0736, for linear layers; the best approximation of a rank is the truncated SVD (Eckart and Young, 1936).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgekd.errors import ModelError, UsageError


def factorize(
    module: nn.Module, *, rank: int | None = None, energy: float | None = None, keep_larger: bool = False
) -> nn.Module:
    """A copy of `module` whose linear layers are two each, (out, rank) after (rank, in), the bias with the second.

    rank         singular values that stay
    energy       as many as are needed to keep this share of the sum of squares of all of a layer
    keep_larger  factorize layers too that do not become smaller by it

    A layer stays whole where two would not have fewer weights. Raises `UsageError` unless exactly one of rank and
    energy is given and makes sense, and `ModelError` when no layer became smaller.
    """
    if (rank is None) == (energy is None):
        raise UsageError("found both or none of low_rank.rank and low_rank.energy, expected one of them")
    if rank is not None and rank < 1:
        raise UsageError(f"found low_rank.rank = {rank}, expected a whole number from 1")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"found low_rank.energy = {energy}, expected a share of the sum of squares, such as 0.95")
    smaller = copy.deepcopy(module)
    layers = [(path, part) for path, part in smaller.named_modules() if isinstance(part, nn.Linear)]
    told = []
    for path, layer in layers:
        pair = _factors(layer, rank=rank, energy=energy)
        before, after = layer.weight.numel(), sum(part.weight.numel() for part in pair)
        if after >= before and not keep_larger:
            told.append(f"{path}: {pair[0].out_features} of {min(layer.weight.shape)}")
            continue
        parent, _, name = path.rpartition(".")
        setattr(smaller.get_submodule(parent), name, nn.Sequential(*pair))
    if len(told) == len(layers):
        raise ModelError(
            f"no linear layer becomes smaller (ranks: {'; '.join(told) or 'there is none'}); expected a smaller "
            "low_rank.rank or low_rank.energy"
        )
    return smaller


def rank_of(singular_values: Tensor, energy: float) -> int:
    """How many of them (largest first) hold the share `energy` of their sum of squares; at least 1."""
    squares = singular_values.double().square()
    total = float(squares.sum())
    if total == 0.0:
        return 1
    reached = torch.cumsum(squares, dim=0) / total
    return min(int((reached < energy - 1e-12).sum()) + 1, len(squares))


def _factors(layer: nn.Linear, *, rank: int | None, energy: float | None) -> tuple[nn.Linear, nn.Linear]:
    weight = layer.weight.detach()
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    count = min(rank, len(values)) if rank is not None else rank_of(values, energy or 1.0)
    root = values[:count].sqrt()
    first = nn.Linear(layer.in_features, count, bias=False, device=weight.device, dtype=weight.dtype)
    second = nn.Linear(count, layer.out_features, bias=layer.bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        first.weight.copy_(root[:, None] * right[:count])
        second.weight.copy_(left[:, :count] * root)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return first, second
