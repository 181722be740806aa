"""Processes of candidates: they answer, they fail in words, and they never outlive the parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.device.isolation import Child, ChildFailed, Crew, child_environment, wait_asleep

MODEL = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 2]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["N", 3]}],
    "weights": {"y": [[1, 0, 0], [0, 1, 0]]},
}

# A runtime whose call never ends; it holds a fifo open, so that a reader of it sees when the process is gone.
ENDLESS = """
import os, threading
from edgekd.spec import TensorSpec

class Session:
    inputs = outputs = (TensorSpec("x", "float32", ("N", 2)),)
    def __init__(self, fifo):
        self.fifo = os.open(fifo, os.O_WRONLY)
    def run(self, feeds):
        os.write(self.fifo, b"running\\n")
        threading.Event().wait()
    def close(self):
        pass

def open_model(model, *, threads, options):
    return Session(options["fifo"])

def open_noisy(model, *, threads, options):
    print("a runtime that prints", flush=True)
    os.write(1, b"even past Python\\n")
    session = Session(os.devnull)
    session.run = lambda feeds: feeds
    return session

def open_broken(model, *, threads, options):
    raise KeyError("a bug of this runtime")

def open_dying(model, *, threads, options):
    os._exit(9)
"""


def _model(folder: Path, **changes: Any) -> Path:
    path = folder / "model.json"
    path.write_text(json.dumps({**MODEL, **changes}))
    return path


def _load(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "do": "load",
        "model": str(model),
        "variant": None,
        "runtime": "fake",
        "threads": 1,
        "options": {},
        "batch": 1,
        "preprocess": [],
        "samples": None,
        "golden": None,
        "texts": {"ids": 2, "longest": 32, "pad": 0, "known": False},
        "seed": 0,
        "memory": False,
        **changes,
    }


@pytest.fixture
def endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module `endless_runtime`, importable in children."""
    (tmp_path / "endless_runtime.py").write_text(ENDLESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("given", "asleep", "timed"),
    [
        ({}, {"OMP_WAIT_POLICY": "passive"}, {}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": "9"}, {"GOMP_SPINCOUNT": "9"}, {"GOMP_SPINCOUNT": "9"}),
    ],
)
def test_threads_wait_asleep_but_where_they_are_timed(
    given: dict[str, str], asleep: dict[str, str], timed: dict[str, str], tmp_path: Path
) -> None:
    environ = dict(given)
    wait_asleep(environ)
    wait_asleep(environ)  # of a command that edgekd started
    seen = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    assert {key: environ[key] for key in seen if key in environ} == asleep
    child = child_environment(environ, tmp_path)
    assert {key: child[key] for key in seen if key in child} == timed


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP comes with torch for Linux")
def test_the_command_makes_torch_s_threads_wait_asleep() -> None:
    pytest.importorskip("torch", reason="training needs torch")
    own = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-m", "edgekd", "taps", "cnn_s", "--input", "1,8,8"]
    done = subprocess.run(
        command, env={**own, "OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, timeout=120
    )
    assert "GOMP_SPINCOUNT = '0'" in done.stderr


def test_a_child_loads_times_and_hands_its_samples_over(tmp_path: Path) -> None:
    with Child(stderr=tmp_path / "stderr") as child:
        loaded = child.ask(_load(_model(tmp_path)))
        assert loaded["load_ms"] > 0
        assert loaded["first_ms"] > 0
        assert loaded["memory_mb"] is None
        counts = [child.ask({"do": "block", "seconds": 0.001, "block": number})["n"] for number in (0, 1)]
        handed = child.ask({"do": "samples", "out": str(tmp_path / "samples.npy")})
        assert handed["n"] == sum(counts)
        assert 0 < handed["empty_ns"] < 100_000
        # However short, a block is never a single call.
        assert child.ask({"do": "block", "seconds": 0.0, "block": 2})["n"] == 4
    latency, block = np.load(tmp_path / "samples.npy")
    assert (latency > 0).all()
    assert block.tolist() == [0] * counts[0] + [1] * counts[1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux pins processes and counts what they wait")
def test_a_block_tells_how_often_its_core_was_taken_away(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    hog = f"import os\nos.sched_setaffinity(0, {{{core}}})\nprint('here', flush=True)\nwhile True: pass"
    with (
        Child(stderr=tmp_path / "stderr") as child,
        subprocess.Popen([sys.executable, "-c", hog], stdout=subprocess.PIPE) as other,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == b"here\n"
        child.ask(_load(_model(tmp_path)))
        child.ask({"do": "steady", "max_seconds": 0.01, "cores": [core]})
        shared = child.ask({"do": "block", "seconds": 0.3, "block": 0})
        other.kill()
    assert shared["interrupted"] > 0
    assert shared["waited_s"] > 0.03
    # A turn of the other program ends one call: of thousands of short ones hardly any is hit.
    assert shared["interrupted"] / shared["n"] < 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak that can be set back")
def test_the_memory_of_a_child_is_not_its_parents(tmp_path: Path) -> None:
    def peaks() -> dict[str, float]:
        with Child(stderr=tmp_path / "stderr") as child:
            found: dict[str, float] = child.ask(_load(_model(tmp_path), memory=True))["memory_mb"]
            return found

    small = peaks()
    held = np.ones(125_000_000)  # 1 GB, resident
    large = peaks()
    assert held.nbytes == 10**9
    assert small.keys() == large.keys() == {"start", "load", "first", "steady"}
    for phase, peak in small.items():
        assert abs(large[phase] - peak) <= 2


def test_outputs_of_all_samples_go_through_the_steps(tmp_path: Path) -> None:
    x = np.arange(260, dtype=np.uint8).reshape(130, 2)
    np.save(tmp_path / "x.npy", x)
    command = _load(_model(tmp_path), preprocess=[{"op": "scale", "factor": 0.5}], samples=str(tmp_path / "x.npy"))
    with Child(stderr=tmp_path / "stderr") as child:
        child.ask(command)
        child.ask({"do": "evaluate", "samples": str(tmp_path / "x.npy"), "out": str(tmp_path / "y.npy")})
    expected = np.concatenate([x * np.float32(0.5), np.zeros((130, 1), np.float32)], axis=1)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def test_a_model_with_a_fixed_batch_gets_its_own_size(tmp_path: Path) -> None:
    specs = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [4, 2]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [4, 3]}],
    }
    x = np.random.default_rng(0).random((10, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    with Child(stderr=tmp_path / "stderr") as child:
        child.ask(_load(_model(tmp_path, **specs), batch=4, samples=str(tmp_path / "x.npy")))
        child.ask({"do": "evaluate", "samples": str(tmp_path / "x.npy"), "out": str(tmp_path / "y.npy")})
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy")[:, :2], x)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak that can be set back")
def test_memory_is_told_phase_by_phase(tmp_path: Path) -> None:
    with Child(stderr=tmp_path / "stderr") as child:
        peaks = child.ask(_load(_model(tmp_path), memory=True))["memory_mb"]
    assert list(peaks) == ["start", "load", "first", "steady"]
    # Python with numpy, not what the parent holds, and hardly more for a model of six numbers.
    assert 5 < peaks["start"] <= peaks["load"] + 1
    assert peaks["steady"] < peaks["start"] + 20


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss of a child starts at its parent's only on Linux")
def test_the_childs_memory_is_not_the_parents(tmp_path: Path) -> None:
    ballast = bytearray(200_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    with Child(stderr=tmp_path / "stderr") as child:
        peaks = child.ask(_load(_model(tmp_path), memory=True))["memory_mb"]
    assert peaks["load"] < 150
    assert len(ballast) == 200_000_000


def test_a_refusal_comes_back_in_its_own_words_and_the_child_goes_on(tmp_path: Path) -> None:
    with Child(stderr=tmp_path / "stderr") as child:
        with pytest.raises(ChildFailed, match=r"^no kernel for this board$"):
            child.ask(_load(_model(tmp_path, fail={"load": "no kernel for this board"})))
        assert child.ask(_load(_model(tmp_path)))["load_ms"] > 0


def test_a_bug_in_a_runtime_is_told_with_exit_code_and_last_line(endless: Path) -> None:
    with Child(stderr=endless / "stderr") as child:
        with pytest.raises(ChildFailed, match=r"ended with exit code 1: KeyError: 'a bug of this runtime'"):
            child.ask(_load(_model(endless), runtime="endless_runtime:open_broken"))
        with pytest.raises(ChildFailed, match="ended with exit code 1"):
            child.ask({"do": "block", "seconds": 0.0, "block": 0})


def test_a_silent_death_is_told(endless: Path) -> None:
    with (
        Child(stderr=endless / "stderr") as child,
        pytest.raises(ChildFailed, match="ended with exit code 9: it said nothing"),
    ):
        child.ask(_load(_model(endless), runtime="endless_runtime:open_dying"))


def test_a_runtime_that_prints_does_not_garble_the_answers(endless: Path) -> None:
    with Child(stderr=endless / "stderr") as child:
        assert child.ask(_load(_model(endless), runtime="endless_runtime:open_noisy"))["load_ms"] > 0
    assert (endless / "stderr").read_text().splitlines() == ["a runtime that prints", "even past Python"]


def test_a_crew_kills_its_children_and_starts_no_more(tmp_path: Path) -> None:
    with Crew(tmp_path) as crew:
        child = crew.start()
        crew.kill()
        with pytest.raises(ChildFailed, match="exit code -9"):
            child.ask({"do": "block", "seconds": 0.0, "block": 0})
        with pytest.raises(ChildFailed, match="the benchmark was stopped"):
            crew.start()


PARENT = """
import sys
from pathlib import Path
from edgekd.device.isolation import Child
from test_isolation import _load
folder = Path(sys.argv[1])
child = Child(stderr=folder / "stderr")
child.ask(_load(folder / "model.json", runtime="endless_runtime:open_model", options={"fifo": str(folder / "fifo")}))
"""


@pytest.mark.skipif(os.name != "posix", reason="fifos and SIGKILL are POSIX")
def test_a_child_in_the_middle_of_a_call_dies_with_its_killed_parent(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _model(endless)
    os.mkfifo(endless / "fifo")
    path = os.pathsep.join([str(endless), str(Path(__file__).parent)])
    monkeypatch.setenv("PYTHONPATH", path)
    command = [sys.executable, "-c", PARENT, str(endless)]
    with subprocess.Popen(command) as parent, (endless / "fifo").open("rb") as fifo:
        assert fifo.readline() == b"running\n"
        parent.send_signal(signal.SIGKILL)
        # End of file comes when nobody holds the fifo any more: the child is gone.
        assert fifo.read() == b""
    assert parent.returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="pipes that can be waited for are POSIX")
def test_a_child_that_does_not_answer_is_stopped(endless: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    command = _load(_model(tmp_path), runtime="endless_runtime:open_model", options={"fifo": str(tmp_path / "fifo")})
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with (
        Child(stderr=tmp_path / "stderr") as child,
        pytest.raises(ChildFailed, match=r"it did not answer within 0\.2 s and was stopped; does the model hang\?"),
    ):
        child.ask(command, timeout=0.2)
    os.close(reader)


@pytest.mark.skipif(os.name != "posix", reason="pipes that can be waited for are POSIX")
def test_after_an_interrupted_wait_the_late_answer_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekd.device import isolation

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with Child(stderr=tmp_path / "stderr") as child:
        with monkeypatch.context() as patched:
            patched.setattr(isolation.select, "select", interrupt)
            with pytest.raises(KeyboardInterrupt):
                child.ask(_load(_model(tmp_path)), timeout=60)
        assert child.ask({"do": "block", "seconds": 0.0, "block": 0}, timeout=60)["n"] == 4
