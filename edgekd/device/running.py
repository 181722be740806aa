"""One benchmark in progress: the processes of its candidates, and what was measured of each so far."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device import verdict
from edgekd.device.archive import arrays_to_bytes
from edgekd.device.candidates import Candidate, Plan, Samples, make_plan
from edgekd.device.isolation import Child, ChildFailed, Crew
from edgekd.device.loadgen import LoadGen
from edgekd.device.machine import allowed_cores, available_cores
from edgekd.device.parts import Part, State
from edgekd.device.readings import read
from edgekd.device.rows import Measured
from edgekd.device.suites import Suite
from edgekd.rows import save_rows
from edgekd.spec import Array

WARM_UP_SECONDS = 0.5
_NOT_IN_FILE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")

Progress = Callable[[str, int, int], None]
"""Told `(text, done, total)`. It runs in the measuring process: a display that redraws by itself disturbs."""


class Run:
    """One benchmark in progress: the plans, what was measured of each, and the children that wait to be timed."""

    def __init__(
        self,
        crew: Crew,
        suite: Suite,
        candidates: Sequence[Candidate],
        *,
        state: State,
        keep: Callable[[State], object],
        seed: int,
        progress: Progress | None,
        keep_partial: bool,
    ) -> None:
        """`state` is where it goes on; whenever a step is done, `keep` is told what is measured by then."""
        self._crew = crew
        self._suite = suite
        self._seed = seed
        self._progress = progress or (lambda text, done, total: None)
        self._candidates = candidates
        self._plans: list[Plan] = []
        self._state, self._keep = state, keep
        self._measured, self._spans = state.measured, state.spans
        self._children: dict[int, Child] = {}
        self._keep_partial = keep_partial
        self.interrupted = False
        self._samples: Path | None = None
        self._golden: Path | None = None

    def all(self) -> list[tuple[Plan, Measured]]:
        """Every candidate in the order of the request."""
        return list(zip(self._plans, self._measured))

    def timed(self) -> list[tuple[Plan, Measured]]:
        """Those that neither failed nor gave wrong outputs: speed without right answers is no speed."""
        return [self.all()[index] for index in self._alive()]

    def lay_out(self, samples: Samples | None, golden: Mapping[str, Array] | None) -> None:
        """Lay what the children read into the folder that they share."""
        folder = self._crew.folder
        if samples is not None:
            self._samples = folder / "samples.npy"
            save_rows(self._samples, samples.x)
        if golden is not None:
            self._golden = folder / "golden.npz"
            self._golden.write_bytes(arrays_to_bytes(golden))
        for index, candidate in enumerate(self._candidates):
            own = folder / str(index)
            own.mkdir()
            plan = make_plan(candidate, own)
            plan.error = plan.error or self._state.errors[index]
            self._plans.append(plan)

    def prepare(self) -> None:
        """Start, load, check and evaluate, as many at a time as there are cores: nothing here is on the clock."""
        steps: list[Callable[[int], object]] = [self._load, *([self._measure_memory] if self._suite.memory else [])]
        if self._state.checked:
            steps = [self._start_anew]
        self._side_by_side([partial(step, index) for index in self._alive() for step in steps], "loading and checking")
        self._state.checked = True
        self._done()

    def time(self) -> verdict.Conditions:
        """Interleaved blocks in launch after launch, until there is enough or the time of the suite is over."""
        fresh = True
        with self._may_end_early():
            while self._alive() and self._suite.wants_launch(
                len(self._spans),
                timed_s=sum(after.clock_s - before.clock_s for before, after in self._spans),
                launching_s=self._state.launching_s,
            ):
                # Told here and nowhere in the timed part, where this process only sends the next command.
                self._progress("timing", len(self._spans), self._suite.launches)
                begin = time.monotonic()
                if not fresh:
                    self._launch()
                fresh = False
                self._warm_up()
                self._state.launching_s += time.monotonic() - begin
                self._time_launch(len(self._spans))
                self._part.launches += 1
                self._done()
        return verdict.between(
            self._spans,
            threads=max((plan.candidate.threads for plan, _ in self.timed()), default=1),
            own_cpu_s=sum(item.cpu_s or 0.0 for _, item in self.timed()),
        )

    def drive(self, loadgen: LoadGen) -> None:
        """MLPerf LoadGen's scenarios, one candidate after the other, in the processes that were timed."""
        if self.interrupted:
            return
        with self._may_end_early():
            if not self._part.launches:  # all timing was done in an earlier part
                self._warm_up()
            for place, index in enumerate(alive := self._alive()):
                candidate, measured = self._plans[index].candidate, self._measured[index]
                asked = {found["scenario"] for found in measured.loadgen}
                for scenario in loadgen.scenarios(candidate.batch):
                    if scenario in asked:
                        continue
                    self._progress(f"LoadGen, {scenario}", place, len(alive))
                    command = {
                        "do": "loadgen",
                        "scenario": scenario,
                        "batch": candidate.batch,
                        "expected_ns": float(np.median(measured.latency_ns)),
                        "seconds": loadgen.seconds,
                        "folder": str(loadgen.folder.resolve() / folder_name(candidate.id) / scenario),
                        "qps": loadgen.qps,
                        "bound_ms": loadgen.bound_ms,
                    }
                    with self._guard(index):
                        measured.loadgen.append(self._ask(self._children[index], command))
                    self._done()

    def dismiss(self) -> None:
        """End the processes that were timed."""
        for child in self._children.values():
            child.close()

    def start_cold(self) -> None:
        """Load and first call in fresh processes, in turns, until there are enough: most launches were such starts."""
        if self.interrupted:
            return
        with self._may_end_early():
            for start in range(self._state.num_cold_starts, self._suite.cold_starts):
                self._progress("cold start", start, self._suite.cold_starts)
                self._launch()
                self._done()
            self.dismiss()

    def profile(self) -> None:
        """What each operator takes, in a process of its own per candidate: it would disturb everything else."""
        alive = [] if self.interrupted else self._alive()
        with self._may_end_early():
            for place, index in enumerate(alive):
                if self._measured[index].profile is not None:
                    continue
                self._progress("profiling", place, len(alive))
                folder = str(self._crew.folder / str(index))
                command = {**self._load_command(index, memory=False), "do": "profile", "folder": folder}
                with self._guard(index), self._crew.start() as child:
                    self._measured[index].profile = self._ask(child, command)["profile"]
                self._done()

    @property
    def _part(self) -> Part:
        return self._state.parts[-1]

    def _done(self) -> None:
        self._state.errors = [plan.error for plan in self._plans]
        self._keep(self._state)

    def _alive(self) -> list[int]:
        both = enumerate(zip(self._plans, self._measured))
        return [index for index, (plan, measured) in both if plan.error is None and measured.golden != "WRONG"]

    @contextmanager
    def _may_end_early(self) -> Iterator[None]:
        """Ctrl-C inside ends the block, and the rest goes on with what there is; a second one ends everything."""
        try:
            yield
        except KeyboardInterrupt:
            if not self._keep_partial:
                raise
            self.interrupted = True

    def _ask(self, child: Child, command: Mapping[str, Any]) -> dict[str, Any]:
        return child.ask(command, timeout=self._suite.timeout_seconds)

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
            self._measured[index].timed_on = self._ask(child, self._load_command(index, memory=False))["timed_on"]
            self._check_outputs(index, child)

    def _check_outputs(self, index: int, child: Child) -> None:
        plan, measured = self._plans[index], self._measured[index]
        if plan.golden_of is not None:
            bundle, variant = plan.golden_of
            converted = plan.candidate.same_as is not None
            command = {"do": "check_golden", "bundle": bundle, "variant": variant, "converted": converted}
            answer = self._ask(child, command)
            measured.golden, measured.golden_problem = "ok" if answer["ok"] else "WRONG", answer["problem"]
        if self._samples is not None:
            out = self._crew.folder / str(index) / "outputs.npy"
            self._ask(child, {"do": "evaluate", "samples": str(self._samples), "out": str(out)})
            outputs = np.load(out)
            broken = int((~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)).sum())
            if broken:
                raise ChildFailed(
                    f"it gives NaN or infinite outputs for {broken} of {len(outputs)} samples; is a number too large "
                    "for its precision?"
                )
            measured.outputs = outputs

    def _measure_memory(self, index: int) -> None:
        with self._guard(index), self._crew.start() as child:
            answer = self._ask(child, self._load_command(index, memory=True))
            self._measured[index].memory_mb = answer["memory_mb"]
            self._measured[index].device_memory_mb = answer["device_memory_mb"]

    def _launch(self) -> None:
        """A fresh process of every candidate; one at a time where the suite asks for cold starts, which these are."""
        self.dismiss()
        if self._suite.cold_starts:
            for index in self._alive():
                answer = self._start_anew(index)
                if answer is not None:
                    self._measured[index].cold.append((answer["load_ms"], answer["first_ms"]))
            self._part.cold_starts += 1
        else:
            self._side_by_side([partial(self._start_anew, index) for index in self._alive()])

    def _start_anew(self, index: int) -> dict[str, Any] | None:
        with self._guard(index):
            child = self._children[index] = self._crew.start()
            return self._ask(child, self._load_command(index, memory=False))
        return None

    def _side_by_side(self, steps: Sequence[Callable[[], object]], text: str | None = None) -> None:
        with ThreadPoolExecutor(max_workers=available_cores()) as pool:
            futures = [pool.submit(step) for step in steps]
            try:
                for done, future in enumerate(as_completed(futures)):
                    if text is not None:
                        self._progress(text, done, len(futures))
                    future.result()
            except BaseException:
                # Ctrl-C too: the threads of the pool wait for children, and the pool waits for its threads.
                for future in futures:
                    future.cancel()
                self._crew.kill()
                raise

    def _warm_up(self) -> None:
        for index in self._alive():
            cores = allowed_cores()[-self._plans[index].candidate.threads :]
            with self._guard(index):
                command = {"do": "steady", "max_seconds": WARM_UP_SECONDS, "cores": cores}
                warmed = self._ask(self._children[index], command)
                self._measured[index].warm_up = self._measured[index].warm_up or warmed

    def _time_launch(self, launch: int) -> None:
        """Blocks of every candidate in turns, in the processes that are there."""
        before, passes = read(), 0
        first, ran = self._state.passes, {index: self._measured[index].calls for index in self._alive()}
        try:
            while self._suite.wants_block(
                passes,
                calls=min((self._measured[index].calls - ran[index] for index in self._alive()), default=0),
                seconds=time.monotonic() - before.clock_s,
            ):
                # There and back again: what drifts slowly touches the first and the last alike.
                for index in self._alive() if passes % 2 == 0 else self._alive()[::-1]:
                    with self._guard(index):
                        self._block(index, first + passes)
                passes += 1
                if not self._alive():
                    break
        finally:  # Ctrl-C too: what was timed is kept
            self._state.passes += passes
            self._spans.append((before, read(ends=True)))
            for index in self._alive():
                with self._guard(index):
                    self._collect(index, launch)

    def _block(self, index: int, block: int) -> None:
        command = {"do": "block", "seconds": self._suite.block_ms / 1e3, "block": block}
        self._measured[index].add_block(self._ask(self._children[index], command), place=self._state.ran)
        self._state.ran += 1

    def _collect(self, index: int, launch: int) -> None:
        out, measured = self._crew.folder / str(index) / "latency.npy", self._measured[index]
        measured.empty_ns = self._ask(self._children[index], {"do": "samples", "out": str(out)})["empty_ns"]
        latency, block = np.load(out)
        measured.add_calls(latency, block, launch=launch)


def folder_name(candidate: str) -> str:
    """The id of a candidate as one name in a folder, on any system."""
    return _NOT_IN_FILE_NAMES.sub("-", candidate).strip(".-") or "candidate"
