"""LiteRT (formerly TensorFlow Lite) on the CPU, through XNNPACK: reads .tflite files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.runtimes import Session, check_feeds
from edgekd.errors import MissingExtra, ModelError, UsageError
from edgekd.spec import Array, TensorSpec


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Load a .tflite model, as a path or as bytes, for `threads` threads. There are no options.

    Inputs and outputs have the names of the model's signature, where it has exactly one, else those of its tensors.
    Raises `MissingExtra` without ai-edge-litert, `ModelError` when the model cannot be loaded.
    """
    if options:
        raise UsageError(f"runtime 'litert' has no options, found {', '.join(sorted(options))}")
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingExtra("ai-edge-litert", "litert", purpose="the runtime 'litert'") from error
    # Read here: LiteRT maps a file and dies by a signal when it is cut short meanwhile.
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {model!s}: {error.strerror}; expected a .tflite file") from error
    try:
        loaded = Interpreter(model_content=content, num_threads=threads)
        loaded.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        name = "the model" if isinstance(model, bytes) else str(model)
        raise ModelError(f"litert cannot load {name}: {_first_line(error)}. Expected a .tflite model") from error
    return _LiteRtSession(loaded)


class _LiteRtSession:
    def __init__(self, loaded: Any) -> None:
        inputs, outputs = _details(loaded)
        self.inputs = tuple(_spec(name, detail) for name, detail in inputs.items())
        self.outputs = tuple(_spec(name, detail) for name, detail in outputs.items())
        self._input_index = {name: detail["index"] for name, detail in inputs.items()}
        self._output_index = {name: detail["index"] for name, detail in outputs.items()}
        self._shapes = {name: tuple(detail["shape"]) for name, detail in inputs.items()}
        self._loaded: Any = loaded
        # An interpreter holds its tensors: one call at a time.
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        with self._lock:
            call = self._bound(feeds)
            try:
                return call()
            except (ValueError, RuntimeError) as error:
                raise ModelError(
                    f"the model failed while running: {_first_line(error)}; does it fit this input?"
                ) from error

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Check the feeds now and give the bare call, for timing: set the inputs, invoke, get the outputs."""
        check_feeds(self.inputs, feeds)
        return self._bound(feeds)

    def close(self) -> None:
        with self._lock:
            self._loaded = None

    def _bound(self, feeds: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        loaded = self._loaded
        if loaded is None:
            raise UsageError("this session is closed; open another one")
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes != self._shapes:
            for name, shape in shapes.items():
                loaded.resize_tensor_input(self._input_index[name], shape)
            loaded.allocate_tensors()
            self._shapes = shapes
        given = [(self._input_index[name], np.ascontiguousarray(array)) for name, array in feeds.items()]
        wanted = list(self._output_index.items())

        def call() -> dict[str, Array]:
            for index, array in given:
                loaded.set_tensor(index, array)
            loaded.invoke()
            return {name: loaded.get_tensor(index) for name, index in wanted}

        return call


def _details(loaded: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """LiteRT's descriptions of the inputs and outputs, by name."""
    signatures = loaded.get_signature_list()
    if len(signatures) == 1:
        runner = loaded.get_signature_runner(next(iter(signatures)))
        return dict(runner.get_input_details()), dict(runner.get_output_details())
    return (
        {detail["name"]: detail for detail in loaded.get_input_details()},
        {detail["name"]: detail for detail in loaded.get_output_details()},
    )


def _spec(name: str, detail: Mapping[str, Any]) -> TensorSpec:
    sizes = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    shape = tuple(int(size) if size >= 0 else f"{name}_{axis}" for axis, size in enumerate(sizes))
    return TensorSpec(name, np.dtype(detail["dtype"]).name, shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
