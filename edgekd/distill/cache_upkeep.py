"""Looks after the folder of teacher caches: deletes those that nobody needs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from edgekd.distill.cache import INDEX, building, list_caches
from edgekd.errors import StorageError, UsageError, explain_os_errors


def prune(
    root: Path,
    *,
    keys: Sequence[str] = (),
    older_than_s: float | None = None,
    max_bytes: int | None = None,
    now: float | None = None,
) -> list[tuple[str, int]]:
    """Delete caches: those of `keys`, those unused for longer than `older_than_s`, and then the longest unused until
    the rest fits into `max_bytes`. Returns (key, bytes freed). One that is being built is left alone.

    Raises `UsageError` for a key that is not there.
    """
    now = time.time() if now is None else now
    folders = {path.name: path for path in root.iterdir() if path.is_dir()} if root.is_dir() else {}
    for key in keys:
        if key not in folders:
            raise UsageError(f"{root} has no cache '{key}'; `edgekd cache info` lists them")
    caches = list_caches(root)
    chosen = [folders[key] for key in keys]
    if older_than_s is not None:
        chosen += [cache.path for cache in caches if now - cache.used_at > older_than_s]
    if max_bytes is not None:
        kept = [cache for cache in caches if cache.path not in chosen]
        total = sum(cache.size_bytes for cache in kept)
        for cache in reversed(kept):
            if total <= max_bytes:
                break
            total -= cache.size_bytes
            chosen.append(cache.path)
    removed = [_remove(path) for path in dict.fromkeys(chosen)]
    return [item for item in removed if item is not None]


def _remove(path: Path) -> tuple[str, int] | None:
    """Delete a cache folder; None when it is being built, or is not ours to delete."""
    try:
        with building(path), explain_os_errors(path):
            size = sum(item.stat().st_size for item in path.iterdir() if item.is_file())
            # The index first: killed half-way, what is left is no cache.
            (path / INDEX).unlink(missing_ok=True)
            shutil.rmtree(path)
    except StorageError:
        return None
    return path.name, size
