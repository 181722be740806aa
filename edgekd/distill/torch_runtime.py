"""PyTorch as an inference runtime, eager or compiled, so that the benchmark can time a teacher as its owner runs it.

The model is a small JSON file that says how to build the module and where its weights lie:

    {"reference": "resnet_teacher", "args": {"width": 32}, "num_outputs": 10, "input_shape": [1, 28, 28],
     "weights": "weights.safetensors", "search_path": null}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.device.runtimes import Session, check_feeds
from edgekd.distill.models import build_model, load_weights, logits_of
from edgekd.errors import ModelError, UsageError
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
) -> Path:
    """Write how to build a module again. `weights` is relative to the folder of `path`; None: random weights.

    vocabulary, pad  of a model of texts: how many token ids there are, and which one is padding
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
        },
    )


def load_model_json(path: str | os.PathLike[str]) -> nn.Module:
    """The module that `path` describes, with its weights, in eval mode. Raises `ModelError` for a wrong file."""
    return _load(Path(path))[0]


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Open a model.json for inference in PyTorch, in float32 on the CPU; {"compile": True} takes `torch.compile`.

    Compiling happens in the first call (tens of seconds, and it needs a C++ compiler), for the shape of that call.
    `threads` is a setting of the whole process in torch; it is put back when the session is closed. Raises
    `UsageError` for bytes or other options, `ModelError` for a file that does not lead to a model.
    """
    if isinstance(model, bytes):
        raise UsageError("runtime 'torch' opens a model.json beside its weights, found the bytes of a model")
    if unknown := sorted(set(options) - {"compile"}):
        raise UsageError(f"runtime 'torch' knows the option 'compile' only, found {', '.join(unknown)}")
    module, described = _load(Path(model))
    call = torch.compile(module) if options.get("compile") else module
    if "vocabulary" in described:
        spec = TensorSpec("input_ids", "int64", ("N", "L"))
    else:
        spec = TensorSpec("input", "float32", ("N", *described["input_shape"]))
    return _TorchSession(call, spec, described["num_outputs"], threads)


class _TorchSession:
    def __init__(self, module: Callable[[Tensor], object], spec: TensorSpec, num_outputs: int, threads: int) -> None:
        self.inputs = (spec,)
        self.outputs = (TensorSpec("logits", "float32", ("N", num_outputs)),)
        self._module: Callable[[Tensor], object] | None = module
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        module = self._module
        if module is None:
            raise UsageError("this session is closed; open another one")
        check_feeds(self.inputs, feeds)
        array = feeds[self.inputs[0].name]
        # torch warns about arrays that it could write into and must not.
        x = torch.from_numpy(array if array.flags.writeable else array.copy())
        try:
            with torch.inference_mode():
                logits = logits_of(module(x))
        except RuntimeError as error:  # torch.compile's errors are among them, a missing compiler too
            raise ModelError(f"the model failed while running: {error}; does it fit this input?") from error
        return {"logits": logits.numpy()}

    def close(self) -> None:
        if self._module is not None:
            self._module = None
            torch.set_num_threads(self._threads_before)


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
    return described
