"""OpenVINO on the CPU: reads ONNX itself, no conversion."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.device.runtimes import OperatorTime, Session, check_feeds
from edgekd.errors import MissingExtra, ModelError, UsageError
from edgekd.spec import Array, TensorSpec

if TYPE_CHECKING:
    import openvino


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Load an ONNX model, as a path or as bytes, for `threads` threads.

    In float32, though OpenVINO would take bfloat16 where the CPU has it (differences of 5e-4). `options` are
    OpenVINO's own CPU properties, e.g. {"PERFORMANCE_HINT": "LATENCY"}, and "profile": see `operator_times`.
    Raises `MissingExtra` without openvino, `ModelError` when the model cannot be loaded.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("openvino", "openvino", purpose="the runtime 'openvino'") from error
    settings: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        **options,
    }
    profiled = settings.pop("profile", None) is not None
    if profiled:
        settings["PERF_COUNT"] = True
    name = "the model" if isinstance(model, bytes) else str(model)
    try:
        core = openvino.Core()
        graph = core.read_model(model if isinstance(model, bytes) else str(model))
        # Before compiling: that melts tensors together, and an input may then answer to another one's name.
        inputs, outputs = ([_spec(port) for port in side] for side in (graph.inputs, graph.outputs))
        loaded = core.compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        raise ModelError(
            f"openvino {openvino.__version__.partition('-')[0]} cannot load {name}: {_last_line(error)}. "
            "Expected an ONNX model of operators that it knows"
        ) from error
    return _OpenVinoSession(loaded, inputs, outputs, profiled=profiled)


class _OpenVinoSession:
    def __init__(
        self,
        loaded: openvino.CompiledModel,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        profiled: bool,
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._request: openvino.InferRequest | None = loaded.create_infer_request()
        # A request holds its own memory for inputs and outputs: one call at a time.
        self._lock = threading.Lock()
        self._profiled = profiled
        self._times: list[OperatorTime] = []

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        with self._lock:
            if self._request is None:
                raise UsageError("this session is closed; open another one")
            try:
                # Shared: a request that has once read from an array of `prepare` cannot be given another shape by copy.
                found = self._request.infer(self._by_place(feeds), share_inputs=True)
            except RuntimeError as error:
                raise ModelError(
                    f"the model failed while running: {_last_line(error)}; does it fit this input?"
                ) from error
            if self._profiled:
                self._times += [
                    OperatorTime(item.node_name, item.node_type, item.real_time.total_seconds() * 1e3)
                    for item in self._request.profiling_info
                    if item.real_time
                ]
            return {spec.name: np.array(found[index]) for index, spec in enumerate(self.outputs)}

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """Check the feeds now and give the bare call, for timing; inputs are shared, not copied."""
        request = self._request
        if request is None:
            raise UsageError("this session is closed; open another one")
        check_feeds(self.inputs, feeds)
        bound = self._by_place(feeds)

        def call() -> object:
            return request.infer(bound, share_inputs=True)

        return call

    def operator_times(self) -> list[OperatorTime]:
        """What each operator took in each `run` since the model was opened with "profile"."""
        with self._lock:
            return list(self._times)

    def close(self) -> None:
        with self._lock:
            self._request = None

    def _by_place(self, feeds: Mapping[str, Array]) -> dict[int, Array]:
        return {place: feeds[spec.name] for place, spec in enumerate(self.inputs)}


def _spec(port: Any) -> TensorSpec:
    name = port.any_name
    shape = tuple(
        f"{name}_{axis}" if size.is_dynamic else size.get_length() for axis, size in enumerate(port.partial_shape)
    )
    return TensorSpec(name, port.element_type.to_dtype().name, shape)


def _last_line(error: RuntimeError) -> str:
    """OpenVINO says where in its sources first, and what is the matter last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
