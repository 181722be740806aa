"""torchvision, imported through one guarded function, and its models by name.

torchvision from PyPI is linked against the CUDA build of torch; beside the CPU build its compiled operators do not
load, and `import torchvision` fails for everybody who comes after, too. Only `nms` and image decoding need them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from edgekd.errors import MissingExtra, ModelError, nearest

_FAULT = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# The schemas live as long as the Library object that declared them.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """The module torchvision; cured where its compiled operators do not match this torch.

    On a healthy installation this is a plain import. On exactly the error "operator torchvision::nms does not
    exist" the half-imported modules are dropped, the two missing schemas are declared and the import is repeated:
    models, transforms and data sets then work; `ops.nms` and `io.decode_image` do not. Call it before anything else
    imports torchvision. Raises `MissingExtra` when torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise MissingExtra("torchvision", "train", purpose="a torchvision model") from error
    except RuntimeError as error:
        if _FAULT not in str(error):
            raise
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    if not _declared:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            library.define(schema)  # type: ignore[no-untyped-call]
        _declared.append(library)
    return importlib.import_module("torchvision")


def torchvision_model(name: str, *, num_outputs: int, args: Mapping[str, Any]) -> nn.Module:
    """The classification model `name` of torchvision with `num_outputs` classes and random weights.

    `args` go to torchvision's builder. Raises `ModelError` for an unknown name or an argument it refuses.
    """
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"torchvision has no model '{name}'. {nearest(name, known)}")
    try:
        model: nn.Module = models.get_model(name, num_classes=num_outputs, **args)
    except (TypeError, ValueError) as error:
        raise ModelError(f"torchvision:{name} refuses the arguments {dict(args)}: {error}") from error
    return model
