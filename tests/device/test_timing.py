"""Timing with a clock of our own: no sleep, no dependence on the machine."""

from __future__ import annotations

import pytest

from edgekd.device.timing import WINDOW, time_calls, warm_up
from edgekd.errors import UsageError


class Clock:
    """Time that passes only when a call or a wait takes it."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Work:
    """A call that takes the next of the given durations, and the last of them from then on."""

    def __init__(self, clock: Clock, *durations_ns: int) -> None:
        self.clock, self.durations, self.calls = clock, list(durations_ns), 0

    def __call__(self) -> None:
        self.clock.now_ns += self.durations[min(self.calls, len(self.durations) - 1)]
        self.calls += 1


def test_every_call_is_kept_in_order_with_its_own_time() -> None:
    clock = Clock()
    timing = time_calls(Work(clock, 5, 900, 7, 6), warmup=0, min_runs=4, min_seconds=0.0, clock_ns=clock)
    assert timing.latency_ns == (5, 900, 7, 6)
    assert timing.seconds == 918e-9


def test_warm_up_calls_are_made_and_not_timed() -> None:
    clock = Clock()
    work = Work(clock, 1000, 1000, 5)
    timing = time_calls(work, warmup=2, min_runs=3, min_seconds=0.0, clock_ns=clock)
    assert timing.latency_ns == (5, 5, 5)
    assert timing.warmup == 2
    assert work.calls == 5


def test_it_goes_on_until_both_the_calls_and_the_time_are_enough() -> None:
    clock = Clock()
    slow = time_calls(Work(clock, 400_000_000), warmup=0, min_runs=1, min_seconds=1.0, clock_ns=clock)
    assert len(slow.latency_ns) == 3
    few = time_calls(Work(clock, 400_000_000), warmup=0, min_runs=5, min_seconds=1.0, clock_ns=clock)
    assert len(few.latency_ns) == 5


def test_the_wait_for_the_device_belongs_to_the_call() -> None:
    clock = Clock()
    wait = Work(clock, 100)
    timing = time_calls(Work(clock, 7), warmup=1, min_runs=2, min_seconds=0.0, wait=wait, clock_ns=clock)
    assert timing.latency_ns == (107, 107)
    assert wait.calls == 3


@pytest.mark.parametrize(("min_runs", "warmup"), [(0, 0), (1, -1)])
def test_impossible_counts_are_refused(min_runs: int, warmup: int) -> None:
    with pytest.raises(UsageError, match=f"found min_runs={min_runs} and warmup={warmup}, expected at least 1"):
        time_calls(lambda: None, warmup=warmup, min_runs=min_runs, min_seconds=0.0)


def test_warm_up_ends_when_three_windows_agree() -> None:
    clock = Clock()
    cold = [1000 - 40 * i for i in range(20)]
    work = Work(clock, *cold, 200)
    warmed = warm_up(work, max_seconds=10.0, clock_ns=clock)
    assert warmed.steady
    # 20 calls still falling, then three windows of 200 ns.
    assert warmed.calls == work.calls == 20 + 3 * WINDOW


def test_one_hiccup_does_not_prolong_the_warm_up() -> None:
    clock = Clock()
    warmed = warm_up(Work(clock, 100, 100, 5000, 100), max_seconds=10.0, clock_ns=clock)
    assert warmed == warm_up(Work(clock, 100), max_seconds=10.0, clock_ns=clock)
    assert warmed.calls == 3 * WINDOW


def test_warm_up_gives_up_when_its_time_is_over_and_says_so() -> None:
    clock = Clock()
    growing = [int(1e6 * 1.1**i) for i in range(200)]
    warmed = warm_up(Work(clock, *growing), max_seconds=0.5, clock_ns=clock)
    assert not warmed.steady
    assert 0 < warmed.calls < 60
