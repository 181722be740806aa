"""A run on several processes: process 0 leads it, the others train and cache answers when they are called.

The leader holds the run folder, decides which stages are to do, and writes. Before it trains, or asks a teacher for
answers to keep, it calls the others, which then compute the same stage from the same files; in every other stage they
wait. All must see the same folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.run_folder import Record

if TYPE_CHECKING:
    from edgekd.distill.distribution import World
    from edgekd.stages.workspace import Workspace


@dataclass(frozen=True)
class Call:
    """Train the model of `stage`, or build the cache, now; `records` are those of the stages before it."""

    stage: str
    threads: int
    records: Mapping[str, Record]


def call(space: Workspace, stage: str) -> None:
    """The leader's word that `stage` begins; nothing from the others, and nothing where there are none."""
    if space.world is not None and space.world.leads:
        space.world.share(Call(stage, space.threads, dict(space.records)))


def dismiss(space: Workspace) -> None:
    """Nothing more is done together: the others may end."""
    if space.world is not None and space.world.leads:
        space.world.share(None)


def follow(world: World, answer: Callable[[Call], None]) -> None:
    """Answer every call of the leader until it dismisses."""
    while (heard := world.share(None)) is not None:
        answer(heard)
