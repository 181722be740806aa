"""A process of its own for every candidate, and a parent that sleeps meanwhile.

    parent                                 child: python -m edgekd.device.isolation
    Child.ask({"do": "load", ...})  --->   worker.COMMANDS["load"](...)
              {"ok": {...}}         <---   one line of JSON each; arrays go through files

The parent blocks on the pipe (one that polled turned a p50 of 2.69 ms into 6.79 ms). A child ends when its pipe
closes, even in the middle of a call: Ctrl-C or a killed parent leaves no orphans. What it starts (a browser) belongs to
its process group and is ended with it, and what it writes beside the model (the browser's profile) goes into the
benchmark's folder, which the parent removes: however a child ends, nothing of it is left.
"""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgekd.errors import EdgekdError, StageFailed

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
# A child whose pipe broke gets this long to say why.
_GRACE_SECONDS = 5.0
# Tells that edgekd, and not the user, made waiting threads sleep.
_ASLEEP = "EDGEKD_WAITS_ASLEEP"
# What was killed may still end a write for a moment, and its folder is not empty again.
_REMOVALS, _BETWEEN_REMOVALS_S = 50, 0.1


class ChildFailed(StageFailed):
    """The process of a candidate refused a command or died; the message is what it said last."""


class Child:
    """A child process that answers one command at a time. Close it, or use it in a `with`."""

    def __init__(self, *, stderr: Path) -> None:
        """Start the process; its standard error (and whatever a runtime prints) goes to the file `stderr`.

        The folder of that file is also where it and its runtime put temporary files.
        """
        self._stderr = stderr
        with stderr.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgekd.device.isolation"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(os.environ, stderr.parent),
            )
        self._owes_answer = False

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ask(self, command: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """Send a command and sleep until its answer is there. Raises `ChildFailed` when there is none.

        One that does not answer within `timeout` seconds is killed (not on Windows, whose pipes cannot be waited for).
        When Ctrl-C ends the wait, the child may be asked again: its late answer is read, and dropped, first.
        """
        assert self._process.stdin is not None
        try:
            if self._owes_answer:
                self._read_line(timeout)
            self._owes_answer = True
            self._process.stdin.write(json.dumps(dict(command)).encode() + b"\n")
            self._process.stdin.flush()
            line = self._read_line(timeout)
        except (OSError, ValueError):  # the pipe broke, or `kill` closed it from another thread
            line = b""
        if not line:
            raise ChildFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildFailed(str(answer["error"]))
        ok: dict[str, Any] = answer["ok"]
        return ok

    def _read_line(self, timeout: float | None) -> bytes:
        assert self._process.stdout is not None
        # One answer at a time: nothing can be left in Python's buffer, so the pipe itself may be waited for.
        if timeout is not None and os.name == "posix" and not select.select([self._process.stdout], [], [], timeout)[0]:
            self.kill()
            raise ChildFailed(f"it did not answer within {timeout:g} s and was stopped; does the model hang?")
        line = self._process.stdout.readline()
        self._owes_answer = False
        return line

    def close(self) -> None:
        """End the process and all that it started."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # something unsent, which nobody will read
                if pipe is not None:
                    pipe.close()

    def kill(self) -> None:
        """End the process and all that it started at once; a thread that waits for its answer gets `ChildFailed`."""
        if self._process.returncode is None:  # else its number may be another's by now
            self._kill_group()
            self._process.kill()

    def _kill_group(self) -> None:
        if os.name == "posix":
            with suppress(OSError):  # it has no group of its own yet, so it has started nothing; or nothing is left
                os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _last_words(self) -> str:
        try:
            code = str(self._process.wait(timeout=_GRACE_SECONDS))
        except subprocess.TimeoutExpired:
            code = "unknown"
        self._kill_group()
        lines = [line for line in self._stderr.read_text(errors="replace").splitlines() if line.strip()]
        said = lines[-1].strip() if lines else "it said nothing"
        return f"the process of this candidate ended with exit code {code}: {said}"


class Crew:
    """All child processes of one benchmark: whatever happens, none of them outlives it."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes the standard error of each, and what they hand to each other."""
        self.folder = folder
        self._children: list[Child] = []
        self._lock = threading.Lock()
        self._stopped = False

    def start(self) -> Child:
        """One more child. Raises `ChildFailed` after `kill`."""
        with self._lock:
            if self._stopped:
                raise ChildFailed("the benchmark was stopped")
            child = Child(stderr=self.folder / f"stderr-{len(self._children)}.txt")
            self._children.append(child)
            return child

    def kill(self) -> None:
        """End all of them at once; threads that wait for an answer get `ChildFailed`."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.kill()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for child in self._children:
            child.close()


@contextmanager
def working_folder() -> Iterator[Path]:
    """A temporary folder for a crew, removed whole however the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="edgekd-benchmark-"))
    try:
        yield folder
    finally:
        for _ in range(_REMOVALS):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(_BETWEEN_REMOVALS_S)


def wait_asleep(environ: MutableMapping[str, str]) -> None:
    """Let torch's threads sleep when they wait for each other, unless the user has decided it; before torch is loaded.

    GNU OpenMP lets them spin for milliseconds, and beside any other program they then spin while the thread that they
    wait for has no core. What is timed keeps the runtime's own way: `child_environment` takes this back.
    """
    if "OMP_WAIT_POLICY" not in environ and "GOMP_SPINCOUNT" not in environ:
        environ.update({"OMP_WAIT_POLICY": "passive", _ASLEEP: "1"})


def child_environment(environ: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """A copy of the environment with the folder for temporary files, in which the child finds this very edgekd.

    From a checkout that is not installed only the parent's path leads to it. Appended, not put in front: a
    package folder before the standard library could shadow it.
    """
    child = {**environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary.resolve()))}
    if child.pop(_ASLEEP, None):
        child.pop("OMP_WAIT_POLICY", None)
    if not _PACKAGE_PARENT.is_relative_to(Path(sys.prefix)):
        before = [child["PYTHONPATH"]] if child.get("PYTHONPATH") else []
        child["PYTHONPATH"] = os.pathsep.join([*before, str(_PACKAGE_PARENT)])
    return child


def main() -> None:
    """The child: answer commands from standard input until it closes."""
    # A group of our own, which the parent ends as a whole. Ctrl-C does not reach it on POSIX: the parent decides.
    if os.name == "posix":
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # A runtime that prints must not speak between our lines.
    os.dup2(2, 1)
    from edgekd.device import worker

    state = worker.State()
    commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    while True:
        command = commands.get()
        try:
            answer: object = {"ok": worker.COMMANDS[command["do"]](state, command)}
        except EdgekdError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _listen(commands: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Queue every line of standard input; when it closes, end the process, whatever the main thread does.

    `os.read`, because a thread that sleeps inside a buffered reader can make the end of the interpreter fail.
    """
    rest = b""
    while chunk := os.read(0, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            commands.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
