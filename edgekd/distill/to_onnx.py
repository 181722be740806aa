"""From a trained module to one ONNX file that is proven equal to it, or to a file that is put aside.

torch's exporter freezes axes without a word: a model that uses `float(x.shape[0])` comes out for one batch size, and
the exporter's own check passes. So the declared axes are read back, and the graph runs at several batch sizes on real
samples beside the module, before anything is written under the requested name.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from edgekd.distill.layers import first_difference
from edgekd.distill.silence import silence
from edgekd.errors import AnswerIsNo, MissingExtra, ModelError, UsageError
from edgekd.files import sha256_bytes
from edgekd.graph.axes import PROOF
from edgekd.graph.clean import MAX_IR, clean, least_ir_version, save_model
from edgekd.graph.metadata import most_tokens
from edgekd.graph.opsets import at_target, opset_of
from edgekd.graph.targets import Target
from edgekd.graph.verification import BATCH_SIZES, VerifyResult, feeds_at, verify
from edgekd.spec import Array, TensorSpec

# torch's exporter writes opset 18 natively and converts upwards; onnxruntime 1.31 reads up to 26.
MIN_OPSET, MAX_OPSET = 18, 24
_NOISY = ("torch", "onnxscript", "onnx_ir")
# Tracing with 1 sample would specialize the axis to 1: torch treats sizes 0 and 1 as constants.
_TRACED_SAMPLES = 2
_HINT = (
    "Keep it a size: no float(), int(), .item() or `if` on x.shape[0], and reshape(x.shape[0], -1) instead of a number"
)


@dataclass(frozen=True)
class ExportResult:
    """A proven ONNX file.

    max_abs_diff   largest |graph - module| over all samples and batch sizes
    batch_sizes    the sizes at which both were compared
    axes           the same for each symbolic axis behind the batch
    """

    path: Path
    sha256: str
    size_bytes: int
    opset: int
    ir_version: int
    max_abs_diff: float
    batch_sizes: tuple[int, ...]
    seconds: float
    num_samples: int
    axes: Mapping[str, tuple[int, ...]]


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str] = ("logits",),
    samples: Mapping[str, Array],
    opset: int = 18,
    ir_version: int = 8,
    metadata: Mapping[str, str] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    axes: Mapping[str, Sequence[int]] | None = None,
    target: Target | None = None,
    graph: ModelProto | None = None,
) -> ExportResult:
    """Write `module` (in eval mode, on the CPU; the given one is not touched) as one ONNX file at `path`.

    inputs       in the order of the module's forward; a text in a shape is a symbolic axis, the first must be one:
                 TensorSpec("input", "float32", ("N", 1, 28, 28))
    outputs      names of what the module returns: one tensor, a tuple in this order, or a mapping with these keys
    samples      input name -> (n, ...) model-ready real samples on which the graph must agree with the module; the
                 tolerance follows the size of the outputs (`edgekd.graph.verification`)
    opset        raised where an operator of the model needs a newer one, and `ir_version` where a type does
    metadata     key-value pairs that travel inside the file
    axes         symbolic axis behind the batch -> sizes at which to prove it, at least 5; sizes around that of the
                 samples where it is not named, no longer than the texts that `metadata` speaks of
    graph        what another exporter made of the module, to be cleaned and proven; None: torch's exporter makes it
    target       its limits lower `opset` and `ir_version`; a graph that cannot be written so is refused

    Equal modules and samples give equal bytes. Raises `AnswerIsNo` when the module cannot be exported, an axis came
    out frozen or is wrong at other sizes, or the numbers differ: the first layer that does is named, the graph lies
    beside `path` as NAME.rejected.onnx and nothing is written to `path`. Raises `UsageError` for arguments that do not
    fit, `ModelError` for weights that are NaN, `MissingExtra` without onnxscript.
    """
    started = time.monotonic()
    path = Path(path)
    _check_arguments(inputs, samples, opset, axes or {})
    if importlib.util.find_spec("onnxscript") is None:
        raise MissingExtra("onnxscript", "train", purpose="the export to ONNX")
    network = _on_cpu(module)
    traced = _trace(network, inputs, outputs, samples, opset) if graph is None else graph
    traced = at_target(traced, target)
    limit = MAX_IR if target is None else target.max_ir
    model = clean(traced, ir_version=min(max(ir_version, least_ir_version(traced)), limit), metadata=metadata)
    data = model.SerializeToString(deterministic=True)
    problems = _frozen_axes(model, inputs, outputs)
    result: VerifyResult | None = None
    if not problems:
        reference = _reference(network, inputs, outputs)
        try:
            result = verify(reference, data, samples, batch_sizes=batch_sizes, axes=axes)
            problems = [*result.problems, *_unproven_axes(result, most_tokens(metadata or {}))]
        except ModelError as error:  # the checker or onnxruntime refuses the graph
            problems = [str(error)]
    rejected = path.with_suffix(".rejected.onnx")
    if result is None or problems:
        if result is not None and result.place is not None:
            feeds = feeds_at(inputs, samples, result.place)
            problems.append(_where(network, model, {spec.name: feeds[spec.name] for spec in inputs}))
        save_model(model, rejected)
        raise AnswerIsNo(
            f"{'; '.join(filter(None, problems))}. The graph was put aside as {rejected}; {path.name} was not written"
        )
    save_model(model, path)
    rejected.unlink(missing_ok=True)  # of an earlier, failed export
    return ExportResult(
        path=path,
        sha256=sha256_bytes(data),
        size_bytes=len(data),
        opset=opset_of(model),
        ir_version=model.ir_version,
        max_abs_diff=result.max_abs_diff,
        batch_sizes=result.batch_sizes,
        seconds=time.monotonic() - started,
        num_samples=result.num_samples,
        axes=result.axes,
    )


class _Named(nn.Module):
    """Turns what a module returns into a tuple in the order of the names."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _as_tuple(self.module(*args), self.names)


def _as_tuple(output: object, names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    if isinstance(output, Mapping):
        missing = [name for name in names if name not in output]
        if missing:
            raise ModelError(f"the model gives {sorted(output)}, expected the outputs {list(names)}: {missing} missing")
        values: tuple[object, ...] = tuple(output[name] for name in names)
    else:
        values = tuple(output) if isinstance(output, (tuple, list)) else (output,)
    if len(values) != len(names):
        raise ModelError(f"the model gives {len(values)} outputs, expected {len(names)}: {', '.join(names)}")
    tensors = tuple(value for value in values if isinstance(value, torch.Tensor))
    if len(tensors) != len(values):
        raise ModelError(f"the model gives {[type(value).__name__ for value in values]}, expected tensors")
    return tensors


def _check_arguments(
    inputs: Sequence[TensorSpec], samples: Mapping[str, Array], opset: int, axes: Mapping[str, Sequence[int]]
) -> None:
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(
            f"found opset {opset}, expected {MIN_OPSET} to {MAX_OPSET}: torch's exporter starts at {MIN_OPSET}"
        )
    for name, sizes in axes.items():
        if len(set(sizes)) < PROOF or min(sizes) < 1:
            raise UsageError(
                f"axes: '{name}' has the sizes {list(sizes)}, expected at least {PROOF} different ones, each 1 or "
                "more: an axis is believed when it was seen at several sizes"
            )
    if not inputs:
        raise UsageError("found no inputs, expected at least one TensorSpec")
    for spec in inputs:
        if not spec.shape or not isinstance(spec.shape[0], str):
            raise UsageError(
                f"input '{spec.name}' has the shape {list(spec.shape)}, expected a symbolic batch axis first, as in "
                '("N", 1, 28, 28)'
            )
        if spec.name not in samples:
            raise UsageError(f"the samples hold {sorted(samples)}, expected '{spec.name}' too")
        array = samples[spec.name]
        wanted = spec.shape[1:]
        fits = array.ndim == len(spec.shape) and all(
            isinstance(size, str) or size == found for size, found in zip(wanted, array.shape[1:])
        )
        if not fits or array.dtype.name != spec.dtype or not len(array):
            raise UsageError(
                f"samples for '{spec.name}' are {array.dtype.name} {list(array.shape)}, expected {spec.dtype} "
                f"{list(spec.shape)} with at least one sample"
            )


def _on_cpu(module: nn.Module) -> nn.Module:
    """A copy in eval mode: tracing leaves marks, and the caller may want to train on."""
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and bool(value.isnan().any()):
            bad = int(value.isnan().sum())
            raise ModelError(
                f"the weight '{name}' holds {bad} NaN of {value.numel()} numbers; expected a trained model: did the "
                "training diverge? Take an earlier checkpoint"
            )
    return copy.deepcopy(module).cpu().eval().requires_grad_(requires_grad=False)


def _trace(
    network: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    samples: Mapping[str, Array],
    opset: int,
) -> ModelProto:
    example = []
    for spec in inputs:
        rows = samples[spec.name]
        example.append(torch.from_numpy(rows[np.arange(_TRACED_SAMPLES) % len(rows)].copy()))
    axes = {size for spec in inputs for size in spec.shape if isinstance(size, str)}
    dims = {axis: torch.export.Dim(axis) for axis in sorted(axes)}
    dynamic = tuple({i: dims[size] for i, size in enumerate(spec.shape) if isinstance(size, str)} for spec in inputs)
    returned = _try(network, example)
    _as_tuple(returned, outputs)
    plain = isinstance(returned, torch.Tensor)
    try:
        with silence(*_NOISY):
            program = torch.onnx.export(
                network if plain else _Named(network, outputs).eval(),
                tuple(example),
                dynamo=True,
                opset_version=opset,
                input_names=[spec.name for spec in inputs],
                output_names=list(outputs),
                dynamic_shapes=dynamic if plain else (dynamic,),  # _Named takes *args: one argument
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise AnswerIsNo(_why(error)) from error
    if program is None:
        raise AnswerIsNo(f"torch {torch.__version__} gave no ONNX program; expected one from torch.onnx.export")
    model: ModelProto = program.model_proto
    return model


def _try(network: nn.Module, example: Sequence[torch.Tensor]) -> object:
    """What the module returns for the traced samples. Raises `ModelError` when it does not take them."""
    try:
        with torch.no_grad():
            return network(*example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(list(value.shape)) for value in example)
        raise ModelError(f"the model fails on samples of shape {shapes}: {error}; do the inputs fit it?") from error


def _reference(
    network: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[str]
) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        args = [torch.from_numpy(feeds[spec.name]) for spec in inputs]
        try:
            with torch.no_grad():
                values = _as_tuple(network(*args), outputs)
        except (IndexError, TypeError, AssertionError) as error:  # what modules raise at sizes that they do not take
            raise RuntimeError(str(error)) from error
        return {name: value.numpy() for name, value in zip(outputs, values)}

    return run


def _unproven_axes(result: VerifyResult, most: int | None) -> list[str]:
    """A sentence for every symbolic axis that the module itself took at too few sizes, of the `most` that there are."""
    least = PROOF if most is None else min(PROOF, most)
    return [
        f"axis '{name}' was seen at the sizes {', '.join(map(str, sizes))} only: the model refuses the others that "
        f"were tried; name {PROOF} sizes that it takes with --axes {name}=..., or make the axis a number"
        for name, sizes in result.axes.items()
        if len(sizes) < least
    ]


def _where(network: nn.Module, model: ModelProto, feeds: Mapping[str, Array]) -> str:
    """The first layer that differs, or nothing where the module cannot be run again."""
    try:
        found = first_difference(network, model, feeds)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return ""
    return "" if found is None else str(found)


def _frozen_axes(model: ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[str]) -> list[str]:
    """One sentence for every axis that was asked for as symbolic and came out as a number."""
    declared = {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    problems = []
    for spec in inputs:
        for index, (wanted, found) in enumerate(zip(spec.shape, declared.get(spec.name, []))):
            if isinstance(wanted, str) and found is not None:
                axis = f"the batch axis '{wanted}'" if index == 0 else f"axis {index} ('{wanted}')"
                problems.append(
                    f"{axis} of input '{spec.name}' is frozen at {found}: the model's forward turns that size into a "
                    f"fixed number. {_HINT.replace('shape[0]', f'shape[{index}]')}"
                )
    for name in outputs:
        found = next(iter(declared.get(name, [])), None)
        if found is not None and not problems:
            problems.append(
                f"the batch axis of output '{name}' is frozen at {found}: the model's forward writes that size as a "
                f"fixed number. {_HINT}"
            )
    return problems


def _why(error: BaseException) -> str:
    """The reason at the bottom of the exporter's long report, and the line of the model that caused it."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    where = re.findall(r'File "([^"]+)", line (\d+), in forward', str(error) + str(root))
    place = f" ({Path(where[-1][0]).name}, line {where[-1][1]})" if where else ""
    reason = lines[0] if lines else type(root).__name__
    return (
        f"the model cannot be exported to ONNX: {reason}{place}. torch.export needs a "
        "forward of tensor operations alone: no `if`, float(), int(), .item() or .numpy() on values of tensors; use "
        "torch.where and the like"
    )
