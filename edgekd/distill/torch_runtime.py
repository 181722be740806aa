"""PyTorch as an inference runtime, eager, compiled or as CUDA graphs: a teacher timed as its owner runs it.

A call takes a numpy array and gives one, on every device: on CUDA the copies there and back are part of it, and the
copy back waits for all that was begun.

The model is a small JSON file that says how to build the module and where its weights lie:

    {"reference": "resnet_teacher", "args": {"width": 32}, "num_outputs": 10, "input_shape": [1, 28, 28],
     "weights": "weights.safetensors", "search_path": null}
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.device.runtimes import Session, check_feeds, why_no_cuda
from edgekd.distill.models import build_model, load_weights, logits_of
from edgekd.distill.rejection import Rejecting
from edgekd.errors import MissingHere, ModelError, UsageError
from edgekd.files import write_json
from edgekd.spec import Array, TensorSpec

_KEYS: dict[str, tuple[type, ...]] = {
    "reference": (str,),
    "args": (dict,),
    "num_outputs": (int,),
    "input_shape": (list,),
    "weights": (str, type(None)),
    "search_path": (str, type(None)),
}
OPTIONS = ("compile", "device", "graphs")
DEVICES = ("cpu", "cuda")
CALLS_BEFORE_RECORDING = 3
# Of models that read the ids of tokens.
_TEXT_KEYS = ("vocabulary", "pad")


def save_model_json(
    path: str | os.PathLike[str],
    *,
    reference: str,
    num_outputs: int,
    input_shape: Sequence[int],
    weights: str | None,
    args: Mapping[str, Any] | None = None,
    search_path: str | os.PathLike[str] | None = None,
    vocabulary: int | None = None,
    pad: int = 0,
    reject: Mapping[str, Any] | None = None,
) -> Path:
    """Write how to build a module again. `weights` is relative to the folder of `path`; None: random weights.

    vocabulary, pad  of a model of texts: how many token ids there are, and which one is padding
    reject           {"class", "threshold"} of the reject option behind the module (edgekd.distill.rejection)
    """
    return write_json(
        path,
        {
            "reference": reference,
            "args": dict(args or {}),
            "num_outputs": num_outputs,
            "input_shape": list(input_shape),
            "weights": weights,
            "search_path": None if search_path is None else str(Path(search_path).resolve()),
            **({} if vocabulary is None else {"vocabulary": vocabulary, "pad": pad}),
            **({} if reject is None else {"reject": dict(reject)}),
        },
    )


def load_model_json(path: str | os.PathLike[str]) -> nn.Module:
    """The module that `path` describes, with its weights, in eval mode. Raises `ModelError` for a wrong file."""
    return _load(Path(path))[0]


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Open a model.json for inference in PyTorch, in float32, on the CPU unless `options` say otherwise.

    compile  True: `torch.compile`, in the first call (tens of seconds, and it needs a C++ compiler), for its shape
    device   "cuda": the first CUDA device. float32 is float32 there (no TF32), and cuDNN chooses by trying
    graphs   True: as CUDA graphs, recorded in the first call of each shape

    `threads` and the settings of CUDA belong to the whole process in torch; they are put back when the session is
    closed. Raises `UsageError` for bytes or other options, `MissingHere` without CUDA, `ModelError` for a file that
    does not lead to a model.
    """
    if isinstance(model, bytes):
        raise UsageError("runtime 'torch' opens a model.json beside its weights, found the bytes of a model")
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise UsageError(f"runtime 'torch' knows the options {', '.join(OPTIONS)}, found {', '.join(unknown)}")
    device = options.get("device", "cpu")
    if device not in DEVICES:
        raise UsageError(f"runtime 'torch': found the device {device!r}, expected {' or '.join(DEVICES)}")
    if device == "cuda" and (missing := why_no_cuda()) is not None:
        raise MissingHere(f"{missing}; leave the runtimes torch-cuda out")
    if options.get("graphs") and device != "cuda":
        raise UsageError("runtime 'torch': graphs are CUDA's; expected the device 'cuda' with them")
    module, described = _load(Path(model))
    module.to(device)
    compiled = torch.compile(module) if options.get("compile") else module

    def forward(x: Tensor) -> Tensor:
        return logits_of(compiled(x))

    call = Recorded(forward, device) if options.get("graphs") else lambda x: forward(x.to(device)).cpu()
    if "vocabulary" in described:
        spec = TensorSpec("input_ids", "int64", ("N", "L"))
    else:
        spec = TensorSpec("input", "float32", ("N", *described["input_shape"]))
    return _TorchSession(call, spec, described["num_outputs"], threads, on_cuda=device == "cuda")


def record(forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Record what `forward` does with the tensor `x` as a CUDA graph; gives the call that does it again.

    Its output is overwritten by the next call. Recording must not meet what a library does only once, such as choosing
    its kernels; so a few calls come before, on the same stream.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(CALLS_BEFORE_RECORDING):
            forward(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        y = forward(x)

    def replay() -> Tensor:
        graph.replay()
        return y

    return replay


class Recorded:
    """`forward` as CUDA graphs, one for each shape: from then on a call starts all of its kernels at once.

    Takes and gives tensors on the CPU.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        device: str,
        record: Callable[[Callable[[Tensor], Tensor], Tensor], Callable[[], Tensor]] = record,
    ) -> None:
        self._forward, self._device, self._record = forward, device, record
        self._recorded: dict[torch.Size, tuple[Tensor, Callable[[], Tensor]]] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        with self._lock:  # the input and the output of a graph are one buffer for all calls
            if x.shape not in self._recorded:
                buffer = x.to(self._device, copy=True)
                self._recorded[x.shape] = buffer, self._record(self._forward, buffer)
            buffer, replay = self._recorded[x.shape]
            buffer.copy_(x)
            return replay().to("cpu", copy=True)


class _TorchSession:
    def __init__(
        self, call: Callable[[Tensor], Tensor], spec: TensorSpec, num_outputs: int, threads: int, *, on_cuda: bool
    ) -> None:
        self.inputs = (spec,)
        self.outputs = (TensorSpec("logits", "float32", ("N", num_outputs)),)
        self._call: Callable[[Tensor], Tensor] | None = call
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._on_cuda = on_cuda
        self._restore = _exact_cuda() if on_cuda else lambda: None

    def device_memory_mb(self) -> float | None:
        """The most that PyTorch's tensors took on the device since the process began, in MB (1e6 bytes)."""
        return torch.cuda.max_memory_allocated() / 1e6 if self._on_cuda else None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        call = self._call
        if call is None:
            raise UsageError("this session is closed; open another one")
        check_feeds(self.inputs, feeds)
        array = feeds[self.inputs[0].name]
        # torch warns about arrays that it could write into and must not.
        x = torch.from_numpy(array if array.flags.writeable else array.copy())
        try:
            with torch.inference_mode():
                logits = call(x)
        except RuntimeError as error:  # torch.compile's errors are among them, a missing compiler too
            raise ModelError(f"the model failed while running: {error}; does it fit this input?") from error
        return {"logits": logits.numpy()}

    def close(self) -> None:
        if self._call is not None:
            self._call = None
            torch.set_num_threads(self._threads_before)
            self._restore()


def _exact_cuda() -> Callable[[], None]:
    """float32 without TF32, and kernels of cuDNN by trying (as onnxruntime does); gives the way back."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark

    def put(in_products: bool, in_cudnn: bool, by_trying: bool) -> None:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = in_products, in_cudnn, by_trying

    put(False, False, True)
    return lambda: put(*before)


def _load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    described = _read(path)
    with torch.random.fork_rng(devices=[]):  # building draws random weights; the caller's generator must not move
        module = build_model(
            described["reference"],
            num_outputs=described["num_outputs"],
            input_shape=described["input_shape"],
            args=described["args"],
            search_path=described["search_path"],
            **{key: described[key] for key in _TEXT_KEYS if key in described},
        )
    if described["weights"] is not None:
        load_weights(module, path.parent / described["weights"])
    if (rule := described.get("reject")) is not None:
        classes = described["num_outputs"]
        module = Rejecting(module, rejected=rule["class"], num_classes=classes, threshold=rule["threshold"])
    return module.eval(), described


def _read(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"no model description {path}; expected a model.json") from error
    except ValueError as error:  # not JSON, not UTF-8
        raise ModelError(f"{path} is no JSON: {error}; the runtime 'torch' opens a model.json") from error
    if not isinstance(described, dict):
        raise ModelError(f"{path} holds a {type(described).__name__}, expected the keys {', '.join(_KEYS)}")
    for key, kinds in _KEYS.items():
        if key not in described or not isinstance(described[key], kinds):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ModelError(f"{path}: '{key}' is {described.get(key)!r}, expected {names}")
    for key in _TEXT_KEYS:
        if not isinstance(described.get(key, 0), int):
            raise ModelError(f"{path}: '{key}' is {described[key]!r}, expected a whole number")
    if not _is_rule(described.get("reject"), described["num_outputs"]):
        raise ModelError(
            f"{path}: 'reject' is {described['reject']!r}, expected the number of a 'class' and a 'threshold' between "
            "0 and 1"
        )
    return described


def _is_rule(rule: Any, num_classes: int) -> bool:
    if rule is None:
        return True
    if not isinstance(rule, dict) or not isinstance(rule.get("class"), int):
        return False
    threshold = rule.get("threshold")
    return 0 <= rule["class"] < num_classes and isinstance(threshold, float) and 0 < threshold < 1
