"""Fetches published files once, into the user's cache folder, and believes only their checksum."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from edgekd.errors import DataError, MissingExtra
from edgekd.files import sha256_bytes, write_bytes

TIMEOUT_S = 60
# Above all that is fetched here; whatever else a server sends ends in a wrong checksum, not in a full memory.
MAX_BYTES = 1 << 27


def cache_folder(name: str) -> Path:
    """The folder `name` in edgekd's cache folder, by the rules of the operating system; EDGEKD_CACHE overrides them."""
    chosen = os.environ.get("EDGEKD_CACHE")
    if chosen:
        return Path(chosen) / name
    try:
        import platformdirs
    except ImportError as error:
        raise MissingExtra("platformdirs", "train", purpose="finding your cache folder") from error
    return Path(platformdirs.user_cache_dir("edgekd", appauthor=False)) / name


def fetch(url: str, path: Path, *, sha256: str) -> Path:
    """The file behind `url` at `path`; nothing is done when it is there with that sha256.

    Raises `DataError` when the server cannot be reached or sends other bytes: then nothing is written.
    """
    if path.is_file() and sha256_bytes(path.read_bytes()) == sha256:
        return path
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            data = response.read(MAX_BYTES)
    except (urllib.error.URLError, OSError) as error:
        raise DataError(
            f"cannot download {url} ({error}); check the connection, or put the file at {path} yourself"
        ) from error
    found = sha256_bytes(data)
    if found != sha256:
        raise DataError(f"{url} sent a file with sha256 {found}, expected {sha256}; nothing was written")
    return write_bytes(path, data)
