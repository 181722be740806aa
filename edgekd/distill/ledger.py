"""What the steps of an epoch gave: added up without waiting for the device, checked for NaN, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgekd.distill.distribution import ALONE, World


class Ledger:
    """Adds up what the terms gave, without waiting for the device until `settle`, where the processes compare notes."""

    def __init__(self, names: Sequence[str], world: World = ALONE) -> None:
        self._world = world
        self._names = ("loss", *names)
        self._rows: list[Tensor] = []
        self._counts: list[int] = []
        self._sums = torch.zeros(len(self._names), dtype=torch.float64)
        self._steps = 0
        self.samples = 0

    def add(self, row: Tensor, samples: int) -> None:
        """`row` holds the loss of one step, then what each term added to it; it learned from `samples`."""
        self._rows.append(row)
        self._counts.append(samples)

    def settle(self) -> tuple[int, list[str]] | None:
        """Book the steps since the last call; (step from 1, names) of the first that was not finite."""
        if not self._rows:
            return None
        table = self._world.mean(torch.stack(self._rows).cpu().double())
        bad = first_non_finite(self._names, table)
        if bad is not None:
            return self._steps + bad[0] + 1, bad[1]
        self._sums += (table * torch.tensor(self._counts, dtype=torch.float64)[:, None]).sum(dim=0)
        self._steps += len(self._rows)
        self.samples += sum(self._counts)
        self._rows, self._counts = [], []
        return None

    def means(self) -> dict[str, float]:
        """Mean per sample of what was booked: "loss", then each term."""
        return {name: float(value) / max(self.samples, 1) for name, value in zip(self._names, self._sums.tolist())}


def gradient_norms(parts: Mapping[str, Tensor], module: nn.Module, world: World = ALONE) -> dict[str, Tensor]:
    """The norm of each part's gradient on the parameters of `module`; the graph stays for the backward pass.

    With several processes that of the mean gradient.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    norms: dict[str, Tensor] = {}
    for name, part in parts.items():
        gradients: Sequence[Tensor | None] = ()
        if part.requires_grad:
            gradients = torch.autograd.grad(part, parameters, retain_graph=True, allow_unused=True)
        found = [gradient for gradient in gradients if gradient is not None]
        if not world.is_alone and gradients:
            flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients)]
            found = [world.mean(torch.cat([gradient.reshape(-1) for gradient in flat]))]
        norms[name] = torch.nn.utils.get_total_norm(found)
    return norms


def first_non_finite(names: Sequence[str], values_KT: Tensor) -> tuple[int, list[str]] | None:
    """(row, names of its columns) of the first row of `values_KT` with NaN or infinity; None if all are finite."""
    bad_KT = ~torch.isfinite(values_KT)
    rows = bad_KT.any(dim=1).nonzero()
    if len(rows) == 0:
        return None
    row = int(rows[0])
    return row, [name for name, bad in zip(names, bad_KT[row].tolist()) if bad]
