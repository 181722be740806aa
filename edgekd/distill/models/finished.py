"""Classifiers that transformers saved, taken as they are: what their weights and their classes are called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.models.hub import HuggingFace, example_feeds, file_of
from edgekd.distill.modules import evaluating
from edgekd.errors import ModelError


def as_wrapped(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that transformers saved, by the names of edgekd's module around such a model; others as they are.

    Constants that older versions of transformers saved (position_ids) are left out. Of parameters that are one and the
    same (the words' table and the head that guesses them) it saves only the first name.
    """
    own = module.state_dict()
    if not isinstance(module, HuggingFace) or not any(f"model.{name}" in own for name in state):
        return state
    constants = {name for name, _ in module.model.named_buffers()} - module.model.state_dict().keys()
    further = {name: value for name, value in own.items() if not name.startswith("model.")}
    found = {f"model.{name}": value for name, value in state.items() if name not in constants}
    saved = {_place(own[name]): value for name, value in found.items() if name in own}
    tied = {name: saved[_place(value)] for name, value in own.items() if _place(value) in saved}
    return further | tied | found


def classes_of(reference: str, args: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of the model in the folder `reference` (or of that id on the hub), in the order of its outputs.

    They are `id2label` of its config.json, or of `args`, which change its configuration; none where nobody named them
    (LABEL_0, LABEL_1, ...).
    """
    path = file_of(reference, "config.json")
    table = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    named = {str(number): str(name) for number, name in ({**table, **args}.get("id2label") or {}).items()}
    names = tuple(named.get(str(number), f"LABEL_{number}") for number in range(len(named)))
    return () if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def reorder(module: HuggingFace, places: Sequence[int]) -> None:
    """Bring the classes into another order: output i becomes that which is number `places[i]` now.

    The rows of the head's last layer change their places: of the linear layer with so many outputs with which the
    answers to random samples do so too. Raises `ModelError` where there is none.
    """
    feeds = example_feeds(module, 4, 0)
    examples = [torch.from_numpy(feeds[spec.name]) for spec in module.inputs]
    heads = [one for one in module.modules() if isinstance(one, nn.Linear) and one.out_features == len(places)]
    with torch.no_grad(), evaluating(module):
        expected = module(*examples)["logits"][:, places]
        for head in heads:
            kept = [parameter.clone() for parameter in head.parameters()]
            for parameter, value in zip(head.parameters(), kept):
                parameter.copy_(value[list(places)])
            if torch.allclose(module(*examples)["logits"], expected, atol=1e-5):
                return
            for parameter, value in zip(head.parameters(), kept):
                parameter.copy_(value)
    raise ModelError(
        f"the outputs of {type(module.model).__name__} cannot be brought into the order of the data: they do not come "
        "from one linear layer. Save it with the classes (id2label) in the order of the data"
    )


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    """Where its numbers lie: equal for two names of one parameter."""
    return tensor.data_ptr(), tensor.shape
