"""How long and how often to measure: `benchmarks/suites/*.toml`, or a file of the user's own."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from edgekd.device.statistics import LEAST_LAUNCHES
from edgekd.errors import InputRefused, UsageError, nearest

# Fewer starts give no interval worth telling.
LEAST_COLD_STARTS = 10
# Launching may take this many times as long as the timing, once there are enough for an interval.
LAUNCHING = 2.0


@dataclass(frozen=True)
class Suite:
    """The effort of one benchmark.

    min_calls    timed calls of each candidate, at least
    max_seconds  limit on the timed part of all candidates together; it ends early when there is enough
    block_ms     length of one block, which holds at least four calls; then the next candidate has its turn
    launches     fresh processes that each candidate is timed in, one after the other: where a process lies in memory
                 shifts a call of 10 microseconds by 2.5 %, and only another process shows it. With fewer than 4
                 there is no speed-up
    cold_starts  fresh processes for load and first call: 0 (not measured) or at least 10
    memory       whether the peak memory of each phase is measured, in one more process
    min_blocks   blocks of each candidate in all launches together, at least
    timeout_seconds  a candidate that does not answer for so long has hung, and is out
    runtimes, threads, batches  what to measure each candidate with, where the command does not say; of a shipped
                 suite, runtimes that are not installed and threads beyond the cores are left out
    """

    name: str
    min_calls: int
    max_seconds: float
    block_ms: float
    cold_starts: int
    memory: bool
    min_blocks: int = 24
    launches: int = 12
    timeout_seconds: float = 300.0
    runtimes: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot be measured with."""
        for key in ("min_calls", "max_seconds", "block_ms", "min_blocks", "timeout_seconds"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise UsageError(f"suite '{self.name}': found {key} = {value!r}, expected a number above 0")
        if type(self.launches) is not int or self.launches < 1:
            raise UsageError(f"suite '{self.name}': found launches = {self.launches!r}, expected a number from 1")
        starts = self.cold_starts
        if isinstance(starts, bool) or not isinstance(starts, int) or 0 < starts < LEAST_COLD_STARTS or starts < 0:
            raise UsageError(
                f"suite '{self.name}': found cold_starts = {starts!r}, expected 0 (not measured) or at least "
                f"{LEAST_COLD_STARTS}: fewer processes give no interval"
            )
        if not isinstance(self.memory, bool):
            raise UsageError(f"suite '{self.name}': found memory = {self.memory!r}, expected true or false")
        if not isinstance(self.runtimes, tuple) or not all(isinstance(item, str) for item in self.runtimes):
            raise UsageError(f"suite '{self.name}': found runtimes = {self.runtimes!r}, expected a list of names")
        for key in ("threads", "batches"):
            values = getattr(self, key)
            if not isinstance(values, tuple) or not all(type(item) is int and item > 0 for item in values):
                raise UsageError(f"suite '{self.name}': found {key} = {values!r}, expected a list of numbers from 1")

    def wants_block(self, blocks: int, *, calls: int, seconds: float) -> bool:
        """Whether a launch goes on after `blocks` blocks, `calls` calls (of the slowest) and `seconds` of timing."""
        # Only whole pairs of passes: half of one would favour an end of the row.
        if blocks % 2 == 1 or blocks < 2:
            return True
        if seconds * (blocks + 2) / blocks > self.max_seconds / self.launches:
            return False
        return blocks < math.ceil(self.min_blocks / self.launches) or calls < math.ceil(self.min_calls / self.launches)

    def wants_launch(self, launches: int, *, timed_s: float, launching_s: float) -> bool:
        """Whether one more launch follows `launches`, which took `timed_s` to time and `launching_s` to begin."""
        if launches < min(self.launches, LEAST_LAUNCHES):
            return True
        more = (launches + 1) / launches
        in_time = timed_s * more <= self.max_seconds and launching_s * more <= LAUNCHING * self.max_seconds
        return launches < self.launches and in_time


def load_suite(name: str | Path) -> Suite:
    """A shipped suite by its name ("quick", "full"), or the one in a .toml file.

    Raises `UsageError` for an unknown name, key or value, `InputRefused` for a file that is missing or no TOML.
    """
    # Not at the top: the runner carries its suites as JSON, for a device whose Python may lack a TOML reader.
    from edgekd import assets, toml

    text = str(name)
    path = Path(text) if text.endswith(".toml") else assets.find("benchmarks", "suites", text)
    try:
        raw = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputRefused(f"cannot read the suite {path}: {error.strerror}; expected a .toml file") from error
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputRefused(f"{path} is not TOML: {error}; see benchmarks/suites/quick.toml for an example") from error
    return parse_suite(raw, name=path.stem, where=path.name)


def parse_suite(raw: dict[str, Any], *, name: str, where: str) -> Suite:
    """A suite from the keys of its file. Raises `UsageError` for unknown and missing keys."""
    known = [field.name for field in fields(Suite) if field.name != "name"]
    for key in raw:
        if key not in known:
            raise UsageError(f"{where}: unknown key '{key}'. {nearest(key, known)}")
    needed = [field.name for field in fields(Suite) if field.name != "name" and field.default is MISSING]
    missing = [key for key in needed if key not in raw]
    if missing:
        raise UsageError(f"{where}: found no {', '.join(missing)}; expected the keys {', '.join(needed)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return Suite(name=name, **values)
