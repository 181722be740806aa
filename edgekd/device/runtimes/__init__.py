"""Inference runtimes: one adapter per file, one row per adapter in `RUNTIMES`.

An adapter is a function `open_model(model, *, threads, options) -> Session`. A user's own runtime is named
"package.module:function".
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edgekd.device.bundle import Bundle, looks_like_bundle
from edgekd.device.machine import resolve_threads
from edgekd.errors import ModelError, UsageError, nearest
from edgekd.spec import Array, TensorSpec

RUNTIMES: dict[str, str] = {
    "onnxruntime": "edgekd.device.runtimes.onnxruntime:open_model",
    "onnxruntime-mobile": "edgekd.device.runtimes.onnxruntime:open_model",
    "onnxruntime-cuda": "edgekd.device.runtimes.onnxruntime:open_model",
    "onnxruntime-tensorrt": "edgekd.device.runtimes.onnxruntime:open_model",
    "onnxruntime-coreml": "edgekd.device.runtimes.onnxruntime:open_model",
    "onnxruntime-nnapi": "edgekd.device.runtimes.onnxruntime:open_model",
    "onnxruntime-qnn": "edgekd.device.runtimes.onnxruntime:open_model",
    "onnxruntime-xnnpack": "edgekd.device.runtimes.onnxruntime:open_model",
    "openvino": "edgekd.device.runtimes.openvino:open_model",
    "litert": "edgekd.device.runtimes.litert:open_model",
    "ncnn": "edgekd.device.runtimes.ncnn:open_model",
    "mnn": "edgekd.device.runtimes.mnn:open_model",
    "onnxruntime-node": "edgekd.device.runtimes.javascript:open_model",
    "onnxruntime-web": "edgekd.device.runtimes.javascript:open_model",
    "onnxruntime-web-chromium": "edgekd.device.runtimes.javascript:open_model",
    "executorch": "edgekd.distill.executorch_runtime:open_model",
    "torch": "edgekd.distill.torch_runtime:open_model",
    "torch-compiled": "edgekd.distill.torch_runtime:open_model",
    "torch-cuda": "edgekd.distill.torch_runtime:open_model",
    "torch-cuda-compiled": "edgekd.distill.torch_runtime:open_model",
    "torch-cuda-graphs": "edgekd.distill.torch_runtime:open_model",
    "fake": "edgekd.device.runtimes.fake:open_model",
}
# One adapter, several settings: what a row of RUNTIMES adds to the caller's options.
PRESETS: dict[str, Mapping[str, object]] = {
    "onnxruntime-mobile": {"mobile": True},
    # float32 is float32 here, as in PyTorch: by default Ampere and later would round what they multiply to 10 bits.
    "onnxruntime-cuda": {"provider": "CUDAExecutionProvider", "provider_options": {"use_tf32": "0"}},
    "onnxruntime-tensorrt": {"provider": "TensorrtExecutionProvider"},
    "onnxruntime-coreml": {"provider": "CoreMLExecutionProvider"},
    "onnxruntime-nnapi": {"provider": "NnapiExecutionProvider"},
    "onnxruntime-qnn": {"provider": "QNNExecutionProvider"},
    "onnxruntime-xnnpack": {"provider": "XnnpackExecutionProvider"},
    "onnxruntime-node": {"package": "onnxruntime-node"},
    "onnxruntime-web": {"package": "onnxruntime-web"},
    "onnxruntime-web-chromium": {"package": "onnxruntime-web", "browser": True},
    "torch-compiled": {"compile": True},
    "torch-cuda": {"device": "cuda"},
    "torch-cuda-compiled": {"device": "cuda", "compile": True},
    "torch-cuda-graphs": {"device": "cuda", "graphs": True},
}
# The files that each adapter opens; a bundle holds .onnx graphs.
READS: dict[str, tuple[str, ...]] = {
    "onnxruntime": (".onnx", ".ort"),
    "openvino": (".onnx", ".xml"),
    "litert": (".tflite",),
    "ncnn": (".param",),
    "mnn": (".mnn",),
    "javascript": (".onnx", ".ort"),
    "executorch_runtime": (".pte",),
    "torch_runtime": (".json",),
    "fake": (".json",),
}

# What each adapter imports, to be asked for without importing it.
MODULES: dict[str, str] = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai_edge_litert",
    "ncnn": "ncnn",
    "mnn": "MNN",
    "executorch_runtime": "executorch",
    "torch_runtime": "torch",
}


@dataclass(frozen=True)
class OperatorTime:
    """What one operator took in one call; `kind` is the operator's type, e.g. Conv."""

    name: str
    kind: str
    ms: float


class Session(Protocol):
    """A loaded model. `run` may be called from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` reads; a string in a shape is a symbolic axis."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Named outputs of named inputs. Raises `UsageError` for feeds that do not fit, `ModelError` in the model."""
        ...

    def close(self) -> None:
        """Free the model. A second call does nothing; `run` afterwards raises `UsageError`."""
        ...


def open_session(
    source: Bundle | str | Path | bytes,
    *,
    variant: str | None = None,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    options: Mapping[str, object] | None = None,
) -> Session:
    """Load a bundle (opened, or the path of its folder or zip) or a bare model file (path or bytes) for inference.

    `variant` picks a bundle's variant (default: the bundle's own choice for this CPU), `threads` defaults to 1,
    `options` go to the adapter. Raises `UsageError` for an unknown runtime or a variant of a bare model,
    `BundleError` or `ModelError` for what cannot be loaded, `MissingExtra` when the runtime is not installed.
    """
    opener = find_runtime(runtime)
    count = resolve_threads(threads)
    settings = {**PRESETS.get(runtime, {}), **(options or {})}
    bundle = source if isinstance(source, Bundle) else None
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.exists():
            raise ModelError(f"no model and no bundle at {path}; check the path")
        if looks_like_bundle(path):
            bundle = Bundle.open(path)
    if bundle is not None:
        return opener(bundle.graph(variant=variant), threads=count, options=settings)
    if variant is not None:
        raise UsageError(f"variant '{variant}' was asked of a bare model file, which has none; pass a bundle")
    model = source if isinstance(source, bytes) else Path(str(source))
    return opener(model, threads=count, options=settings)


def find_runtime(runtime: str) -> Callable[..., Session]:
    """The `open_model` of a runtime's adapter. Raises `UsageError` for an unknown name."""
    reference = runtime if ":" in runtime else RUNTIMES.get(runtime)
    if reference is None:
        raise UsageError(
            f"unknown runtime '{runtime}'. {nearest(runtime, RUNTIMES)} (or your own: package.module:function)"
        )
    module, _, function = reference.partition(":")
    try:
        opener: Callable[..., Session] = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        if runtime in RUNTIMES:
            raise
        raise UsageError(f"runtime '{runtime}' cannot be found ({error}); expected package.module:function") from error
    return opener


def readers(suffix: str) -> tuple[str, ...]:
    """The runtimes that open files with that ending, the usual one first."""
    return tuple(name for name in RUNTIMES if suffix in READS[_adapter(name)])


def why_missing(runtime: str) -> str | None:
    """Why a runtime of the table cannot run here, as far as it can be told without a model; None: nothing is known."""
    module = MODULES.get(_adapter(runtime))
    if module is not None and importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    preset = PRESETS.get(runtime, {})
    if "package" in preset:
        from edgekd.device.runtimes.javascript import why_not

        return why_not(str(preset["package"]), browser=bool(preset.get("browser")))
    if preset.get("device") == "cuda":
        return why_no_cuda()
    provider = preset.get("provider")
    if provider is not None and provider not in (built_in := _providers()):
        return f"this onnxruntime has no {provider}, only {', '.join(built_in)}"
    return None


def why_no_cuda() -> str | None:
    """Why PyTorch, which is installed, has no CUDA here; None where it has."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"this torch {torch.__version__} was built without CUDA"
    return f"torch {torch.__version__} sees no CUDA device; is there one, with a driver for CUDA {torch.version.cuda}?"


def _providers() -> Sequence[str]:
    found: Sequence[str] = importlib.import_module("onnxruntime").get_available_providers()
    return found


def _adapter(runtime: str) -> str:
    """`onnxruntime` for onnxruntime-cuda: the file that the runtime lies in."""
    return RUNTIMES[runtime].partition(":")[0].rpartition(".")[2]


def check_feeds(inputs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> None:
    """Compare feeds with a model's inputs: names, dtype, rank, fixed axes. Raises `UsageError` with both sides."""
    expected = {spec.name: spec for spec in inputs}
    if feeds.keys() != expected.keys():
        raise UsageError(
            f"found inputs {_listing(feeds)}, expected {_listing(expected)}; name each input of the model once"
        )
    axes: dict[str, int] = {}
    for name, spec in expected.items():
        array = feeds[name]
        if not isinstance(array, np.ndarray):
            raise UsageError(f"input '{name}' is a {type(array).__name__}, expected a numpy array of {spec.dtype}")
        if array.dtype.name != spec.dtype:
            raise UsageError(
                f"input '{name}' is {array.dtype.name}, expected {spec.dtype}; use .astype('{spec.dtype}')"
            )
        fits = array.ndim == len(spec.shape) and all(
            (axes.setdefault(wanted, size) if isinstance(wanted, str) else wanted) == size
            for size, wanted in zip(array.shape, spec.shape)
        )
        if not fits:
            wanted_shape = "(" + ", ".join(map(str, spec.shape)) + ")"
            raise UsageError(
                f"input '{name}' has the shape {array.shape}, expected {wanted_shape}; check the preprocessing"
            )


def _listing(names: Mapping[str, object]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
