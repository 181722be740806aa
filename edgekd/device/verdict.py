"""Whether a measurement may be believed: what the machine did meanwhile, and what that forbids.

A number that cannot be trusted is worse than none, so every result is VALID, or INVALID with reasons and advice.
What a system does not tell is None and is not judged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.device.readings import Readings
from edgekd.device.statistics import early_stopping_minimum, independent_calls

STEAL = 0.02  # of the time of all cores
PRESSURE = 0.20  # of the time somebody waited for a core
WAITED = 0.05  # of the timed time a candidate's threads waited for a core
INTERRUPTED = 0.005  # of the calls of one thread: half of what lies above p99
COMPETING = 0.25  # cores by which others and we together exceed the machine
PARENT = 0.01  # of one core
CLOCK = 0.15  # fall of the clock frequency
DRIFT = 0.10  # between the first and the last third of the blocks
DRIFT_SIGMAS = 4.0
CLOSE = "close other programs, or measure when the machine is idle"


@dataclass(frozen=True)
class Conditions:
    """What happened on the machine while calls were timed; shares are of that time."""

    seconds: float
    cores: int
    threads: int
    steal_share: float | None
    pressure_share: float | None
    competing_cores: float | None
    parent_share: float
    throttled_periods: int | None
    thermal_events: int | None
    clock_fall: float | None


@dataclass(frozen=True)
class Series:
    """The timed calls of one candidate, in order, with the numbers of the block and of the launch of each.

    waited_share       of the timed time in which its threads were ready and had no core; None where nobody tells
    interrupted_share  of its calls, at most, in which the core was taken from it; None also for several threads,
                       which wait for each other's cores without an interruption
    """

    latency_ns: NDArray[np.int64]
    block: NDArray[np.int64]
    launch: NDArray[np.int64]
    min_calls: int
    waited_share: float | None = None
    interrupted_share: float | None = None


def between(
    spans: Sequence[tuple[Readings, Readings]],
    *,
    threads: int,
    own_cpu_s: float,
    cores: int | None = None,
) -> Conditions:
    """What happened in `spans` (each two readings), while our children used `own_cpu_s`."""
    seconds = max(1e-9, sum(after.clock_s - before.clock_s for before, after in spans))
    count = cores or os.cpu_count() or 1
    total = _increase([(before.total_ticks, after.total_ticks) for before, after in spans])
    steal = _increase([(before.steal_ticks, after.steal_ticks) for before, after in spans])
    busy = _increase([(before.busy_ticks, after.busy_ticks) for before, after in spans])
    pressure = _increase([(before.pressure_us, after.pressure_us) for before, after in spans])
    parent = sum(after.parent_cpu_s - before.parent_cpu_s for before, after in spans)
    competing = None
    if busy is not None and total:
        competing = max(0.0, busy / total * count - (own_cpu_s + parent) / seconds)
    clocks = (spans[0][0].frequency_mhz, spans[-1][1].frequency_mhz) if spans else (None, None)
    return Conditions(
        seconds=seconds,
        cores=count,
        threads=threads,
        steal_share=None if steal is None or not total else steal / total,
        pressure_share=None if pressure is None else pressure / 1e6 / seconds,
        competing_cores=competing,
        parent_share=parent / seconds,
        throttled_periods=_increase([(before.throttled_periods, after.throttled_periods) for before, after in spans]),
        thermal_events=_increase([(before.thermal_events, after.thermal_events) for before, after in spans]),
        clock_fall=None if clocks[0] is None or clocks[1] is None else max(0.0, 1 - clocks[1] / clocks[0]),
    )


def judge(
    conditions: Conditions,
    series: Mapping[str, Series],
    *,
    interrupted: bool = False,
    resumptions: Sequence[int] = (),
) -> dict[str, Any]:
    """`{"value": "VALID" or "INVALID", "reasons": [...], "advice": [...]}`; advice once per kind of reason.

    `resumptions` are the launches with which a measurement went on that had been ended before.
    """
    # Without a timed call the time between the readings is next to nothing, and no share of it says anything.
    tells = all(item.waited_share is not None for item in series.values())
    found = [*(_about_machine(conditions, waits_known=tells) if series else []), *_about_series(series, resumptions)]
    if interrupted:
        found.insert(0, ("interrupted: the measurement was ended early", "let it run to its end"))
    reasons = [reason for reason, _ in found]
    advice = list(dict.fromkeys(text for _, text in found))
    return {"value": "INVALID" if reasons else "VALID", "reasons": reasons, "advice": advice}


def drift(latency_ns: NDArray[np.int64], block: NDArray[np.int64]) -> float:
    """By what share the last third of the blocks is slower (or, negative, faster) than the first; 0 if within noise."""
    medians = _block_medians(latency_ns, block)
    third = len(medians) // 3
    return _shift(medians[:third], medians[len(medians) - third :])


def _block_medians(latency_ns: NDArray[np.int64], block: NDArray[np.int64]) -> NDArray[np.float64]:
    ends = np.flatnonzero(np.diff(block)) + 1
    return np.array([np.median(part) for part in np.split(latency_ns, ends)])


def _shift(first: NDArray[np.float64], last: NDArray[np.float64]) -> float:
    """By what share the medians of blocks `last` lie above `first`; a difference counts from 4 standard errors on."""
    if min(len(first), len(last)) < 3:
        return 0.0
    shift = float(np.median(last) / np.median(first) - 1)
    # 1.4826 * MAD estimates sigma, 1.2533 * sigma / sqrt(n) is the standard error of a median.
    errors = [
        1.2533 * 1.4826 * float(np.median(np.abs(part - np.median(part)))) / math.sqrt(len(part))
        for part in (first, last)
    ]
    return shift if abs(shift) > DRIFT_SIGMAS * math.hypot(*errors) / float(np.median(first)) else 0.0


def _about_machine(c: Conditions, *, waits_known: bool) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if c.steal_share is not None and c.steal_share > STEAL:
        found.append(
            (
                f"steal: the host took {c.steal_share:.1%} of the CPU time away (limit {STEAL:.0%})",
                "measure on a machine of your own, or a virtual one with dedicated cores",
            )
        )
    # Programs that wait for each other's cores are none of our business where it is known whether ours waited.
    if not waits_known and c.pressure_share is not None and c.pressure_share > PRESSURE:
        found.append(
            (
                f"CPU pressure: programs waited for a core {c.pressure_share:.0%} of the time (limit {PRESSURE:.0%})",
                CLOSE,
            )
        )
    if c.competing_cores is not None and c.competing_cores + c.threads > c.cores + COMPETING:
        found.append(
            (
                f"competing load: other programs kept {c.competing_cores:.1f} of {c.cores} cores busy, and "
                f"{c.threads} {'is' if c.threads == 1 else 'are'} needed",
                CLOSE,
            )
        )
    if c.parent_share > PARENT:
        found.append(
            (
                f"parent: the measuring program itself used {c.parent_share:.1%} of a core (limit {PARENT:.0%})",
                "take a suite with longer blocks (block_ms): each costs a message",
            )
        )
    if c.throttled_periods:
        found.append(
            (
                f"quota: the container was throttled in {c.throttled_periods} periods",
                "raise the container's CPU quota, or take fewer threads",
            )
        )
    if c.thermal_events:
        found.append(
            (
                f"thermal throttling: the CPU slowed itself down {c.thermal_events} times",
                "let the device cool down, and improve its cooling",
            )
        )
    if c.clock_fall is not None and c.clock_fall > CLOCK:
        found.append(
            (
                f"clock: the CPU frequency fell by {c.clock_fall:.0%} (limit {CLOCK:.0%})",
                "set the governor to performance, plug the device in, or let it cool down",
            )
        )
    return found


def _about_series(series: Mapping[str, Series], resumptions: Sequence[int]) -> list[tuple[str, str]]:
    longer = "measure for longer: take the suite full, or one with more max_seconds"
    if not series:
        return [("no candidate could be measured", "see the error of each candidate")]
    found: list[tuple[str, str]] = []
    for name, item in series.items():
        if len(item.latency_ns) < item.min_calls:
            found.append((f"too few samples: {name} has {len(item.latency_ns)} of {item.min_calls} calls", longer))
        elif independent_calls(item.latency_ns, item.launch, 0.5) < early_stopping_minimum(0.5):
            found.append((f"too few samples: the calls of {name} are too much alike in time to tell p50", longer))
        if _held_up(item):
            waited = f"{name} waited for its core {item.waited_share:.1%} of the time (limit {WAITED:.0%})"
            found.append((f"competing load: {waited}", CLOSE))
        shift = drift(item.latency_ns, item.block)
        if abs(shift) > DRIFT:
            found.append(
                (
                    f"drift: {name} ended {abs(shift):.0%} {'slower' if shift > 0 else 'faster'} than it began",
                    "let the machine settle and measure again",
                )
            )
        found += _about_parts(name, item, resumptions)
    return found


def _about_parts(name: str, item: Series, resumptions: Sequence[int]) -> list[tuple[str, str]]:
    """Whether the machine was another one, in effect, when a measurement went on: days may lie between two launches."""
    medians = _block_medians(item.latency_ns, item.block)
    launch = item.launch[np.unique(item.block, return_index=True)[1]]
    shifts = [_shift(medians[launch < first], medians[launch >= first]) for first in resumptions]
    return [
        (
            f"drift: {name} was {abs(shift):.0%} {'slower' if shift > 0 else 'faster'} when the measurement went on "
            "than before",
            "measure from the beginning, in one part (--fresh)",
        )
        for shift in shifts
        if abs(shift) > DRIFT
    ]


def _held_up(item: Series) -> bool:
    """Whether waiting for a core can have moved a percentile.

    A call that is much shorter than a turn of the scheduler is hit seldom, however long the turns of others are.
    """
    if item.waited_share is None or item.waited_share <= WAITED:
        return False
    return item.interrupted_share is None or item.interrupted_share > INTERRUPTED


def _increase(counters: Sequence[tuple[int | None, int | None]]) -> int | None:
    """By how much a counter grew in all spans together; None where the system has none."""
    grown = [after - before for before, after in counters if before is not None and after is not None]
    return sum(grown) if counters and len(grown) == len(counters) else None
