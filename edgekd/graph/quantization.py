"""Make an ONNX model smaller: one verb, `quantize`, and one frozen configuration per way of doing it.

Works on any ONNX file of opset 11 or above, ours or somebody else's. What is written was loaded by onnxruntime
first; whether it is still right is for `edgekd.graph.verification` and for the accuracy to say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, numpy_helper

from edgekd.errors import AnswerIsNo, EdgekdError, ModelError, UsageError
from edgekd.files import sha256_bytes
from edgekd.graph import mixed, quantizers
from edgekd.graph.calibration import METHODS, Feeds, Method, Ranges, calibrate, graph_sha256
from edgekd.graph.clean import clean, load_model, save_model
from edgekd.graph.embeddings import quantize_tables
from edgekd.graph.float_layers import guard, halve_weights
from edgekd.graph.fusion import fuse, norms_apart
from edgekd.graph.sessions import RUNTIME_ERRORS, first_line, open_graph
from edgekd.graph.targets import Target, load_target


@dataclass(frozen=True)
class Int8Static:
    """8-bit weights and activations (QDQ), ranges from calibration samples: the fast variant for CNNs.

    activation, weight  uint8 activations with int8 weights suit CPUs with VNNI and ARM; on x86 without VNNI their
                        products saturate: use uint8 for both, or reduce_range (`edgekd.graph.targets.saturates`)
    per_channel         one scale per output channel of a weight instead of one per tensor, which is some percent faster
                        in small depthwise nets and loses accuracy where channels differ in size
    calibration         range of an activation, see `edgekd.graph.calibration.calibrate`
    reduce_range        7-bit weights
    symmetric           int8 activations with zero in the middle, as some accelerators want them
    fuse                join what a transformer's layers consist of first, see `edgekd.graph.fusion`
    """

    activation: Literal["uint8", "int8"] = "uint8"
    weight: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    calibration: Method = "minmax"
    reduce_range: bool = False
    symmetric: bool = False
    fuse: bool = True


@dataclass(frozen=True)
class Int8Dynamic:
    """8-bit weights of MatMul and Gemm, activations quantized at run time: no calibration; convolutions stay float.
    Attention that `fuse` found is one operator with 8-bit weights; tables of embeddings have 8 bits too."""

    weight: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True
    fuse: bool = True


@dataclass(frozen=True)
class Fp16:
    """Half the size; inputs and outputs stay float32. Not faster on a CPU."""


@dataclass(frozen=True)
class Int4WeightOnly:
    """4-bit weights of MatMul and Gemm in blocks, float activations: an eighth of their size; 8 bits for tables of
    embeddings. Needs onnxruntime's own operator MatMulNBits (domain com.microsoft), which other runtimes lack."""

    block_size: int = 32


@dataclass(frozen=True)
class MixedPrecision:
    """`base`, but for the layers that cost the most accuracy per millisecond, which stay in float: see
    `edgekd.graph.mixed`. All of `base` where that holds the budget.

    budget    points of the metric that may be lost: the upper end of the paired interval, where the samples suffice
    fallback  how the weights of float layers are stored; they are computed with in float32
    """

    budget: float = 1.0
    fallback: Literal["float32", "float16"] = "float32"
    base: Int8Static = Int8Static()


Config = Int8Static | Int8Dynamic | Fp16 | Int4WeightOnly | MixedPrecision

VARIANTS: dict[str, Config] = {
    "int8_u8s8": Int8Static(),
    "int8_u8s8_per_tensor": Int8Static(per_channel=False),
    "int8_u8s7": Int8Static(reduce_range=True),
    "int8_s8s8": Int8Static(activation="int8"),
    "int8_u8u8": Int8Static(weight="uint8"),
    "int8_dynamic": Int8Dynamic(),
    "fp16": Fp16(),
    "int4_weight_only": Int4WeightOnly(),
    "mixed": MixedPrecision(),
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
    calibration: Method = "minmax"


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
    search: mixed.Search | None = None


def quantize(
    model: str | os.PathLike[str] | bytes | ModelProto,
    out: str | os.PathLike[str],
    config: Config,
    *,
    calibration: Ranges | Feeds | Iterable[Feeds] | None = None,
    cache: str | os.PathLike[str] | None = None,
    evaluation: mixed.Evaluation | None = None,
    target: Target | str | None = None,
) -> QuantizeResult:
    """Write a quantized copy of `model` to `out`: one clean file, IR 8, the same names and symbolic axes.

    calibration  for `Int8Static` and `MixedPrecision`: input name -> (N, ...) model-ready arrays, fed up to 32 rows at
                 a time, or several of that form (of texts one for each length), or what `calibrate` measured on
                 `graph_for(model, config)`
    cache        JSON file in which ranges are kept and looked for
    evaluation   for `MixedPrecision`: what a mixture is judged by (default: the float model's own answers to the
                 calibration samples)
    target       refuse what that target cannot load (its opset and IR limits).

    Equal arguments give equal bytes (of a mixture: as far as the timings order its layers alike). Raises `ModelError`
    for a model that cannot be read or converted or holds NaN, `UsageError` for a wrong configuration, missing
    calibration or a target's limit, what `calibrate` raises, and `AnswerIsNo` when no layer can be quantized, no
    mixture holds the budget, or onnxruntime cannot load the result; nothing is written then.
    """
    started = time.perf_counter()
    _check(config)
    source = model if isinstance(model, ModelProto) else load_model(model)
    limits = load_target(target) if isinstance(target, str) else target
    if limits is not None:
        check_target(clean(quantizers.raise_opset(clean(source, ir_version=max(source.ir_version, 8)))), limits)
    ready = graph_for(source, config)
    try:
        converted, search = _convert(ready, config, calibration, cache, evaluation)
    except EdgekdError:
        raise
    except RUNTIME_ERRORS as error:
        raise AnswerIsNo(
            f"onnxruntime's quantizer stopped: {first_line(error)}; check the model with 'edgekd inspect', or use "
            "another configuration"
        ) from error
    quantized = clean(converted)
    count = quantizers.count_quantized(quantized)
    if count == 0:
        kinds = "MatMul or Gemm" if isinstance(config, (Int8Dynamic, Int4WeightOnly)) else "Conv, MatMul or Gemm"
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
    return QuantizeResult(
        path, config, len(data), sha256_bytes(data), count, time.perf_counter() - started, notes, search
    )


def graph_for(model: str | os.PathLike[str] | bytes | ModelProto, config: Config) -> ModelProto:
    """The float graph that `config` is carried out on: clean, folded, its transformer layers fused where it asks for
    that. Raises `ModelError` for a model that cannot be read or converted, or whose weights are NaN or infinite."""
    source = model if isinstance(model, ModelProto) else load_model(model)
    ready = quantizers.prepare(source)
    for tensor in ready.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = int(np.count_nonzero(~np.isfinite(values)))
            raise ModelError(
                f"the weight '{tensor.name}' holds {bad} NaN or infinite numbers of {values.size}; expected finite "
                "weights: did the training diverge? Take an earlier checkpoint"
            )
    static = config.base if isinstance(config, MixedPrecision) else config
    if isinstance(static, Int8Static) and static.fuse:
        return fuse(ready, attention=False)
    return fuse(ready, attention=True) if isinstance(static, Int8Dynamic) and static.fuse else ready


def _convert(
    ready: ModelProto,
    config: Config,
    calibration: Ranges | Feeds | Iterable[Feeds] | None,
    cache: str | os.PathLike[str] | None,
    evaluation: mixed.Evaluation | None,
) -> tuple[ModelProto, mixed.Search | None]:
    if isinstance(config, Fp16):
        return quantizers.half(ready), None
    if isinstance(config, Int4WeightOnly):
        return quantize_tables(quantizers.four_bits(ready, block_size=config.block_size)), None
    if isinstance(config, Int8Dynamic):
        made = quantizers.dynamic(ready, weight=config.weight, per_channel=config.per_channel)
        return norms_apart(quantize_tables(made)), None
    static = config.base if isinstance(config, MixedPrecision) else config
    if calibration is None:
        raise UsageError(
            f"{type(config).__name__} needs calibration samples: give calibration={{input name: array (N, ...)}} from "
            "the train split, or use Int8Dynamic, which needs none"
        )
    if not isinstance(calibration, (Ranges, Mapping)):
        calibration = list(calibration)
    ranges = _ranges(ready, static, calibration, cache)

    def make(keep: Collection[str]) -> ModelProto:
        model = quantizers.static(
            ready,
            ranges.values,
            activation=static.activation,
            weight=static.weight,
            per_channel=static.per_channel,
            symmetric=static.symmetric,
            reduce_range=static.reduce_range,
            keep=keep,
        )
        model = norms_apart(model)
        if keep:
            model = guard(model, keep)
        halves = isinstance(config, MixedPrecision) and config.fallback == "float16"
        return halve_weights(model, keep) if halves else model

    if not isinstance(config, MixedPrecision):
        return make(()), None
    if evaluation is None:
        if isinstance(calibration, Ranges):
            raise UsageError("MixedPrecision needs samples to judge mixtures by: give evaluation=Evaluation(...)")
        evaluation = mixed.agreement(ready, _joined(calibration))
    return mixed.search(ready, make, evaluation, budget_points=config.budget)


def _ranges(
    ready: ModelProto,
    config: Int8Static,
    calibration: Ranges | Feeds | list[Feeds],
    cache: str | os.PathLike[str] | None,
) -> Ranges:
    if not isinstance(calibration, Ranges):
        return calibrate(ready, calibration, method=config.calibration, symmetric=config.symmetric, cache=cache)
    if calibration.model_sha256 != graph_sha256(ready):
        raise UsageError(
            "the ranges were measured on another model; measure them with "
            "calibrate(graph_for(model, config), samples, method=...)"
        )
    if calibration.method != config.calibration or (
        config.calibration == "mse" and calibration.symmetric != config.symmetric
    ):
        raise UsageError(
            f"the ranges were measured by '{calibration.method}', the configuration asks for "
            f"'{config.calibration}'{' around zero' if config.symmetric else ''}; measure them again"
        )
    return calibration


def _joined(batches: Feeds | list[Feeds]) -> Feeds:
    if isinstance(batches, Mapping):
        return batches
    for name in batches[0]:
        shapes = sorted({batch[name].shape[1:] for batch in batches})
        if len(shapes) > 1:
            found = " and ".join(str(list(shape)) for shape in shapes[:2])
            raise UsageError(
                f"MixedPrecision judges mixtures by samples of one shape, found '{name}' of {found}; give "
                "evaluation=Evaluation(...)"
            )
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _check(config: Config) -> None:
    if not isinstance(config, (Int8Static, Int8Dynamic, Fp16, Int4WeightOnly, MixedPrecision)):
        raise UsageError(f"found the configuration {config!r}; expected one of VARIANTS: {', '.join(VARIANTS)}")
    allowed: dict[str, tuple[object, ...]] = {}
    if isinstance(config, Int8Static):
        allowed = {"activation": ("uint8", "int8"), "weight": ("int8", "uint8"), "calibration": METHODS}
        if (config.activation, config.weight) == ("int8", "uint8"):
            raise UsageError(
                "int8 activations with uint8 weights have no kernel; use uint8 activations, or int8 weights"
            )
        if config.symmetric and config.activation == "uint8":
            raise UsageError(
                "Int8Static: symmetric activations are int8, found activation = 'uint8', which would waste half of "
                "the steps behind a ReLU; use activation='int8', or symmetric=False"
            )
    elif isinstance(config, Int8Dynamic):
        allowed = {"weight": ("int8", "uint8")}
    elif isinstance(config, Int4WeightOnly):
        allowed = {"block_size": (16, 32, 64, 128, 256)}
    elif isinstance(config, MixedPrecision):
        allowed = {"fallback": ("float32", "float16")}
        _check_budget(config.budget)
        _check(config.base)
    for field, values in allowed.items():
        found = getattr(config, field)
        if found not in values:
            expected = ", ".join(map(str, values))
            raise UsageError(f"{type(config).__name__}: {field} is {found!r}; expected one of {expected}")


def _check_budget(budget: Any) -> None:
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 <= budget <= 100:
        raise UsageError(f"MixedPrecision: budget is {budget!r}; expected points of the metric from 0 to 100")


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
