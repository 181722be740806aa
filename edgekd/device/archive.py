"""Reading a folder or zip that somebody else made, and writing one whose bytes depend on the content alone.

Nothing is ever unpacked: a reader answers for one name at a time, never gives more bytes than it was asked for,
and refuses names that lead elsewhere, links, doubled names and encrypted or oddly packed entries.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from edgekd.errors import BundleError
from edgekd.spec import Array

MAX_FILE_BYTES = 1 << 31  # an ONNX graph is a protobuf message, which ends at 2 GB
MAX_ARRAYS_BYTES = 1 << 28
MAX_ENTRIES = 10_000
EPOCH = (1980, 1, 1, 0, 0, 0)
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
ADVICE = "get a fresh copy of the bundle"
# The header of an .npy file as numpy writes it, for plain numbers only: no objects, texts or records.
_HEADER = re.compile(
    r"\{'descr': '([<>|=]?[buif][1248])', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18},? ?){0,32})\),? ?\}\s*"
)
# What zipfile and zlib raise on damaged archives.
_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, LookupError)


class Reader(Protocol):
    """Files by name, from a folder or a zip."""

    def size(self, name: str) -> int | None:
        """The size in bytes of the file `name`; None when there is none. Raises `BundleError` for a link."""
        ...

    def read(self, name: str, *, limit: int) -> bytes:
        """The file `name`. Raises `BundleError` when it is missing, unreadable or longer than `limit`."""
        ...


def open_reader(path: Path) -> Reader:
    """A reader for the folder or zip at `path`. Raises `BundleError` when it is neither, or a harmful zip."""
    if path.is_dir():
        return _Folder(path)
    if not path.exists():
        raise BundleError(f"no bundle at {path}; check the path")
    if not is_zip(path):
        raise BundleError(
            f"{path} is no bundle: expected a folder or a zip with a bundle.json; build one with 'edgekd bundle'"
        )
    return _Zip(path)


def is_zip(path: Path) -> bool:
    """Whether the file at `path` starts as a zip does."""
    try:
        with path.open("rb") as file:
            return file.read(4) in ZIP_MAGIC
    except OSError:
        return False


def name_problem(name: object) -> str | None:
    """Why `name` must not be opened inside a bundle; None when it may."""
    if not isinstance(name, str) or not name or len(name) > 255:
        return "expected a file name of 1 to 255 characters"
    if any(ord(character) < 32 or character in '\\:*?"<>|\x7f' for character in name):
        return "expected no backslash, colon, wildcard or control character"
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        return "expected a path inside the bundle, without a leading / and without . or .."
    return None


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, name: str) -> int | None:
        place = self._root
        status = None
        try:
            for part in name.split("/"):
                place = place / part
                status = place.lstat()
                if stat.S_ISLNK(status.st_mode):
                    raise BundleError(f"{name} is (or lies behind) a symbolic link, expected a plain file; {ADVICE}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BundleError(f"cannot look at {place}: {error.strerror}; check its permissions") from error
        # A pipe or a device would block or never end.
        if status is None or not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{name} is not a plain file; {ADVICE}")
        return status.st_size

    def read(self, name: str, *, limit: int) -> bytes:
        if self.size(name) is None:
            # Somebody gave the run folder, or the folder around the bundle.
            inside = sorted(item.parent for item in self._root.glob(f"*.edgekd/{name}"))
            raise BundleError(
                f"{name} is missing in {self._root}; {f'did you mean {inside[0]}?' if inside else ADVICE}"
            )
        try:
            with (self._root / name).open("rb") as file:
                return _read_at_most(file, name, limit)
        except OSError as error:
            raise BundleError(f"cannot read {self._root / name}: {error.strerror}; check its permissions") from error


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except (OSError, *_DAMAGED) as error:
            raise BundleError(f"{path} is a damaged zip ({error}); {ADVICE}") from error
        if len(entries) > MAX_ENTRIES:
            raise BundleError(f"{path} holds {len(entries)} entries, expected at most {MAX_ENTRIES}")
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            _check_entry(entry, path)
            if entry.filename in self._entries:
                raise BundleError(f"{path} holds '{entry.filename}' twice, expected each name once; {ADVICE}")
            self._entries[entry.filename] = entry

    def size(self, name: str) -> int | None:
        entry = self._entries.get(name)
        return None if entry is None else entry.file_size

    def read(self, name: str, *, limit: int) -> bytes:
        if name not in self._entries:
            raise BundleError(f"{name} is missing in {self._path}; {ADVICE} (its files lie at the root of the zip)")
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._entries[name]) as file:
                return _read_at_most(file, name, limit)
        except (OSError, *_DAMAGED) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{name} in {self._path} is damaged ({error}); {ADVICE}") from error


def _check_entry(entry: zipfile.ZipInfo, path: Path) -> None:
    problem = name_problem(entry.filename.removesuffix("/"))
    mode = entry.external_attr >> 16
    if problem is None and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = "expected a plain file, no link"
    if problem is None and entry.flag_bits & 1:
        problem = "expected no encryption"
    if problem is None and entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = "expected it stored or deflated"
    if problem is not None:
        raise BundleError(f"{path} holds the entry {entry.filename!r}: {problem}; {ADVICE}")


def _read_at_most(file: Any, name: str, limit: int) -> bytes:
    data: bytes = file.read(limit + 1)
    if len(data) > limit:
        raise BundleError(f"{name} is longer than {limit} bytes, the most that was expected; {ADVICE}")
    return data


def write_zip(file: BinaryIO | Path, contents: Mapping[str, bytes]) -> None:
    """Write a zip with fixed time stamps and no compression (whose bytes would depend on the zlib version)."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, date_time=EPOCH)
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)


def arrays_to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of an .npz with these arrays: the same arrays give the same bytes."""
    contents: dict[str, bytes] = {}
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.kind not in "buif":
            raise BundleError(f"the array '{name}' is {array.dtype}, expected numbers; convert it first")
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
        contents[f"{name}.npy"] = buffer.getvalue()
    whole = io.BytesIO()
    write_zip(whole, contents)
    return whole.getvalue()


def arrays_from_bytes(data: bytes, name: str, *, limit: int = MAX_ARRAYS_BYTES) -> dict[str, Array]:
    """The arrays of an .npz, at most `limit` bytes of them; numbers only, never a pickle. Raises `BundleError`."""
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                key = entry.filename.removesuffix(".npy")
                if key in arrays or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"'{key}' comes twice or is packed in an unknown way")
                with archive.open(entry) as file:
                    raw = _read_at_most(file, f"{key} in {name}", limit)
                limit -= len(raw)
                arrays[key] = _array(raw)
    except BundleError:
        raise
    except (*_DAMAGED, OSError, TypeError, SyntaxError, ArithmeticError, MemoryError) as error:
        raise BundleError(f"{name} is no readable .npz file of numbers ({error}); {ADVICE}") from error
    return arrays


def _array(raw: bytes) -> Array:
    # numpy's own reader evaluates the header and allocates what it claims before it looks at the data.
    start = {b"\x93NUMPY\x01\x00": 10, b"\x93NUMPY\x02\x00": 12}[raw[:8]]
    end = start + int.from_bytes(raw[8:start], "little")
    header = _HEADER.fullmatch(raw[start:end].decode("latin-1"))
    if header is None or end > len(raw):
        raise ValueError("found an array header that is none of plain numbers")
    dtype, fortran = np.dtype(header[1]), header[2] == "True"
    shape = tuple(int(side) for side in header[3].replace(",", " ").split())
    if math.prod(shape) * dtype.itemsize != len(raw) - end:
        raise ValueError(f"found {len(raw) - end} bytes for shape {shape} of {dtype}")
    array: Array = np.frombuffer(raw, dtype, offset=end).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))


def fsync_folder(path: Path) -> None:
    """Make the names in a folder safe from a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
