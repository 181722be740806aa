"""What the process of one candidate does: load, check, evaluate, warm up, time a block, tell its memory.

Each command is a function `(state, command) -> answer` of plain JSON values; arrays go through .npy and .npz files.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgekd.device import energy, memory
from edgekd.device.bundle import Bundle, looks_like_bundle
from edgekd.device.preprocess import as_fed
from edgekd.device.profile import can_tell, profile
from edgekd.device.runtimes import Session, open_session
from edgekd.device.runtimes.chunks import answer_name, by_name_or_place, rows_at_once, run_in_chunks
from edgekd.device.selftest import check_variant
from edgekd.device.texts import TextLimits, described, random_batches, reads_texts
from edgekd.device.timing import WINDOW, Timing, time_calls, warm_up
from edgekd.device.tokens import is_ids
from edgekd.device.usage import Usage, pin, usage
from edgekd.errors import UsageError
from edgekd.spec import Array, Step, TensorSpec, Trim, parse_steps

EVALUATION_BATCH = 64
# "Steady" memory is the peak over this many further calls: enough for an arena to stop growing.
STEADY_CALLS = 20
# So many batches of texts are timed in turn: every length that is not rare.
TIMED_TEXTS = 32
# A block of one slow call would be per-call alternation, which reads 5-10 % wrong: caches never warm up.
LEAST_BLOCK_CALLS = 4
EMPTY_CALLS = 1000


@runtime_checkable
class Prepares(Protocol):
    """A session that can bind feeds once, so that a timed call holds nothing but the runtime's own call."""

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Check the feeds now; give the bare call, which holds until the next `run`."""
        ...


@runtime_checkable
class Elsewhere(Protocol):
    """A session whose model runs in other processes and is timed there: Node, a browser."""

    load_ms: float

    def lay(self, feeds: Sequence[Mapping[str, Array]]) -> None:
        """Check the feeds and bring them there; calls take them in turns."""
        ...

    def time_calls(self, *, min_runs: int, min_seconds: float) -> Timing:
        """As `timing.time_calls`, with the feeds that were laid there."""
        ...

    def processes(self) -> list[int]:
        """The numbers of these processes."""
        ...


@runtime_checkable
class OnDevice(Protocol):
    """A session whose model may lie in the memory of a GPU."""

    def device_memory_mb(self) -> float | None:
        """The most that tensors took there since the session was opened, in MB; None on the CPU."""
        ...


@dataclass
class State:
    """What the process holds between commands."""

    session: Session | None = None
    model: str = ""
    variant: str | None = None
    feeds: Sequence[dict[str, Array]] = ()
    steps: tuple[Step, ...] = ()
    call: Callable[[], object] = lambda: None
    processes: tuple[str, ...] = ("self",)
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


def timed(state: State, *, min_runs: int, min_seconds: float) -> Timing:
    """Time calls where the model runs."""
    if isinstance(state.session, Elsewhere):
        return state.session.time_calls(min_runs=min_runs, min_seconds=min_seconds)
    return time_calls(state.call, warmup=0, min_runs=min_runs, min_seconds=min_seconds)


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
    load_ms = (time.perf_counter_ns() - begin) / 1e6
    if isinstance(session, Elsewhere):
        load_ms, state.processes = session.load_ms, tuple(map(str, session.processes()))
        # Before the runtime was loaded nobody could look, and a browser is several processes: their sum is no peak.
        peaks, measures = {}, measures and len(state.processes) == 1 and memory.can_measure(state.processes[0])
    process = state.processes[0]
    if measures:
        peaks["load"] = memory.peak_resident_mb(process)
    state.session, state.model, state.variant = session, command["model"], command["variant"]
    state.steps = parse_steps(command["preprocess"])
    state.feeds = make_feeds(session.inputs, command, state.steps)
    if measures:
        memory.reset_peak(process)
    if isinstance(session, Elsewhere):
        session.lay(state.feeds)
        first_ms = timed(state, min_runs=1, min_seconds=0.0).latency_ns[0] / 1e6
    else:
        before = time.perf_counter_ns()
        state.call = bare_call(session, state.feeds)
        state.call()
        first_ms = (time.perf_counter_ns() - before) / 1e6
    if measures:
        peaks["first"] = memory.peak_resident_mb(process)
        memory.reset_peak(process)
        timed(state, min_runs=STEADY_CALLS, min_seconds=0.0)
        peaks["steady"] = memory.peak_resident_mb(process)
    texts = None
    if command["samples"] is None and command["golden"] is None:
        limits = TextLimits(**command.get("texts", {}))
        texts = described(session.inputs, limits) if limits.known or reads_texts(session.inputs) else None
    on_device = session.device_memory_mb() if isinstance(session, OnDevice) else None
    return {
        "load_ms": load_ms,
        "first_ms": first_ms,
        "memory_mb": peaks or None,
        "device_memory_mb": on_device,
        "timed_on": texts,
    }


def make_feeds(
    inputs: tuple[TensorSpec, ...], command: Mapping[str, Any], steps: tuple[Step, ...]
) -> list[dict[str, Array]]:
    """One batch for timing: real samples, else golden inputs, else random numbers or texts by `TensorSpec` and seed.

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
    texts = TextLimits(**command.get("texts", {}))
    if texts.known or reads_texts(inputs):
        return random_batches(inputs, texts, batch=batch, count=TIMED_TEXTS, rng=random)
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
    """The answer for every sample, through the same steps and session as the timing, into a .npy file.

    One by one where a sample's answer depends on its neighbours (`rows_at_once`).
    """
    assert state.session is not None
    path = Path(state.model)
    graph = Bundle.open(path).graph(variant=state.variant) if looks_like_bundle(path) else path
    size = rows_at_once(graph, EVALUATION_BATCH)
    samples = np.load(command["samples"], mmap_mode="r")
    spec = _single_input(state.session.inputs)
    parts = []
    for start in range(0, len(samples), size):
        feed = as_fed(state.steps, np.asarray(samples[start : start + size]), spec.dtype)
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
    """Pin to `cores`, where the model runs in this process, then warm up until the latencies are steady."""
    assert state.session is not None
    if isinstance(state.session, Elsewhere):
        # Not pinned: V8's threads would wait for each other's core, which they do in no app.
        pinned = False
        window = functools.partial(timed, state, min_runs=WINDOW, min_seconds=0.0)
    else:
        pinned = pin(command["cores"])
        # Once more: checks and accuracy ran other shapes since, and a runtime may have laid its memory out for them.
        state.call, window = bare_call(state.session, state.feeds), None
    warmed = warm_up(state.call, max_seconds=float(command["max_seconds"]), window=window)
    return {"calls": warmed.calls, "steady": warmed.steady, "pinned": pinned}


def block(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Time calls for `seconds`, at least four of them.

    The latencies stay here until `samples`, so that the parent has next to nothing to do meanwhile.
    """
    joules, before = energy.read(), usage(state.processes)
    timing = timed(state, min_runs=LEAST_BLOCK_CALLS, min_seconds=float(command["seconds"]))
    after, spent = usage(state.processes), energy.used_mj(joules, energy.read())
    state.latency_ns.extend(timing.latency_ns)
    state.block.extend([int(command["block"])] * len(timing.latency_ns))
    used = {
        name: None if start is None or end is None else end - start
        for name, start, end in zip(Usage._fields, before, after)
    }
    return {"n": len(timing.latency_ns), "seconds": timing.seconds, "energy_mj": spent, **used}


def samples(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Every latency with the number of its block, in the order of the calls, into a .npy file (2, n).

    Told with it: what a call of an empty function takes here, as timed by the same loop.
    """
    np.save(command["out"], np.array([state.latency_ns, state.block], dtype=np.int64))
    empty = None
    if not isinstance(state.session, Elsewhere):
        loop = time_calls(lambda: None, warmup=EMPTY_CALLS, min_runs=EMPTY_CALLS, min_seconds=0.0)
        empty = float(np.median(loop.latency_ns))
    return {"n": len(state.latency_ns), "empty_ns": empty}


def loadgen(state: State, command: Mapping[str, Any]) -> dict[str, Any]:
    """Let MLPerf LoadGen call the model that was timed."""
    from edgekd.device.loadgen import drive

    return drive(
        state.call,
        command["scenario"],
        batch=command["batch"],
        expected_ns=command["expected_ns"],
        seconds=command["seconds"],
        folder=Path(command["folder"]),
        qps=command["qps"],
        bound_ms=command["bound_ms"],
    )


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
