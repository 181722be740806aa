"""The stages on somebody else's model, without a run: what `quantize` and `verify` do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from edgekd.device.candidates import Candidate
from edgekd.device.machine import cpu_kind
from edgekd.device.texts import (
    IDS,
    LONGEST,
    SHORTEST,
    TextLimits,
    all_inputs,
    described,
    ids_of,
    longest_that_runs,
    padded,
    random_texts,
    within,
)
from edgekd.errors import AnswerIsNo, EdgekdError, InputRefused, UsageError, nearest
from edgekd.files import write_json
from edgekd.graph.calibration import METHODS
from edgekd.graph.clean import load_model
from edgekd.graph.first_difference import FLOAT_SHARE, compare_graphs
from edgekd.graph.inspection import inspect
from edgekd.graph.metadata import most_tokens, steps_in
from edgekd.graph.quantization import TRAINED, VARIANTS, Config, Int8Static, MixedPrecision, quantize
from edgekd.graph.schemes import SCHEME_OF_TARGET, static_scheme
from edgekd.graph.sessions import RUNTIME_ERRORS, open_graph
from edgekd.graph.targets import load_target
from edgekd.graph.text_inputs import table_rows
from edgekd.graph.verification import PRECISIONS, feeds_at, verify
from edgekd.spec import Array, TensorSpec, Trim
from edgekd.stages.graphs import precision
from edgekd.stages.inputs import read_feeds
from edgekd.stages.mixing import MIXED

RANDOM_SAMPLES = 256
# Fewer of large ones: this many numbers altogether (256 MB), but a whole batch of the largest size that is tried.
RANDOM_NUMBERS = 1 << 26
LEAST_SAMPLES = 16


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


def text_limits(models: Sequence[Path]) -> TextLimits | None:
    """What random texts may hold that the first of the models reads; None for one of images or numbers.

    They are no longer than any of the files says. Raises `UsageError` where the first does not tell which ids there
    are, or takes no text at all.
    """
    loaded = [load_model(model) for model in models]
    weights = {tensor.name for tensor in loaded[0].graph.initializer}
    given = [value.type.tensor_type for value in loaded[0].graph.input if value.name not in weights]
    if not any(kind.elem_type in (TensorProto.INT32, TensorProto.INT64) for kind in given):
        return None
    session = open_graph(loaded[0], name=str(models[0]))
    specs, where = session.inputs, f"{models[0]} reads texts"
    named = next((spec for spec in specs if spec.name == IDS), specs[0] if len(specs) == 1 else None)
    if named is None or np.dtype(named.dtype).kind != "i" or len(named.shape) != 2:
        return None
    rows = table_rows(loaded[0], named.name)
    if rows is None:
        if named.name != IDS:
            return None
        raise UsageError(
            f"{where}, but which ids it knows cannot be told from its graph: no table is looked up by {named.name}. "
            f"Give real ones ({', '.join(spec.name for spec in specs)}, an array each in an .npz): --samples FILE.npz"
        )
    try:
        ids_of(specs)
    except InputRefused as error:
        raise UsageError(f"{where}, but {error}. Give real ones: --samples FILE.npz") from error
    said = [{pair.key: pair.value for pair in model.metadata_props} for model in loaded]
    longest = min([LONGEST, *filter(None, map(most_tokens, said))])
    pad = next((step.pad for step in steps_in(said[0]) or () if isinstance(step, Trim)), None)
    limits = within(specs, TextLimits(rows, longest, pad or 0, known=True))
    taken = longest_that_runs(session.run, specs, limits, RUNTIME_ERRORS)
    if taken is None:
        raise UsageError(f"{where}, but takes no random one of its {rows:,} ids. Give real ones: --samples FILE.npz")
    return replace(limits, longest=taken)


def text_feeds(specs: Sequence[TensorSpec], limits: TextLimits, count: int, seed: int) -> dict[str, Array]:
    """Seeded random texts of all lengths from 8 tokens to the longest, which is the first one, with mask and types."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(min(SHORTEST, limits.longest), limits.longest + 1, count)
    lengths[0] = limits.longest
    texts = padded(random_texts(lengths, limits, rng), ids_of(specs).shape[1], limits.pad)
    return all_inputs(specs, texts, limits.pad)


def with_text_limits(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of a benchmark without samples: of those that are ONNX files of texts is known what they read.

    Of one that does not tell it, or cannot be opened, nothing is: its row will say so.
    """
    known: dict[Path, TextLimits] = {}
    for path in {Path(item.model) for item in candidates if item.same_as is None}:
        if path.suffix == ".onnx" and path.is_file():
            with suppress(EdgekdError):
                known[path] = text_limits([path]) or TextLimits()
    return [replace(item, texts=known.get(Path(item.model), item.texts)) for item in candidates]


def sample_count(specs: Sequence[TensorSpec]) -> int:
    """How many random samples to compare on."""
    size = sum(math.prod(spec.concrete()[1:]) for spec in specs)
    return min(RANDOM_SAMPLES, max(LEAST_SAMPLES, RANDOM_NUMBERS // max(size, 1)))


def quantize_model(
    model: Path,
    out: Path,
    *,
    config: str,
    data: Path | None,
    target: str,
    limits: Mapping[str, float],
    calibration_method: str | None = None,
    cache: Path | None = None,
    steps: Sequence[Mapping[str, object]] | None = None,
    report: Path | None = None,
) -> dict[str, Any]:
    """Quantize anybody's ONNX file; `limits` may hold size_kb and label_agreement. JSON-able result, also in `report`.

    Where a static scheme misses label_agreement, layers are put back into float until it holds (`mixed`).
    """
    scheme = static_scheme(load_target(target), cpu_kind()) if config in (SCHEME_OF_TARGET, MIXED) else ""
    name = scheme if config == SCHEME_OF_TARGET else config
    if name in TRAINED:
        variants = f'quantize.variants=["int8_u8s8", "{config}"]'
        raise UsageError(
            f"--config {config} is trained on data and a teacher, which 'edgekd quantize' has not. Make it in a run: "
            f"edgekd distill-and-export RECIPE --set '{variants}', or of an ONNX file in Python: "
            "edgekd.distill.fake_quantize and write_quantized. Without training: --config mixed"
        )
    if name not in VARIANTS:
        raise UsageError(f"--config {config}: unknown. {nearest(config, [SCHEME_OF_TARGET, *VARIANTS])}")
    known = ("size_kb", "label_agreement")
    for key in limits:
        if key not in known:
            raise UsageError(f"--limits {key}: unknown. {nearest(key, known)}")
    chosen = _configured(name, scheme, calibration_method, limits)
    if isinstance(chosen, (Int8Static, MixedPrecision)) and data is None:
        raise UsageError(
            f"--config {config} needs calibration samples as the model sees them: add --data FILE.npz, or take "
            "--config int8_dynamic, which needs none"
        )
    if out.exists() and model.exists() and out.samefile(model):
        raise UsageError(f"{out} is the model itself, which would be lost; choose another name for the quantized one")
    calibration = None if data is None else read_feeds(data, inspect(model).inputs, steps)
    result = quantize(model, out, chosen, calibration=calibration, cache=cache)
    agreement: float | None = None
    if calibration is not None:
        agreement = verify(model, out, calibration, tolerance=precision(name)).label_agreement
        if isinstance(chosen, Int8Static) and agreement is not None and agreement < limits.get("label_agreement", 0.0):
            mixture = replace(_mixed(limits), base=chosen)
            try:
                result = quantize(model, out, mixture, calibration=calibration, cache=cache)
            except AnswerIsNo:
                pass  # what the limit says of the static one is told below
            else:
                name, agreement = MIXED, verify(model, out, calibration, tolerance="int8").label_agreement
    original = model.stat().st_size
    broken = []
    if "size_kb" in limits and result.size_bytes / 1000 > limits["size_kb"]:
        broken.append(f"size_kb is {result.size_bytes / 1000:.1f}, limit {limits['size_kb']:g}")
    if "label_agreement" in limits:
        if agreement is None:
            raise UsageError("--limits label_agreement needs samples: add --data FILE.npz")
        if agreement < limits["label_agreement"]:
            broken.append(f"label_agreement is {agreement:.4f}, limit {limits['label_agreement']:g}")
    rejected = out.with_suffix(".rejected.onnx")
    told = {
        "path": str(rejected if broken else out),
        "config": name,
        "size_bytes": result.size_bytes,
        "sha256": result.sha256,
        "num_quantized": result.num_quantized,
        "ratio": original / result.size_bytes,
        "label_agreement": agreement,
        "search": None if result.search is None else result.search.to_json(),
        "limits": dict(limits),
        "missed": broken,
    }
    if report is not None:
        write_json(report, {"model": str(model), "data": None if data is None else str(data), **told})
    if broken:
        out.replace(rejected)
        raise AnswerIsNo(f"{'; '.join(broken)}; the file was put aside as {rejected}")
    return told


def _configured(name: str, scheme: str, calibration: str | None, limits: Mapping[str, float]) -> Config:
    """The configuration of a variant, a mixture on the target's scheme, with the calibration that was asked for."""
    chosen = VARIANTS[name]
    base = VARIANTS[scheme] if isinstance(chosen, MixedPrecision) else chosen
    if calibration is not None:
        if not isinstance(base, Int8Static):
            raise UsageError(f"--config {name} is not calibrated; leave --calibration {calibration} out")
        method = next((item for item in METHODS if item == calibration), None)
        if method is None:
            raise UsageError(f"--calibration {calibration}: unknown. {nearest(calibration, METHODS)}")
        base = replace(base, calibration=method)
    if isinstance(chosen, MixedPrecision) and isinstance(base, Int8Static):
        return replace(_mixed(limits), base=base)
    return base


def _mixed(limits: Mapping[str, float]) -> MixedPrecision:
    """As many points may be lost as the limit on the agreement leaves."""
    if "label_agreement" not in limits:
        return MixedPrecision()
    return MixedPrecision(budget=min(100.0, max(0.0, 100.0 * (1.0 - limits["label_agreement"]))))


def verify_models(
    first: Path,
    second: Path,
    *,
    samples: Path | None,
    strict: bool,
    seed: int,
    steps: Sequence[Mapping[str, object]] | None = None,
) -> dict[str, Any]:
    """Parity of two ONNX files; random inputs where no samples are given. JSON-able result.

    Raises `UsageError` where samples are needed: of models of texts that do not tell which ids they know.
    """
    specs = inspect(first).inputs
    limits = text_limits([first, second]) if samples is None else None
    if samples is not None:
        feeds = read_feeds(samples, specs, steps)
    elif limits is not None:
        feeds = text_feeds(specs, limits, RANDOM_SAMPLES, seed)
    else:
        feeds = random_feeds(specs, sample_count(specs), seed)
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
        "samples": str(samples) if samples is not None else described(specs, limits) if limits else "random",
        "batch_sizes": list(result.batch_sizes),
        "problems": problems,
        "axes": {name: list(sizes) for name, sizes in result.axes.items()},
    }
