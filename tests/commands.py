"""The command line in a process of its own, as a user types it.

Importing torch takes most of a short command's time, so on Linux commands are forked from a process that has imported
it (`command_server.py`), as long as the environment is the one in which that began.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FLAGS = ("-W", "error::DeprecationWarning:edgekd")
# What libraries read when they are imported is not among these.
_READ_LATER = ("EDGEKD_", "PYTEST_")
_TIMEOUT_S = 600


def edgekd(
    *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line; colours and widths as in a pipe."""
    command = [sys.executable, *FLAGS, "-m", "edgekd", *map(str, args)]
    environ = {**os.environ, "COLUMNS": "160", **(env or {})}
    address = _server() if sys.platform == "linux" and importlib.util.find_spec("torch") else None
    if address is not None and not _differing(environ):
        return _forked(address, command, list(map(str, args)), cwd or Path.cwd(), environ)
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=_TIMEOUT_S)


@functools.cache
def _server() -> str:
    """The address of this test process's server, which is started by its first command."""
    folder = tempfile.TemporaryDirectory(prefix="edgekd-commands-")
    address = f"{folder.name}/socket"
    script = Path(__file__).parent / "command_server.py"
    process = subprocess.Popen([sys.executable, *FLAGS, str(script), address], env=_beginning(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "the server of commands did not start"

    @atexit.register
    def end() -> None:
        process.kill()
        process.wait()
        folder.cleanup()

    return address


@functools.cache
def _beginning() -> dict[str, str]:
    return dict(os.environ)


def _differing(environ: dict[str, str]) -> list[str]:
    before = {**_beginning(), "COLUMNS": "160"}
    keys = [key for key in {**before, **environ} if before.get(key) != environ.get(key)]
    return [key for key in keys if not key.startswith(_READ_LATER)]


def _forked(
    address: str, command: list[str], args: list[str], cwd: Path, environ: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_TIMEOUT_S)
        line.connect(address)
        request = {"args": args, "cwd": str(cwd), "env": environ}
        socket.send_fds(line, [b"x"], [out.fileno(), err.fileno()])
        line.sendall(json.dumps(request).encode() + b"\n")
        with line.makefile() as answer:
            code = int(answer.readline())
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(command, code, *texts)


def ok(*args: str | Path, cwd: Path | None = None) -> str:
    """The stdout of a command that must succeed."""
    done = edgekd(*args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ok_json(*args: str | Path) -> Any:
    """The one JSON object that a command prints with --json; progress must not be in it."""
    return json.loads(ok(*args, "--json"))


def refused(code: int, *args: str | Path, cwd: Path | None = None) -> str:
    """The one error of a command that must end with `code`, its lines joined; never a traceback."""
    done = edgekd(*args, cwd=cwd)
    assert done.returncode == code, f"exit {done.returncode}, expected {code}: {done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    return " ".join(done.stderr.split("error:")[1].split())
