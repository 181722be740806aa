"""Batches of samples on the disk are made while the one before is computed with: reading waits for nobody then."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order; a thread makes the next one meanwhile, and no more than that.

    What is raised while an item is made is raised where it is asked for.
    """
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgekd-batches") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]
