"""Losses that compare samples with one another, so that a part of a batch does not have a part of the loss.

On several processes they get the student's and the teacher's tensors of the whole batch, with gradient. All others
are means over samples: there each process computes the mean over its own.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from edgekd.distill.losses import LOSSES

# contrastive compares through the memories of its adapter; the curricula choose from the batch; trusted terms divide by
# the trust in the batch.
COMPARE_SAMPLES: frozenset[str] = frozenset(
    {
        "dist",
        "class_correlation",
        "batch_correlation",
        "similarity_preserving",
        "pearson_features",
        "channel_correlation",
        "rkd_distance",
        "rkd_angle",
        "rkd",
        "pkt",
        "correlation_congruence",
        "contrastive",
        "curriculum_kd",
        "curriculum_cross_entropy",
        "trusted_kd",
        "trusted_cross_entropy",
    }
)


def compares_samples(loss: Callable[..., Tensor]) -> bool:
    """Whether this is one of them."""
    reference = f"{loss.__module__}:{getattr(loss, '__qualname__', '')}"
    return any(LOSSES.get(name) == reference for name in COMPARE_SAMPLES)
