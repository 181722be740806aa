"""Latency, memory, size and accuracy of candidates on this machine, by the rules of benchmarks/README.md.

prepare     one process per candidate: load, golden check, accuracy; one more for its memory; side by side
time        warm up until steady, then blocks A B C | C B A ...; one process runs, all others sleep
launch      the same in fresh processes, again and again: a candidate is timed in ten of them
drive       if asked for: MLPerf LoadGen's scenarios
cold start  load and first call in fresh processes, in turns
judge       VALID, or INVALID with reasons and advice
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgekd.device import verdict
from edgekd.device.candidates import Candidate, Samples, check_request
from edgekd.device.isolation import Crew, working_folder
from edgekd.device.loadgen import LoadGen, why_missing
from edgekd.device.machine import describe, versions
from edgekd.device.parts import Journal, Part, State, nothing_measured
from edgekd.device.rows import describe_candidate, judged, make_row, raw_samples, series
from edgekd.device.running import Progress, Run
from edgekd.device.runtimes import PRESETS
from edgekd.device.suites import Suite, load_suite
from edgekd.errors import MissingHere, UsageError
from edgekd.spec import Array

__all__ = ["Candidate", "Progress", "Samples", "benchmark"]

SCHEMA = "edgekd.results/1"


def benchmark(
    candidates: Sequence[Candidate],
    *,
    suite: Suite | str | Path,
    against: str | None = None,
    samples: Samples | None = None,
    golden: Mapping[str, Array] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    progress: Progress | None = None,
    keep_partial: bool = False,
    profile: bool = False,
    loadgen: LoadGen | None = None,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Measure the candidates beside each other; the result has the shape of results.json.

    suite    a `Suite`, the name of a shipped one or the path of a .toml file
    against  id of the candidate that speed-up and drop refer to
    samples  labelled samples: for accuracy, and the first of them are the inputs that are timed
    confidence  of the intervals of percentiles, accuracy and drop; a speed-up has its own (99 %)
    golden   arrays `input.NAME` to time on when there are no samples (default: the bundle's own, else random numbers)
    keep_partial  Ctrl-C, once timing has begun, ends the measurement and gives what there is, with "interrupted": true
    profile  also what each operator takes, where the runtime can tell
    loadgen  also MLPerf LoadGen's scenarios, for those that timing did not put out
    journal  what is measured goes there step by step, and what it holds is not measured again
    A candidate that fails or hangs is a row with `error`, one that does not give its golden outputs reads WRONG and is
    not timed; the others go on. Raises `UsageError` for a request that cannot
    be measured: no candidate, equal ids, an unknown reference, more threads than cores.
    """
    check_request(candidates, against)
    if samples is not None and (len(samples.x) != len(samples.y) or len(samples.x) == 0):
        raise UsageError(
            f"found {len(samples.x)} samples and {len(samples.y)} labels, expected equally many, at least one"
        )
    afar = [item.runtime for item in candidates if "package" in PRESETS.get(item.runtime, {})]
    if loadgen is not None and afar:
        raise UsageError(
            f"LoadGen calls from Python, but {afar[0]} runs in a process of its own; leave one of them out"
        )
    if loadgen is not None and (missing := why_missing()) is not None:
        raise MissingHere(missing)
    effort = suite if isinstance(suite, Suite) else load_suite(suite)
    state = (journal.earlier if journal is not None else None) or nothing_measured(len(candidates))
    state.parts.append(Part(datetime.now(timezone.utc).isoformat(timespec="seconds")))
    keep = journal.keep if journal is not None else _forget
    with working_folder() as folder, Crew(folder) as crew:
        run = Run(
            crew,
            effort,
            candidates,
            state=state,
            keep=keep,
            seed=seed,
            progress=progress,
            keep_partial=keep_partial,
        )
        run.lay_out(samples, golden)
        run.prepare()
        conditions = run.time()
        if loadgen is not None:
            run.drive(loadgen)
        run.dismiss()
        run.start_cold()
        if profile:
            run.profile()
    told = {plan.candidate.id: series(plan, measured, min_calls=effort.min_calls) for plan, measured in run.timed()}
    by_id = {plan.candidate.id: (plan, measured) for plan, measured in run.all()}
    reference = None if against is None else by_id[against]
    return {
        "schema": SCHEMA,
        "command": shlex.join(sys.argv),
        "started": state.parts[0].started,
        "parts": [asdict(part) for part in state.parts],
        "versions": versions(),
        "machine": describe(),
        "suite": asdict(effort),
        "seed": seed,
        "candidates": [describe_candidate(plan, measured) for plan, measured in run.all()],
        "rows": [
            make_row(plan, measured, reference=reference, samples=samples, seed=seed, confidence=confidence)
            for plan, measured in run.all()
        ],
        "samples": {
            plan.candidate.id: raw_samples(measured, judged(plan, measured, samples)) for plan, measured in run.all()
        },
        "data": None if samples is None else samples.describe(),
        "conditions": asdict(conditions),
        "interrupted": run.interrupted,
        "verdict": verdict.judge(conditions, told, interrupted=run.interrupted, resumptions=state.resumptions),
    }


def _forget(state: State) -> None:
    """Keep nothing."""
