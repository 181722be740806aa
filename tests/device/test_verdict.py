"""VALID or INVALID: each reason alone, from injected readings and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekd.device import readings
from edgekd.device.readings import Readings
from edgekd.device.verdict import DRIFT, Conditions, Series, between, drift, judge

QUIET = Conditions(
    seconds=4.0,
    cores=2,
    threads=1,
    steal_share=0.0,
    pressure_share=0.01,
    competing_cores=0.05,
    parent_share=0.003,
    throttled_periods=0,
    thermal_events=0,
    clock_fall=0.01,
)


def _series(
    *, blocks: int = 24, per_block: int = 20, slope: float = 0.0, min_calls: int = 192, seed: int = 0
) -> Series:
    """Calls of about 1 ms; `slope` is the share by which the last block is slower than the first."""
    random = np.random.default_rng(seed)
    block = np.repeat(np.arange(blocks), per_block)
    level = 1e6 * (1 + slope * block / max(1, blocks - 1))
    return Series((level * random.lognormal(0, 0.03, len(block))).astype(np.int64), block, block // 2, min_calls)


def test_a_quiet_machine_is_valid() -> None:
    assert judge(QUIET, {"a": _series(), "b": _series(seed=1)}) == {"value": "VALID", "reasons": [], "advice": []}


def test_a_machine_that_tells_nothing_is_judged_by_its_samples() -> None:
    silent = replace(
        QUIET,
        steal_share=None,
        pressure_share=None,
        competing_cores=None,
        throttled_periods=None,
        thermal_events=None,
        clock_fall=None,
    )
    assert judge(silent, {"a": _series()})["value"] == "VALID"
    assert judge(silent, {"a": _series(blocks=3)})["value"] == "INVALID"


@pytest.mark.parametrize(
    ("change", "reason", "advice"),
    [
        ({"steal_share": 0.06}, "steal: the host took 6.0% of the CPU time away (limit 2%)", "dedicated cores"),
        ({"pressure_share": 0.5}, "CPU pressure: programs waited for a core 50% of the time", "close other programs"),
        (
            {"competing_cores": 1.6},
            "competing load: other programs kept 1.6 of 2 cores busy, and 1 is needed",
            "close other programs",
        ),
        ({"parent_share": 0.02}, "the measuring program itself used 2.0% of a core (limit 1%)", "block_ms"),
        (
            {"throttled_periods": 3},
            "quota: the container was throttled in 3 periods",
            "raise the container's CPU quota",
        ),
        ({"thermal_events": 2}, "thermal throttling: the CPU slowed itself down 2 times", "cool down"),
        ({"clock_fall": 0.3}, "clock: the CPU frequency fell by 30% (limit 15%)", "governor"),
    ],
)
def test_each_disturbance_alone_invalidates(change: dict[str, float], reason: str, advice: str) -> None:
    told = judge(replace(QUIET, **change), {"a": _series()})
    assert told["value"] == "INVALID"
    assert len(told["reasons"]) == len(told["advice"]) == 1
    assert reason in told["reasons"][0]
    assert advice in told["advice"][0]


def test_one_busy_core_beside_one_thread_on_two_cores_is_not_yet_a_reason() -> None:
    assert judge(replace(QUIET, competing_cores=1.05), {"a": _series()})["value"] == "VALID"
    assert judge(replace(QUIET, competing_cores=1.05, threads=2), {"a": _series()})["value"] == "INVALID"


@pytest.mark.parametrize(
    ("waited", "interrupted", "value"),
    [
        (0.12, None, "INVALID"),  # several threads, or a system that does not count
        (0.12, 0.3, "INVALID"),  # calls of milliseconds: a turn of another program hits every third
        (0.12, 0.001, "VALID"),  # calls of ten microseconds: one of a thousand, beyond p99
        (0.04, 0.3, "VALID"),
    ],
)
def test_waiting_for_a_core_counts_where_it_hits_calls(waited: float, interrupted: float | None, value: str) -> None:
    told = judge(QUIET, {"a": replace(_series(), waited_share=waited, interrupted_share=interrupted)})
    assert told["value"] == value
    if value == "INVALID":
        assert told["reasons"] == ["competing load: a waited for its core 12.0% of the time (limit 5%)"]
        assert "close other programs" in told["advice"][0]


def test_pressure_on_others_is_no_reason_where_it_is_known_that_ours_did_not_wait() -> None:
    crowded = replace(QUIET, pressure_share=0.6)
    quiet = replace(_series(), waited_share=0.01)
    assert judge(crowded, {"a": quiet, "b": quiet})["value"] == "VALID"
    assert judge(crowded, {"a": quiet, "b": _series()})["value"] == "INVALID"


def test_the_same_advice_is_given_once() -> None:
    told = judge(replace(QUIET, pressure_share=0.5, competing_cores=2.0), {"a": _series()})
    assert len(told["reasons"]) == 2
    assert len(told["advice"]) == 1


def test_too_few_calls_are_a_reason_that_counts_them() -> None:
    told = judge(QUIET, {"fast": _series(), "slow": _series(blocks=24, per_block=2)})
    assert told["reasons"] == ["too few samples: slow has 48 of 192 calls"]
    assert "measure for longer" in told["advice"][0]


def test_calls_without_independence_are_too_few() -> None:
    block = np.repeat(np.arange(24), 20)
    halves = np.where(block < 12, 1_000_000, 1_050_000)
    told = judge(QUIET, {"a": Series(halves, block, np.zeros_like(block), 192)})
    assert told["reasons"] == ["too few samples: the calls of a are too much alike in time to tell p50"]


def test_nothing_measured_is_invalid() -> None:
    assert judge(QUIET, {})["reasons"] == ["no candidate could be measured"]


@pytest.mark.parametrize(("slope", "word"), [(0.6, "slower"), (-0.4, "faster")])
def test_drift_is_seen_with_its_direction(slope: float, word: str) -> None:
    told = judge(QUIET, {"a": _series(slope=slope)})
    assert told["value"] == "INVALID"
    assert any(reason.startswith("drift: a ended") and word in reason for reason in told["reasons"])


def test_drift_is_measured_between_the_thirds() -> None:
    block = np.repeat(np.arange(9), 5)
    latency: NDArray[np.int64] = np.where(block < 3, 1000, np.where(block < 6, 1100, 1250))
    assert drift(latency, block) == pytest.approx(0.25)


def test_noise_is_no_drift() -> None:
    shifts = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        block = np.repeat(np.arange(24), 20)
        latency = 1e6 * random.lognormal(0, 0.15, 24)[block] * random.lognormal(0, 0.05, len(block))
        shifts.append(drift(latency.astype(np.int64), block))
    # Block levels that wander by 15 % at random: within the noise nearly always.
    assert sum(abs(shift) > DRIFT for shift in shifts) <= 4


@pytest.mark.parametrize(("factor", "word"), [(1.3, "slower"), (0.7, "faster")])
def test_a_machine_that_changed_between_two_parts_is_a_drift(factor: float, word: str) -> None:
    """Where a later part begins late, the thirds do not see it: here one launch of twelve."""
    item = _series()
    item = replace(item, latency_ns=np.where(item.launch < 10, item.latency_ns, item.latency_ns * factor).astype(int))
    assert judge(QUIET, {"a": item})["reasons"] == []
    told = judge(QUIET, {"a": item}, resumptions=[10])
    assert told["reasons"] == [f"drift: a was 30% {word} when the measurement went on than before"]
    assert told["advice"] == ["measure from the beginning, in one part (--fresh)"]
    assert judge(QUIET, {"a": _series()}, resumptions=[4, 10])["reasons"] == []


def test_fewer_than_nine_blocks_show_no_drift() -> None:
    assert drift(np.arange(8, dtype=np.int64) + 1, np.arange(8)) == 0.0


BEFORE = Readings(
    clock_s=100.0, parent_cpu_s=1.0, steal_ticks=10, busy_ticks=1000, total_ticks=10_000, pressure_us=5_000_000,
    throttled_periods=7, thermal_events=1, frequency_mhz=3000.0,
)  # fmt: skip


def test_conditions_are_differences_between_two_readings() -> None:
    after = Readings(
        clock_s=104.0, parent_cpu_s=1.02, steal_ticks=18, busy_ticks=1600, total_ticks=10_800, pressure_us=6_000_000,
        throttled_periods=9, thermal_events=1, frequency_mhz=2400.0,
    )  # fmt: skip
    c = between([(BEFORE, after)], threads=1, own_cpu_s=3.6, cores=2)
    assert c.seconds == 4.0
    assert c.steal_share == pytest.approx(8 / 800)
    assert c.pressure_share == pytest.approx(0.25)
    # 600 of 800 ticks of two cores were busy: 1.5 cores, of which 3.62 s / 4 s were ours.
    assert c.competing_cores == pytest.approx(1.5 - 0.905)
    assert c.parent_share == pytest.approx(0.005)
    assert c.throttled_periods == 2
    assert c.thermal_events == 0
    assert c.clock_fall == pytest.approx(0.2)


def test_conditions_of_what_a_system_does_not_tell_are_none() -> None:
    nothing = Readings(0.0, 0.0, None, None, None, None, None, None, None)
    spans = [(nothing, replace(nothing, clock_s=1.0))]
    for c in (
        between(spans, threads=1, own_cpu_s=0.0, cores=2),
        between([], threads=1, own_cpu_s=0.0, cores=2),
    ):
        assert c.steal_share is c.pressure_share is c.competing_cores is c.clock_fall is None


def test_conditions_are_those_of_the_timed_parts_and_not_of_what_lies_between() -> None:
    """A launch that the machine is busy with (starting processes is our own work) touches no share."""
    after = replace(
        BEFORE, clock_s=104.0, parent_cpu_s=1.02, busy_ticks=1600, total_ticks=10_800, pressure_us=5_100_000
    )
    launched = replace(
        after, clock_s=200.0, parent_cpu_s=50.0, busy_ticks=9000, total_ticks=20_000, pressure_us=99_000_000
    )
    ended = replace(launched, clock_s=204.0, parent_cpu_s=50.02, total_ticks=20_800, pressure_us=99_300_000)
    c = between([(BEFORE, after), (launched, ended)], threads=1, own_cpu_s=3.6, cores=2)
    assert c.seconds == 8.0
    assert c.parent_share == pytest.approx(0.04 / 8)
    assert c.pressure_share == pytest.approx(0.4 / 8)
    assert c.competing_cores == pytest.approx(600 / 1600 * 2 - 3.64 / 8)


def test_reading_the_counters_is_no_part_of_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(readings, "_pressure_us", lambda root: next(seconds))
    monkeypatch.setattr(readings.time, "monotonic", lambda: float(next(seconds)))
    assert readings.read().clock_s == 1.0, "the clock after the counters"
    assert readings.read(ends=True).clock_s == 2.0, "the clock before them"


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_readings_come_from_the_system_files(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/stat": "cpu  100 1 20 5000 30 4 5 60 0 0\ncpu0 50 0 10 2500 15 2 2 30 0 0\n",
            "proc/pressure/cpu": "some avg10=0.47 avg60=1.74 avg300=0.68 total=7850194\nfull avg10=0.00 total=0\n",
            "proc/self/cgroup": "0::/x\n",
            "sys/fs/cgroup/x/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 1\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2\n",
            "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "3\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2000000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3000000\n",
        },
    )
    found = readings.read(root=root)
    assert found.steal_ticks == 60
    assert found.busy_ticks == 130
    assert found.total_ticks == 5220
    assert found.pressure_us == 7_850_194
    assert found.throttled_periods == 4
    assert found.thermal_events == 5
    assert found.frequency_mhz == 2500.0


def test_missing_system_files_are_none(tmp_path: Path) -> None:
    found = readings.read(root=tmp_path)
    assert (found.steal_ticks, found.pressure_us, found.throttled_periods) == (None, None, None)
    assert (found.thermal_events, found.frequency_mhz) == (None, None)
