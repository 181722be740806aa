"""Models of timm and of Hugging Face transformers by name or folder: optional packages, imported when asked for."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.distill.models.vision import import_torchvision
from edgekd.errors import MissingExtra, ModelError, nearest
from edgekd.spec import Array, TensorSpec

_TOKENS = 16  # length of the random texts
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def timm_model(name: str, *, num_outputs: int, args: Mapping[str, Any]) -> nn.Module:
    """The model `name` of timm with `num_outputs` classes and random weights, unless `args` say pretrained = true.

    Raises `ModelError` for an unknown name or an argument that it refuses, `MissingExtra` without timm.
    """
    timm = _import("timm", "timm", purpose=f"timm:{name}")
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise ModelError(f"timm has no model '{name}'. {_few(base, timm.list_models())}")
    try:
        # Scripted activations cannot be traced.
        with timm.layers.set_scriptable(False), timm.layers.set_exportable(True):
            model: nn.Module = timm.create_model(name, num_classes=num_outputs, **args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"timm:{name} refuses the arguments {dict(args)}: {error}") from error
    return model


class HuggingFace(nn.Module):
    """A transformers model with tensors in the order of `inputs` and named tensors out: "logits" where it has them."""

    def __init__(self, model: nn.Module, inputs: tuple[TensorSpec, ...], vocabulary: int) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.vocabulary = vocabulary
        self.has_logits = "For" in type(model).__name__  # a head; BertModel gives hidden states

    def forward(self, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        given = dict(zip((spec.name for spec in self.inputs), args))
        found = self.model(**given, return_dict=True)
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor) and name != "loss"}


def hugging_face_model(reference: str, *, num_outputs: int | None, args: Mapping[str, Any]) -> HuggingFace:
    """The model in the folder `reference` (config.json, with or without weights), or of that id on the hub.

    num_outputs  another number than the folder's gives a fresh head; None keeps it
    args         change its configuration

    Nothing of the folder is executed. Raises `ModelError` for a folder that cannot be read, `MissingExtra` without
    transformers.
    """
    transformers = _import("transformers", "hf", purpose=f"hf:{reference}")
    folder = Path(reference)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; expected a folder that save_pretrained wrote")
    # Of two ways to compute attention the eager one is traced everywhere.
    changes = {"attn_implementation": "eager", **args}
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(reference, trust_remote_code=False, **args)
            name = next(iter(config.architectures or ()), "AutoModel")
            kind = getattr(transformers, name, transformers.AutoModel)
            if num_outputs is not None and "Classification" in name:
                config.num_labels = num_outputs
            if folder.exists() and not any((folder / item).is_file() for item in _WEIGHTS):
                build = kind.from_config if kind is transformers.AutoModel else kind._from_config
                model = build(config, attn_implementation=changes["attn_implementation"])
            else:
                model = kind.from_pretrained(
                    reference,
                    config=config,
                    attn_implementation=changes["attn_implementation"],
                    ignore_mismatched_sizes=True,
                    trust_remote_code=False,
                )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"hf:{reference} cannot be loaded: {first}; expected a folder that save_pretrained wrote, or the id of a "
            "model on the hub, which needs the network"
        ) from error
    return HuggingFace(model.eval(), _inputs(model), int(getattr(config, "vocab_size", 2) or 2))


def read_inputs(module: HuggingFace, names: Sequence[str]) -> None:
    """Let `module` take the inputs `names`, as another exporter chose them: token_type_ids beside the usual ones."""
    known = {spec.name: spec for spec in module.inputs}
    module.inputs = tuple(known.get(name, TensorSpec(name, "int64", ("N", "L"))) for name in names)


def example_feeds(module: HuggingFace, count: int, seed: int) -> dict[str, Array]:
    """Random texts with padding behind them, or random images, for lack of real ones."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in module.inputs:
        shape = (count, *(_TOKENS if isinstance(size, str) else size for size in spec.shape[1:]))
        if spec.name == "attention_mask":
            lengths = rng.integers(_TOKENS // 2, _TOKENS + 1, (count, 1))
            feeds[spec.name] = (np.arange(_TOKENS) < lengths).astype(np.int64)
        elif spec.dtype == "int64":
            feeds[spec.name] = rng.integers(0, module.vocabulary if spec.name == "input_ids" else 1, shape)
        else:
            feeds[spec.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def _inputs(model: nn.Module) -> tuple[TensorSpec, ...]:
    main = str(model.main_input_name)
    if main == "input_ids":
        return tuple(TensorSpec(name, "int64", ("N", "L")) for name in (main, "attention_mask"))
    size: Any = getattr(model.config, "image_size", None)
    if main != "pixel_values" or size is None:
        raise ModelError(
            f"{type(model).__name__} reads '{main}'; expected a model of texts (input_ids) or images (pixel_values): "
            "export it through a function of your own, package.module:function, with --inputs"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return (TensorSpec(main, "float32", ("N", getattr(model.config, "num_channels", 3), height, width)),)


def _import(package: str, extra: str, *, purpose: str) -> ModuleType:
    import_torchvision()  # both import it
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, extra, purpose=purpose) from error


def _few(name: str, known: list[str]) -> str:
    """`nearest` among those that begin alike: timm has more than a thousand."""
    return nearest(name, [item for item in known if item.startswith(name[:4])] or known[:20])


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Loading prints a report on a fresh head; that is what was asked for."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
