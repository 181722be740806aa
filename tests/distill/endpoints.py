"""A real local server that answers as a teacher does, or misbehaves as told."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Answer = Callable[[np.ndarray, list[int]], Mapping[str, Any]]
# (status, headers, body); None for the body: hang up in the middle of it
Reply = tuple[int, Mapping[str, str], bytes | None]


@dataclass
class Server:
    """What was asked, and what is to be answered: first each of `replies`, then what `answer` gives."""

    answer: Answer
    replies: list[Reply] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def ids(self) -> list[int]:
        """Every id that was answered, in order."""
        return [item for body in self.bodies for item in body["ids"]]


def inputs_of(body: Mapping[str, Any]) -> np.ndarray:
    """The samples of a request, as a server reads them."""
    if body["encoding"] == "npy":
        x: np.ndarray = np.load(io.BytesIO(base64.b64decode(body["inputs"])), allow_pickle=False)
    else:
        x = np.array(body["inputs"], np.float32)
    assert list(x.shape) == body["shape"]
    return x


@contextmanager
def serving(answer: Answer, *replies: Reply) -> Iterator[Server]:
    """A server on a free port of this machine until the end of the block."""
    server = Server(answer, list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.headers.append(dict(self.headers))
            if server.replies:
                status, headers, content = server.replies.pop(0)
            else:
                server.bodies.append(body)
                content = json.dumps(server.answer(inputs_of(body), body["ids"])).encode()
                status, headers = 200, {"content-type": "application/json"}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(1000 if content is None else len(content)))
            self.end_headers()
            self.wfile.write(b"half" if content is None else content)
            self.close_connection = content is None

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}/teach"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
