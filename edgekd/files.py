"""Atomic writes and hashes: a file is there whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekd.errors import MissingExtra, StorageError, UsageError, explain_os_errors

CHUNK_BYTES = 1 << 20
# What is being written is called this and something random.
TEMPORARY = ".tmp-"


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of the file at `path`, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it into place.

    A reader sees the old file or the new one, never a part; a crash leaves at most a `.tmp-*` file behind.
    A symbolic link stays, the file that it leads to is replaced. Raises `StorageError` when the disk is full or the
    folder may not be written, `UsageError` when a folder or a device (renaming would replace /dev/null!) lies there.
    """
    with explain_os_errors(path):
        if Path(path).is_dir():
            raise UsageError(f"cannot write {path}: it is a folder; expected the name of a file")
        if Path(path).exists() and not Path(path).is_file():
            raise UsageError(f"cannot write {path}: it is a device or a pipe; expected the name of a file")
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            temporary.chmod(0o644)
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return Path(path)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` atomically."""
    return write_atomically(path, lambda temporary: _fill(temporary, data))


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8 to `path` atomically."""
    return write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as readable JSON to `path` atomically."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def held(lock: Path, *, purpose: str, refusal: str) -> Iterator[None]:
    """Hold the file `lock` for this process; its folder is made.

    Raises `StorageError` with the text `refusal` at once when another process holds it, and `MissingExtra` without
    filelock.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise MissingExtra("filelock", "train", purpose=purpose) from error

    with explain_os_errors(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        holder = FileLock(lock, timeout=0)
        try:
            holder.acquire()
        except Timeout as error:
            raise StorageError(refusal) from error
    try:
        yield
    finally:
        holder.release()


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)
