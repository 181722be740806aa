"""One-dimensional convolutions for series: sensor traces, audio features, any (length, channels).

After Bai, Kolter and Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
Modeling", 2018, arXiv:1803.01271; not causal (the whole series is there when it is classified), strided instead of
dilated (cheaper on small devices).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgekd.distill.models.rectified import Rectified, drawn
from edgekd.errors import ModelError


def tcn_s(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Series network of 16 and 32 channels."""
    return SeriesNetwork(num_outputs, input_shape, widths=(16, 32))


def tcn_m(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Series network of 32, 64 and 64 channels."""
    return SeriesNetwork(num_outputs, input_shape, widths=(32, 64, 64))


def tcn_l(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Series network of 64, 128 and 128 channels."""
    return SeriesNetwork(num_outputs, input_shape, widths=(64, 128, 128))


def tcn_teacher(
    *, num_outputs: int, input_shape: Sequence[int], width: int = 128, depth: int = 4, dropout: float = 0.1
) -> nn.Module:
    """Series network of `depth` layers of `width` channels (the first half as wide), with dropout before the head."""
    if width < 2 or depth < 1:
        raise ModelError(f"tcn_teacher: found width = {width}, depth = {depth}, expected at least 2 and 1")
    return SeriesNetwork(num_outputs, input_shape, widths=(width // 2, *[width] * (depth - 1)), dropout=dropout)


class SeriesNetwork(nn.Module):
    """Convolutions of length 5 (the first at full length, each further one halves it), average over time, linear.

    Takes (N, L), (N, L, C) or (N, 1, L, C): a plain series, one with channels last, or one that a CHW layout step
    gave a leading axis. Gives (N, num_outputs). Raises `ModelError` for samples of another shape.
    """

    def __init__(
        self, num_outputs: int, input_shape: Sequence[int], *, widths: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        shape = tuple(input_shape)
        if len(shape) == 3 and shape[0] == 1:
            shape = shape[1:]
        if len(shape) not in (1, 2):
            raise ModelError(
                f"found samples of shape {list(input_shape)}, expected a series: (length,), (length, channels) or "
                "(1, length, channels); for images take a cnn or dscnn"
            )
        self.length = shape[0]
        self.channels = shape[1] if len(shape) == 2 else 1
        layers: list[nn.Module] = []
        before = self.channels
        for index, after in enumerate(widths):
            convolution = nn.Conv1d(before, after, 5, stride=1 if index == 0 else 2, padding=2, bias=False)
            layers += [drawn(convolution), nn.BatchNorm1d(after), nn.ReLU()]
            before = after
        self.body = Rectified(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(before, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) to (N, num_outputs)."""
        x_NLC = x.reshape(-1, self.length, self.channels)
        logits: torch.Tensor = self.head(self.body(x_NLC.transpose(1, 2)))
        return logits
