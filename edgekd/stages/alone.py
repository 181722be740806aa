"""The stages on somebody else's model, without a run: what `quantize` and `verify` do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.data.npz import read_npz
from edgekd.errors import AnswerIsNo, UsageError, nearest
from edgekd.graph.first_difference import FLOAT_SHARE, compare_graphs
from edgekd.graph.inspection import inspect
from edgekd.graph.quantization import VARIANTS, Int8Static, quantize
from edgekd.graph.targets import load_target
from edgekd.graph.verification import PRECISIONS, feeds_at, verify
from edgekd.spec import Array, TensorSpec
from edgekd.stages.graphs import precision

RANDOM_SAMPLES = 256
# Fewer of large ones: this many numbers altogether (256 MB), but a whole batch of the largest size that is tried.
RANDOM_NUMBERS = 1 << 26
LEAST_SAMPLES = 16
# --config names that mean the target's own scheme.
SCHEME_OF_TARGET = "int8_static"


def random_feeds(specs: Sequence[TensorSpec], count: int, seed: int) -> dict[str, Array]:
    """Seeded normal inputs (small whole numbers for integer inputs) for lack of real ones."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in specs:
        shape = (count, *spec.concrete()[1:])
        dtype = np.dtype(spec.dtype)
        values = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[spec.name] = values.astype(dtype)
    return feeds


def sample_count(specs: Sequence[TensorSpec]) -> int:
    """How many random samples to compare on."""
    size = sum(math.prod(spec.concrete()[1:]) for spec in specs)
    return min(RANDOM_SAMPLES, max(LEAST_SAMPLES, RANDOM_NUMBERS // max(size, 1)))


def quantize_model(
    model: Path, out: Path, *, config: str, data: Path | None, target: str, limits: Mapping[str, float]
) -> dict[str, Any]:
    """Quantize anybody's ONNX file; `limits` may hold size_kb and label_agreement. JSON-able result."""
    name = config
    if config == SCHEME_OF_TARGET:
        name = next(
            (item for item in load_target(target).variants if item.startswith("int8_") and item in VARIANTS), ""
        )
        if not name:
            raise UsageError(
                f"target {target} names no static int8 scheme; choose one with --config. {nearest('', VARIANTS)}"
            )
    if name not in VARIANTS:
        raise UsageError(f"--config {config}: unknown. {nearest(config, [SCHEME_OF_TARGET, *VARIANTS])}")
    known = ("size_kb", "label_agreement")
    for key in limits:
        if key not in known:
            raise UsageError(f"--limits {key}: unknown. {nearest(key, known)}")
    if isinstance(VARIANTS[name], Int8Static) and data is None:
        raise UsageError(
            f"--config {config} needs calibration samples as the model sees them: add --data FILE.npz, or take "
            "--config int8_dynamic, which needs none"
        )
    if out.exists() and model.exists() and out.samefile(model):
        raise UsageError(f"{out} is the model itself, which would be lost; choose another name for the quantized one")
    calibration = None if data is None else read_npz(data)
    result = quantize(model, out, VARIANTS[name], calibration=calibration)
    agreement: float | None = None
    if calibration is not None:
        agreement = verify(model, out, calibration, tolerance=precision(name)).label_agreement
    original = model.stat().st_size
    broken = []
    if "size_kb" in limits and result.size_bytes / 1000 > limits["size_kb"]:
        broken.append(f"size_kb is {result.size_bytes / 1000:.1f}, limit {limits['size_kb']:g}")
    if "label_agreement" in limits:
        if agreement is None:
            raise UsageError("--limits label_agreement needs samples: add --data FILE.npz")
        if agreement < limits["label_agreement"]:
            broken.append(f"label_agreement is {agreement:.4f}, limit {limits['label_agreement']:g}")
    if broken:
        rejected = out.with_suffix(".rejected.onnx")
        out.replace(rejected)
        raise AnswerIsNo(f"{'; '.join(broken)}; the file was put aside as {rejected}")
    return {
        "path": str(out),
        "config": name,
        "size_bytes": result.size_bytes,
        "sha256": result.sha256,
        "num_quantized": result.num_quantized,
        "ratio": original / result.size_bytes,
        "label_agreement": agreement,
    }


def verify_models(first: Path, second: Path, *, samples: Path | None, strict: bool, seed: int) -> dict[str, Any]:
    """Parity of two ONNX files; random inputs where no samples are given. JSON-able result."""
    specs = inspect(first).inputs
    feeds = random_feeds(specs, sample_count(specs), seed) if samples is None else read_npz(samples)
    wanted = "float32" if strict else inspect(second).precision
    result = verify(first, second, feeds, tolerance=wanted)
    problems = list(result.problems)
    if result.place is not None:
        there = feeds_at(specs, feeds, result.place)
        share = FLOAT_SHARE if wanted == "float32" else PRECISIONS[wanted][0]
        found = compare_graphs(first, second, there, share=share)
        problems += [] if found is None else [str(found)]
    return {
        "ok": result.ok,
        "max_abs_diff": result.max_abs_diff,
        "max_rel_diff": result.max_rel_diff,
        "label_agreement": result.label_agreement,
        "num_samples": result.num_samples,
        "samples": "random" if samples is None else str(samples),
        "batch_sizes": list(result.batch_sizes),
        "problems": problems,
        "axes": {name: list(sizes) for name, sizes in result.axes.items()},
    }
