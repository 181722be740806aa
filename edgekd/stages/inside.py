"""Preprocessing and postprocessing moved into the graphs of a bundle: the same content, less for the app to do.

Works on what `Bundle.write` takes, so that a run's bundle, an older bundle and somebody's model go the same way. What
is moved is proven here: the steps against numpy on images of odd sizes, the whole against its three parts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.manifest import spec_to_json
from edgekd.device.postprocess import (
    MARKS,
    Denormalize,
    PostStep,
    Sigmoid,
    Softmax,
    Threshold,
    TopK,
    apply_post,
    default_post_steps,
    parse_post_steps,
    post_steps_to_json,
)
from edgekd.device.preprocess import apply_arithmetic, prepare, split_steps
from edgekd.device.resampling import resize
from edgekd.device.runtimes import open_session
from edgekd.device.runtimes.chunks import run_in_chunks
from edgekd.errors import AnswerIsNo, UsageError
from edgekd.graph.clean import load_model
from edgekd.graph.inspection import inspect
from edgekd.graph.postprocessing import with_postprocessing
from edgekd.graph.preprocessing import preprocessing, raw_spec, with_preprocessing
from edgekd.spec import (
    Array,
    Decode,
    Normalize,
    Resize,
    Scale,
    Step,
    TensorSpec,
    ToGrey,
    ToRgb,
    parse_steps,
    steps_to_json,
)

Graphs = Mapping[str, Mapping[str, bytes | Path]]
LEVEL = 1.0
# Height, width and channels of images to prove the steps on: one pixel, a line, odd ones, larger and smaller ones.
ODD_SIZES = ((1, 1, 3), (3, 517, 1), (517, 3, 3), (37, 53, 1), (29, 31, 3), (240, 321, 3))
GOLDEN_SIZE = (37, 53)
LARGE = 16


@dataclass(frozen=True)
class Inside:
    """Which steps the graphs do themselves."""

    preprocess: bool = False
    postprocess: bool = False

    def __bool__(self) -> bool:
        return self.preprocess or self.postprocess


NOTHING = Inside()


@dataclass(frozen=True)
class Contents:
    """What a bundle is written from: see `Bundle.write`."""

    manifest: Mapping[str, Any]
    graphs: Graphs
    golden: Mapping[str, Array]
    files: Mapping[str, bytes] = field(default_factory=dict)


def put_inside(contents: Contents, inside: Inside, *, seed: int) -> Contents:
    """`contents` with the steps of its manifest in its graphs, golden vectors made anew where the input changed.

    Raises `UsageError` for steps that lie inside already and for what has none, `AnswerIsNo` when a graph does not say
    what its parts say.
    """
    if not inside:
        return contents
    manifest = copy.deepcopy(dict(contents.manifest))
    for side, wanted in (("preprocess", inside.preprocess), ("postprocess", inside.postprocess)):
        if wanted and manifest.get(f"{side}_in_graph"):
            raise UsageError(
                f"the graphs of this bundle do their {side}ing themselves already; leave --{side}-in-graph out"
            )
    steps = parse_steps(manifest["preprocess"])
    post = _with_marks(parse_post_steps(manifest["postprocess"]), manifest["task"])
    prepared = _prepared(manifest, contents.golden) if inside.preprocess else None
    feeds = inputs_of(contents.golden)
    golden: dict[str, Array] = {f"input.{name}": array for name, array in feeds.items()}
    if "raw" in contents.golden and prepared is None:
        golden["raw"] = contents.golden["raw"]
    if prepared is not None:
        name = manifest["inputs"][0]["name"]
        prove_steps(steps, prepared, seed=seed)
        golden = {f"input.{name}": raw_images(steps, prepared, contents.golden["raw"], seed)}
        feeds = {name: ready(steps, prepared, golden[f"input.{name}"])}
        manifest["preprocess_in_graph"] = manifest["preprocess"]
        manifest["preprocess"] = steps_to_json(step for step in steps if isinstance(step, Decode))
        manifest["inputs"] = [spec_to_json(raw_spec(steps, TensorSpec(name, prepared.dtype, prepared.shape)))]
    answer = manifest["outputs"][0]["name"]
    outputs = list(manifest["outputs"])
    graphs: dict[str, dict[str, bytes | Path]] = {}
    for variant, roles in contents.graphs.items():
        if set(roles) != {"main"}:
            raise UsageError(f"variant '{variant}' has the graphs {', '.join(roles)}; expected one, to put steps into")
        source = roles["main"]
        whole, made = wrap(
            source,
            (steps, prepared) if prepared is not None else None,
            post if inside.postprocess else None,
            task=manifest["task"],
            labels=manifest["labels"],
            answer=answer,
        )
        graphs[variant] = {"main": whole}
        name = made[0].name if made else answer
        found = run_graph(whole, inputs_of(golden))
        parts = run_graph(source, feeds)[answer]
        tolerance = dict(manifest["variants"][variant]["tolerance"])
        if made:
            tolerance = scores_tolerance(post, tolerance, parts)
            outputs = [*(spec_to_json(spec) for spec in made), *manifest["outputs"][1:]]
            parts = apply_post(post, parts)
        _prove_whole(variant, found, name, parts, tolerance, manifest["labels"])
        golden[f"output.{variant}.{name}"] = found[name]
        inspected = inspect(whole)
        manifest["variants"][variant] |= {
            "tolerance": tolerance,
            "opset": inspected.opset,
            "ir_version": inspected.ir_version,
            "min_runtime": dict(inspected.min_runtime),
        }
    manifest["outputs"] = outputs
    if inside.postprocess:
        manifest["postprocess_in_graph"] = post_steps_to_json(post)
        manifest["postprocess"] = post_steps_to_json(step for step in post if isinstance(step, MARKS))
    return Contents(manifest, graphs, golden, contents.files)


def wrap(
    source: bytes | Path,
    before: tuple[Sequence[Step], TensorSpec] | None,
    after: Sequence[PostStep] | None,
    *,
    task: str,
    labels: Sequence[str],
    answer: str | None = None,
) -> tuple[bytes, tuple[TensorSpec, ...]]:
    """The graph with the steps `before` it (and what they read) and `after` it; the outputs in place of its answer."""
    model, made = load_model(source), tuple[TensorSpec, ...]()
    if before is not None:
        model = with_preprocessing(model, *before)
    if after is not None:
        model, made = with_postprocessing(model, after, task=task, labels=labels, output=answer)
    return model.SerializeToString(deterministic=True), made


def inputs_of(golden: Mapping[str, Array]) -> dict[str, Array]:
    """What golden arrays feed to the graphs, by the names of the inputs."""
    return {key.removeprefix("input."): array for key, array in golden.items() if key.startswith("input.")}


def run_graph(graph: bytes | Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All outputs for all samples."""
    session = open_session(graph, threads=1)
    try:
        return run_in_chunks(session, feeds)
    finally:
        session.close()


def ready(steps: Sequence[Step], prepared: TensorSpec, raw: Array) -> Array:
    """What the steps, as a graph of their own, make of raw samples of one size."""
    return run_graph(preprocessing(steps, prepared).SerializeToString(), {"raw": raw})["ready"]


def raw_images(steps: Sequence[Step], prepared: TensorSpec, known: Array, seed: int) -> Array:
    """Synthetic samples for a graph that reads them raw: coloured clouds of an odd size, or `known` where it fits."""
    shape = raw_spec(steps, prepared).shape[1:]
    if all(isinstance(size, int) for size in shape):
        return known
    rng = np.random.default_rng(seed)
    height, width, channels = _raw_size(steps, prepared, GOLDEN_SIZE)
    channels = 3 if _converts(steps) else channels
    small = rng.integers(0, 256, (len(known), 6, 7, channels), dtype=np.uint8)
    images = np.stack([resize(image, height, width, filter="bicubic") for image in small])
    return images if prepared.dtype == "uint8" else images.astype(np.float32)


def prove_steps(steps: Sequence[Step], prepared: TensorSpec, *, seed: int) -> None:
    """Raise `AnswerIsNo` unless the steps in a graph are within one grey level of numpy, on images of odd sizes.

    Without a resize, and for samples that are no bytes, equal up to rounding in float32.
    """
    spatial, arithmetic = split_steps(steps)
    spec = raw_spec(steps, prepared)
    rng = np.random.default_rng(seed)
    model = preprocessing(steps, prepared).SerializeToString()
    session = open_session(model, threads=1)
    resizes = any(isinstance(step, Resize) for step in spatial)
    level = LEVEL * _gain(arithmetic) if resizes and prepared.dtype == "uint8" else 0.0
    try:
        for odd in ODD_SIZES if len(spec.shape) == 4 and spatial else (tuple(map(int, prepared.shape[1:])),):
            shape = odd
            if len(spec.shape) == 4 and spatial:
                height, width, channels = _raw_size(steps, prepared, odd[:2])
                shape = (height, width, odd[2] if _converts(steps) else channels)
                if _is_too_long(steps, shape):
                    continue
            raw: Array = rng.integers(0, 256, shape, dtype=np.uint8)
            raw = raw if prepared.dtype == "uint8" else rng.standard_normal(shape).astype(np.float32)
            expected = apply_arithmetic(arithmetic, prepare(spatial, raw)[np.newaxis])
            found = session.run({"raw": raw[np.newaxis]})["ready"]
            apart = np.abs(found - expected)
            allowed = level + 1e-5 * max(1.0, float(np.abs(expected).max()))
            if found.shape != expected.shape or apart.max() > allowed:
                raise AnswerIsNo(
                    f"preprocessing in the graph differs from numpy by {apart.max():.2e} on an image of {shape}, "
                    f"expected at most {allowed:.2e}; leave it outside of the graph (preprocess_in_graph = false)"
                )
    finally:
        session.close()


def scores_tolerance(post: Sequence[PostStep], tolerance: Mapping[str, Any], logits_ND: Array) -> dict[str, Any]:
    """What a tolerance of the network's outputs means behind the postprocessing.

    Logits that are each off by d change a softmax or a sigmoid by at most tanh(d / 2), units by the largest std.
    """
    off = float(tolerance["abs"] + tolerance["rel"] * np.abs(logits_ND).max(initial=0.0))
    for step in post:
        if isinstance(step, Softmax):
            off = math.tanh(off / float(step.temperature) / 2)
        elif isinstance(step, Sigmoid):
            off = math.tanh(off / 2)
        elif isinstance(step, Denormalize):
            off *= max(abs(value) for value in step.std)
    rounding = 1e-6 * max(1.0, float(np.abs(apply_post(post, logits_ND)).max(initial=0.0)))
    return {**tolerance, "abs": off + rounding, "rel": 0.0}


def _prove_whole(
    variant: str,
    found: Mapping[str, Array],
    name: str,
    parts: Array,
    tolerance: Mapping[str, Any],
    labels: Sequence[str],
) -> None:
    apart = np.abs(found[name].astype(np.float64) - parts)
    allowed = tolerance["abs"] + tolerance["rel"] * np.abs(parts)
    if not (apart <= allowed).all():
        raise AnswerIsNo(
            f"variant '{variant}' with its steps inside differs from its parts by {apart.max():.2e}, expected at most "
            f"{float(np.max(allowed)):.2e}; leave them outside of the graph"
        )
    if (
        "top_labels" in found
        and found["top_labels"].tolist() != np.array(labels, object)[found["top_indices"]].tolist()
    ):
        raise AnswerIsNo(f"variant '{variant}' gives other labels than the bundle's; leave postprocessing outside")


def _with_marks(post: tuple[PostStep, ...], task: str) -> tuple[PostStep, ...]:
    """The steps, or those of the task, with their marks said: a reader must not take its own for none."""
    known = post or default_post_steps(task)
    mark: dict[str, PostStep] = {"classification": TopK(), "multilabel": Threshold()}
    if task in mark and not any(isinstance(step, type(mark[task])) for step in known):
        return (*known, mark[task])
    return known


def _prepared(manifest: Mapping[str, Any], golden: Mapping[str, Array]) -> TensorSpec:
    if len(manifest["inputs"]) != 1 or "raw" not in golden:
        raise UsageError(
            "preprocessing goes into graphs with one input of a bundle that has raw golden samples; "
            "leave --preprocess-in-graph out"
        )
    raw = golden["raw"]
    spatial = split_steps(parse_steps(manifest["preprocess"]))[0]
    shape = (*raw.shape[1:], 1) if spatial and raw.ndim == 3 else raw.shape[1:]
    return TensorSpec("raw", raw.dtype.name, ("N", *shape))


def _raw_size(steps: Sequence[Step], prepared: TensorSpec, wanted: Sequence[int]) -> tuple[int, int, int]:
    """A size to try: `wanted`, or with nothing but a crop at least what is cropped; channels as prepared."""
    height, width, channels = (int(size) for size in prepared.shape[1:])
    spec = raw_spec(steps, prepared)
    if spec.shape[1] != "H":
        return height, width, channels
    if any(isinstance(step, Resize) for step in steps):
        return wanted[0], wanted[1], channels
    return height + wanted[0], width + wanted[1], channels


def _converts(steps: Sequence[Step]) -> bool:
    """Whether images with one channel and with three are read alike."""
    return any(isinstance(step, (ToRgb, ToGrey)) for step in steps)


def _is_too_long(steps: Sequence[Step], shape: Sequence[int]) -> bool:
    """Whether resizing the shorter side makes the other one so long that numpy refuses, or takes its time."""
    factor = max(shape[:2]) / min(shape[:2])
    return factor > LARGE and any(isinstance(step, Resize) and isinstance(step.size, int) for step in steps)


def _gain(arithmetic: Sequence[Step]) -> float:
    """By how much one grey level changes what the network reads."""
    gain = 1.0
    for step in arithmetic:
        if isinstance(step, Scale):
            gain *= abs(step.factor)
        elif isinstance(step, Normalize):
            gain /= min(abs(float(value)) for value in step.std)
    return gain
