"""onnxruntime-node, and onnxruntime-web (WebAssembly) in Node or in a headless Chromium: what apps in JavaScript run.

The model lives in a process of its own, which times its calls by itself (javascript.mjs): a way there and back would
take longer than many a call. The npm packages are found in the folder `node_modules` of $EDGEKD_NODE_MODULES, of the
working directory, or above it.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgekd.device.runtimes import Session, check_feeds
from edgekd.device.timing import Timing
from edgekd.errors import MissingHere, ModelError, UsageError
from edgekd.spec import Array, TensorSpec

NODE_MODULES = "EDGEKD_NODE_MODULES"
PROGRAM = "javascript.mjs"


class Engine(Protocol):
    """Where javascript.mjs runs."""

    def open(self, graph: Path, *, threads: int) -> dict[str, Any]:
        """Load the graph; the answer of the command `open`."""
        ...

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a command. Raises `ModelError` with the engine's words."""
        ...

    def processes(self) -> list[int]:
        """The numbers of the processes that the model runs in."""
        ...

    def close(self) -> None:
        """End it."""
        ...


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Load an ONNX model, as a path or as bytes, for `threads` threads.

    `options` come from the runtime's row: {"package": npm package, "browser": whether in Chromium}. There are no
    others. Raises `MissingHere` without Node, Chromium or the package, `ModelError` when the model cannot be loaded.
    """
    unknown = sorted(set(options) - {"package", "browser"})
    if unknown:
        raise UsageError(f"the runtimes in JavaScript have no options, found {', '.join(unknown)}")
    package, browser = str(options["package"]), bool(options.get("browser"))
    if (missing := why_not(package, browser=browser)) is not None:
        raise MissingHere(f"{missing}; or leave this runtime out")
    modules = _modules(package)
    assert modules is not None
    with tempfile.TemporaryDirectory(prefix="edgekd-javascript-") as name:
        graph = Path(name) / "model.onnx"
        graph.write_bytes(model if isinstance(model, bytes) else _read(model))
        engine = _engine(package, modules, browser=browser)
        try:
            opened = engine.open(graph, threads=threads)
        except BaseException as error:
            engine.close()
            if isinstance(error, ModelError):
                what = "the model" if isinstance(model, bytes) else str(model)
                raise ModelError(f"{package} cannot load {what}: {error}") from error
            raise
    return _JavaScriptSession(engine, opened)


def why_not(package: str, *, browser: bool = False) -> str | None:
    """What is missing here to run it, or None."""
    if not browser and shutil.which("node") is None:
        return "Node is not installed (the package nodejs)"
    if browser:
        from edgekd.device.runtimes.chromium import find

        if find() is None:
            return "Chromium is not installed"
    if _modules(package) is None:
        return f"there is no node_modules/{package} here or above (npm install {package}, or set {NODE_MODULES})"
    return None


def source() -> str:
    """The program for Node and for a page."""
    return importlib.resources.files("edgekd.device.runtimes").joinpath(PROGRAM).read_text(encoding="utf-8")


class _JavaScriptSession:
    def __init__(self, engine: Engine, opened: Mapping[str, Any]) -> None:
        self._engine: Engine | None = engine
        self._lock = threading.Lock()
        self.load_ms = float(opened["load_ms"])
        self.inputs, self.outputs = (tuple(_spec(item) for item in opened[side]) for side in ("inputs", "outputs"))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        outputs = self._ask({"do": "run", "feeds": _packed(feeds)})["outputs"]
        return {spec.name: _unpacked(outputs[spec.name]) for spec in self.outputs}

    def lay(self, feeds: Sequence[Mapping[str, Array]]) -> None:
        """Check the feeds and bring them there; calls take them in turns."""
        for item in feeds:
            check_feeds(self.inputs, item)
        self._ask({"do": "lay", "feeds": [_packed(item) for item in feeds]})

    def time_calls(self, *, min_runs: int, min_seconds: float) -> Timing:
        """Calls with the feeds that were laid there, timed where they run."""
        latency = self._ask({"do": "time", "runs": min_runs, "ms": min_seconds * 1e3})["latency_ns"]
        return Timing(tuple(latency), 0, sum(latency) / 1e9)

    def processes(self) -> list[int]:
        """The numbers of the processes that the model runs in."""
        return [] if self._engine is None else self._engine.processes()

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.close()
            self._engine = None

    def _ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._engine is None:
                raise UsageError("this session is closed; open another one")
            return self._engine.ask(command)


class Node:
    """A Node process in a folder whose `node_modules` it imports from."""

    def __init__(self, package: str, modules: Path) -> None:
        self._package = package
        theirs, self._lifeline = os.pipe()
        # The shell gives the read end the number 3, which javascript.mjs waits on.
        script = f'exec "$0" "$@" 3<&{theirs}'
        node = shutil.which("node") or "node"
        self._process = subprocess.Popen(
            ["bash", "-c", script, node, "--input-type=module", "--eval", source()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=modules.parent,
            pass_fds=(theirs,),
        )
        os.close(theirs)

    def open(self, graph: Path, *, threads: int) -> dict[str, Any]:
        """Import the package and load the graph."""
        return self.ask({"do": "open", "module": self._package, "graph": str(graph), "threads": threads})

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """A line there, a line back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            raise ModelError(f"Node ended with exit code {self._process.wait()}; what it said is above")
        return answered(json.loads(line))

    def processes(self) -> list[int]:
        """Its number."""
        return [self._process.pid]

    def close(self) -> None:
        """End it by closing its pipes."""
        os.close(self._lifeline)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


def answered(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What a command gave. Raises `ModelError` with the engine's words."""
    if "error" in answer:
        raise ModelError(str(answer["error"]).splitlines()[0])
    ok: dict[str, Any] = answer["ok"]
    return ok


def _engine(package: str, modules: Path, *, browser: bool) -> Engine:
    if not browser:
        return Node(package, modules)
    from edgekd.device.runtimes.chromium import Page

    return Page(modules / package / "dist")


def _modules(package: str) -> Path | None:
    """The folder `node_modules` that holds the package."""
    named = os.environ.get(NODE_MODULES)
    here = Path.cwd()
    for folder in ([Path(named)] if named else []) + [here, *here.parents]:
        if (folder / "node_modules" / package / "package.json").is_file():
            return (folder / "node_modules").resolve()
    return None


def _read(model: Path) -> bytes:
    try:
        return model.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {model}: {error.strerror}; expected an ONNX model") from error


def _spec(item: Mapping[str, Any]) -> TensorSpec:
    shape: Sequence[int | str] = item["shape"]
    return TensorSpec(item["name"], item["dtype"], tuple(shape))


def _packed(feeds: Mapping[str, Array]) -> dict[str, Any]:
    return {
        name: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "data": base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode(),
        }
        for name, array in feeds.items()
    }


def _unpacked(item: Mapping[str, Any]) -> Array:
    dtype = np.dtype(item["dtype"])
    flat = np.frombuffer(base64.b64decode(item["data"]), dtype.newbyteorder("<")).astype(dtype)
    return flat.reshape(item["shape"])
