"""Losses by name. Each is a pure function; its first arguments say what it needs.

    student_...                                    what the student gives, always first
    teacher_...                                    what the teacher gives; only if the loss wants a teacher
    labels_N or targets_...                        the truth; only if the loss wants it

Everything after them is a keyword with a default: the `options` of a term in the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike

from torch import Tensor

from edgekd.errors import UsageError, nearest
from edgekd.references import import_reference

# name -> module:function
LOSSES: dict[str, str] = {
    "cross_entropy": "edgekd.distill.losses.logits:cross_entropy",
    "binary_cross_entropy": "edgekd.distill.losses.targets:binary_cross_entropy",
    "mean_squared_error": "edgekd.distill.losses.targets:mean_squared_error",
    "kd": "edgekd.distill.losses.logits:kd",
    "soft_cross_entropy": "edgekd.distill.losses.logits:soft_cross_entropy",
    "logit_mse": "edgekd.distill.losses.logits:logit_mse",
    "dkd": "edgekd.distill.losses.logits:dkd",
    "dist": "edgekd.distill.losses.correlations:dist",
    "logit_standardized_kd": "edgekd.distill.losses.logits:logit_standardized_kd",
    "class_correlation": "edgekd.distill.losses.correlations:class_correlation",
    "batch_correlation": "edgekd.distill.losses.correlations:batch_correlation",
    "multi_temperature_kd": "edgekd.distill.losses.logits:multi_temperature_kd",
    "teacher_free": "edgekd.distill.losses.logits:teacher_free",
    "multilabel_kd": "edgekd.distill.losses.targets:multilabel_kd",
    "regression_kd": "edgekd.distill.losses.targets:regression_kd",
}

# Losses that compare element by element: student and teacher must have the same width, or an adapter between them.
EQUAL_SHAPES: frozenset[str] = frozenset()


def find_loss(name: str, *, search_path: str | PathLike[str] | None = None) -> Callable[..., Tensor]:
    """The loss function `name`: one of `LOSSES`, or the user's own `package.module:function`.

    Raises `UsageError` with the nearest name for an unknown one, `ModelError` when a reference leads nowhere.
    """
    if ":" not in name and name not in LOSSES:
        raise UsageError(f"unknown loss '{name}'. {nearest(name, LOSSES)}. Or your own package.module:function")
    return import_reference(LOSSES.get(name, name), search_path=None if name in LOSSES else search_path)
