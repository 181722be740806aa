"""However a benchmark ends, no temporary folder and no process of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import chromium
from device_models import linear_model, weights
from javascript import node_modules
from test_benchmark import TINY, replace

from edgekd.device.benchmark import Candidate, benchmark

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are POSIX")

# A runtime that starts a program which writes into the folder for temporary files for as long as it lives, as a browser
# does; and that then ends as it is told.
WRITING = """
import os, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path
from edgekd.spec import TensorSpec

WRITER = '''
import itertools, os, sys
from pathlib import Path
held = os.open(sys.argv[2], os.O_WRONLY)
for number in itertools.count():
    place = Path(sys.argv[1]) / str(number % 100)
    place.mkdir(parents=True, exist_ok=True)
    (place / str(number)).write_text("x")
    if number == 3:
        os.write(held, b"writing\\\\n")
'''
ENDS = {
    "answers": lambda: time.sleep(1e-3),
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": threading.Event().wait,
    "fails": lambda: 1 / 0,
}

class Session:
    inputs = outputs = (TensorSpec("x", "float32", ("N", 16)),)

    def __init__(self, end, fifo):
        self.end = ENDS[end]
        self.writer = subprocess.Popen([sys.executable, "-c", WRITER, tempfile.mkdtemp(prefix="profile-"), fifo])
        time.sleep(0.3)

    def run(self, feeds):
        self.end()

    def close(self):
        pass

def open_model(model, *, threads, options):
    return Session(options["end"], options["fifo"])
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.mark.parametrize("end", ["answers", "dies", "hangs", "fails"])
def test_what_a_runtime_starts_and_writes_is_gone(
    end: str, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "writing_runtime.py").write_text(WRITING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    model, fifo = tmp_path / "a.onnx", tmp_path / "fifo"
    model.write_bytes(linear_model(weights()))
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    options = {"end": end, "fifo": str(fifo)}
    candidate = Candidate("a", model, runtime="writing_runtime:open_model", options=options)
    found = benchmark([candidate], suite=replace(TINY, timeout_seconds=3.0))
    assert ("error" in found["rows"][0]) == (end != "answers"), found["rows"]
    assert list(temporary.iterdir()) == []
    os.set_blocking(reader, True)
    with os.fdopen(reader, "rb") as file:
        # The end of the file comes when the last writer is gone.
        assert set(file.read().splitlines()) == {b"writing"}


SUITE = "min_calls = 8\nmin_blocks = 4\nlaunches = 2\nmax_seconds = 1\nblock_ms = {}\ncold_starts = 0\nmemory = false\n"


@pytest.mark.parametrize("ending", [None, signal.SIGINT, signal.SIGTERM])
def test_the_profile_of_the_browser_is_gone(ending: signal.Signals | None, temporary: Path, tmp_path: Path) -> None:
    """Through the command line: at a normal end, at Ctrl-C and when it is asked to end."""
    chromium()
    node_modules("onnxruntime-web")
    (tmp_path / "a.onnx").write_bytes(linear_model(weights()))
    (tmp_path / "s.toml").write_text(SUITE.format(5 if ending is None else 60_000))
    command = [sys.executable, "-m", "edgekd", "benchmark", "a.onnx", "--runtime", "onnxruntime-web-chromium"]
    with subprocess.Popen([*command, "--suite", "s.toml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        if ending is not None:
            end = time.monotonic() + 60
            while not list(temporary.glob("edgekd-benchmark-*/edgekd-chromium-*/*")):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            process.send_signal(ending)
        _, said = process.communicate(timeout=120)
    assert process.returncode == (0 if ending is None else 130), said
    assert list(temporary.glob("edgekd-*")) == []


def test_a_program_that_forgets_to_close_leaves_nothing(temporary: Path, tmp_path: Path) -> None:
    chromium()
    node_modules("onnxruntime-web")
    (tmp_path / "a.onnx").write_bytes(linear_model(weights()))
    code = "from edgekd.device.runtimes import open_session\n"
    code += "open_session('a.onnx', runtime='onnxruntime-web-chromium')\n1 / 0"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "ZeroDivisionError" in done.stderr
    assert list(temporary.glob("edgekd-*")) == []
