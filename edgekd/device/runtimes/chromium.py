"""A page of a headless Chromium that runs javascript.mjs, driven over a pipe (Chrome DevTools Protocol)."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgekd.device.runtimes.javascript import PROGRAM, answered, source
from edgekd.errors import ModelError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--remote-debugging-pipe", "--disable-background-timer-throttling"),
    *("--disable-renderer-backgrounding",),
)
MODULE = "ort.wasm.min.mjs"
# A page that is isolated from others reads its clock to 5 microseconds, and may have threads.
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


def find() -> str | None:
    """The browser of this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page, with a fresh profile, that reads onnxruntime-web from the folder `dist` and the model beside it."""

    def __init__(self, dist: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edgekd-chromium-")
        self._files: dict[str, bytes] = {
            "": b'<!doctype html><link rel="icon" href="data:,"><script type="module" src="javascript.mjs"></script>',
            PROGRAM: source().encode(),
        }
        handler = functools.partial(_Handler, self._files, dist)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._address = f"http://localhost:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        # Chromium reads commands from file 3 and writes answers to file 4, each ended by a zero byte.
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        flags = [*FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, find() or NAMES[0], *flags],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._count, self._session, self._buffer = 0, "", b""

    def open(self, graph: Path, *, threads: int) -> dict[str, Any]:
        """Go to the page, and load the graph in it."""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._send("Page.enable")
        self._send("Page.navigate", url=self._address)
        while self._next().get("method") != "Page.loadEventFired":
            pass
        self._files["model.onnx"] = graph.read_bytes()
        module, model = f"{self._address}ort/{MODULE}", f"{self._address}model.onnx"
        return self.ask({"do": "open", "module": module, "graph": model, "threads": threads})

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """The value of `answer(command)` in the page."""
        expression = f"answer({json.dumps(command)})"
        found = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise ModelError(f"the page failed: {found['exceptionDetails'].get('text')}")
        return answered(found["result"]["value"])

    def processes(self) -> list[int]:
        """The renderers: one of them is the page's."""
        session, self._session = self._session, ""
        try:
            told = self._send("SystemInfo.getProcessInfo")["processInfo"]
        finally:
            self._session = session
        return [int(item["id"]) for item in told if item["type"] == "renderer"]

    def close(self) -> None:
        """End the browser by closing its pipe, and the server."""
        os.close(self._to)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise ModelError(f"Chromium refused {method}: {answer['error'].get('message')}")
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._from, 1 << 20)
            if not data:
                raise ModelError(f"Chromium ended (exit code {self._process.poll()})")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found


class _Handler(http.server.BaseHTTPRequestHandler):
    """Files from memory, and those of onnxruntime-web under ort/."""

    def __init__(self, files: Mapping[str, bytes], dist: Path, *args: Any) -> None:
        self._files, self._dist = files, dist
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer."""
        name = urlsplit(self.path).path.lstrip("/")
        data = self._files.get(name)
        if data is None and name.startswith("ort/"):
            path = self._dist / Path(name).name
            data = path.read_bytes() if path.is_file() else None
        if data is None:
            self.send_error(404)
            return
        kinds = {"": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm"}
        self.send_response(200)
        self.send_header("Content-Type", kinds.get(Path(name).suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(data)))
        for key, value in ISOLATED.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
