"""What a loss does with the rows that it gets: compares them, takes their mean, looks at their truth.

Losses that compare samples with one another do not have, of a part of a batch, a part of the loss.

On several processes they get the student's and the teacher's tensors of the whole batch, with gradient. All others
are means over samples, or over their tokens: there each process computes the mean over its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from edgekd.distill.losses import LOSSES

Mean = Literal["tokens", "pairs", "samples"]

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


# Of what a loss is the mean that takes a mask (N, L) and gets one: of the tokens that count, unless it is named here.
MEAN_OF: dict[str, Mean] = {"attention_mse": "pairs", "minilm_relation": "samples"}


def mean_of(loss: Callable[..., Tensor]) -> Mean:
    """Over what a loss with a mask takes its mean; the user's own over tokens."""
    return next((mean for name, mean in MEAN_OF.items() if LOSSES.get(name) == _reference(loss)), "tokens")


# Losses that look at the truth only with an option: at any value but None, or at this one.
TRUTH_WITH: dict[str, tuple[str, str | None]] = {"regression_kd": ("margin", None), "curriculum_kd": ("by", "loss")}


def looks_at_truth(loss: Callable[..., Tensor], options: Mapping[str, object]) -> bool:
    """Whether a loss with a parameter for the truth needs it with these options."""
    for name, (option, value) in TRUTH_WITH.items():
        if LOSSES.get(name) == _reference(loss):
            given = options.get(option)
            return given is not None if value is None else given == value
    return True


def _reference(loss: Callable[..., Tensor]) -> str:
    return f"{loss.__module__}:{getattr(loss, '__qualname__', '')}"


def compares_samples(loss: Callable[..., Tensor]) -> bool:
    """Whether this is one of them."""
    return any(LOSSES.get(name) == _reference(loss) for name in COMPARE_SAMPLES)
