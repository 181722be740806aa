"""What ranges the activations of a model take on samples, and which of them 8 bits should cover.

`calibrate` measures once; every scheme, and every mixture of a search, is made from the same `Ranges`. Kept as JSON
they are used again for the same graph, samples and method, and refused for another graph.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from edgekd.errors import DataError, InputRefused, UsageError
from edgekd.files import sha256_bytes, write_json
from edgekd.graph.least_error import least_error_range
from edgekd.graph.quantizers import quantizable_kinds, silence
from edgekd.graph.sessions import GraphSession, open_graph
from edgekd.spec import Array

Method = Literal["minmax", "entropy", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile", "mse")
SCHEMA = "edgekd.calibration/1"
_ROWS_PER_BATCH = 32
_ENTROPY_BINS = 1024
Feeds = Mapping[str, Array]


@dataclass(frozen=True)
class Ranges:
    """The range of each activation that 8 bits will cover, and what it was measured on.

    model_sha256  of the graph whose tensors these are: folded and fused, as it is quantized
    data_sha256   of the samples, `num_samples` of them
    symmetric     whether the least error was sought for ranges around zero; the other methods do not ask
    values        name of a tensor -> its lowest and highest value
    """

    method: Method
    symmetric: bool
    model_sha256: str
    data_sha256: str
    num_samples: int
    values: Mapping[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the graph's hash, which the whole file shares."""
        return {
            "method": self.method,
            "symmetric": self.symmetric,
            "data_sha256": self.data_sha256,
            "num_samples": self.num_samples,
            "ranges": {name: list(bounds) for name, bounds in sorted(self.values.items())},
        }


def calibrate(
    graph: ModelProto,
    samples: Feeds | Iterable[Feeds],
    *,
    method: Method = "minmax",
    symmetric: bool = False,
    cache: str | os.PathLike[str] | None = None,
) -> Ranges:
    """The ranges of `graph` (as `quantizers.prepare` gives it) on `samples`: name -> (N, ...), or batches of that form.

    minmax      all that was seen
    entropy     the least entropy lost (onnxruntime's histogram of 1024 bins)
    percentile  the middle 99.999 % (onnxruntime's)
    mse         the least squared error of rounding, see `edgekd.graph.least_error`

    Batches may differ in any symbolic axis. entropy and percentile keep every activation of all batches of one shape in
    memory. cache: a JSON file of this graph's ranges;
    what is there is not measured again, what is not is added. Raises `UsageError` for samples that do not fit or are
    none, `DataError` for NaN or nothing but zeros, `InputRefused` for the cache of another graph.
    """
    if method not in METHODS:
        raise UsageError(f"calibration is {method!r}; expected one of {', '.join(METHODS)}")
    groups = [samples] if isinstance(samples, Mapping) else list(samples)
    session = open_graph(graph, name="the model")
    num_samples = _check(session, groups)
    model_sha256, data_sha256 = graph_sha256(graph), _hash(groups)
    symmetric = symmetric and method == "mse"
    known = [] if cache is None else load_ranges(cache, model_sha256=model_sha256, missing_ok=True)
    for item in known:
        if (item.method, item.symmetric, item.data_sha256) == (method, symmetric, data_sha256):
            return item

    def batches() -> Iterator[Feeds]:
        return _batches(session, groups)

    if method == "mse":
        values = _least_error(graph, batches, symmetric=symmetric)
    else:
        values = _onnxruntime(graph, batches, method)
    found = Ranges(method, symmetric, model_sha256, data_sha256, num_samples, values)
    if cache is not None:
        calibrations = [item.to_json() for item in (*known, found)]
        write_json(cache, {"schema": SCHEMA, "model_sha256": model_sha256, "calibrations": calibrations})
    return found


def graph_sha256(graph: ModelProto) -> str:
    """What a cache knows its graph by."""
    return sha256_bytes(graph.SerializeToString(deterministic=True))


def load_ranges(
    path: str | os.PathLike[str], *, model_sha256: str | None = None, missing_ok: bool = False
) -> list[Ranges]:
    """All ranges of a file that `calibrate` wrote. Raises `InputRefused` when it is missing (unless `missing_ok`),
    broken, or another graph's than that of `model_sha256`."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if raw["schema"] != SCHEMA:
            raise InputRefused(
                f"{path} is a file of {raw['schema']!r}, expected {SCHEMA!r}; a newer edgekd may read it"
            )
        owner = str(raw["model_sha256"])
        found = [
            Ranges(
                item["method"],
                bool(item["symmetric"]),
                owner,
                str(item["data_sha256"]),
                int(item["num_samples"]),
                {str(name): _bounds(low, high) for name, (low, high) in item["ranges"].items()},
            )
            for item in raw["calibrations"]
        ]
    except FileNotFoundError as error:
        if missing_ok:
            return []
        raise InputRefused(f"there is no calibration file {path}; check the path") from error
    except OSError as error:
        raise InputRefused(f"{path} cannot be read: {error.strerror}; expected a calibration file") from error
    except InputRefused:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRefused(
            f"{path} is no calibration file of edgekd ({type(error).__name__}: {error}); delete it, it is made again"
        ) from error
    if model_sha256 is not None and owner != model_sha256:
        raise InputRefused(
            f"{path} holds the ranges of another model (graph {owner[:12]}, this one is {model_sha256[:12]}); its "
            "ranges would be wrong here: give another file, or delete it"
        )
    return found


def _bounds(low: object, high: object) -> tuple[float, float]:
    bounds = float(low), float(high)  # type: ignore[arg-type]
    if not all(map(math.isfinite, bounds)) or bounds[0] > bounds[1]:
        raise ValueError(f"a range from {low} to {high}")
    return bounds


def _check(session: GraphSession, groups: Sequence[Feeds]) -> int:
    """How many samples there are."""
    total = 0
    for group in groups:
        total += session.check_samples(group)
        for name, array in group.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                row = int(np.argmax(~np.isfinite(array).reshape(len(array), -1).all(axis=1)))
                raise DataError(
                    f"calibration for '{name}' holds NaN or infinite numbers (first in sample {row}); "
                    "expected finite, model-ready numbers: check the preprocessing"
                )
    if not total:
        raise UsageError("the calibration holds no batch; expected samples of the train split, some hundreds")
    if not any(array.any() for group in groups for array in group.values()):
        raise DataError(
            f"the calibration is nothing but zeros in all of its {total} samples: every range would be empty; "
            "expected real, model-ready samples: check the file and the preprocessing"
        )
    return total


def _steps(session: GraphSession, count: int) -> tuple[int, int]:
    """Rows in a batch and how many batches; a model whose batch axis is fixed gets that size."""
    fixed = next((spec.shape[0] for spec in session.inputs if spec.shape and isinstance(spec.shape[0], int)), None)
    num_batches = math.ceil(count / (fixed or _ROWS_PER_BATCH))
    return fixed or math.ceil(count / num_batches), num_batches


def _batches(session: GraphSession, groups: Sequence[Feeds]) -> Iterator[Feeds]:
    """Batches of one size per group: the last one begins again with the first rows."""
    for group in groups:
        count = len(next(iter(group.values())))
        step, num_batches = _steps(session, count)
        for start in range(0, num_batches * step, step):
            rows = np.arange(start, start + step) % count
            yield {name: np.ascontiguousarray(array[rows]) for name, array in group.items()}


def _hash(groups: Sequence[Feeds]) -> str:
    """Of the samples, however they are shared out among groups: what a sample looks like is told where it changes."""
    digest = hashlib.sha256()
    for name in sorted(groups[0]):
        told = ""
        for array in (group[name] for group in groups):
            looks = json.dumps([name, array.dtype.str, list(array.shape[1:])])
            if looks != told:
                digest.update(looks.encode())
                told = looks
            for row in array:
                digest.update(np.ascontiguousarray(row).tobytes())
    return digest.hexdigest()


def _shapes(batch: Feeds) -> list[tuple[int, ...]]:
    return [array.shape for array in batch.values()]


class _Reader:
    """Batches in the form that onnxruntime asks for: `get_next` gives None at the end."""

    def __init__(self, batches: Iterator[Feeds]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else dict(batch)


def _onnxruntime(
    graph: ModelProto, batches: Callable[[], Iterator[Feeds]], method: Method
) -> dict[str, tuple[float, float]]:
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods: dict[str, tuple[Any, dict[str, int]]] = {
        "minmax": (CalibrationMethod.MinMax, {}),
        # The tool's default of 128 bins for 128 levels leaves it no range to cut: it was min-max by another name.
        "entropy": (CalibrationMethod.Entropy, {"num_bins": _ENTROPY_BINS}),
        "percentile": (CalibrationMethod.Percentile, {}),
    }
    chosen, options = methods[method]
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, silence():
        path = Path(folder) / "folded.onnx"
        onnx.save(graph, path)
        calibrator = create_calibrator(
            path,
            quantizable_kinds(),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=chosen,
            extra_options=options,
        )
        # Its histograms take batches of one shape at a time, and add up.
        for _, alike in groupby(batches(), key=_shapes):
            calibrator.collect_data(_Reader(alike))
        data = calibrator.compute_data()
        del calibrator  # its session holds the file open
    return {name: (float(np.min(found.lowest)), float(np.max(found.highest))) for name, found in data.items()}


def _least_error(
    graph: ModelProto, batches: Callable[[], Iterator[Feeds]], *, symmetric: bool
) -> dict[str, tuple[float, float]]:
    """Two passes over the samples: what is seen at all, then the error of each range that might be taken."""
    names = _activations(graph)
    told = ModelProto()
    told.CopyFrom(graph)
    known = {value.name: value for value in (*told.graph.value_info, *told.graph.input)}
    already = {value.name for value in told.graph.output}
    inputs = {value.name for value in told.graph.input}
    told.graph.output.extend(known[name] for name in names if name not in already | inputs)
    session = open_graph(told, name="the model with all its activations")

    def run() -> Iterator[dict[str, Array]]:
        for batch in batches():
            yield {**batch, **session.run(batch)}

    seen: dict[str, tuple[float, float]] = {}
    for values in run():
        for name in names:
            low, high = seen.get(name, (math.inf, -math.inf))
            array = values[name]
            seen[name] = min(low, float(array.min(initial=0.0))), max(high, float(array.max(initial=0.0)))
    searches = {name: least_error_range(*bounds, symmetric=symmetric) for name, bounds in seen.items()}
    for values in run():
        for name, search in searches.items():
            search.add(values[name])
    return {name: search.best() for name, search in searches.items()}


def _activations(graph: ModelProto) -> list[str]:
    """Float tensors that operators with an int8 kernel read or write, constants left out."""
    kinds = set(quantizable_kinds())
    values = (*graph.graph.value_info, *graph.graph.input, *graph.graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats -= {tensor.name for tensor in graph.graph.initializer}
    touched = [name for node in graph.graph.node if node.op_type in kinds for name in (*node.input, *node.output)]
    return [name for name in dict.fromkeys(touched) if name in floats]
