"""Commands and files on another device through the ssh program that the user already has set up.

Whatever ~/.ssh/config says (keys, jump hosts, aliases) holds. EDGEKD_SSH replaces the program, with its options, as
GIT_SSH_COMMAND does for git.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from edgekd.errors import MissingHere, StageFailed, StorageError, UsageError

# ssh's own exit code for a connection that failed or broke.
BROKEN = 255
CONNECT_SECONDS = 15


class ConnectionLost(StageFailed):
    """The connection broke in the middle; what runs on the device goes on."""


@dataclass(frozen=True)
class Host:
    """Where to: `ssh://user@host:port?python=/path/to/python3`; port and user as in ~/.ssh/config if not given."""

    name: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    program: tuple[str, ...] = ("ssh",)
    parent: str = "${XDG_CACHE_HOME:-$HOME/.cache}/edgekd"

    @property
    def url(self) -> str:
        """`ssh://user@host:port`."""
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{self.name}{f':{self.port}' if self.port else ''}"

    def command(self, remote: str) -> list[str]:
        """The local command that runs `remote` in a POSIX shell over there. It never asks for a password."""
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=15"]
        if self.port is not None:
            options += ["-p", str(self.port)]
        if self.user is not None:
            options += ["-l", self.user]
        return [*self.program, *options, "--", self.name, f"sh -c {shlex.quote(remote)}"]

    def run(self, remote: str, *, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command over there and wait for it.

        Raises `MissingHere` for a device that cannot be reached or refuses us, `ConnectionLost` when it breaks later.
        """
        try:
            done = subprocess.run(self.command(remote), input=data or b"", capture_output=True, check=False)
        except FileNotFoundError as error:
            raise MissingHere(f"the program '{self.program[0]}' is not installed; install an ssh client") from error
        if done.returncode == BROKEN:
            raise self._explain(done.stderr.decode(errors="replace"))
        return done

    def put(self, path: str, data: bytes) -> None:
        """Write a file over there. Raises `StorageError` when it cannot be written."""
        done = self.run(f"cat > {path}", data=data)
        if done.returncode != 0:
            said = _last_line(done.stderr)
            raise StorageError(f"{self.url} cannot take {len(data) / 1e6:.1f} MB: {said}; free some space there")

    def _explain(self, stderr: str) -> MissingHere | ConnectionLost:
        said = _last_line(stderr.encode())
        login = shlex.join([*self.program, *(["-p", str(self.port)] if self.port else []), self._target()])
        if "Permission denied" in stderr:
            return MissingHere(f"{self.url} refuses the login ({said}); is your key there? Try: {login}")
        if "Host key verification failed" in stderr:
            return MissingHere(f"the key of {self.url} is unknown or has changed; log in once by hand: {login}")
        if any(text in stderr for text in ("closed by remote", "Broken pipe", "reset by peer", "not responding")):
            return ConnectionLost(f"the connection to {self.url} was lost: {said}")
        return MissingHere(f"{self.url} cannot be reached: {said}; is it on, and in this network? Try: {login}")

    def _target(self) -> str:
        return f"{self.user}@{self.name}" if self.user else self.name


def parse_host(url: str, *, environ: Mapping[str, str] = os.environ) -> Host:
    """The host of `ssh://user@host[:port][?python=PATH]`. Raises `UsageError` for anything else."""
    example = "expected ssh://user@host or ssh://user@host:2222?python=/path/to/python3"
    try:
        parts = urlsplit(url)
        port = parts.port
        query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
    except ValueError as error:
        raise UsageError(f"--on {url}: {error}; {example}") from error
    fine = parts.scheme == "ssh" and parts.hostname and parts.path in ("", "/") and set(query) <= {"python"}
    # A name that begins with a dash would be an option of ssh.
    if not fine or parts.password is not None or str(parts.hostname).startswith("-") or parts.fragment:
        raise UsageError(f"--on {url}: {example} (a password is never taken; use a key)")
    return Host(
        str(parts.hostname),
        parts.username,
        port,
        query["python"][0] if query else "python3",
        _program(environ),
    )


def _program(environ: Mapping[str, str]) -> tuple[str, ...]:
    words: Sequence[str] = shlex.split(environ.get("EDGEKD_SSH", "")) or ("ssh",)
    return tuple(words)


def _last_line(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it said nothing"
