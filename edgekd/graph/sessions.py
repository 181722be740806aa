"""One quiet onnxruntime session on the CPU: for verification, and to prove what quantization wrote."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnxruntime
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edgekd.errors import ModelError, UsageError
from edgekd.graph.clean import load_model
from edgekd.graph.operators import foreign_advice, refuse_random
from edgekd.spec import Array, TensorSpec

# The errors of the native side share no base class but Exception.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NoModel,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
    native.EPFail,
    native.EngineError,
    RuntimeError,
    ValueError,
)
_FATAL_ONLY = 4  # every failure comes back as an exception: the log on stderr would only repeat it

_NUMPY_NAME = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}


@dataclass(frozen=True)
class GraphSession:
    """An ONNX model that is ready to run: `run(feeds)` gives every output by name."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    native: Any

    @property
    def metadata(self) -> dict[str, str]:
        """The key-value pairs in the file."""
        return dict(self.native.get_modelmeta().custom_metadata_map)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs. Raises one of `RUNTIME_ERRORS` when the model cannot take these shapes."""
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self.native.run(names, dict(feeds))))

    def check_samples(self, samples: Mapping[str, Array]) -> int:
        """How many samples there are. Raises `UsageError` unless they fit the inputs by name, type and shape."""
        expected = ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in self.inputs)
        if set(samples) != {spec.name for spec in self.inputs}:
            raise UsageError(
                f"the samples name the inputs {sorted(samples)}, but {self.name} has the inputs: {expected}; "
                "give one array per input"
            )
        counts = {name: len(array) if array.ndim else 0 for name, array in samples.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise UsageError(f"expected the same number of samples for every input and at least 1, found {counts}")
        for spec in self.inputs:
            array = samples[spec.name]
            fits = len(array.shape) == len(spec.shape) and all(
                isinstance(wanted, str) or wanted == found for found, wanted in zip(array.shape[1:], spec.shape[1:])
            )
            if not fits or array.dtype.name != spec.dtype:
                raise UsageError(
                    f"samples for '{spec.name}' are {array.dtype.name} {list(array.shape)}, but {self.name} expects "
                    f"{spec.dtype} {list(spec.shape)}; give model-ready arrays with the samples on the first axis"
                )
        return next(iter(counts.values()))


def open_graph(
    source: str | os.PathLike[str] | bytes | ModelProto, *, name: str = "", threads: int = 1
) -> GraphSession:
    """A session for an ONNX file, its bytes or a loaded model.

    Raises `ModelError` when onnxruntime cannot run it, or when it draws random numbers: nothing can be proven of it.
    """
    if isinstance(source, ModelProto):
        model, title = source, name or "the model"
    else:
        model = load_model(source)
        title = name or ("the given model" if isinstance(source, bytes) else str(source))
    refuse_random(model, title)
    options = session_options()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except RUNTIME_ERRORS as error:
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} cannot load {title}: {first_line(error)}; {_advice(str(error))}"
        ) from error
    return GraphSession(title, _specs(session.get_inputs(), title), _specs(session.get_outputs(), title), session)


def session_options() -> Any:
    """Options that log nothing but fatal errors. onnxruntime's own usage reports are switched off for this process:
    its wheels carry a reporting client (seen in 1.31), and nobody agreed to that by distilling a model."""
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    return options


def _advice(text: str) -> str:
    """What to do about an error of onnxruntime: it names the operator that it lacks."""
    unknown = re.search(r"([\w.]+):(\w+)\(-?\d+\) is not a registered function/op", text)
    if unknown:
        return foreign_advice(unknown[1], unknown[2])
    if re.search(r"Could not find an implementation for \w+\(\d+\)", text):
        return "it lacks it for these types: cast the inputs to float32 or int64, or install a newer onnxruntime"
    return "export it for an older opset or install a newer onnxruntime"


def first_line(error: Exception) -> str:
    """The first line of a native error; the rest is its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _specs(values: Any, title: str) -> tuple[TensorSpec, ...]:
    specs = []
    for value in values:
        if value.type not in _NUMPY_NAME:
            raise ModelError(
                f"'{value.name}' of {title} is a {value.type}, expected a tensor; "
                "export the model without maps, sequences and optional values"
            )
        shape = tuple(size if isinstance(size, int) else (size or "?") for size in value.shape)
        specs.append(TensorSpec(value.name, _NUMPY_NAME[value.type], shape))
    return tuple(specs)
