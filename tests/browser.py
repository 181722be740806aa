"""A page at phone width in a headless Chromium, and a server of files that can be stopped."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekd.device.runtimes.chromium import Browser as Chromium
from edgekd.device.runtimes.chromium import find

FLAGS = ("--hide-scrollbars", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
TIMEOUT_S = 120


def chromium() -> str:
    """The browser of this machine. Where CI is set, a missing one is a failure."""
    found = find()
    if found is None:
        assert os.environ.get("CI") != "true", "no Chromium here; install it with: apt-get install chromium"
        pytest.skip("no Chromium here: install the Debian package chromium to look at pages in a browser")
    return found


class Browser:
    """One page at phone width. `requests` are the addresses that it asked for, `console` what it wrote or threw."""

    def __init__(self, profile: Path) -> None:
        self.requests: list[str] = []
        self.console: list[str] = []
        self._chromium = Chromium(profile, flags=FLAGS, heard=self._note)
        self.send, self.renderers = self._chromium.send, self._chromium.renderers
        self.close = self._chromium.close
        for domain in ("Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        self.send("Emulation.setTouchEmulationEnabled", enabled=True)

    def run(self, code: str) -> Any:
        """The value of an asynchronous function's body in the page."""
        return self._chromium.evaluate(f"(async () => {{ {code} }})()")

    def open(self, address: str, ready: str = "document.body.dataset.ready") -> None:
        """Go there and wait until the expression `ready` has a value."""
        self.send("Page.navigate", url=address)
        self.wait(f"location.href.startsWith({json.dumps(address)}) && {ready}")

    def wait(self, expression: str) -> None:
        """Wait until `expression` is true in the page."""
        end = time.monotonic() + TIMEOUT_S
        found: Any = None
        while time.monotonic() < end:
            # Not `run`: while the page changes there is no document, and the expression throws.
            found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
            if found["result"].get("value"):
                return
            time.sleep(0.05)
        raise AssertionError(f"{expression} did not come true: {found}; {self.console}")

    def screenshot(self, path: Path) -> None:
        """The page as it looks now."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def stroke(self, selector: str, points: list[tuple[float, float]]) -> None:
        """A finger along points in an element, each from 0 to 1 across and down."""
        box = self.run(
            f"const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height];"
        )
        places = [{"x": box[0] + x * box[2], "y": box[1] + y * box[3]} for x, y in points]
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=places[:1])
        for place in places[1:]:
            self.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=[place])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def _note(self, event: Any) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.console.append(" ".join(str(item.get("value", item.get("description"))) for item in params["args"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in `folder`."""
    chromium()
    opened = Browser(folder / "profile")
    try:
        yield opened
    finally:
        opened.close()


class Server:
    """The files of a folder on a free port of this machine, until `stop`. `asked` are the paths that came."""

    def __init__(self, folder: Path, headers: dict[str, str] | None = None) -> None:
        asked = self.asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                asked.append(self.path)

            def end_headers(self) -> None:
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                super().end_headers()

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        self._server.daemon_threads = True
        self.address = f"http://localhost:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse everything from now on."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
