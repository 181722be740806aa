"""Files of the Hugging Face hub, fetched where a recipe names them, and kept where all of its programs keep them."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from edgekd.errors import ModelError
from edgekd.references import locate

PREFIX = "hf:"
WEIGHTS = "model.safetensors"


def fetched(model: str, name: str) -> Path | None:
    """The file `name` of the model of this id: the hub's newest, or without a network the one on this machine.

    None where there is no such file, no such model, or nothing that reads the hub (huggingface_hub comes with
    transformers). Raises `ModelError` when it is not on this machine and the hub cannot be asked.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    hub, errors = (importlib.import_module(name) for name in ("huggingface_hub", "huggingface_hub.errors"))
    try:
        return Path(hub.hf_hub_download(model, name))
    except errors.LocalEntryNotFoundError as error:
        if hub.try_to_load_from_cache(model, name) is not None:
            return None  # the mark of a file that is not there
        raise ModelError(
            f"{name} of {model} is not on this machine, and the hub cannot be asked for it; try again with a network"
        ) from error
    except (errors.EntryNotFoundError, errors.RepositoryNotFoundError, ValueError):
        return None


def weights_file(value: str, search_path: Path) -> Path:
    """The file of a recipe's `weights`: a path, or model.safetensors of hf: and a folder or an id on the hub.

    Raises `ModelError` where there is none, or when the hub cannot be asked.
    """
    if not value.startswith(PREFIX):
        return Path(value)
    place = value.removeprefix(PREFIX)
    folder = locate(place, search_path)
    found = fetched(place, WEIGHTS) if folder is None else folder / WEIGHTS
    if found is None or not found.is_file():
        raise ModelError(
            f"weights = '{value}': there is no {WEIGHTS}; expected a folder, or the id of a model on the hub, with one"
        )
    return found
