"""Stage `student_whole`, and how the student of the recipe's [student] prune and low_rank begins.

The whole student is trained like any student (or comes with `weights`), loses channels or ranks, and learns again in
the stage `student`. The student alone, for comparison, has the shape that the cut left, and new weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.hub import weights_file
from edgekd.stages.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor, nn

WHOLE = "student_whole"
KEYS = ("prune", "prune_by", "low_rank")
# Samples that decide what a channel is worth, where that takes a loss.
_SAMPLES = 256


def is_wanted(space: Workspace) -> bool:
    """Whether the recipe's student is cut."""
    section = space.recipe.student
    return section.prune is not None or section.low_rank is not None


def begin(space: Workspace, name: str) -> nn.Module:
    """The cut student before it learns again; for `student_alone` its shape, with weights that know nothing."""
    import torch

    from edgekd.distill.reshaping import shaped_like, shapes_of
    from edgekd.stages.training import build

    section, seed = space.recipe.student, space.recipe.seed
    smaller = cut(space, whole(space))
    if name == "student" or section.weights is not None:
        return smaller
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return shaped_like(build(space, section, seed=seed), shapes_of(smaller.state_dict()))


def whole(space: Workspace) -> nn.Module:
    """The student before the cut, trained."""
    from edgekd.distill.models import load_weights
    from edgekd.stages.training import build

    section = space.recipe.student
    module = build(space, section, seed=space.recipe.seed)
    trained = space.path / WHOLE / "weights.safetensors"
    load_weights(module, trained if section.weights is None else weights_file(section.weights, space.search_path))
    return module.eval()


def cut(space: Workspace, module: nn.Module, *, by: str | None = None) -> nn.Module:
    """A copy of `module` without the channels and ranks that the recipe takes. `by` in the place of its prune_by."""
    from edgekd.distill.low_rank import factorize
    from edgekd.distill.pruning import prune

    section = space.recipe.student
    if section.prune is not None:
        shape, judged = space.prepared.input_shape, by or section.prune_by
        pruned = prune(module, section.prune, input_shape=shape, by=judged, loss=lambda net: _loss(space, net))
        hidden = {path: reason for path, reason in pruned.fixed.items() if reason != "they are the outputs"}
        for path, reason in hidden.items():
            space.listener.warn(f"student: the channels of '{path}' stay, {reason}")
        module = pruned.module
    if section.low_rank is not None:
        module = factorize(module, rank=section.low_rank.rank, energy=section.low_rank.energy)
    return module


def shape(module: nn.Module, weights: Path) -> None:
    """Cut `module` to the shape of what was saved in `weights`."""
    from safetensors import safe_open

    from edgekd.distill.reshaping import shaped_like

    with safe_open(weights, framework="pt") as file:
        shaped_like(module, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118


def _loss(space: Workspace, module: nn.Module) -> Tensor:
    """The task's loss on some samples of the train split."""
    import torch
    from torch.nn import functional as F

    from edgekd.distill.models import logits_of

    train = space.prepared.dataset.train
    some = train.take(np.linspace(0, len(train) - 1, min(_SAMPLES, len(train))).astype(np.intp))
    device = next(module.parameters()).device
    given = logits_of(module(torch.from_numpy(space.prepared.samples(some)).to(device)))
    target = torch.from_numpy(np.asarray(some.y)).to(device)
    if space.recipe.task == "classification":
        return F.cross_entropy(given, target.long())
    loss: Any = F.binary_cross_entropy_with_logits if space.recipe.task == "multilabel" else F.mse_loss
    return loss(given, target.float())  # type: ignore[no-any-return]
