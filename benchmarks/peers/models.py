"""The pairs that the engine's cost is measured on: plain torch modules that every loop trains alike."""

from __future__ import annotations

import itertools

from torch import nn

from edgekd.distill.models.resnet import ResidualBlock


def cnn_teacher() -> nn.Module:
    """1.9 M parameters, (N, 1, 28, 28) to (N, 10): 3x3 convolutions of 64 to 320 channels, as in VGG."""
    return nn.Sequential(*_stage(1, 64, 64), *_stage(64, 128, 128), *_stage(128, 256, 256, 320), *_head(320))


def cnn_student() -> nn.Module:
    """14 thousand parameters, (N, 1, 28, 28) to (N, 10)."""
    return nn.Sequential(*_stage(1, 12), *_stage(12, 24), *_stage(24, 48), *_head(48))


strided_teacher = cnn_teacher


def strided_student() -> nn.Module:
    """14 thousand parameters, (N, 1, 28, 28) to (N, 10): it begins at half the size, as students for a device do."""
    first = [nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    third = [nn.Conv2d(32, 30, 3, padding=1, bias=False), nn.BatchNorm2d(30), nn.ReLU()]
    return nn.Sequential(*first, *second, *third, *_head(30))


def mlp_teacher() -> nn.Module:
    """784-512-256-10."""
    return _mlp(784, 512, 256, 10)


def mlp_student() -> nn.Module:
    """784-128-10."""
    return _mlp(784, 128, 10)


def _stage(before: int, *widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return [*layers, nn.MaxPool2d(2)]


def _head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def _mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fashion_teacher() -> nn.Module:
    """1.95 M parameters, (N, 1, 28, 28) to (N, 10): pairs of 3x3 convolutions, a wide dense layer, dropout."""
    dropout = nn.Dropout(0.25)
    dense = [nn.Linear(3136, 600), nn.BatchNorm1d(600), nn.ReLU(), nn.Dropout(0.5), nn.Linear(600, 10)]
    return nn.Sequential(*_stage(1, 32, 32), dropout, *_stage(32, 64, 64), dropout, nn.Flatten(), *dense)


def fashion_student() -> nn.Module:
    """36 thousand parameters, (N, 1, 28, 28) to (N, 10): residual blocks of 11, 22 and 44 channels from 14x14 on."""
    first = [nn.Conv2d(1, 11, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(11), nn.ReLU()]
    blocks = [ResidualBlock(11, 11, stride=1), ResidualBlock(11, 22, stride=2), ResidualBlock(22, 44, stride=2)]
    return nn.Sequential(*first, *blocks, *_head(44))
