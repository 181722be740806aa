"""Adapters by name: modules of the objective that bring the tensors of student and teacher together.

    builder(student_shape, teacher_shape, *, student_module=None, teacher_module=None, num_samples=None, **own options)
    adapter(student, teacher, batch) -> (student, teacher, further keyword arguments of the loss)
    adapter.after_step()                where there is one: called once after each step of the optimizer
    adapter.holds_networks              where it is there and true: called under the student's autocast

`num_samples` are those of the training split; `batch["index"]` says which of them these are, from 0. Shapes are those
of one sample. A term that taps several tensors gives lists of shapes, of modules and of tensors.
Their parameters are trained with the student and lie in the checkpoint, never in the student.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike

from torch import nn

from edgekd.errors import UsageError, nearest
from edgekd.references import import_reference

# name -> module:builder
ADAPTERS: dict[str, str] = {
    "auto": "edgekd.distill.adapters.widths:auto",
    "linear": "edgekd.distill.adapters.embeddings:linear",
    "unit": "edgekd.distill.adapters.embeddings:unit",
    "combine": "edgekd.distill.adapters.embeddings:combine",
    "contrastive_memory": "edgekd.distill.adapters.embeddings:contrastive_memory",
    "regressor": "edgekd.distill.adapters.maps:regressor",
    "connector": "edgekd.distill.adapters.maps:connector",
    "overhaul": "edgekd.distill.adapters.maps:overhaul",
    "vid": "edgekd.distill.adapters.maps:vid",
    "factor": "edgekd.distill.adapters.maps:factor",
    "review": "edgekd.distill.adapters.maps:review",
    "discriminator": "edgekd.distill.adapters.discriminator:discriminator",
    "peers": "edgekd.distill.adapters.peers:peers",
    "attention_scores": "edgekd.distill.adapters.attention:attention_scores",
    "average_teacher": "edgekd.distill.adapters.peers:average_teacher",
}

# Adapters that look at the student alone: their terms need no teacher.
WITHOUT_TEACHER = frozenset({"peers", "average_teacher"})


def find_adapter(name: str, *, search_path: str | PathLike[str] | None = None) -> Callable[..., nn.Module]:
    """The builder `name`: one of `ADAPTERS`, or the user's own `package.module:builder`.

    Raises `UsageError` with the nearest name for an unknown one, `ModelError` when a reference leads nowhere.
    """
    if ":" not in name and name not in ADAPTERS:
        raise UsageError(f"unknown adapter '{name}'. {nearest(name, ADAPTERS)}. Or your own package.module:builder")
    return import_reference(ADAPTERS.get(name, name), search_path=None if name in ADAPTERS else search_path)
