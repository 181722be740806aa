"""A torch module as it lies there: its mode, what wraps it, whether it is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the block; afterwards every part of the module is in the mode in which it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def unwrap(module: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile and (Distributed)DataParallel."""
    while True:
        is_parallel = isinstance(module, (nn.parallel.DistributedDataParallel, nn.parallel.DataParallel))
        inner = module._modules.get("module" if is_parallel else "_orig_mod")
        if inner is None:
            return module
        module = inner


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a part of it normalizes over the batch."""
    return any(isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) for part in module.modules())


@contextmanager
def synchronized(module: nn.Module) -> Iterator[None]:
    """For the block, batch norm inside `module` normalizes over all processes; afterwards it is the user's own again.

    Weights and statistics are the same tensors before, in and after the block.
    """
    swapped = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                parent.add_module(name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
                swapped.append((parent, name, child))
    try:
        yield
    finally:
        for parent, name, child in swapped:
            parent.add_module(name, child)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was applied to the module or to a part of it."""
    return any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in module.modules())
