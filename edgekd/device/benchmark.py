"""Latency, memory, size and accuracy of candidates on this machine, by the rules of benchmarks/README.md.

prepare     one process per candidate: load, golden check, accuracy; one more for its memory; side by side
time        warm up until steady, then blocks A B C | C B A | A B C ...; one process runs, all others sleep
cold start  load and first call in fresh processes, in turns
judge       VALID, or INVALID with reasons and advice
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device import verdict
from edgekd.device.archive import arrays_to_bytes
from edgekd.device.candidates import Candidate, Plan, Samples, check_request, make_plan
from edgekd.device.isolation import Child, ChildFailed, Crew
from edgekd.device.machine import allowed_cores, available_cores, describe, versions
from edgekd.device.rows import Measured, describe_candidate, judged, make_row, raw_samples
from edgekd.device.suites import Suite, load_suite
from edgekd.errors import UsageError
from edgekd.spec import Array

__all__ = ["Candidate", "Progress", "Samples", "benchmark"]

SCHEMA = "edgekd.results/1"
WARM_UP_SECONDS = 0.5
# A bootstrap over fewer blocks says nothing, so slow models exceed the time of the suite rather than have fewer.
LEAST_BLOCKS = 4

Progress = Callable[[str, int, int], None]
"""Told `(text, done, total)`. It runs in the measuring process: a display that redraws by itself disturbs."""


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
) -> dict[str, Any]:
    """Measure the candidates beside each other; the result has the shape of results.json.

    suite    a `Suite`, the name of a shipped one or the path of a .toml file
    against  id of the candidate that speed-up and drop refer to
    samples  labelled samples: for accuracy, and the first of them are the inputs that are timed
    confidence  of the intervals of percentiles, accuracy and drop; a speed-up has its own (99 %)
    golden   arrays `input.NAME` to time on when there are no samples (default: the bundle's own, else random numbers)
    A candidate that fails is a row with `error`; the others go on. Raises `UsageError` for a request that cannot
    be measured: no candidate, equal ids, an unknown reference, more threads than cores.
    """
    check_request(candidates, against)
    if samples is not None and (len(samples.x) != len(samples.y) or len(samples.x) == 0):
        raise UsageError(
            f"found {len(samples.x)} samples and {len(samples.y)} labels, expected equally many, at least one"
        )
    effort = suite if isinstance(suite, Suite) else load_suite(suite)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="edgekd-benchmark-") as name, Crew(Path(name)) as crew:
        run = _Run(crew, effort, candidates, seed, progress)
        run.lay_out(samples, golden)
        run.prepare()
        conditions = run.time()
        run.start_cold()
    series = {
        plan.candidate.id: verdict.Series(measured.latency_ns, measured.block, effort.min_calls)
        for plan, measured in run.living()
    }
    by_id = {plan.candidate.id: (plan, measured) for plan, measured in run.all()}
    reference = None if against is None else by_id[against]
    return {
        "schema": SCHEMA,
        "command": shlex.join(sys.argv),
        "started": started,
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
        "verdict": verdict.judge(conditions, series),
    }


class _Run:
    """One benchmark in progress: the plans, what was measured of each, and the children that wait to be timed."""

    def __init__(
        self, crew: Crew, suite: Suite, candidates: Sequence[Candidate], seed: int, progress: Progress | None
    ) -> None:
        self._crew = crew
        self._suite = suite
        self._seed = seed
        self._progress = progress or (lambda text, done, total: None)
        self._candidates = candidates
        self._plans: list[Plan] = []
        self._measured: list[Measured] = [Measured() for _ in candidates]
        self._children: dict[int, Child] = {}
        self._samples: Path | None = None
        self._golden: Path | None = None

    def all(self) -> list[tuple[Plan, Measured]]:
        """Every candidate in the order of the request."""
        return list(zip(self._plans, self._measured))

    def living(self) -> list[tuple[Plan, Measured]]:
        """Those that have not failed."""
        return [(plan, measured) for plan, measured in self.all() if plan.error is None]

    def lay_out(self, samples: Samples | None, golden: Mapping[str, Array] | None) -> None:
        """Lay what the children read into the folder that they share."""
        folder = self._crew.folder
        if samples is not None:
            self._samples = folder / "samples.npy"
            np.save(self._samples, samples.x)
        if golden is not None:
            self._golden = folder / "golden.npz"
            self._golden.write_bytes(arrays_to_bytes(golden))
        for index, candidate in enumerate(self._candidates):
            own = folder / str(index)
            own.mkdir()
            self._plans.append(make_plan(candidate, own))

    def prepare(self) -> None:
        """Start, load, check and evaluate, as many at a time as there are cores: nothing here is on the clock."""
        steps = [self._load, *([self._measure_memory] if self._suite.memory else [])]
        with ThreadPoolExecutor(max_workers=available_cores()) as pool:
            futures = [pool.submit(step, index) for index in self._alive() for step in steps]
            try:
                for done, future in enumerate(as_completed(futures)):
                    self._progress("loading and checking", done, len(futures))
                    future.result()
            except BaseException:
                # Ctrl-C too: the threads of the pool wait for children, and the pool waits for its threads.
                for future in futures:
                    future.cancel()
                self._crew.kill()
                raise

    def time(self) -> verdict.Conditions:
        """Interleaved blocks until every candidate has enough, or the time of the suite is over."""
        cores = {index: allowed_cores()[-self._plans[index].candidate.threads :] for index in self._alive()}
        for index in self._alive():
            with self._guard(index):
                self._warm_up(index, cores[index])
        before, begin = verdict.read(), time.monotonic()
        block = ran = 0
        while self._wants_more(block, time.monotonic() - begin):
            self._progress("timing", min(block, self._suite.min_blocks), self._suite.min_blocks)
            # There and back again: what drifts slowly touches the first and the last alike.
            for index in self._alive() if block % 2 == 0 else self._alive()[::-1]:
                with self._guard(index):
                    self._block(index, block, ran)
                ran += 1
            block += 1
        after = verdict.read()
        for index in self._alive():
            with self._guard(index):
                self._collect(index)
        for child in self._children.values():
            child.close()
        measured = [item for _, item in self.living()]
        waited = [item.waited_s for item in measured]
        return verdict.between(
            before,
            after,
            threads=max((plan.candidate.threads for plan, _ in self.living()), default=1),
            own_cpu_s=sum(item.cpu_s for item in measured),
            waited_s=None if None in waited else sum(value for value in waited if value is not None),
            timed_s=sum(item.seconds for item in measured),
        )

    def start_cold(self) -> None:
        """Load and first call in fresh processes: each candidate once, then each once more, ..., one at a time."""
        for start in range(self._suite.cold_starts):
            self._progress("cold start", start, self._suite.cold_starts)
            for index in self._alive():
                with self._guard(index):
                    self._cold_start(index)

    def _alive(self) -> list[int]:
        return [index for index, plan in enumerate(self._plans) if plan.error is None]

    @contextmanager
    def _guard(self, index: int) -> Iterator[None]:
        """Around a step of one candidate: when its process fails it is out, and the others go on."""
        try:
            yield
        except ChildFailed as error:
            self._plans[index].error = self._plans[index].error or str(error)

    def _load_command(self, index: int, *, memory: bool) -> dict[str, Any]:
        plan = self._plans[index]
        golden = self._golden or plan.golden
        return plan.load_command(samples=self._samples, golden=golden, seed=self._seed, memory=memory)

    def _load(self, index: int) -> None:
        with self._guard(index):
            child = self._children[index] = self._crew.start()
            child.ask(self._load_command(index, memory=False))
            self._check_outputs(index, child)

    def _check_outputs(self, index: int, child: Child) -> None:
        plan, measured = self._plans[index], self._measured[index]
        if plan.golden is not None:
            command = {"do": "check_golden", "model": str(plan.candidate.model), "variant": plan.variant}
            measured.golden = "ok" if child.ask(command)["ok"] else "WRONG"
        if self._samples is not None:
            out = self._crew.folder / str(index) / "outputs.npy"
            child.ask({"do": "evaluate", "samples": str(self._samples), "out": str(out)})
            measured.outputs = np.load(out)

    def _measure_memory(self, index: int) -> None:
        with self._guard(index), self._crew.start() as child:
            self._measured[index].memory_mb = child.ask(self._load_command(index, memory=True))["memory_mb"]

    def _cold_start(self, index: int) -> None:
        with self._crew.start() as child:
            answer = child.ask(self._load_command(index, memory=False))
        self._measured[index].cold.append((answer["load_ms"], answer["first_ms"]))

    def _warm_up(self, index: int, cores: Sequence[int]) -> None:
        command = {"do": "steady", "max_seconds": WARM_UP_SECONDS, "cores": list(cores)}
        self._measured[index].warm_up = self._children[index].ask(command)

    def _block(self, index: int, block: int, place: int) -> None:
        command = {"do": "block", "seconds": self._suite.block_ms / 1e3, "block": block}
        answer, measured = self._children[index].ask(command), self._measured[index]
        measured.order.append(place)
        measured.calls += answer["n"]
        measured.seconds += answer["seconds"]
        measured.cpu_s += answer["cpu_s"]
        waited = answer["waited_s"]
        measured.waited_s = None if waited is None or measured.waited_s is None else measured.waited_s + waited

    def _collect(self, index: int) -> None:
        out = self._crew.folder / str(index) / "latency.npy"
        self._children[index].ask({"do": "samples", "out": str(out)})
        self._measured[index].latency_ns, self._measured[index].block = np.load(out)

    def _wants_more(self, blocks: int, seconds: float) -> bool:
        alive = self._alive()
        if not alive:
            return False
        # Only whole pairs of passes: half of one would favour an end of the row.
        if blocks % 2 == 1 or blocks < LEAST_BLOCKS:
            return True
        if seconds * (blocks + 2) / blocks > self._suite.max_seconds:
            return False
        calls = min(self._measured[index].calls for index in alive)
        return blocks < self._suite.min_blocks or calls < self._suite.min_calls
