"""Residual networks for small images: a teacher that trains in minutes on a CPU, and students of the same kind.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2015, arXiv:1512.03385, section 4.2 (the
CIFAR networks of depth 6n + 2), with a 1x1 convolution in the shortcut where the size changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgekd.distill.models.cnn import conv_bn_relu, image_channels
from edgekd.distill.models.rectified import Rectified, drawn
from edgekd.errors import ModelError


def resnet_teacher(*, num_outputs: int, input_shape: Sequence[int], width: int = 32, depth: int = 14) -> nn.Module:
    """Three stages of (depth - 2) / 6 residual blocks each, of width, 2*width and 4*width channels.

    (N, C, H, W) to (N, num_outputs). Stages two and three halve the size. Raises `ModelError` unless the depth is
    8, 14, 20, ... and the width at least 1.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ModelError(f"resnet_teacher: found depth = {depth}, expected 6n + 2: 8, 14, 20, 26, ...")
    if width < 1:
        raise ModelError(f"resnet_teacher: found width = {width}, expected at least 1")
    layers: list[nn.Module] = [conv_bn_relu(image_channels(input_shape), width, kernel=3, stride=1)]
    channels = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            after = width * 2**stage
            layers.append(ResidualBlock(channels, after, stride=2 if stage > 0 and block == 0 else 1))
            channels = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_outputs))


def resnet_s(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """A student of 8, 16 and 32 channels: 20 thousand parameters, residual where `cnn_m` is plain."""
    return resnet_teacher(num_outputs=num_outputs, input_shape=input_shape, width=8, depth=8)


def resnet_m(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """A student of 12, 24 and 48 channels."""
    return resnet_teacher(num_outputs=num_outputs, input_shape=input_shape, width=12, depth=8)


def resnet_l(*, num_outputs: int, input_shape: Sequence[int]) -> nn.Module:
    """A student of 16, 32 and 64 channels."""
    return resnet_teacher(num_outputs=num_outputs, input_shape=input_shape, width=16, depth=8)


class ResidualBlock(nn.Module):
    """ReLU(shortcut(x) + convolutions(x)): (N, before, H, W) to (N, after, H / stride, W / stride)."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        second = drawn(nn.Conv2d(after, after, 3, padding=1, bias=False))
        self.residual = Rectified(conv_bn_relu(before, after, kernel=3, stride=stride), second, nn.BatchNorm2d(after))
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """One block."""
        return torch.relu(self.shortcut(x_NCHW) + self.residual(x_NCHW))
