"""A runtime without a runtime, for tests: a JSON file that says what the model reads, computes or refuses.

{"inputs":  [{"name": "x", "dtype": "float32", "shape": ["N", 2]}],
 "outputs": [{"name": "y", "dtype": "float32", "shape": ["N", 3]}],
 "weights": {"y": [[1, 0, 0], [0, 1, 0]]},        output = flat first input (N, I) @ weights (I, O) + bias
 "bias": {"y": [0, 0, 0]},                         optional
 "fail": {"load": "text"}}                         optional: refuse with that text, at "load" or at "run"
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.device.runtimes import Session, check_feeds
from edgekd.errors import ModelError, UsageError
from edgekd.spec import Array, TensorSpec


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Load a fake model from JSON, as a path or as bytes. Raises `ModelError` when it is none, or says so."""
    try:
        plain = json.loads(model if isinstance(model, bytes) else model.read_bytes())
        inputs, outputs = (
            tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in plain[side])
            for side in ("inputs", "outputs")
        )
        weights = {spec.name: np.array(plain["weights"][spec.name], np.float32) for spec in outputs}
        biases = {name: np.array(bias, np.float32) for name, bias in plain.get("bias", {}).items()}
        failures = {str(stage): str(text) for stage, text in plain.get("fail", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"not a model of the fake runtime ({error}); expected its JSON, see {__name__}") from error
    if "load" in failures:
        raise ModelError(failures["load"])
    return _FakeSession(inputs, outputs, weights, biases, failures)


class _FakeSession:
    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        weights: dict[str, NDArray[Any]],
        biases: dict[str, NDArray[Any]],
        failures: dict[str, str],
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._weights, self._biases, self._failures = weights, biases, failures
        self._closed = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._closed:
            raise UsageError("this session is closed; open another one")
        check_feeds(self.inputs, feeds)
        if "run" in self._failures:
            raise ModelError(self._failures["run"])
        first = feeds[self.inputs[0].name]
        flat = first.reshape(len(first), -1).astype(np.float32)
        return {
            spec.name: (flat @ self._weights[spec.name] + self._biases.get(spec.name, 0.0)).astype(spec.dtype)
            for spec in self.outputs
        }

    def close(self) -> None:
        self._closed = True
