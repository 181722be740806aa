"""A small training with dropout, batch norm and augmentation, for the tests that stop it and go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.distill.engine import TrainResult, distill
from edgekd.distill.objective import Objective, Term
from edgekd.spec import Dataset, Layout, Scale, Split


class StopError(Exception):
    """Stands for Ctrl-C."""


def data() -> Dataset:
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (90, 8, 8, 1)).astype(np.uint8), rng.integers(0, 3, 90), np.arange(90))
    val = split.take(slice(60, 90))
    return Dataset("noise", "classification", ("a", "b", "c"), split.take(slice(0, 60)), val, val, "none", "0" * 64)


def student() -> nn.Module:
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*body, nn.Dropout(0.3), nn.Linear(4 * 36, 3))


def hard() -> Objective:
    return Objective([Term("ce", "cross_entropy")])


def train(run_dir: Path | None, **changed: Any) -> TrainResult:
    settings: dict[str, Any] = {
        "objective": hard(),
        "steps": (Scale(), Layout("CHW")),
        "epochs": 4,
        "batch_size": 16,
        "device": "cpu",
        "augment": {"shift": 1},
        "lr": 1e-2,
        "threads": 1,
        **changed,
    }
    objective = settings.pop("objective")
    return distill(student(), settings.pop("teachers", ()), data(), objective, run_dir=run_dir, **settings)


def state_bytes(module: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


def without_seconds(result: TrainResult) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name != "seconds"} for item in result.history]
