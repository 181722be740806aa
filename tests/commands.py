"""The command line in a process of its own, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def edgekd(
    *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line; colours and widths as in a pipe."""
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:edgekd", "-m", "edgekd", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "160", **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
    )


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
