"""Small convolutional students for small images: plain (`cnn_*`) and depthwise separable (`dscnn_*`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgekd.distill.models.rectified import Rectified, drawn
from edgekd.errors import ModelError


def cnn_s(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Plain CNN of 8, 16, 32 channels."""
    return _cnn(num_outputs, input_shape, widths=(8, 16, 32))


def cnn_m(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Plain CNN of 16, 32, 64 channels."""
    return _cnn(num_outputs, input_shape, widths=(16, 32, 64))


def cnn_l(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Plain CNN of 32, 64, 128 channels."""
    return _cnn(num_outputs, input_shape, widths=(32, 64, 128))


def dscnn_s(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Depthwise-separable CNN of 16, 32, 64 channels."""
    return _dscnn(num_outputs, input_shape, widths=(16, 32, 64))


def dscnn_m(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Depthwise-separable CNN of 32, 64, 128 channels."""
    return _dscnn(num_outputs, input_shape, widths=(32, 64, 128))


def dscnn_l(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """Depthwise-separable CNN of 64, 128, 256 channels."""
    return _dscnn(num_outputs, input_shape, widths=(64, 128, 256))


def _cnn(num_outputs: int, input_shape: Sequence[int], *, widths: Sequence[int]) -> nn.Module:
    """3x3 convolutions (the first at full size, each further one halves it), global average, linear."""
    channels = image_channels(input_shape)
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        layers.append(conv_bn_relu(channels, width, kernel=3, stride=1 if index == 0 else 2))
        channels = width
    return nn.Sequential(*layers, *_head(channels, num_outputs))


def _dscnn(num_outputs: int, input_shape: Sequence[int], *, widths: Sequence[int]) -> nn.Module:
    """A 3x3 convolution, then 3x3 depthwise and 1x1 pairs (each halves the size), global average, linear."""
    channels = widths[0]
    layers: list[nn.Module] = [conv_bn_relu(image_channels(input_shape), channels, kernel=3, stride=1)]
    for width in widths[1:]:
        layers.append(conv_bn_relu(channels, channels, kernel=3, stride=2, groups=channels))
        layers.append(conv_bn_relu(channels, width, kernel=1, stride=1))
        channels = width
    return nn.Sequential(*layers, *_head(channels, num_outputs))


def conv_bn_relu(before: int, after: int, *, kernel: int, stride: int, groups: int = 1) -> nn.Module:
    """Convolution without bias, batch norm, ReLU: exported and quantized as one operation."""
    convolution = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return Rectified(drawn(convolution), nn.BatchNorm2d(after), nn.ReLU())


def image_channels(input_shape: Sequence[int]) -> int:
    """C of (C, H, W). Raises `ModelError` for another shape."""
    if len(input_shape) != 3:
        raise ModelError(
            f"found samples of shape {list(input_shape)}, expected images (channels, height, width); end the "
            'preprocessing steps with {op = "layout", to = "CHW"}, or take an mlp'
        )
    return int(input_shape[0])


def _head(channels: int, num_outputs: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_outputs)]
