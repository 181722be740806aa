"""Convolutions in front of ReLUs, drawn so that signals keep their size on the way back.

He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015, arXiv:1502.01852.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Convolution = TypeVar("Convolution", bound=nn.Conv1d | nn.Conv2d)


def drawn(convolution: Convolution) -> Convolution:
    """`convolution` with weights drawn from a normal distribution of variance 2 / fan_out."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


class Rectified(nn.Sequential):
    """Layers in a row, which know that the convolutions among them are `drawn`: a peer is drawn in the same way."""

    def reset_parameters(self) -> None:
        """Draw them anew."""
        for part in self:
            if isinstance(part, (nn.Conv1d, nn.Conv2d)):
                drawn(part)
