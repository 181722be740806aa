"""The store of decoded samples: memory that does not grow with the data, kills, full disks, other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.data import store
from edgekd.data.source import UnusableSamples
from edgekd.data.store import CHUNK, Encoded, stored_rows
from edgekd.errors import DataError, StorageError
from edgekd.files import held
from edgekd.rows import DiskRows, pieces, save_rows
from edgekd.spec import Array

SIDE = 48  # 9 kB per image of float32


def image(number: int) -> Array:
    return np.full((SIDE, SIDE), number, np.float32)


def numbers(count: int) -> Encoded:
    """Sample i is the text of i."""

    def read(positions: Any) -> Iterator[bytes]:
        yield from (str(position).encode() for position in positions)

    return Encoded(count, read, lambda positions: [f"number {position}" for position in positions])


def decode(raw: Any) -> Array:
    return image(int(raw))


def rows_of(folder: Path, count: int = 300, positions: Any = None, **changed: Any) -> DiskRows:
    options = {"facts": {"source": "a"}, "prepare": decode, "name": "numbers", **changed}
    return stored_rows(folder, numbers(count), np.arange(count) if positions is None else positions, **options)


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Decoding and one pass over all rows, shuffled, of 6 MB and of 28 MB."""
    peaks = []
    for count in (600, 3_000):
        tracemalloc.start()
        rows = rows_of(tmp_path / str(count), count)
        order = np.random.default_rng(0).permutation(count)
        total = sum(float(rows[order[start : start + 64]][:, 0, 0].sum()) for start in range(0, count, 64))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == count * (count - 1) / 2
    assert peaks[1] < peaks[0] + (1 << 20), peaks
    assert peaks[1] < 4 * CHUNK * SIDE * SIDE * 4


def test_no_more_than_a_chunk_is_decoded_ahead(tmp_path: Path) -> None:
    given = decoded = 0
    most = 0

    def read(positions: Any) -> Iterator[bytes]:
        nonlocal given, most
        for position in positions:
            given += 1
            most = max(most, given - decoded)
            yield str(position).encode()

    def counting(raw: Any) -> Array:
        nonlocal decoded
        decoded += 1
        return decode(raw)

    encoded = Encoded(2_000, read, lambda positions: [])
    stored_rows(tmp_path, encoded, np.arange(2_000), facts={}, prepare=counting, name="n")
    assert decoded == 2_000
    assert most <= CHUNK


def test_a_pass_in_pieces_holds_one_at_a_time(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "store", 1_000)
    tracemalloc.start()
    found = [len(piece) for piece in pieces(rows, size_bytes=1 << 20)]
    save_rows(tmp_path / "rows.npy", rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [113] * 8 + [96]
    assert peak < rows.mapped.nbytes + (4 << 20)  # 9 MB are one piece of save_rows
    saved = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.array_equal(saved, rows[:])


def test_rows_are_decoded_once_and_only_those_that_are_wanted(tmp_path: Path) -> None:
    seen: list[int] = []

    def counting(raw: Any) -> Array:
        seen.append(int(raw))
        return decode(raw)

    first = rows_of(tmp_path, positions=np.array([7, 3, 3, 250]), prepare=counting)
    assert sorted(seen) == [3, 7, 250]
    assert [int(row[0, 0]) for row in first[:]] == [7, 3, 3, 250]
    rows_of(tmp_path, positions=np.array([7, 8]), prepare=counting)
    assert seen[3:] == [8]
    # Holes take no room.
    blocks = (tmp_path / store.ROWS).stat()
    assert blocks.st_blocks * 512 < blocks.st_size / 4
    # Other facts, other rows.
    rows_of(tmp_path, positions=np.array([7]), prepare=counting, facts={"source": "b"})
    assert seen[4:] == [7]
    assert [int(row[0, 0]) for row in first[:]] == [7, 3, 3, 250], "who reads from the old ones keeps them"


def test_a_killed_process_is_finished_by_the_next(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_store import decode, rows_of
from pathlib import Path
def dies(raw):
    if int(raw) == {2 * CHUNK + 5}:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(raw)
rows_of(Path({str(tmp_path / "store")!r}), 1000, prepare=dies)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
    seen: list[int] = []

    def counting(raw: Any) -> Array:
        seen.append(int(raw))
        return decode(raw)

    rows = rows_of(tmp_path / "store", 1000, prepare=counting)
    assert sorted(seen) == list(range(2 * CHUNK, 1000))
    assert np.array_equal(rows[:][:, 0, 0], np.arange(1000))


@pytest.mark.parametrize("damage", ["cut", "gone", "rubbish"])
def test_a_damaged_store_is_made_again(damage: str, tmp_path: Path) -> None:
    rows_of(tmp_path, 20)
    if damage == "cut":
        os.truncate(tmp_path / store.ROWS, 5)
    elif damage == "gone":
        (tmp_path / store.DIGESTS).unlink()
    else:
        (tmp_path / store.INDEX).write_text("[")
    assert np.array_equal(rows_of(tmp_path, 20)[:][:, 0, 0], np.arange(20))


def test_samples_that_cannot_be_used_are_named_and_the_others_kept(tmp_path: Path) -> None:
    def picky(raw: Any) -> Array:
        number = int(raw)
        if number == 5:
            raise DataError("it is a five")
        return np.full((2, 2), np.nan, np.float32) if number == 6 else image(number)[: 3 if number == 290 else None]

    with pytest.raises(UnusableSamples) as caught:
        rows_of(tmp_path, prepare=picky)
    problems = caught.value.problems
    assert problems[:2] == ("number 5: it is a five", "number 6: holds NaN or infinite values; remove or repair it")
    assert problems[2].startswith(
        "number 290: is float32 [3, 48], but the others are float32 [48, 48]; add a step {op ="
    )
    assert len(problems) == 3
    good = np.delete(np.arange(300), [5, 6, 290])
    rows_of(tmp_path, positions=good, prepare=lambda raw: pytest.fail("decoded again"))


def test_of_very_many_only_the_first_are_told(tmp_path: Path) -> None:
    def refuses(raw: Any) -> Array:
        raise DataError("no")

    with pytest.raises(UnusableSamples) as caught:
        rows_of(tmp_path, 5_000, prepare=refuses)
    assert 100 <= len(caught.value.problems) <= CHUNK


def test_a_disk_that_is_too_small_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(
        StorageError, match=r"samples of numbers take 2.8 MB in .*, but only 1.0 MB are free; free some"
    ):
        rows_of(tmp_path)
    monkeypatch.undo()

    def is_full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_sync", is_full)
    with pytest.raises(StorageError, match="no space left while writing"):
        rows_of(tmp_path)


def test_files_that_go_away_meanwhile_are_said(tmp_path: Path) -> None:
    def read(positions: Any) -> Iterator[bytes]:
        yield b"0"
        raise FileNotFoundError(2, "No such file or directory", "train-000.tar")

    with pytest.raises(DataError, match=r"n cannot be read any more \(.*train-000.tar'\); are its files still there"):
        stored_rows(tmp_path, Encoded(9, read, lambda p: []), np.arange(9), facts={}, prepare=decode, name="n")


def test_another_process_that_decodes_is_not_disturbed(tmp_path: Path) -> None:
    with (
        held(tmp_path / store.LOCK, purpose="a test", refusal="held"),
        pytest.raises(
            StorageError, match=r"another edgekd process is decoding numbers into .*run the same command again"
        ),
    ):
        rows_of(tmp_path)
    rows_of(tmp_path)
    with held(tmp_path / store.LOCK, purpose="a test", refusal="held"):
        rows_of(tmp_path)  # all there: nobody is to be waited for


def test_the_index_says_what_the_rows_are(tmp_path: Path) -> None:
    rows_of(tmp_path, 3)
    assert json.loads((tmp_path / store.INDEX).read_text()) == {
        "facts": {"version": 1, "count": 3, "source": "a"},
        "dtype": "<f4",
        "shape": [48, 48],
    }
