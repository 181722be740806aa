"""Optimizers by name, and learning rates as pure functions of the step: a resumed run has nothing to remember."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from edgekd.errors import ModelError, UsageError, nearest

Make = Callable[..., Optimizer]


def _adamw(parameters: list[nn.Parameter], *, lr: float, weight_decay: float, fused: bool) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


def _adam(parameters: list[nn.Parameter], *, lr: float, weight_decay: float, fused: bool) -> Optimizer:
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


def _sgd(parameters: list[nn.Parameter], *, lr: float, weight_decay: float, fused: bool) -> Optimizer:
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True, fused=fused)


# adamw decays decoupled from the gradient (Loshchilov and Hutter, 2019, arXiv:1711.05101), adam and sgd through it;
# sgd has Nesterov momentum 0.9.
OPTIMIZERS: dict[str, Make] = {"adamw": _adamw, "adam": _adam, "sgd": _sgd}


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1.0 - progress


def _onecycle(progress: float) -> float:
    """From 1/25 up to 1 in the first 30 %, then down to 1e-4 of the start, both as a cosine (Smith and Topin, 2018,
    arXiv:1708.07120; the momentum stays)."""
    rise = 0.3
    if progress < rise:
        return 1.0 + (1.0 / 25.0 - 1.0) * _cosine(progress / rise)
    lowest = 1.0 / 25.0 * 1e-4
    return lowest + (1.0 - lowest) * _cosine((progress - rise) / (1.0 - rise))


# part of the training that is over (0..1) -> factor of the learning rate
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "onecycle": _onecycle,
}

# Which epoch's weights a training ends with: the best one on validation (of equal ones the last), or the last one,
# which a validation set of a few dozen samples cannot mislead.
KEEP = ("best", "last")


def lr_factor(schedule: str, step: int, *, total_steps: int, warmup_steps: int = 0) -> float:
    """Factor of the learning rate at `step` (from 0): a linear warm-up that ends at 1, then the schedule."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return SCHEDULES[schedule]((step - warmup_steps) / max(total_steps - warmup_steps, 1))


def check_optimization(
    *,
    optimizer: str,
    schedule: str,
    lr: float,
    weight_decay: float,
    epochs: int,
    warmup_epochs: int,
    ema: float | None = None,
    patience: int | None = None,
    keep: str = "best",
    clip_norm: float | None = None,
) -> None:
    """Raise `UsageError` for a name that is unknown or a number that makes no sense."""
    if optimizer not in OPTIMIZERS:
        raise UsageError(f"unknown optimizer '{optimizer}'. {nearest(optimizer, OPTIMIZERS)}")
    if schedule not in SCHEDULES:
        raise UsageError(f"unknown schedule '{schedule}'. {nearest(schedule, SCHEDULES)}")
    if not (math.isfinite(lr) and lr > 0):
        raise UsageError(f"found lr = {lr}, expected a number above 0")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise UsageError(f"found weight_decay = {weight_decay}, expected a number from 0")
    if epochs < 1:
        raise UsageError(f"found epochs = {epochs}, expected a whole number from 1")
    if not 0 <= warmup_epochs < epochs:
        raise UsageError(f"found warmup_epochs = {warmup_epochs}, expected 0 to {epochs - 1} (below epochs = {epochs})")
    if ema is not None and not 0 < ema < 1:
        raise UsageError(f"found ema = {ema}, expected the decay of the average, between 0 and 1, such as 0.999")
    if patience is not None and patience < 1:
        raise UsageError(f"found patience = {patience}, expected a whole number from 1")
    if keep not in KEEP:
        raise UsageError(f"unknown keep '{keep}'. {nearest(keep, KEEP)}")
    if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
        raise UsageError(f"found clip_norm = {clip_norm}, expected a number above 0")
    if schedule == "onecycle" and warmup_epochs:
        raise UsageError(f"found warmup_epochs = {warmup_epochs} with onecycle, which warms up itself; expected 0")


def build_optimizer(
    name: str,
    student: Iterable[nn.Parameter],
    adapters: Iterable[nn.Parameter] = (),
    *,
    lr: float,
    weight_decay: float,
) -> Optimizer:
    """The optimizer `name` over the parameters that want gradients, fused into one kernel where torch can.

    Raises `ModelError` when there is nothing to train.
    """
    trainable = [parameter for parameter in student if parameter.requires_grad]
    if not trainable:
        raise ModelError(
            "the student has no parameter that can be trained (requires_grad is False for all, or it has none)"
        )
    trainable += [parameter for parameter in adapters if parameter.requires_grad]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in trainable)
    return OPTIMIZERS[name](trainable, lr=lr, weight_decay=weight_decay, fused=fused)
