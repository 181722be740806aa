"""What is kept of a benchmark between two runs of its command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device_models import linear_model, weights
from test_benchmark import STEPS, TINY, _labelled

from edgekd.device import parts
from edgekd.device.benchmark import Candidate, benchmark
from edgekd.device.candidates import content_of
from edgekd.device.loadgen import LoadGen
from edgekd.device.loadgen import why_missing as why_no_loadgen
from edgekd.device.parts import Journal, Part, State, key_of, nothing_measured
from edgekd.device.plans import Request
from edgekd.device.readings import read
from edgekd.device.rows import Measured


def _state(launches: int) -> State:
    random = np.random.default_rng(launches)
    state = nothing_measured(2)
    state.parts.append(Part("2026-01-01T00:00:00+00:00", launches, 0))
    state.errors[1] = "it did not answer"
    state.checked = True
    first = state.measured[0]
    first.outputs = np.eye(3, dtype=np.float32)
    first.cold = [(1.5, 0.5)]
    first.memory_mb = {"load": 30.0}
    for launch in range(launches):
        answer = {"n": 3, "seconds": 0.1, "cpu_s": 0.1, "waited_s": None, "energy_mj": None, "interrupted": 0.0}
        first.add_block(answer, place=launch)
        first.add_calls(random.integers(1, 99, 3), np.full(3, launch), launch=launch)
        state.spans.append((read(), read(ends=True)))
    return state


def _equal(one: Measured, other: Measured) -> bool:
    """Arrays compare element by element."""
    return all(
        np.array_equal(value, vars(other)[name]) if isinstance(value, np.ndarray) else value == vars(other)[name]
        for name, value in vars(one).items()
    )


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "mine")
    assert (journal.earlier, journal.discarded) == (None, False)
    state = _state(0)
    journal.keep(state)
    for launch in range(3):
        more = _state(launch + 1)
        state.measured[0].add_calls(more.measured[0].latency_ns[-3:], np.full(3, launch), launch=launch)
        state.spans.append(more.spans[-1])
        journal.keep(state)
    found = Journal(tmp_path, "mine").earlier
    assert found is not None
    assert (found.errors, found.parts, found.spans, found.checked) == (state.errors, state.parts, state.spans, True)
    assert all(map(_equal, found.measured, state.measured))
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert max(sizes[1:]) - min(sizes[1:]) < 1000, "each record holds what is new"
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_records_of_others_and_damaged_ones_do_not_count(tmp_path: Path) -> None:
    Journal(tmp_path, "theirs").keep(_state(1))
    mine = Journal(tmp_path, "mine")
    assert (mine.earlier, mine.discarded) == (None, True)
    for number in range(2):
        mine.keep(_state(number))
    first = tmp_path / "0000.npz"
    first.write_bytes(first.read_bytes()[:40])
    assert Journal(tmp_path, "mine").earlier is None
    assert list(tmp_path.iterdir()) == []


def test_the_launches_that_begin_a_part() -> None:
    state = _state(6)
    state.parts = [Part("a", 2), Part("b", 0), Part("c", 3), Part("d", 1)]
    assert state.resumptions == [2, 5]
    state.parts = [Part("a", 0), Part("b", 6), Part("c", 0)]
    assert state.resumptions == []


@pytest.mark.parametrize("change", ["weights", "beside", "batch", "samples", "cores", "version", "loadgen"])
def test_the_key_tells_what_must_be_the_same(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "a.onnx"
    model.write_bytes(linear_model(weights()))
    samples = _labelled(weights(), wrong=1)
    request = Request((Candidate("a", str(model), preprocess=STEPS),), TINY, samples=samples)
    before, driver = key_of(request), None
    assert key_of(request) == before
    if change == "weights":
        model.write_bytes(linear_model(weights(seed=9)))
    elif change == "beside":
        (tmp_path / "a.onnx.data").write_bytes(b"weights")
    elif change == "batch":
        request = replace(request, candidates=(replace(request.candidates[0], batch=2),))
    elif change == "samples":
        request = replace(request, samples=_labelled(weights(), wrong=2))
    elif change == "cores":
        monkeypatch.setattr(parts, "allowed_cores", lambda: [97])
    elif change == "version":
        monkeypatch.setattr(parts, "versions", lambda: {"edgekd": "0"})
    else:
        driver = LoadGen(tmp_path)
    assert key_of(request, driver) != before


def test_the_place_of_a_model_is_not_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.param").write_text("text")
        (tmp_path / name / "m.bin").write_bytes(b"weights")
    assert content_of(str(tmp_path / "a" / "m.param")) == content_of(str(tmp_path / "b" / "m.param"))
    (tmp_path / "b" / "m.bin").write_bytes(b"others")
    assert content_of(str(tmp_path / "a" / "m.param")) != content_of(str(tmp_path / "b" / "m.param"))


def _stopping(at: str, times: int) -> Callable[[str, int, int], None]:
    told: list[str] = []

    def stop(text: str, done: int, total: int) -> None:
        told.append(text)
        if sum(item.startswith(at) for item in told) == times:
            raise KeyboardInterrupt

    return stop


def test_each_step_is_done_once(tmp_path: Path) -> None:
    """Interrupted in timing, LoadGen, cold start and profile, and once more when nothing was left to do."""
    for name, matrix in (("a", weights()), ("b", weights(seed=9))):
        (tmp_path / f"{name}.onnx").write_bytes(linear_model(matrix))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    candidates = [Candidate(name, tmp_path / f"{name}.onnx", preprocess=STEPS) for name in ("a", "broken", "b")]
    suite = replace(TINY, launches=4, min_blocks=8, cold_starts=10, memory=True)
    driver = LoadGen(tmp_path / "logs", seconds=0.1) if why_no_loadgen() is None else None
    stops = [("timing", 3), *([("LoadGen", 2)] if driver is not None else []), ("cold start", 2), ("profiling", 2)]
    samples = _labelled(weights(), wrong=30)
    for at, times in [*stops, ("nothing", 1), ("nothing", 1)]:
        told: list[str] = []
        stop = _stopping(at, times)

        def tell(text: str, done: int, total: int, *, told: list[str] = told, stop: Callable[..., None] = stop) -> None:
            told.append(text)
            stop(text, done, total)

        found = benchmark(
            candidates, suite=suite, against="a", samples=samples, profile=True, progress=tell, keep_partial=True,
            loadgen=driver, journal=Journal(tmp_path / "kept", "key"),
        )  # fmt: skip
        assert found["interrupted"] == (at != "nothing")
        assert "cannot load" in found["rows"][1]["error"]
    assert set(told) <= {"loading and checking"}, "the last run had everything"
    assert [part["launches"] for part in found["parts"]] == [2, 2, *[0] * (len(stops))]
    assert found["samples"]["a"]["launch"] == [2, 2, 2, 2]
    assert len(found["samples"]["a"]["cold_ms"]) == 10
    for row in (found["rows"][0], found["rows"][2]):
        assert row["accuracy"] is not None
        assert row["memory_mb"]["steady"] > 0
        assert row["profile"]["operators"]
        assert len(row.get("loadgen", ())) == (driver is not None)
