"""Counters of the system, read before and after the timed part of each launch.

What a system does not tell is None.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekd.device.machine import ROOT, cgroup_folders


@dataclass(frozen=True)
class Readings:
    """Counters of the system at one time; None where it has none."""

    clock_s: float
    parent_cpu_s: float
    steal_ticks: int | None
    busy_ticks: int | None
    total_ticks: int | None
    pressure_us: int | None
    throttled_periods: int | None
    thermal_events: int | None
    frequency_mhz: float | None


def read(*, ends: bool = False, root: Path = ROOT) -> Readings:
    """The counters now; `ends` says that a timed part ends here, so that reading them is not counted into it."""
    clocks = (time.monotonic(), time.process_time()) if ends else None
    ticks = _cpu_ticks(root)
    counted = Readings(
        clock_s=0.0,
        parent_cpu_s=0.0,
        steal_ticks=None if ticks is None else ticks[7],
        busy_ticks=None if ticks is None else ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6],
        total_ticks=None if ticks is None else sum(ticks[:8]),
        pressure_us=_pressure_us(root),
        throttled_periods=_throttled_periods(root),
        thermal_events=_sum_of(root, "thermal_throttle/core_throttle_count"),
        frequency_mhz=_mean_frequency_mhz(root),
    )
    clock_s, parent_cpu_s = clocks or (time.monotonic(), time.process_time())
    return replace(counted, clock_s=clock_s, parent_cpu_s=parent_cpu_s)


def _cpu_ticks(root: Path) -> list[int] | None:
    """user nice system idle iowait irq softirq steal of all cores together, from /proc/stat."""
    try:
        fields = (root / "proc/stat").read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return [int(value) for value in fields[1:9]] if fields[0] == "cpu" and len(fields) >= 9 else None


def _pressure_us(root: Path) -> int | None:
    """Microseconds in which some task waited for a CPU (PSI); the file exists on kernels without it, unreadable."""
    try:
        lines = (root / "proc/pressure/cpu").read_text().splitlines()
    except OSError:
        return None
    totals = [line.rpartition("total=")[2] for line in lines if line.startswith("some")]
    return int(totals[0]) if totals else None


def _throttled_periods(root: Path) -> int | None:
    counts: list[int] = []
    for folder in cgroup_folders("cpu", root=root):
        try:
            lines = (folder / "cpu.stat").read_text().splitlines()
        except OSError:
            continue
        counts += [int(line.split()[1]) for line in lines if line.startswith("nr_throttled ")]
    return sum(counts) if counts else None


def _core_values(root: Path, name: str) -> list[int]:
    values = []
    for path in sorted((root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/{name}")):
        try:
            values.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return values


def _sum_of(root: Path, name: str) -> int | None:
    values = _core_values(root, name)
    return sum(values) if values else None


def _mean_frequency_mhz(root: Path) -> float | None:
    values: Sequence[int] = _core_values(root, "cpufreq/scaling_cur_freq")
    return sum(values) / len(values) / 1000 if values else None
