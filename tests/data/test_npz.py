"""Array files of strangers: read, or refused in words; never run."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgekd.data.npz import read_npz
from edgekd.errors import DataError


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_npz(path)
    return str(caught.value)


def test_arrays_come_back_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.array(["a", "b"]))
    found = read_npz(tmp_path / "a.npz")
    assert found["x"].tolist() == [0, 1, 2]
    assert found["y"].tolist() == ["a", "b"]


def test_everything_else_is_refused(tmp_path: Path) -> None:
    assert "is not there; expected an .npz file" in refusal(tmp_path / "none.npz")
    assert "is no file" in refusal(tmp_path)
    np.save(tmp_path / "single.npy", np.arange(3))
    assert "is a single array" in refusal(tmp_path / "single.npy")
    (tmp_path / "text.npz").write_text("no zip")
    assert "cannot be read as .npz" in refusal(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    assert "Python objects are never loaded" in refusal(tmp_path / "objects.npz")
    with zipfile.ZipFile(tmp_path / "readme.npz", "w") as archive:
        archive.writestr("README", "hello")
    assert "'README', which is no array" in refusal(tmp_path / "readme.npz")


@pytest.mark.parametrize("place", range(0, 200, 7))
def test_a_damaged_byte_never_ends_in_a_traceback(tmp_path: Path, place: int) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(100))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[place % len(data)] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(bytes(data))
    with contextlib.suppress(DataError):
        assert list(read_npz(tmp_path / "a.npz")) == ["x"]
