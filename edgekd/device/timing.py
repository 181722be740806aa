"""Timing of one call, with the clock and the device's wait as arguments."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from edgekd.errors import UsageError

# Warm-up compares windows of this many calls; fewer would mistake a single hiccup for a trend.
WINDOW = 5
# Two windows whose medians differ by less than this share are taken for steady.
STEADY = 0.05


@dataclass(frozen=True)
class Timing:
    """Calls in the order in which they ran; no outlier is removed.

    latency_ns  one entry per timed call
    warmup      calls before the first timed one
    seconds     from the start of the first timed call to the end of the last
    """

    latency_ns: tuple[int, ...]
    warmup: int
    seconds: float


@dataclass(frozen=True)
class WarmUp:
    """How many calls it took until the series was steady; `steady` is False when the time ran out before."""

    calls: int
    steady: bool


def time_calls(
    call: Callable[[], object],
    *,
    warmup: int,
    min_runs: int,
    min_seconds: float,
    wait: Callable[[], object] | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Timing:
    """Call until both `min_runs` calls were timed and `min_seconds` have passed, and give every latency in ns.

    call   the bare call: whatever can be prepared before (feeds, checks) must not be inside, a call can be as short
           as 10 microseconds
    wait   waits for an asynchronous device, inside the timed span; None for a CPU, where even an empty function
           would be measurable
    Raises `UsageError` when min_runs is below 1 or warmup below 0.
    """
    if min_runs < 1 or warmup < 0:
        raise UsageError(f"found min_runs={min_runs} and warmup={warmup}, expected at least 1 and at least 0")
    for _ in range(warmup):
        call()
        if wait is not None:
            wait()
    latencies: list[int] = []
    # Bound once: looking the method up for every call would stand between two timed calls.
    append = latencies.append
    begin = clock_ns()
    deadline = begin + round(min_seconds * 1e9)
    if wait is None:
        while True:
            start = clock_ns()
            call()
            end = clock_ns()
            append(end - start)
            if end >= deadline and len(latencies) >= min_runs:
                break
    else:
        while True:
            start = clock_ns()
            call()
            wait()
            end = clock_ns()
            append(end - start)
            if end >= deadline and len(latencies) >= min_runs:
                break
    return Timing(latency_ns=tuple(latencies), warmup=warmup, seconds=(end - begin) / 1e9)


def warm_up(
    call: Callable[[], object],
    *,
    max_seconds: float,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    window: Callable[[], Timing] | None = None,
) -> WarmUp:
    """Call until the latencies are steady: three windows in a row whose medians differ by less than 5 %.

    A constant number of calls is too many for one model and too few for another (graph optimization, caches, the
    clock of the CPU). Stops after `max_seconds`, but never before one window. `window` times `WINDOW` calls where
    `call` runs somewhere else.
    """
    deadline = clock_ns() + round(max_seconds * 1e9)
    medians: list[float] = []
    calls = 0
    while True:
        timing = window() if window else time_calls(call, warmup=0, min_runs=WINDOW, min_seconds=0.0, clock_ns=clock_ns)
        calls += WINDOW
        medians.append(median(timing.latency_ns))
        last = medians[-3:]
        if len(last) == 3 and max(last) <= min(last) * (1 + STEADY):
            return WarmUp(calls, True)
        if clock_ns() >= deadline:
            return WarmUp(calls, False)
