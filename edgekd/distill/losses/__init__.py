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
    "topk_cross_entropy": "edgekd.distill.losses.topk:topk_cross_entropy",
    "topk_kd": "edgekd.distill.losses.topk:topk_kd",
    "curriculum_kd": "edgekd.distill.losses.selection:curriculum_kd",
    "curriculum_cross_entropy": "edgekd.distill.losses.selection:curriculum_cross_entropy",
    "trusted_kd": "edgekd.distill.losses.selection:trusted_kd",
    "trusted_cross_entropy": "edgekd.distill.losses.selection:trusted_cross_entropy",
    "hint": "edgekd.distill.losses.features:hint",
    "attention_transfer": "edgekd.distill.losses.features:attention_transfer",
    "similarity_preserving": "edgekd.distill.losses.features:similarity_preserving",
    "neuron_selectivity": "edgekd.distill.losses.features:neuron_selectivity",
    "hierarchical_context": "edgekd.distill.losses.features:hierarchical_context",
    "fsp": "edgekd.distill.losses.features:fsp",
    "factor_transfer": "edgekd.distill.losses.features:factor_transfer",
    "activation_boundary": "edgekd.distill.losses.features:activation_boundary",
    "overhaul_partial_l2": "edgekd.distill.losses.features:overhaul_partial_l2",
    "variational_information": "edgekd.distill.losses.features:variational_information",
    "channel_wise": "edgekd.distill.losses.features:channel_wise",
    "pearson_features": "edgekd.distill.losses.features:pearson_features",
    "channel_correlation": "edgekd.distill.losses.features:channel_correlation",
    "rkd_distance": "edgekd.distill.losses.relations:rkd_distance",
    "rkd_angle": "edgekd.distill.losses.relations:rkd_angle",
    "rkd": "edgekd.distill.losses.relations:rkd",
    "pkt": "edgekd.distill.losses.relations:pkt",
    "correlation_congruence": "edgekd.distill.losses.relations:correlation_congruence",
    "contrastive": "edgekd.distill.losses.relations:contrastive",
    "attention_mse": "edgekd.distill.losses.transformers:attention_mse",
    "hidden_mse": "edgekd.distill.losses.transformers:hidden_mse",
    "minilm_relation": "edgekd.distill.losses.transformers:minilm_relation",
    "patient": "edgekd.distill.losses.transformers:patient",
    "cosine_embedding": "edgekd.distill.losses.transformers:cosine_embedding",
    "generalized_jsd": "edgekd.distill.losses.sequence:generalized_jsd",
    "adversarial": "edgekd.distill.losses.adversarial:adversarial",
    "mutual_learning": "edgekd.distill.losses.adversarial:mutual_learning",
}

# Losses that compare element by element: student and teacher must have the same width, or an adapter between them.
EQUAL_SHAPES: frozenset[str] = frozenset(
    {
        "hint",
        "hierarchical_context",
        "activation_boundary",
        "channel_wise",
        "pearson_features",
        "channel_correlation",
        "hidden_mse",
        "patient",
        "cosine_embedding",
    }
)

# Losses that an adapter completes: it learns, or remembers, what they need beside the tapped tensors.
ADAPTER_OF: dict[str, str] = {
    "variational_information": "vid",
    "overhaul_partial_l2": "overhaul",
    "factor_transfer": "factor",
    "contrastive": "contrastive_memory",
    "correlation_congruence": "unit",
    "adversarial": "discriminator",
    "mutual_learning": "peers",
}

# Weights with which a term matters beside a cross-entropy of about 2.3: RepDistiller's scripts and the papers.
DEFAULT_WEIGHTS: dict[str, float] = {
    "kd": 0.9,
    "hint": 100.0,
    "attention_transfer": 1000.0,
    "similarity_preserving": 3000.0,
    "variational_information": 1.0,
    "rkd": 1.0,
    "pkt": 30000.0,
    "activation_boundary": 1.0,
    "factor_transfer": 200.0,
    "fsp": 50.0,
    "neuron_selectivity": 50.0,
    "contrastive": 0.8,
    "overhaul_partial_l2": 1e-3,
}


def find_loss(name: str, *, search_path: str | PathLike[str] | None = None) -> Callable[..., Tensor]:
    """The loss function `name`: one of `LOSSES`, or the user's own `package.module:function`.

    Raises `UsageError` with the nearest name for an unknown one, `ModelError` when a reference leads nowhere.
    """
    if ":" not in name and name not in LOSSES:
        raise UsageError(f"unknown loss '{name}'. {nearest(name, LOSSES)}. Or your own package.module:function")
    return import_reference(LOSSES.get(name, name), search_path=None if name in LOSSES else search_path)
