"""Peak resident memory of a process (this one, unless another is named), phase by phase.

Linux keeps the peak as `VmHWM` in /proc/self/status and sets it back when "5" is written to
/proc/self/clear_refs. Not used: `ru_maxrss`, which starts at the parent's peak (941 MB were reported for a child of
8.7 MB), and `VmPeak`, which counts addresses, not memory. Other systems offer nothing that can be set back, so
there nothing is told.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def can_measure(process: str = "self", *, root: Path = ROOT) -> bool:
    """Whether this system tells the peak and lets it be set back (Linux, unless the container forbids it)."""
    return reset_peak(process, root=root) and peak_resident_mb(process, root=root) is not None


def reset_peak(process: str = "self", *, root: Path = ROOT) -> bool:
    """Set the peak back to what is resident now; False where the system does not allow it."""
    path = root / "proc" / process / "clear_refs"
    if not path.exists():
        return False
    try:
        path.write_text("5")
    except OSError:
        return False
    return True


def peak_resident_mb(process: str = "self", *, root: Path = ROOT) -> float | None:
    """Largest resident set since the last reset, in MB (1e6 bytes); None where the system does not tell."""
    return _status_mb("VmHWM", process, root)


def resident_mb(process: str = "self", *, root: Path = ROOT) -> float | None:
    """Resident set now, in MB (1e6 bytes); None where the system does not tell."""
    return _status_mb("VmRSS", process, root)


def _status_mb(field: str, process: str, root: Path) -> float | None:
    try:
        text = (root / "proc" / process / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / 1e6
    return None
