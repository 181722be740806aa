"""ExecuTorch on the CPU: reads .pte files. Its Python runtime takes torch tensors, so that it lies on this floor.

A phone's app runs the same file without torch: the memory that is measured here is not the app's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd.device.runtimes import Session, check_feeds
from edgekd.distill.silence import silence
from edgekd.errors import MissingExtra, ModelError, UsageError
from edgekd.spec import Array, TensorSpec

# Numbers of element types in a .pte, those of torch's C++ ScalarType.
_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 6: "float32", 7: "float64", 11: "bool"}


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Load the method `forward` of a .pte file, as a path or as bytes. There are no options.

    `threads` is a setting of the whole process in ExecuTorch. A .pte names no tensors: here they are input_0, ... and
    output_0, .... Raises `MissingExtra` without executorch, `ModelError` when the model cannot be loaded.
    """
    if options:
        raise UsageError(f"runtime 'executorch' has no options, found {', '.join(sorted(options))}")
    name = "the model" if isinstance(model, bytes) else str(model)
    try:
        with silence("torch", "executorch", "torchao", "importlib"):
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
            from executorch.runtime import Runtime, Verification
    except ImportError as error:
        raise MissingExtra("executorch", "executorch", purpose="the runtime 'executorch'") from error
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {name}: {error.strerror}; expected a .pte file") from error
    _unsafe_reset_threadpool(threads)
    try:
        program = Runtime.get().load_program(content, verification=Verification.InternalConsistency)
        method = program.load_method("forward")
    except RuntimeError as error:
        raise ModelError(f"executorch cannot load {name}: {_first_line(error)}. Expected a .pte file") from error
    if method is None:
        raise ModelError(f"{name} has no method 'forward'; expected a .pte file that 'edgekd convert' wrote")
    return _ExecuTorchSession(program, method)


class _ExecuTorchSession:
    def __init__(self, program: Any, method: Any) -> None:
        told = method.metadata
        self.inputs = tuple(_spec("input", index, told.input_tensor_meta(index)) for index in range(told.num_inputs()))
        self.outputs = tuple(
            _spec("output", index, told.output_tensor_meta(index)) for index in range(told.num_outputs())
        )
        # The program owns the memory that its method lies in.
        self._program, self._method = program, method
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            found = self.prepare(feeds)()
            return {spec.name: tensor.numpy().copy() for spec, tensor in zip(self.outputs, found)}

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], Sequence[Tensor]]:
        """Check the feeds now and give the bare call, for timing."""
        method = self._method
        if method is None:
            raise UsageError("this session is closed; open another one")
        check_feeds(self.inputs, feeds)
        given = [torch.from_numpy(np.array(feeds[spec.name], order="C")) for spec in self.inputs]

        def call() -> Sequence[Tensor]:
            try:
                found: Sequence[Tensor] = method.execute(given)
            except RuntimeError as error:
                raise ModelError(
                    f"the model failed while running: {_first_line(error)}; does it fit this input?"
                ) from error
            return found

        return call

    def close(self) -> None:
        with self._lock:
            self._method = self._program = None


def _spec(kind: str, index: int, told: Any) -> TensorSpec:
    dtype = _DTYPES.get(told.dtype())
    if dtype is None:
        raise ModelError(f"{kind} {index} of the model has a type that numpy lacks; expected numbers")
    return TensorSpec(f"{kind}_{index}", dtype, tuple(told.sizes()))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
