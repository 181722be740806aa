"""An adb server that goes nowhere: it speaks adb's protocol and runs the commands here, and can be told to break.

HOME/break   lines of a text each: the first whose text is in a command is taken out, and the connection breaks
HOME/asked   every command, one per line
"""

from __future__ import annotations

import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SERIAL = "phone-1"
FULL = (1 << 15) - 7  # an odd size: packets never end where messages do


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    home: Path
    refusal: str | None
    shell: bytes


class _Connection(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        service = self._request()
        if self.server.refusal is not None:
            self._fail(self.server.refusal)
            return
        if service not in ("host:transport-any", f"host:transport:{SERIAL}"):
            self._fail(f"device '{service.rpartition(':')[2]}' not found")
            return
        self.request.sendall(b"OKAY")
        service = self._request()
        if not service.startswith("shell,v2,raw:"):
            self._fail("unknown service")
            return
        self.request.sendall(self.server.shell)
        if self.server.shell == b"OKAY":
            self._shell(service.removeprefix("shell,v2,raw:"))

    def _shell(self, command: str) -> None:
        home = self.server.home
        with (home / "asked").open("a") as file:
            file.write(" ".join(command.split()) + "\n")
        breaks = (home / "break").read_text().splitlines() if (home / "break").exists() else []
        if breaks and breaks[0] in command:
            (home / "break").write_text("".join(f"{line}\n" for line in breaks[1:]))
            return
        with subprocess.Popen(["sh", "-c", command], stdin=-1, stdout=-1, stderr=-1) as process:
            feed = threading.Thread(target=self._feed, args=(process.stdin,))
            out = threading.Thread(target=self._tell, args=(1, process.stdout))
            feed.start()
            out.start()
            self._tell(2, process.stderr)
            out.join()
            self._packet(3, bytes([process.wait() & 0xFF]))
            with suppress(OSError):
                self.request.shutdown(socket.SHUT_WR)
            feed.join()

    def _feed(self, stdin: IO[bytes]) -> None:
        is_open = True
        with suppress(EOFError):
            while True:
                kind, length = struct.unpack("<BI", self._exactly(5))
                content = self._exactly(length)
                assert kind in (0, 4)
                # A command that has ended, or never read, takes no more.
                with suppress(OSError, ValueError):
                    if kind == 4 and is_open:
                        is_open = False
                        stdin.close()
                    stdin.write(content)
        with suppress(OSError):
            stdin.close()

    def _tell(self, kind: int, stream: IO[bytes]) -> None:
        while content := stream.read(FULL):
            self._packet(kind, content)

    def _packet(self, kind: int, content: bytes) -> None:
        with suppress(OSError):
            self.request.sendall(struct.pack("<BI", kind, len(content)) + content)

    def _request(self) -> str:
        return self._exactly(int(self._exactly(4), 16)).decode()

    def _fail(self, text: str) -> None:
        self.request.sendall(f"FAIL{len(text):04x}{text}".encode())

    def _exactly(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = self.request.recv(count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return parts


@contextmanager
def adb_server(home: Path, *, refusal: str | None = None, shell: bytes = b"OKAY") -> Iterator[tuple[str, int]]:
    """The address of a server with the one device SERIAL.

    refusal  what it says to everybody who wants a device
    shell    what the device says to a shell
    """
    home.mkdir(parents=True, exist_ok=True)
    with _Server(("127.0.0.1", 0), _Connection) as server:
        server.home, server.refusal, server.shell = home, refusal, shell
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address  # type: ignore[misc]
        finally:
            server.shutdown()


@contextmanager
def nobody() -> Iterator[tuple[str, int]]:
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()
