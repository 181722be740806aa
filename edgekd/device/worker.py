"""What the process of one candidate does: load, check, evaluate, warm up, time a block, tell its memory.

Each command is a function `(state, command) -> answer` of plain JSON values; arrays go through .npy and .npz files.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgekd.device import memory
from edgekd.device.bundle import Bundle
from edgekd.device.preprocess import as_fed
from edgekd.device.profile import can_tell, profile
from edgekd.device.runtimes import Session, open_session
from edgekd.device.runtimes.chunks import answer_name, by_name_or_place, run_in_chunks
from edgekd.device.selftest import check_variant
from edgekd.device.timing import time_calls, warm_up
from edgekd.device.tokens import is_ids
from edgekd.errors import UsageError
from edgekd.spec import Array, Step, TensorSpec, Trim, parse_steps

EVALUATION_BATCH = 64
# "Steady" memory is the peak over this many further calls: enough for an arena to stop growing.
STEADY_CALLS = 20
# So many batches of texts are timed in turn: every length that is not rare.
TIMED_TEXTS = 32
# A block of one slow call would be per-call alternation, which reads 5-10 % wrong: caches never warm up.
LEAST_BLOCK_CALLS = 4


@runtime_checkable
class Prepares(Protocol):
    """A session that can bind feeds once, so that a timed call holds nothing but the runtime's own call."""

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Check the feeds now; give the bare call, which holds until the next `run`."""
        ...


@dataclass
class State:
    """What the process holds between commands."""

    session: Session | None = None
    feeds: Sequence[dict[str, Array]] = ()
    steps: tuple[Step, ...] = ()
    call: Callable[[], object] = lambda: None
    latency_ns: list[int] = field(default_factory=list)
    block: list[int] = field(default_factory=list)


def bare_call(session: Session, feeds: Sequence[Mapping[str, Array]]) -> Callable[[], object]:
    """The call that is timed: the runtime's own with prepared feeds, or `session.run` where it offers none.

    Of several feeds each call takes the next one, again and again.
    """
    keeps_several = getattr(session, "prepares_several", False)
    if isinstance(session, Prepares) and (len(feeds) == 1 or keeps_several):
        calls = [session.prepare(one) for one in feeds]
    else:
        calls = [functools.partial(session.run, one) for one in feeds]
    if len(calls) == 1:
        return calls[0]
    following = itertools.cycle(calls).__next__
    return lambda: following()()


def load(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Open the model and run it once, each on the clock; with `memory`, the peak resident set of each phase too."""
    measures = bool(command["memory"]) and memory.can_measure()
    peaks = {"start": memory.resident_mb()} if measures else {}
    begin = time.perf_counter_ns()
    session = open_session(
        command["model"],
        variant=command["variant"],
        runtime=command["runtime"],
        threads=command["threads"],
        options=command["options"],
    )
    loaded = time.perf_counter_ns()
    if measures:
        peaks["load"] = memory.peak_resident_mb()
    state.session = session
    state.steps = parse_steps(command["preprocess"])
    state.feeds = make_feeds(session.inputs, command, state.steps)
    if measures:
        memory.reset_peak()
    before = time.perf_counter_ns()
    state.call = bare_call(session, state.feeds)
    state.call()
    first = time.perf_counter_ns()
    if measures:
        peaks["first"] = memory.peak_resident_mb()
        memory.reset_peak()
        for _ in range(STEADY_CALLS):
            state.call()
        peaks["steady"] = memory.peak_resident_mb()
    return {"load_ms": (loaded - begin) / 1e6, "first_ms": (first - before) / 1e6, "memory_mb": peaks or None}


def make_feeds(
    inputs: tuple[TensorSpec, ...], command: Mapping[str, Any], steps: tuple[Step, ...]
) -> list[dict[str, Array]]:
    """One batch for timing: real samples, else golden inputs, else random numbers by `TensorSpec` and seed.

    Of texts there are several batches, whose lengths are those of the samples: how long a text is decides how long it
    takes.
    """
    batch = int(command["batch"])
    samples: Array | None = None
    if command["samples"] is not None:
        samples = np.load(command["samples"], mmap_mode="r")
    elif command["golden"] is not None:
        with np.load(command["golden"]) as golden:
            samples = golden["raw"] if "raw" in golden.files and is_ids(golden["raw"]) else None
    if samples is not None:
        spec = _single_input(inputs)
        chosen = timed_texts(samples, steps, batch) if is_ids(samples) else [np.arange(batch) % len(samples)]
        return [{spec.name: as_fed(steps, samples[rows], spec.dtype)} for rows in chosen]
    if command["golden"] is not None:
        with np.load(command["golden"]) as golden:
            stored = [key.removeprefix("input.") for key in golden.files if key.startswith("input.")]
            places = by_name_or_place([spec.name for spec in inputs], stored)
            known = {name: golden[f"input.{place}"] for name, place in places.items()}
        return [{name: np.ascontiguousarray(value[np.arange(batch) % len(value)]) for name, value in known.items()}]
    random = np.random.default_rng(int(command["seed"]))
    return [{spec.name: _random_input(spec, batch, random) for spec in inputs}]


def timed_texts(samples_NT: Array, steps: tuple[Step, ...], batch: int) -> list[NDArray[np.intp]]:
    """Positions of the texts of each batch for timing: all lengths in turn, each as often as it is among the samples.

    A batch holds texts of like length, as whoever makes batches of texts does it.
    """
    pad = next((step.pad for step in steps if isinstance(step, Trim)), None)
    if pad is None:
        return [np.arange(batch) % len(samples_NT)]
    lengths = (np.asarray(samples_NT) != pad).sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    # A step that shares no factor with the number of batches: short and long ones follow each other.
    places = (np.arange(TIMED_TEXTS) * 13 % TIMED_TEXTS + 0.5) / TIMED_TEXTS
    first = (places * max(len(order) - batch + 1, 1)).astype(np.intp)
    return [order[(start + np.arange(batch)) % len(order)] for start in first]


def check_golden(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the bundle's golden inputs still give the golden outputs of the variant, within its tolerance."""
    assert state.session is not None
    bundle = Bundle.open(command["bundle"])
    row = check_variant(bundle, command["variant"], state.session, converted=command["converted"])
    return {"ok": row["ok"], "problem": row["problem"]}


def evaluate(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """The answer for every sample, through the same steps and session as the timing, into a .npy file."""
    assert state.session is not None
    samples = np.load(command["samples"], mmap_mode="r")
    spec = _single_input(state.session.inputs)
    parts = []
    for start in range(0, len(samples), EVALUATION_BATCH):
        feed = as_fed(state.steps, np.asarray(samples[start : start + EVALUATION_BATCH]), spec.dtype)
        parts.append(run_in_chunks(state.session, {spec.name: feed})[answer_name(state.session)])
    np.save(command["out"], np.concatenate(parts))
    return {}


def profile_operators(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Open the model once more, with every operator timed, and say what each takes; None where the runtime cannot."""
    state.session = open_session(
        command["model"], variant=command["variant"], runtime=command["runtime"], threads=command["threads"]
    )
    if not can_tell(state.session):
        return {"profile": None}
    state.session.close()
    session = open_session(
        command["model"],
        variant=command["variant"],
        runtime=command["runtime"],
        threads=command["threads"],
        options={**command["options"], "profile": command["folder"]},
    )
    feeds = make_feeds(session.inputs, command, parse_steps(command["preprocess"]))
    return {"profile": profile(session, feeds[0])}


def steady(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Pin to `cores`, then warm up until the latencies are steady."""
    assert state.session is not None
    pinned = pin(command["cores"])
    # Once more: checks and accuracy ran other shapes since, and a runtime may have laid its memory out for them.
    state.call = bare_call(state.session, state.feeds)
    warmed = warm_up(state.call, max_seconds=float(command["max_seconds"]))
    return {"calls": warmed.calls, "steady": warmed.steady, "pinned": pinned}


def block(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Time calls for `seconds`, at least four of them.

    The latencies stay here until `samples`, so that the parent has next to nothing to do meanwhile.
    """
    cpu, waited, switched = time.process_time(), runqueue_wait_s(), involuntary_switches()
    timing = time_calls(state.call, warmup=0, min_runs=LEAST_BLOCK_CALLS, min_seconds=float(command["seconds"]))
    cpu_s, waited_after, switched_after = time.process_time() - cpu, runqueue_wait_s(), involuntary_switches()
    state.latency_ns.extend(timing.latency_ns)
    state.block.extend([int(command["block"])] * len(timing.latency_ns))
    return {
        "n": len(timing.latency_ns),
        "seconds": timing.seconds,
        "cpu_s": cpu_s,
        "waited_s": None if waited is None or waited_after is None else waited_after - waited,
        "interrupted": None if switched is None or switched_after is None else switched_after - switched,
    }


def samples(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Every latency with the number of its block, in the order of the calls, into a .npy file (2, n)."""
    np.save(command["out"], np.array([state.latency_ns, state.block], dtype=np.int64))
    return {"n": len(state.latency_ns)}


def loadgen(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Let MLPerf LoadGen call the model that was timed."""
    from edgekd.device.loadgen import drive

    return drive(
        state.call,
        command["scenario"],
        batch=command["batch"],
        expected_ns=float(np.median(state.latency_ns)),
        seconds=command["seconds"],
        folder=Path(command["folder"]),
        qps=command["qps"],
        bound_ms=command["bound_ms"],
    )


def pin(cores: list[int]) -> bool:
    """Keep every thread of this process on `cores`; False where the system offers no affinity.

    Each thread by its number, because the runtime's own were started before and affinity is not handed on.
    """
    if sys.platform != "linux":
        return False
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except OSError:
            return False
    return True


def runqueue_wait_s(*, root: Path = memory.ROOT) -> float | None:
    """Seconds that threads of this process were ready to run but had no core; None where Linux does not tell."""
    waited = 0
    try:
        for thread in (root / "proc/self/task").iterdir():
            waited += int((thread / "schedstat").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return waited / 1e9


def involuntary_switches() -> int | None:
    """How often a core was taken from a thread of this process that could have gone on; None where nobody tells."""
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


COMMANDS: dict[str, Callable[[State, Mapping[str, Any]], dict[str, Any]]] = {
    "load": load,
    "check_golden": check_golden,
    "evaluate": evaluate,
    "profile": profile_operators,
    "steady": steady,
    "block": block,
    "samples": samples,
    "loadgen": loadgen,
}


def _single_input(inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    if len(inputs) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in inputs)
        raise UsageError(f"samples hold one array, but the model has the inputs {names}; benchmark it without samples")
    return inputs[0]


def _random_input(spec: TensorSpec, batch: int, random: np.random.Generator) -> Array:
    shape = spec.concrete()
    if spec.shape and isinstance(spec.shape[0], str):
        shape = (batch, *shape[1:])
    dtype = np.dtype(spec.dtype)
    # Whole numbers stay below 2: they may be indices into a table of unknown size.
    return (
        random.standard_normal(shape).astype(dtype) if dtype.kind == "f" else random.integers(0, 2, shape).astype(dtype)
    )
