"""MNN on the CPU: reads .mnn files. A batch of one, as its converter leaves a symbolic axis."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.runtimes import Session, check_feeds
from edgekd.errors import MissingExtra, ModelError, UsageError
from edgekd.spec import Array, TensorSpec

# MNN's names of element types; it has 32 bits where ONNX has 64.
_DTYPES = {"Halide_Type_Float": "float32", "Halide_Type_Int": "int32", "Halide_Type_Uint8": "uint8"}


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Load a .mnn file for `threads` threads, in float32. There are no options.

    Raises `MissingExtra` without MNN, `ModelError` when the model cannot be loaded.
    """
    if isinstance(model, bytes):
        raise UsageError("runtime 'mnn' opens a .mnn file, found the bytes of a model")
    if options:
        raise UsageError(f"runtime 'mnn' has no options, found {', '.join(sorted(options))}")
    with _stdout_to_stderr():
        try:
            import MNN
        except ImportError as error:
            raise MissingExtra("MNN", "mnn", purpose="the runtime 'mnn'") from error
        # MNN dies by a signal on some of what is no model of its own.
        try:
            content = model.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read {model}: {error.strerror}; expected a .mnn file") from error
        if not _is_flatbuffer(content):
            raise ModelError(f"{model} is no model of MNN; expected a .mnn file that its converter wrote")
        try:
            net = MNN.Interpreter(str(model))
        except Exception as error:
            raise ModelError(f"MNN cannot load {model}; expected a .mnn file that its converter wrote") from error
        session = net.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
    if session is None:
        raise ModelError(f"MNN {MNN.version()} cannot load {model}; expected a .mnn file that its converter wrote")
    return _MnnSession(MNN, net, session)


class _MnnSession:
    def __init__(self, mnn: Any, net: Any, session: Any) -> None:
        self._mnn, self._net, self._session = mnn, net, session
        given, made = net.getSessionInputAll(session), net.getSessionOutputAll(session)
        self.inputs = tuple(self._spec(name, tensor) for name, tensor in given.items())
        self.outputs = tuple(self._spec(name, tensor) for name, tensor in made.items())
        self._given, self._made = given, made
        # A session holds its tensors: one call at a time.
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            call = self.prepare(feeds)
            return {name: array.copy() for name, array in call().items()}

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], dict[str, Array]]:
        """Check the feeds now and give the bare call, for timing: set the inputs, run, get the outputs."""
        net, session = self._net, self._session
        if net is None:
            raise UsageError("this session is closed; open another one")
        check_feeds(self.inputs, feeds)
        given = [(self._given[name], self._host(self._given[name], array)) for name, array in feeds.items()]
        wanted = [(spec.name, self._made[spec.name], np.zeros(spec.concrete(), spec.dtype)) for spec in self.outputs]
        hosts = [(name, tensor, self._host(tensor, array)) for name, tensor, array in wanted]

        def call() -> dict[str, Array]:
            for tensor, host in given:
                tensor.copyFrom(host)
            if net.runSession(session) != 0:
                raise ModelError("the model failed while running in MNN; does it fit this input?")
            found = {}
            for name, tensor, host in hosts:
                tensor.copyToHostTensor(host)
                found[name] = host.getNumpyData()
            return found

        return call

    def close(self) -> None:
        with self._lock:
            self._net = self._session = None
            self._given, self._made = {}, {}

    def _host(self, tensor: Any, array: Array) -> Any:
        """A tensor in ONNX's layout with the values of `array`, of the type of `tensor`."""
        plain = np.ascontiguousarray(array)
        return self._mnn.Tensor(plain.shape, tensor.getDataType(), plain, self._mnn.Tensor_DimensionType_Caffe)

    def _spec(self, name: str, tensor: Any) -> TensorSpec:
        kind = tensor.getDataType()
        known = (dtype for key, dtype in _DTYPES.items() if getattr(self._mnn, key) == kind)
        dtype = next(known, None)
        if dtype is None:
            raise ModelError(f"'{name}' of the model is neither float32, int32 nor uint8; expected one of them in MNN")
        return TensorSpec(name, dtype, tuple(tensor.getShape()))


def _is_flatbuffer(content: bytes) -> bool:
    """Whether the root table and its description lie inside the file."""
    if len(content) < 16:
        return False
    root = int.from_bytes(content[:4], "little")
    if not 4 <= root <= len(content) - 4:
        return False
    table = root - int.from_bytes(content[root : root + 4], "little", signed=True)
    return 0 <= table <= len(content) - 4 and content[table] % 2 == 0 and content[table] >= 4


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """MNN says what the CPU supports on stdout, from C++: there, programs print their results."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
