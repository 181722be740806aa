"""Weights of a model: saving and loading without arbitrary pickles, and what a model costs."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgekd.distill.models.finished import as_wrapped
from edgekd.distill.modules import evaluating
from edgekd.errors import ModelError
from edgekd.files import write_bytes

# The key in the header of a safetensors file.
METADATA = "edgekd"
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
_NESTED = ("state_dict", "model_state_dict", "model")


def save_weights(module: nn.Module, path: str | PathLike[str], *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the state dict of `module` as safetensors, atomically; equal weights and metadata give equal bytes.

    Raises `ModelError` when the state dict holds something other than tensors.
    """
    state = module.state_dict()
    odd = sorted(name for name, value in state.items() if not isinstance(value, torch.Tensor))
    if odd:
        raise ModelError(f"the state dict holds values that are no tensors: {', '.join(odd)}; safetensors refuses them")
    # Tied weights are written twice: safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    # As one pair: safetensors writes several in an order that changes from run to run.
    pairs = {METADATA: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    return write_bytes(path, safetensors.torch.save(tensors, metadata=pairs))


def metadata_of(path: Path) -> dict[str, str]:
    """What `save_weights` was given to travel with the weights; nothing for a file of somebody else."""
    with safetensors.safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA, "{}")
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def load_weights(module: nn.Module, path: str | PathLike[str]) -> None:
    """Load `path` into `module`: safetensors, or a state dict saved by torch (read with `weights_only=True`).

    A state dict inside {"state_dict": ...}, {"model_state_dict": ...} or {"model": ...}, the prefix "module." of
    DataParallel, and the names that transformers saves (for an hf: model) are understood. Raises `ModelError` for a
    missing or unreadable file, for a pickle that holds more than tensors, and when names or shapes differ from those
    of `module`, naming them.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no weights file {path}; check the path, which is relative to the recipe's folder")
    found = as_wrapped(module, _without_prefix(_read(path), "module."))
    expected = module.state_dict()
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing: {_some(missing)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        problems.append(f"unexpected: {_some(unexpected)}")
    other = [
        f"{name} is {list(found[name].shape)}, expected {list(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    if other:
        problems.append(f"other shapes: {_some(other)}")
    if problems:
        raise ModelError(
            f"{path.name} does not fit the model: {'; '.join(problems)}. Were the weights saved from the same model "
            "with the same arguments and number of outputs?"
        )
    module.load_state_dict(found)


def count(module: nn.Module, input_shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> tuple[int, int]:
    """(number of parameters, multiply-accumulates of one sample of shape `input_shape` and of `dtype`: ids are int64).

    Matrix products and convolutions are counted, as everywhere in the field; norms, activations and look-ups in tables
    are not.
    """
    example = torch.zeros(1, *input_shape, dtype=dtype)
    parameter = next(module.parameters(), None)
    if parameter is not None:
        example = example.to(parameter.device)
    with torch.no_grad(), evaluating(module), FlopCounterMode(display=False) as counter:
        module(example)
    # The counter takes a multiply-accumulate for two operations.
    return sum(parameter.numel() for parameter in module.parameters()), counter.get_total_flops() // 2


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except safetensors.SafetensorError as error:
            raise ModelError(f"{path} is not a whole safetensors file: {error}") from error
    if path.suffix not in _PICKLE_SUFFIXES:
        raise ModelError(f"{path.name}: found '{path.suffix}', expected .safetensors, {', '.join(_PICKLE_SUFFIXES)}")
    content = io.BytesIO(path.read_bytes())  # from here on every OSError speaks of the content, not of the disk
    try:
        loaded: object = torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, or is no torch file; edgekd never runs a pickle. Save the state dict "
            "alone: torch.save(model.state_dict(), ...), or better as safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(f"{path} is not a whole torch file: {error}") from error
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ModelError(f"{path} holds no state dict; expected a mapping of names to tensors")
    return dict(loaded)


def _without_prefix(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    if state and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _some(names: list[str], limit: int = 5) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
