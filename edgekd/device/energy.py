"""Energy as the processor counts it: RAPL, through Linux's powercap (Intel, and AMD from Zen on).

It is the whole package's: all cores, busy or idle, and whatever else runs on them. Most systems let only root read it;
where it cannot be read, nothing is told. Nothing is estimated.

Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgekd.device.machine import ROOT

Counters = Mapping[str, tuple[int, int]]
"""Domain -> (microjoules so far, microjoules at which the counter begins again)."""


def read(*, root: Path = ROOT) -> Counters | None:
    """The counter of each processor package; None where there is none that may be read."""
    found = {}
    for domain in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        try:
            if not (domain / "name").read_text().startswith("package"):
                continue  # a part of a package, or the whole board, which would be counted twice
            values = [int((domain / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")]
        except (OSError, ValueError):
            return None
        found[domain.name] = (values[0], values[1])
    return found or None


def used_mj(before: Counters | None, after: Counters | None) -> float | None:
    """Millijoules between two readings; a counter that began again once in between is put right."""
    if before is None or after is None or before.keys() != after.keys():
        return None
    total = 0
    for domain, (start, limit) in before.items():
        grown = after[domain][0] - start
        total += grown if grown >= 0 else grown + limit
    return total / 1e3
