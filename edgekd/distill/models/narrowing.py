"""Narrower layers of a transformer out of wide ones: what to keep, and what becomes of each matrix.

A layer is a mapping of names to its tensors: "query", "key", "value", "out", "widen", "narrow", each with ".weight"
(out, in) and ".bias" (out,). H is the width of the model, A the number of heads, d the size of one, I the width inside.

* Heads and neurons are independent of one another: the important ones are kept as they are. A head counts by the norm
  of out_a value_a, the most that it can write; a neuron by the norm of what it reads, bias included, times that of
  what it writes.
* Smaller heads. "truncate" keeps the important dimensions of each head (norm of the row of the query times that of the
  key; value times out). "svd" takes the best approximation of lower rank of what a head computes with its two pairs:
  query^T key, which gives the scores, and out value; biases are a further column. In both, queries are multiplied by
  (new d / old d)^(1/2): scores are divided by the root of d, and keep their size.
* What the values' biases of heads and dimensions that go have written at all times goes into the bias behind them.
* The width of the model. "truncate" keeps the dimensions that the layers read most: the norm of the columns of all
  matrices that read the residual stream, each times the scale of the layer norm before it. "svd" turns the stream into
  the H' directions that these matrices read most (their right singular vectors P, (H, H')): what reads becomes W P,
  what writes P^T W and P^T b, tables E P. A layer norm cannot be turned: its scale becomes the root of (P^2)^T scale^2,
  its shift P^T shift.

Nothing is changed where a size stays. What comes out is a beginning for a training, not a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Basis:
    """What becomes of the residual stream: some of its dimensions, directions P (H, H'), or (neither) the same."""

    kept: Tensor | None = None
    matrix: Tensor | None = None

    def read(self, weight: Tensor) -> Tensor:
        """A matrix (..., H) that reads the stream, or a table whose rows lie in it."""
        if self.matrix is not None:
            return _like(weight.double() @ self.matrix, weight)
        return weight if self.kept is None else weight.index_select(-1, self.kept)

    def write(self, values: Tensor) -> Tensor:
        """A matrix (H, ...) or vector (H,) that is written into the stream."""
        if self.matrix is not None:
            return _like(self.matrix.T @ values.double(), values)
        return values if self.kept is None else values.index_select(0, self.kept)

    def scale(self, gamma: Tensor) -> Tensor:
        """The scale of a layer norm."""
        if self.matrix is not None:
            return _like((self.matrix.square().T @ gamma.double().square()).sqrt(), gamma)
        return self.write(gamma)


def basis(readers: Sequence[tuple[Tensor, Tensor]], size: int, *, by: str) -> Basis:
    """The `size` dimensions or directions that matrices (out, H) read most, each behind a layer norm's scale (H,)."""
    seen = torch.cat([weight.double() * gamma.double() for weight, gamma in readers])
    if size == seen.shape[1]:
        return Basis()
    if by == "truncate":
        return Basis(kept=_largest(seen.square().sum(dim=0), size))
    _, vectors = torch.linalg.eigh(seen.T @ seen)  # the smallest first
    directions = vectors.flip(1)[:, :size]
    # Of the two signs of a direction always the same one.
    peaks = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return Basis(matrix=directions * peaks.sign())


def narrow_inner(layer: Mapping[str, Tensor], size: int) -> Named:
    """The layer with the `size` neurons that count most."""
    widen, bias, narrow = (layer[name].double() for name in ("widen.weight", "widen.bias", "narrow.weight"))
    if size == len(widen):
        return dict(layer)
    kept = _largest((widen.square().sum(dim=1) + bias.square()) * narrow.square().sum(dim=0), size)
    changed = {
        "widen.weight": layer["widen.weight"][kept],
        "widen.bias": layer["widen.bias"][kept],
        "narrow.weight": layer["narrow.weight"][:, kept],
    }
    return {**layer, **changed}


def narrow_heads(layer: Mapping[str, Tensor], *, heads: int, new_heads: int, new_size: int, by: str) -> Named:
    """The layer with `new_heads` of its `heads`, each of `new_size` dimensions."""
    size = len(layer["query.weight"]) // heads
    if (new_heads, new_size) == (heads, size):
        return dict(layer)
    # (A, d, H + 1): what a head computes of a state and a one.
    q, k, v = (_with_bias(layer, name).reshape(heads, size, -1) for name in ("query", "key", "value"))
    out = layer["out.weight"].double().reshape(-1, heads, size).permute(1, 2, 0)  # (A, d, H), as the others
    # |out_a^T v_a|^2 by way of d x d matrices
    constant_H = torch.einsum("adh,ad->h", out, v[:, :, -1])  # weights of attention sum to 1
    kept = _largest(((v @ v.transpose(1, 2)) * (out @ out.transpose(1, 2))).sum(dim=(1, 2)), new_heads)
    q, k, v, out = (value[kept] for value in (q, k, v, out))
    if new_size < size:
        (q, k), (v, out) = (
            [torch.stack(both) for both in zip(*(_smaller(a, b, new_size, by=by) for a, b in zip(first, second)))]
            for first, second in ((q, k), (v, out))
        )
        q = q * (new_size / size) ** 0.5
    constant_H = constant_H - torch.einsum("adh,ad->h", out, v[:, :, -1])
    changed: Named = {
        "out.weight": _like(out.permute(2, 0, 1).flatten(1), layer["out.weight"]),
        "out.bias": _like(layer["out.bias"].double() + constant_H, layer["out.bias"]),
    }
    for name, value in (("query", q), ("key", k), ("value", v)):
        rows = _like(value.flatten(0, 1), layer[f"{name}.weight"])
        changed[f"{name}.weight"], changed[f"{name}.bias"] = rows[:, :-1].contiguous(), rows[:, -1].contiguous()
    return {**layer, **changed}


def _smaller(a: Tensor, b: Tensor, size: int, *, by: str) -> tuple[Tensor, Tensor]:
    """(size, m) and (size, n) for a (d, m) and b (d, n), such that a^T b changes little."""
    if by == "truncate":
        kept = _largest(a.square().sum(dim=1) * b.square().sum(dim=1), size)
        return a[kept], b[kept]
    basis_a, triangle_a = torch.linalg.qr(a.T)
    basis_b, triangle_b = torch.linalg.qr(b.T)
    left, values, right = torch.linalg.svd(triangle_a @ triangle_b.T)
    root = values[:size].sqrt()[:, None]
    return root * (basis_a @ left[:, :size]).T, root * (right[:size] @ basis_b.T)


def _with_bias(layer: Mapping[str, Tensor], name: str) -> Tensor:
    return torch.cat([layer[f"{name}.weight"].double(), layer[f"{name}.bias"].double()[:, None]], dim=1)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` largest scores are, in ascending order; of equal ones the first."""
    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values


def _like(value: Tensor, other: Tensor) -> Tensor:
    return value.to(other.dtype)
