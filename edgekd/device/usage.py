"""Which cores processes run on, and what they used: CPU time, waiting for a core, interruptions."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgekd.device.machine import ROOT


def pin(cores: list[int]) -> bool:
    """Keep every thread of this process on `cores`; False where the system offers no affinity.

    Each thread by its number, because the runtime's own were started before and affinity is not handed on.
    """
    if sys.platform != "linux":
        return False
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except OSError:
            return False
    return True


class Usage(NamedTuple):
    """What processes used so far; None where the system does not tell.

    cpu_s        seconds of CPU time
    waited_s     seconds in which threads were ready to run but had no core
    interrupted  how often a core was taken from a thread that could have gone on. Other processes hand their calls
                 from thread to thread, so for them it says nothing about calls
    """

    cpu_s: float | None
    waited_s: float | None
    interrupted: int | None


def usage(processes: Sequence[str] = ("self",), *, root: Path = ROOT) -> Usage:
    """What these processes used so far."""
    times = _schedstat(processes, root)
    waited = None if times is None else times[1] / 1e9
    if list(processes) == ["self"]:
        return Usage(time.process_time(), waited, _involuntary_switches())
    return Usage(None if times is None else times[0] / 1e9, waited, None)


def _schedstat(processes: Sequence[str], root: Path) -> tuple[int, int] | None:
    """Nanoseconds on a core and of waiting for one, of all threads; None where Linux does not tell."""
    on_core = waited = 0
    try:
        for process in processes:
            for thread in (root / "proc" / process / "task").iterdir():
                fields = (thread / "schedstat").read_text().split()
                on_core, waited = on_core + int(fields[0]), waited + int(fields[1])
    except (OSError, IndexError):
        return None
    return on_core, waited


def _involuntary_switches() -> int | None:
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
