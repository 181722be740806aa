"""A verb on several processes, as `accelerate launch` or `torchrun` start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekd.distill.distribution import World


@contextmanager
def processes(device: str) -> Iterator[World]:
    """The processes that run this verb together, of which process 0 speaks; usually this one alone."""
    from edgekd.distill.distribution import joined
    from edgekd.distill.endings import Board, one_ending
    from edgekd.distill.execution import choose_device

    with joined(os.environ, device=choose_device(device)) as world:
        if world.is_alone:
            yield world
            return
        with one_ending(world, Board(os.environ)):
            yield world
