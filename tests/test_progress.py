"""The bar of `benchmark`: the time left is that of the phase at work, not of the one before."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from edgekd.cli.options import Common
from edgekd.cli.progress import Bars, Counter


def test_the_time_left_begins_anew_with_each_phase() -> None:
    now = [0.0]
    console = Console(file=io.StringIO(), force_terminal=True)
    progress = Progress(console=console, auto_refresh=False, get_time=lambda: now[0])
    common = Common(as_json=False, quiet=False, verbose=False, debug=False, seed=None, threads=None)
    listener = Bars(common, console, progress)
    listener.stage_started("benchmark", 0, 1)
    counter = Counter(listener)

    def phase(text: str, seconds_per_step: float) -> float | None:
        for done in range(6):
            counter(text, done, 10)
            now[0] += seconds_per_step
        return progress.tasks[0].time_remaining

    assert phase("loading", 1.0) == pytest.approx(5.0, abs=1)
    assert phase("timing", 4.0) == pytest.approx(20.0, abs=4)
    assert progress.tasks[0].completed == 5
