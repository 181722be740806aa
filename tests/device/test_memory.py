"""Peak memory: parsing of injected files, and the truth on the Linux that the tests run on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekd.device import memory

STATUS = "Name:\tpython\nVmPeak:\t  999999 kB\nVmHWM:\t   50000 kB\nVmRSS:\t   40000 kB\n"


def _root(folder: Path) -> Path:
    own = folder / "proc" / "self"
    own.mkdir(parents=True)
    (own / "status").write_text(STATUS)
    (own / "clear_refs").write_text("")
    return folder


def test_the_peak_is_vmhwm_in_megabytes_of_a_million_bytes(tmp_path: Path) -> None:
    root = _root(tmp_path)
    assert memory.peak_resident_mb(root=root) == 51.2
    assert memory.resident_mb(root=root) == 40.96


def test_the_peak_is_set_back_by_writing_five(tmp_path: Path) -> None:
    root = _root(tmp_path)
    assert memory.reset_peak(root=root)
    assert (root / "proc/self/clear_refs").read_text() == "5"


def test_a_system_that_cannot_tell_is_told_apart(tmp_path: Path) -> None:
    assert memory.peak_resident_mb(root=tmp_path) is None
    assert not memory.reset_peak(root=tmp_path)
    assert not memory.can_measure(root=tmp_path)
    root = _root(tmp_path / "no reset")
    (root / "proc/self/clear_refs").unlink()
    assert not memory.can_measure(root=root)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak that can be set back")
def test_a_peak_is_seen_and_forgotten_after_the_reset() -> None:
    assert memory.can_measure()
    before = memory.peak_resident_mb()
    block = bytearray(64_000_000)
    block[::4096] = b"x" * len(block[::4096])
    during = memory.peak_resident_mb()
    del block
    still = memory.peak_resident_mb()
    memory.reset_peak()
    after = memory.peak_resident_mb()
    assert before is not None
    assert during is not None
    assert still is not None
    assert after is not None
    assert during - before > 60
    # The kernel counts pages per core and adds them up late: off by a few of them.
    assert abs(still - during) < 2
    assert during - after > 60
