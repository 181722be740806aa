"""The stages on somebody else's model, without a run: what `export`, `quantize` and `verify` do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.data.npz import read_npz
from edgekd.device.runtimes import open_session
from edgekd.errors import AnswerIsNo, InputRefused, UsageError, nearest
from edgekd.files import sha256_bytes, write_bytes
from edgekd.graph.inspection import inspect
from edgekd.graph.quantization import VARIANTS, Int8Static, quantize
from edgekd.graph.targets import load_target
from edgekd.graph.verification import verify
from edgekd.spec import Array, TensorSpec
from edgekd.stages.graphs import precision
from edgekd.stages.inside import NOTHING, Inside, prove_steps, run_graph, wrap
from edgekd.stages.workspace import OUTPUT

if TYPE_CHECKING:
    from edgekd.distill.to_onnx import ExportResult

RANDOM_SAMPLES = 256
# Fewer of large ones: this many numbers altogether (256 MB), but a whole batch of the largest size that is tried.
RANDOM_NUMBERS = 1 << 26
LEAST_SAMPLES = 16
# A sample of 1 GB: beyond it somebody has mistyped a size.
MAX_ELEMENTS = 1 << 28
# --config names that mean the target's own scheme.
SCHEME_OF_TARGET = "int8_static"


def parse_input(text: str) -> TensorSpec:
    """`x:N,1,28,28` as a float32 tensor; letters are symbolic axes and the first axis must be one."""
    name, colon, shape = text.partition(":")
    sizes = [part.strip() for part in shape.split(",")]
    if not colon or not name or not all(part.isidentifier() or part.isdecimal() for part in sizes):
        raise UsageError(f"--inputs {text}: expected NAME:N,1,28,28 with a name, a colon and sizes or axis names")
    if sizes[0].isdecimal():
        raise UsageError(
            f"--inputs {text}: the first axis is the batch; write a letter, as in {name}:N,{','.join(sizes[1:])}"
        )
    spec = TensorSpec(name, "float32", tuple(int(part) if part.isdecimal() else part for part in sizes))
    if not 0 < math.prod(spec.concrete()) <= MAX_ELEMENTS:
        raise UsageError(
            f"--inputs {text}: a sample would hold {math.prod(spec.concrete()):,} numbers, expected 1 to "
            f"{MAX_ELEMENTS:,}; check the sizes"
        )
    return spec


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


def export_model(
    model: str,
    out: Path,
    *,
    inputs: str | None,
    num_outputs: int,
    weights: Path | None,
    args: Mapping[str, Any] | None,
    opset: int,
    ir_version: int,
    samples: Path | None,
    seed: int,
    inside: Inside = NOTHING,
) -> ExportResult:
    """Export a run's student, or any model that can be named. Raises `AnswerIsNo` when parity fails.

    With `inside` the graph of a run's student does its steps itself, as its recipe says them.
    """
    import torch

    from edgekd.distill.models import build_model, load_weights
    from edgekd.distill.to_onnx import export
    from edgekd.distill.torch_runtime import load_model_json

    if (Path(model) / "recipe.toml").is_file():
        run = Path(model)
        return _export_run(run, out, opset=opset, ir_version=ir_version, inside=inside)
    if inside:
        raise UsageError(
            f"export {model}: --preprocess-in-graph and --postprocess-in-graph need the steps of a run's recipe; "
            "export the network, then: edgekd bundle MODEL.onnx OUT.edgekd --preprocess JSON --preprocess-in-graph"
        )
    if inputs is None:
        raise UsageError(
            f"export {model}: the input's shape is not known; add --inputs input:N,1,28,28 with your sizes"
        )
    spec = parse_input(inputs)
    if Path(model).suffix == ".json":
        module = load_model_json(Path(model))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build_model(
                model, num_outputs=num_outputs, input_shape=spec.concrete()[1:], args=args, search_path=Path.cwd()
            )
    if weights is not None:
        load_weights(module, weights)
    feeds = random_feeds((spec,), sample_count((spec,)), seed) if samples is None else read_npz(samples)
    return export(
        module.eval(), out, inputs=(spec,), outputs=(OUTPUT,), samples=feeds, opset=opset, ir_version=ir_version
    )


def _export_run(run: Path, out: Path, *, opset: int, ir_version: int, inside: Inside) -> ExportResult:
    """The distilled student of a run folder, proven on its validation samples."""
    from edgekd.device.calibration import calibrate, wants_calibration, with_temperature
    from edgekd.distill.to_onnx import export
    from edgekd.recipe import load_recipe
    from edgekd.run_folder import Silence
    from edgekd.stages.graphs import PARITY_SAMPLES, metadata
    from edgekd.stages.training import load_trained
    from edgekd.stages.workspace import Workspace

    if not (run / "student" / "weights.safetensors").is_file():
        raise InputRefused(
            f"{run} has no trained student yet; finish it with: edgekd distill {run}/recipe.toml --out {run}"
        )
    loaded = load_recipe(run / "recipe.toml")
    space = Workspace(loaded.recipe, loaded.folder, run, Silence(), "cpu", 1, "", "")
    prepared = space.prepared
    result = export(
        load_trained(space, "student"),
        out,
        inputs=(prepared.input_spec,),
        outputs=(OUTPUT,),
        samples=prepared.feeds(prepared.dataset.val, PARITY_SAMPLES),
        opset=opset,
        ir_version=ir_version,
        metadata=metadata(space),
    )
    if not inside:
        return result
    val, post, task = prepared.dataset.val, prepared.post, loaded.recipe.task
    if wants_calibration(post):
        logits = run_graph(out, prepared.feeds(val))[OUTPUT]
        post = with_temperature(post, calibrate(logits, val.y).temperature)
    before = (prepared.steps, prepared.sample_spec) if inside.preprocess else None
    if before is not None:
        prove_steps(*before, seed=loaded.recipe.seed)
    whole, _ = wrap(out, before, post if inside.postprocess else None, task=task, labels=prepared.dataset.labels)
    write_bytes(out, whole)
    return replace(result, size_bytes=len(whole), sha256=sha256_bytes(whole))


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
    if samples is None:
        session = open_session(first, threads=1)
        specs = session.inputs
        session.close()
        feeds = random_feeds(specs, sample_count(specs), seed)
    else:
        feeds = read_npz(samples)
    result = verify(first, second, feeds, tolerance="float32" if strict else inspect(second).precision)
    return {
        "ok": result.ok,
        "max_abs_diff": result.max_abs_diff,
        "max_rel_diff": result.max_rel_diff,
        "label_agreement": result.label_agreement,
        "num_samples": result.num_samples,
        "samples": "random" if samples is None else str(samples),
        "batch_sizes": list(result.batch_sizes),
        "problems": list(result.problems),
    }
