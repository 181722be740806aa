"""Make an ONNX model smaller: one verb, `quantize`, and one frozen configuration per way of doing it.

Works on any ONNX file of opset 11 or above, ours or somebody else's. What is written was loaded by onnxruntime
first; whether it is still right is for `edgekd.graph.verification` and for the accuracy to say.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import ModelProto

from edgekd.errors import AnswerIsNo, DataError, ModelError, UsageError
from edgekd.files import sha256_bytes
from edgekd.graph import quantizers
from edgekd.graph.clean import clean, load_model, save_model
from edgekd.graph.sessions import RUNTIME_ERRORS, GraphSession, first_line, open_graph
from edgekd.graph.targets import Target, load_target
from edgekd.spec import Array

_ROWS_PER_BATCH = 32


@dataclass(frozen=True)
class Int8Static:
    """8-bit weights and activations (QDQ), ranges from calibration samples: the fast variant for CNNs.

    activation, weight  uint8 activations with int8 weights suit CPUs with VNNI and ARM; on x86 without VNNI their
                        products saturate: use uint8 for both, or reduce_range.
    per_channel         one scale per output channel of a weight instead of one per tensor
    calibration         range of an activation: all that was seen, least entropy lost, or the middle 99.999 %; the
                        last two keep every activation of all samples in memory
    reduce_range        7-bit weights
    """

    activation: Literal["uint8", "int8"] = "uint8"
    weight: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    reduce_range: bool = False


@dataclass(frozen=True)
class Int8Dynamic:
    """8-bit weights of MatMul and Gemm, activations quantized at run time: no calibration; convolutions stay float."""

    weight: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True


@dataclass(frozen=True)
class Fp16:
    """Half the size; inputs and outputs stay float32. Not faster on a CPU."""


@dataclass(frozen=True)
class Int4WeightOnly:
    """4-bit weights of MatMul and Gemm in blocks, float activations: an eighth of their size. Needs onnxruntime's
    own operator MatMulNBits (domain com.microsoft), which other runtimes lack."""

    block_size: int = 32


Config = Int8Static | Int8Dynamic | Fp16 | Int4WeightOnly

VARIANTS: dict[str, Config] = {
    "int8_u8s8": Int8Static(),
    "int8_s8s8": Int8Static(activation="int8"),
    "int8_u8u8": Int8Static(weight="uint8"),
    "int8_dynamic": Int8Dynamic(),
    "fp16": Fp16(),
    "int4_weight_only": Int4WeightOnly(),
}



@dataclass(frozen=True)
class Int8QAT:
    """The graph of `Int8Static`, whose weights and scales are trained: `quantize` trains nothing, but
    `edgekd.distill.fake_quantize` makes the module to train, and `edgekd.distill.write_quantized` its file.

    weight_bits  4: weights of -7 to 7, half the bytes of int8 (needs opset 21, IR 10); they are computed with as int8
    """

    weight_bits: Literal[8, 4] = 8
    activation: Literal["uint8", "int8"] = "uint8"
    weight: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"


TRAINED: dict[str, Int8QAT] = {"int8_qat": Int8QAT(), "int4_qat": Int8QAT(weight_bits=4)}


@dataclass(frozen=True)
class QuantizeResult:
    """What was written. `num_quantized` counts Conv, MatMul and Gemm layers that compute on smaller numbers;
    `notes` says what a runtime must have to load the file."""

    path: Path
    config: Config | Int8QAT
    size_bytes: int
    sha256: str
    num_quantized: int
    seconds: float
    notes: tuple[str, ...] = ()


def quantize(
    model: str | os.PathLike[str] | bytes | ModelProto,
    out: str | os.PathLike[str],
    config: Config,
    *,
    calibration: Mapping[str, Array] | Iterable[Mapping[str, Array]] | None = None,
    target: Target | str | None = None,
) -> QuantizeResult:
    """Write a quantized copy of `model` to `out`: one clean file, IR 8, the same names and symbolic axes.

    calibration  for `Int8Static`: input name -> (N, ...) model-ready arrays, fed up to 32 rows at a time, or ready
                 batches of that form. Other configurations do not look at it.
    target       refuse what that target cannot load (its opset and IR limits).

    Equal arguments give equal bytes. Raises `ModelError` for a model that cannot be read or converted, `UsageError`
    for a wrong configuration, missing calibration or a target's limit, `DataError` for calibration that holds NaN,
    `AnswerIsNo` when no layer can be quantized, or onnxruntime cannot load the result; nothing is written then.
    """
    started = time.perf_counter()
    _check(config)
    source = model if isinstance(model, ModelProto) else load_model(model)
    limits = load_target(target) if isinstance(target, str) else target
    prepared = clean(quantizers.raise_opset(clean(source, ir_version=max(source.ir_version, 8))))
    if limits is not None:
        check_target(prepared, limits)
    quantized = clean(_convert(prepared, config, calibration))
    count = quantizers.count_quantized(quantized)
    if count == 0:
        kinds = "Conv, MatMul or Gemm" if isinstance(config, (Int8Static, Fp16)) else "MatMul or Gemm"
        raise AnswerIsNo(
            f"{type(config).__name__} found no layer that it can quantize: expected at least one {kinds} with constant "
            "weights; keep the float32 model or choose another configuration"
        )
    try:
        open_graph(quantized.SerializeToString(), name="the quantized model")
    except ModelError as error:
        raise AnswerIsNo(
            f"{type(config).__name__} gave a model that does not load, nothing was written: {error}"
        ) from error
    path = save_model(quantized, out)
    data = path.read_bytes()
    notes = tuple(
        f"needs the operators of the domain {item.domain}, version {item.version}"
        for item in quantized.opset_import
        if item.domain
    )
    return QuantizeResult(path, config, len(data), sha256_bytes(data), count, time.perf_counter() - started, notes)


def _convert(
    model: ModelProto, config: Config, calibration: Mapping[str, Array] | Iterable[Mapping[str, Array]] | None
) -> ModelProto:
    if isinstance(config, Fp16):
        return quantizers.half(model)
    if isinstance(config, Int4WeightOnly):
        return quantizers.four_bits(model, block_size=config.block_size)
    if isinstance(config, Int8Dynamic):
        return quantizers.dynamic(model, weight=config.weight, per_channel=config.per_channel)
    if calibration is None:
        raise UsageError(
            "Int8Static needs calibration samples: give calibration={input name: array (N, ...)} from the train "
            "split, or use Int8Dynamic, which needs none"
        )
    batches = _batches(open_graph(model, name="the model"), calibration, config.calibration)
    try:
        return quantizers.static(
            model,
            batches,
            activation=config.activation,
            weight=config.weight,
            per_channel=config.per_channel,
            reduce_range=config.reduce_range,
            calibration=config.calibration,
        )
    except (UsageError, DataError, ModelError):
        raise
    except RUNTIME_ERRORS as error:
        raise AnswerIsNo(
            f"onnxruntime's quantizer stopped: {first_line(error)}; check the model with 'edgekd inspect', or use "
            "another configuration"
        ) from error


def _batches(
    session: GraphSession, calibration: Mapping[str, Array] | Iterable[Mapping[str, Array]], method: str
) -> Iterator[Mapping[str, Array]]:
    """Checked batches of one size, because the histogram methods take no other: the last one begins again with the
    first rows. A model whose batch axis is fixed gets that size."""
    fixed = next((spec.shape[0] for spec in session.inputs if spec.shape and isinstance(spec.shape[0], int)), None)
    size = 0
    for samples in [calibration] if isinstance(calibration, Mapping) else calibration:
        count = session.check_samples(samples)
        _check_finite(samples)
        num_batches = math.ceil(count / (fixed or _ROWS_PER_BATCH))
        step = fixed or math.ceil(count / num_batches)
        if method != "minmax" and size not in (0, step):
            raise UsageError(
                f"calibration '{method}' needs batches of one size, found {size} and {step} rows; "
                "give one array per input, or batches of equal size"
            )
        size = step
        for start in range(0, num_batches * step, step):
            rows = np.arange(start, start + step) % count
            yield {name: array[rows] for name, array in samples.items()}
    if not size:
        raise UsageError("the calibration holds no batch; expected samples of the train split, some hundreds")


def _check_finite(samples: Mapping[str, Array]) -> None:
    for name, array in samples.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.argmax(~np.isfinite(array).reshape(len(array), -1).all(axis=1)))
            raise DataError(
                f"calibration for '{name}' holds NaN or infinite numbers (first in sample {row}); "
                "expected finite, model-ready numbers: check the preprocessing"
            )


def _check(config: Config) -> None:
    if not isinstance(config, (Int8Static, Int8Dynamic, Fp16, Int4WeightOnly)):
        raise UsageError(f"found the configuration {config!r}; expected one of VARIANTS: {', '.join(VARIANTS)}")
    allowed: dict[str, tuple[object, ...]] = {}
    if isinstance(config, Int8Static):
        allowed = {
            "activation": ("uint8", "int8"),
            "weight": ("int8", "uint8"),
            "calibration": ("minmax", "entropy", "percentile"),
        }
        if (config.activation, config.weight) == ("int8", "uint8"):
            raise UsageError(
                "int8 activations with uint8 weights have no kernel; use uint8 activations, or int8 weights"
            )
    elif isinstance(config, Int8Dynamic):
        allowed = {"weight": ("int8", "uint8")}
    elif isinstance(config, Int4WeightOnly):
        allowed = {"block_size": (16, 32, 64, 128, 256)}
    for field, values in allowed.items():
        found = getattr(config, field)
        if found not in values:
            expected = ", ".join(map(str, values))
            raise UsageError(f"{type(config).__name__}: {field} is {found!r}; expected one of {expected}")


def check_target(model: ModelProto, target: Target) -> None:
    """Raise `UsageError` when the target cannot load the model's opset or IR version."""
    opset = quantizers.opset_of(model)
    if opset > target.max_opset:
        raise UsageError(
            f"the model has opset {opset}, but the target '{target.name}' takes at most {target.max_opset}; "
            f"export it with opset {target.max_opset} or choose another target"
        )
    if model.ir_version > target.max_ir:
        raise UsageError(
            f"the result has IR {model.ir_version}, but the target '{target.name}' takes at most {target.max_ir}; "
            "choose another target"
        )
