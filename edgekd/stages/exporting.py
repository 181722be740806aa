"""The stage `export` on its own: a run's student, or any model that can be named, to a proven ONNX file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekd.data.npz import read_npz
from edgekd.errors import InputRefused, UsageError, nearest
from edgekd.files import sha256_bytes, write_bytes
from edgekd.graph.axes import PROOF
from edgekd.graph.metadata import metadata
from edgekd.graph.targets import load_target
from edgekd.spec import Array, TensorSpec
from edgekd.stages.alone import random_feeds, sample_count
from edgekd.stages.inside import NOTHING, Inside, prove_steps, run_graph, wrap
from edgekd.stages.workspace import OUTPUT

if TYPE_CHECKING:
    from torch import nn

    from edgekd.distill.to_onnx import ExportResult
    from edgekd.stages.workspace import Prepared

Exporter = Literal["torch", "optimum"]
# A sample of 1 GB: beyond it somebody has mistyped a size.
MAX_ELEMENTS = 1 << 28
PARITY_SAMPLES = 256
_DTYPES = ("float32", "float16", "float64", "int64", "int32", "uint8", "bool")


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    inputs    `parse_input` each; none: those of an `hf:` model
    outputs   names of what the model returns, in its order
    axes      symbolic axis behind the batch -> sizes at which to prove it
    target    name of a target whose limits lower opset and IR
    labels    of the classes, for the metadata; `metadata` adds to it
    """

    model: str
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = (OUTPUT,)
    axes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    num_outputs: int | None = None
    weights: Path | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 18
    ir_version: int = 8
    target: str | None = None
    samples: Path | None = None
    seed: int = 0
    labels: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    exporter: Exporter = "torch"
    inside: Inside = NOTHING


def parse_input(text: str) -> TensorSpec:
    """`x:N,1,28,28` as a float32 tensor, `ids:N,L:int64` as one of whole numbers; letters are symbolic axes and the
    first axis must be one."""
    name, colon, rest = text.partition(":")
    shape, _, dtype = rest.partition(":")
    sizes = [part.strip() for part in shape.split(",")]
    if not colon or not name or not all(part.isidentifier() or part.isdecimal() for part in sizes):
        raise UsageError(f"--inputs {text}: expected NAME:N,1,28,28 with a name, a colon and sizes or axis names")
    if (dtype or "float32") not in _DTYPES:
        raise UsageError(f"--inputs {text}: unknown type '{dtype}'. {nearest(dtype, _DTYPES)}")
    if sizes[0].isdecimal():
        raise UsageError(
            f"--inputs {text}: the first axis is the batch; write a letter, as in {name}:N,{','.join(sizes[1:])}"
        )
    spec = TensorSpec(name, dtype or "float32", tuple(int(part) if part.isdecimal() else part for part in sizes))
    if not 0 < math.prod(spec.concrete()) <= MAX_ELEMENTS:
        raise UsageError(
            f"--inputs {text}: a sample would hold {math.prod(spec.concrete()):,} numbers, expected 1 to "
            f"{MAX_ELEMENTS:,}; check the sizes"
        )
    return spec


def parse_axis(text: str) -> tuple[str, tuple[int, ...]]:
    """`L=4,8,16,32,64`: an axis and the sizes at which to prove it."""
    name, sign, sizes = text.partition("=")
    numbers = [part.strip() for part in sizes.split(",")]
    if not sign or not name.isidentifier() or not all(part.isdecimal() for part in numbers):
        raise UsageError(f"--axes {text}: expected NAME=SIZE,SIZE,... with {PROOF} sizes or more, as in L=4,8,16,32,64")
    return name, tuple(int(part) for part in numbers)


def read_labels(path: Path) -> tuple[str, ...]:
    """The lines of a text file."""
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused(f"{path} cannot be read: {error}; expected a text file with a class per line") from error


def export_model(request: ExportRequest, out: Path) -> ExportResult:
    """Export a run's student, or any model that can be named. Raises `AnswerIsNo` when it cannot be proven.

    With `inside` the graph of a run's student does its steps itself, as its recipe says them.
    """
    from edgekd.distill.models import load_weights
    from edgekd.distill.models.hub import HuggingFace, example_feeds, read_inputs, stated_tokens
    from edgekd.distill.optimum_exporter import trace_with_optimum
    from edgekd.distill.to_onnx import export

    model = request.model
    if (Path(model) / "recipe.toml").is_file():
        return _export_run(request, out)
    if request.inside:
        raise UsageError(
            f"export {model}: --preprocess-in-graph and --postprocess-in-graph need the steps of a run's recipe; "
            "export the network, then: edgekd bundle MODEL.onnx OUT.edgekd --preprocess JSON --preprocess-in-graph"
        )
    specs = tuple(parse_input(text) for text in request.inputs)
    if not specs and not model.startswith("hf:"):
        raise UsageError(
            f"export {model}: the input's shape is not known; add --inputs input:N,1,28,28 with your sizes"
        )
    if request.exporter == "optimum" and not model.startswith("hf:"):
        raise UsageError(f"export {model}: optimum exports hf: models only; leave out --exporter")
    module = _build(request, specs)
    if request.weights is not None:
        load_weights(module, request.weights)
    graph = None
    if request.exporter == "optimum" and isinstance(module, HuggingFace):
        graph = trace_with_optimum(model.partition(":")[2], type(module.model).__name__, opset=request.opset)
        read_inputs(module, [value.name for value in graph.graph.input])
    if request.samples is not None:
        feeds = read_npz(request.samples)
    elif isinstance(module, HuggingFace) and not specs:
        feeds = example_feeds(module, sample_count(module.inputs), request.seed)
    else:
        feeds = random_feeds(specs, sample_count(specs), request.seed)
    if isinstance(module, HuggingFace):
        specs = specs or module.inputs
    shape = [size for size in specs[0].shape[1:] if isinstance(size, int)]
    family, _, name = model.partition(":")
    tokens = stated_tokens(name, module) if family == "hf" and isinstance(module, HuggingFace) else ()
    return export(
        module.eval(),
        out,
        inputs=specs,
        outputs=_outputs(request, module),
        samples=feeds,
        opset=request.opset,
        ir_version=request.ir_version,
        metadata=metadata(
            name=name or model,
            task="classification" if len(shape) == 3 and request.outputs == (OUTPUT,) else "model",
            labels=request.labels,
            sample_shape=shape,
            steps=None,
            tokens=tokens,
        )
        | dict(request.metadata),
        axes=request.axes,
        target=None if request.target is None else load_target(request.target),
        graph=graph,
    )


def _build(request: ExportRequest, specs: Sequence[TensorSpec]) -> nn.Module:
    """The module that the request names, its random weights drawn with the request's seed."""
    import torch

    from edgekd.distill.models import build_model
    from edgekd.distill.models.hub import hugging_face_model
    from edgekd.distill.torch_runtime import load_model_json

    family, _, name = request.model.partition(":")
    if Path(request.model).suffix == ".json":
        return load_model_json(Path(request.model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        if family == "hf":
            return hugging_face_model(name, num_outputs=request.num_outputs, args=request.args)
        plain = len(specs) == 1 and specs[0].dtype == "float32" and tuple(request.outputs) == (OUTPUT,)
        return build_model(
            request.model,
            num_outputs=10 if request.num_outputs is None else request.num_outputs,
            input_shape=specs[0].concrete()[1:],
            args=request.args,
            search_path=Path.cwd(),
            # An axis behind the batch is 1 in this shape, which not every model takes; export proves it anyway.
            check=plain and not any(isinstance(size, str) for size in specs[0].shape[1:]),
        )


def _outputs(request: ExportRequest, module: nn.Module) -> tuple[str, ...]:
    """The outputs that were asked for; of a Hugging Face model without a head, its last hidden state."""
    from edgekd.distill.models.hub import HuggingFace

    if tuple(request.outputs) != (OUTPUT,) or not isinstance(module, HuggingFace) or module.has_logits:
        return tuple(request.outputs)
    return ("last_hidden_state",)


def parity_feeds(prepared: Prepared, count: int = PARITY_SAMPLES) -> dict[str, Array]:
    """`count` real samples, model-ready: of validation, and of the train split where that has fewer."""
    feeds = prepared.feeds(prepared.dataset.val, count)
    missing = count - len(next(iter(feeds.values())))
    if missing <= 0:
        return feeds
    more = prepared.feeds(prepared.dataset.train, missing)
    return {name: np.concatenate([feeds[name], more[name]]) for name in feeds}


def _export_run(request: ExportRequest, out: Path) -> ExportResult:
    """The distilled student of a run folder, proven on its validation samples."""
    from edgekd.device.calibration import calibrate, wants_calibration, with_temperature
    from edgekd.distill.to_onnx import export
    from edgekd.recipe import load_recipe
    from edgekd.run_folder import Silence
    from edgekd.stages.graphs import metadata as metadata_of_run
    from edgekd.stages.rejecting import finished
    from edgekd.stages.workspace import Workspace

    run, inside = Path(request.model), request.inside
    if not (run / "student" / "weights.safetensors").is_file():
        raise InputRefused(
            f"{run} has no trained student yet; finish it with: edgekd distill {run}/recipe.toml --out {run}"
        )
    loaded = load_recipe(run / "recipe.toml")
    space = Workspace(loaded.recipe, loaded.folder, run, Silence(), "cpu", 1, "", "")
    prepared = space.prepared
    result = export(
        finished(space, "student")[0],
        out,
        inputs=(prepared.input_spec,),
        outputs=(OUTPUT,),
        samples=parity_feeds(prepared),
        opset=request.opset,
        ir_version=request.ir_version,
        metadata=metadata_of_run(space) | dict(request.metadata),
        axes=request.axes,
        target=None if request.target is None else load_target(request.target),
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
