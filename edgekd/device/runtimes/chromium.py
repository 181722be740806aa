"""A headless Chromium, driven over a pipe (Chrome DevTools Protocol), and a page of it that runs javascript.mjs."""

from __future__ import annotations

import atexit
import functools
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
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


class Browser:
    """A Chromium with its profile in the folder `profile`, which is made, and one page that commands go to.

    `heard` is told every event that comes while an answer is waited for.
    """

    def __init__(
        self,
        profile: Path,
        *,
        flags: Sequence[str] = (),
        heard: Callable[[Mapping[str, Any]], object] = lambda event: None,
    ) -> None:
        self._heard = heard
        # Chromium reads commands from file 3 and writes answers to file 4, each ended by a zero byte.
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        script = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        program = [find() or NAMES[0], *FLAGS, *flags, f"--user-data-dir={profile.resolve()}", "about:blank"]
        profile.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            ["bash", "-c", script, *program],
            # Its sockets lie in the profile too. By the shortest name: the full one may exceed what a socket can have.
            cwd=profile,
            env={**os.environ, "TMPDIR": "."},
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._count, self._session, self._buffer = 0, "", b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Page.enable")

    def send(self, method: str, *, to_browser: bool = False, **params: Any) -> dict[str, Any]:
        """The result of a command to the page, or to the browser itself. Raises `ModelError` with Chromium's words."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session and not to_browser:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while (answer := self._next()).get("id") != self._count:
            self._heard(answer)
        if "error" in answer:
            raise ModelError(f"Chromium refused {method}: {answer['error'].get('message')}")
        result: dict[str, Any] = answer["result"]
        return result

    def go(self, address: str) -> None:
        """Open `address` in the page and wait until it is loaded."""
        self.send("Page.navigate", url=address)
        while (event := self._next()).get("method") != "Page.loadEventFired":
            self._heard(event)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for. Raises `ModelError` when it throws."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            said = details.get("exception", {}).get("description", details.get("text"))
            raise ModelError(f"the page failed: {said}")
        return found["result"].get("value")

    def renderers(self) -> list[int]:
        """The processes that run pages: the page's own, and spare ones."""
        told = self.send("SystemInfo.getProcessInfo", to_browser=True)["processInfo"]
        return [int(item["id"]) for item in told if item["type"] == "renderer"]

    def close(self) -> None:
        """End the browser by closing its pipe."""
        os.close(self._to)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._from, 1 << 20)
            if not data:
                raise ModelError(f"Chromium ended (exit code {self._process.poll()})")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found


class Page:
    """One page, in a browser with a fresh profile, that reads onnxruntime-web from the folder `dist` and the model
    beside it."""

    def __init__(self, dist: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edgekd-chromium-", ignore_cleanup_errors=True)
        self._files: dict[str, bytes] = {
            "": b'<!doctype html><link rel="icon" href="data:,"><script type="module" src="javascript.mjs"></script>',
            PROGRAM: source().encode(),
        }
        handler = functools.partial(_Handler, self._files, dist)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._address = f"http://localhost:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._browser = Browser(Path(self._folder.name))
        # A program that ends without `close` would remove the profile under a browser that still writes it.
        atexit.register(self.close)

    def open(self, graph: Path, *, threads: int) -> dict[str, Any]:
        """Go to the page, and load the graph in it."""
        self._browser.go(self._address)
        self._files["model.onnx"] = graph.read_bytes()
        module, model = f"{self._address}ort/{MODULE}", f"{self._address}model.onnx"
        return self.ask({"do": "open", "module": module, "graph": model, "threads": threads})

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """The value of `answer(command)` in the page."""
        return answered(self._browser.evaluate(f"answer({json.dumps(command)})"))

    def processes(self) -> list[int]:
        """The renderers: one of them is the page's."""
        return self._browser.renderers()

    def close(self) -> None:
        """End the browser and the server."""
        atexit.unregister(self.close)
        self._browser.close()
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()


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
