"""Commands and files on an Android device, through the adb server that runs here.

    here                          adb server (127.0.0.1:5037)                  device
    "000chost:version"      --->
                            <---  "OKAY" "0004" "0029"
    "host:transport:SERIAL" --->  "OKAY", and from now on the socket is the device's
    "shell,v2,raw:COMMAND"  --->                                          ---> sh
    packets (id, length, bytes): 0 stdin, 1 stdout, 2 stderr, 3 exit code, 4 end of stdin

No adb program is needed here beside its server. Tested against a server of its own kind in the tests; not run on a
phone. Source: the Android Open Source Project, packages/modules/adb: OVERVIEW.TXT, SERVICES.TXT, shell_protocol.h.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs

from edgekd.device.ssh import ConnectionLost
from edgekd.errors import MissingHere, StorageError, UsageError

PORT = 5037
CONNECT_SECONDS = 15.0
# More than any answer of ours; a server that says more is none.
MAX_OUTPUT_BYTES = 1 << 30
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_CHUNK = 1 << 15
_MAX_MESSAGE_BYTES = 1 << 16


@dataclass(frozen=True)
class AdbHost:
    """Where to: `adb` for the only device, `adb:SERIAL?python=/path/to/python3` for one of several."""

    serial: str | None = None
    python: str = "python3"
    server: tuple[str, int] = ("127.0.0.1", PORT)
    # adb's user has no home, and this is the one place where it may write and run.
    parent: str = "/data/local/tmp/edgekd"

    @property
    def url(self) -> str:
        """`adb` or `adb:SERIAL`."""
        return "adb" if self.serial is None else f"adb:{self.serial}"

    def run(self, remote: str, *, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command over there and wait for it.

        Raises `MissingHere` for a server or device that is not there, `ConnectionLost` when it goes away later.
        """
        with self._device() as device:
            device.request(f"shell,v2,raw:{remote}")
            with _sending(device, data or b""):
                return _answer(device, remote)

    def put(self, path: str, data: bytes) -> None:
        """Write a file over there. Raises `StorageError` when it cannot be written."""
        done = self.run(f"cat > {path}", data=data)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise StorageError(f"{self.url} cannot take {len(data) / 1e6:.1f} MB: {said}; free some space there")

    @contextmanager
    def _device(self) -> Iterator[_Socket]:
        """A socket to the device itself."""
        where = f"{self.server[0]}:{self.server[1]}"
        try:
            raw = socket.create_connection(self.server, timeout=CONNECT_SECONDS)
        except OSError as error:
            raise MissingHere(
                f"no adb server at {where} ({error.strerror or error}); start it with: adb start-server"
            ) from error
        with raw:
            device = _Socket(raw, self.url)
            try:
                device.request("host:transport-any" if self.serial is None else f"host:transport:{self.serial}")
            except _Refused as error:
                raise MissingHere(self._explain(str(error))) from error
            # A benchmark takes minutes, in which nothing is said.
            raw.settimeout(None)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                yield device
            except _Refused as error:
                raise MissingHere(
                    f"{self.url} refuses to run commands ({error}); expected Android 7 or newer (shell protocol 2)"
                ) from error

    def _explain(self, said: str) -> str:
        if "unauthorized" in said:
            return f"{self.url} does not trust this computer ({said}); unlock it and allow USB debugging"
        if "more than one" in said:
            return f"several devices are connected ({said}); name one: --on adb:SERIAL (adb devices lists them)"
        if "offline" in said:
            return f"{self.url} is offline ({said}); unplug it and plug it in again"
        return f"{self.url} is not connected ({said}); adb devices lists those that are"


def parse_adb(url: str, *, environ: Mapping[str, str] = os.environ) -> AdbHost:
    """The device of `adb[:SERIAL][?python=PATH]`; the server as adb's own variables say. Raises `UsageError`."""
    example = "expected adb, adb:SERIAL or adb:SERIAL?python=/path/to/python3"
    name, _, query = url.partition("?")
    kind, colon, serial = name.partition(":")
    try:
        options = parse_qs(query, strict_parsing=True) if query else {}
    except ValueError as error:
        raise UsageError(f"--on {url}: {error}; {example}") from error
    is_serial = serial.isprintable() and not set(serial) & {" ", "/"}
    if kind != "adb" or (colon and not serial) or not is_serial or set(options) - {"python"}:
        raise UsageError(f"--on {url}: {example}")
    python = options["python"][0] if options else "python3"
    return AdbHost(serial or None, python, _server(environ))


def _server(environ: Mapping[str, str]) -> tuple[str, int]:
    given = environ.get("ADB_SERVER_SOCKET", "").removeprefix("tcp:")
    host, _, port = given.rpartition(":")
    host = host or environ.get("ANDROID_ADB_SERVER_ADDRESS", "127.0.0.1")
    port = port or environ.get("ANDROID_ADB_SERVER_PORT", str(PORT))
    if not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"the port of the adb server is '{port}', expected a number; see ANDROID_ADB_SERVER_PORT")
    return host, int(port)


class _Refused(Exception):
    """The server's FAIL, with what it says."""


class _Socket:
    """Messages of the adb server over a socket."""

    def __init__(self, raw: socket.socket, url: str) -> None:
        self.raw = raw
        self._url = url

    def request(self, service: str) -> None:
        """Ask for a service. Raises `_Refused` with the server's reason."""
        words = service.encode()
        if len(words) >= _MAX_MESSAGE_BYTES:
            raise UsageError(f"a command of {len(words)} bytes is too long for adb")
        self.send(f"{len(words):04x}".encode() + words)
        status = self.read(4)
        if status == b"FAIL":
            raise _Refused(self.read(self._length()).decode(errors="replace").strip())
        if status != b"OKAY":
            raise MissingHere(f"what answers for {self._url} is no adb server: it says {status!r}, expected OKAY")

    def send(self, data: bytes) -> None:
        try:
            self.raw.sendall(data)
        except OSError as error:
            raise self._lost(str(error.strerror or error)) from error

    def read(self, count: int) -> bytes:
        """Exactly so many bytes. Raises `ConnectionLost` when there are fewer."""
        parts = []
        while count:
            try:
                part = self.raw.recv(min(count, 1 << 20))
            except OSError as error:
                raise self._lost(str(error.strerror or error)) from error
            if not part:
                raise self._lost("it was closed")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _length(self) -> int:
        text = self.read(4)
        try:
            return int(text, 16)
        except ValueError as error:
            raise MissingHere(f"what answers for {self._url} is no adb server: it says {text!r}") from error

    def _lost(self, reason: str) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self._url} was lost: {reason}")


def _answer(device: _Socket, remote: str) -> subprocess.CompletedProcess[bytes]:
    """Read until the exit code comes."""
    told: dict[int, list[bytes]] = {_STDOUT: [], _STDERR: []}
    total = 0
    while True:
        kind, length = struct.unpack("<BI", device.read(5))
        total += length
        if total > MAX_OUTPUT_BYTES:
            raise ConnectionLost(f"the device says more than {MAX_OUTPUT_BYTES} bytes to: {remote[:60]}")
        content = device.read(length)
        if kind == _EXIT:
            code = content[0] if content else 0
            return subprocess.CompletedProcess(remote, code, b"".join(told[_STDOUT]), b"".join(told[_STDERR]))
        if kind in told:
            told[kind].append(content)


@contextmanager
def _sending(device: _Socket, data: bytes) -> Iterator[None]:
    """For the block, a thread sends the standard input: the device may answer before it has read all of it."""

    def send() -> None:
        # What breaks here breaks for the reader too, which tells it.
        with suppress(ConnectionLost):
            for start in range(0, len(data), _CHUNK):
                part = data[start : start + _CHUNK]
                device.send(struct.pack("<BI", _STDIN, len(part)) + part)
            device.send(struct.pack("<BI", _CLOSE_STDIN, 0))

    thread = threading.Thread(target=send, name="edgekd-adb", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            device.raw.shutdown(socket.SHUT_RDWR)
        thread.join()
