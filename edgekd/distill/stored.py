"""What is kept of a teacher's answer, and what a student gets back of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from edgekd.distill.answers import INDICES, LOG_PROBABILITIES, LOG_REST, LOGITS, NOTHING, TOLD, with_logits
from edgekd.errors import StageFailed, UsageError
from edgekd.spec import Array

# What the teacher saw, in one number: answers belong to exactly these pixels.
PIXELS = "pixels"
# How a top-k was kept before: the logits, and the logsumexp of all. Read, but no longer written.
TOPK_LOGITS, LOGSUMEXP = "topk_logits", "logsumexp"
# Whatever else is stored is a feature, by its tap.
_NO_FEATURES = (LOGITS, INDICES, LOG_PROBABILITIES, LOG_REST, PIXELS, TOPK_LOGITS, LOGSUMEXP)


@dataclass(frozen=True)
class Store:
    """How answers are kept.

    dtype   of the logits. float32: what a student learns is what the live teacher would teach, bit for bit
    top_k   keep only the k largest logits of each row, less the logsumexp of all, and the logarithm of what they leave
            of the probability, which is then spread evenly over the other classes; None keeps all
    taps    the teacher's tensors; those beside the logits are features and are kept in float16
    """

    dtype: Literal["float32", "float16"] = "float32"
    top_k: int | None = None
    taps: tuple[str, ...] = (LOGITS,)

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        # What a top-k was kept as before could not tell a small rest from none.
        kept = {} if self.top_k is None else {"rest": "log"}
        return {**asdict(self), "taps": sorted({LOGITS, *self.taps}), **kept}


def encode(named: Mapping[str, Tensor], store: Store, *, num_outputs: int) -> dict[str, Array]:
    """What is kept of a teacher's named tensors, by the name of the stored tensor.

    Raises `UsageError` when there are no more than k classes, `StageFailed` for values that float16 cannot hold.
    """
    kept: dict[str, Array] = {}
    if INDICES in named:  # it told no more than that itself
        kept |= _topk(named[INDICES], named[LOG_PROBABILITIES], store, num_outputs)
    elif store.top_k is None:
        kept[LOGITS] = _cast(named[LOGITS], store.dtype, LOGITS)
    else:
        logits_NC = named[LOGITS].float().cpu()
        if store.top_k >= logits_NC.shape[1]:
            raise UsageError(
                f"distill.cache_top_k = {store.top_k}, but there are {logits_NC.shape[1]} classes; remove it"
            )
        indices_NK = logits_NC.topk(store.top_k, dim=1).indices
        log_p_NC = torch.log_softmax(logits_NC.double(), dim=1)
        # From the other classes themselves: of a sure teacher, 1 minus the sum of the k is rounding and nothing else.
        others_NC = log_p_NC.scatter(1, indices_NK, -torch.inf)
        rest_N = torch.logsumexp(others_NC, dim=1).clamp(min=NOTHING)
        kept |= _topk(indices_NK, log_p_NC.gather(1, indices_NK), store, num_outputs)
        kept[LOG_REST] = _cast(rest_N, "float32", LOG_REST)
    for tap in store.taps:
        if tap not in TOLD:
            kept[tap] = _cast(named[tap], "float16", tap)
    return kept


def shown(batch: Mapping[str, Tensor]) -> Tensor:
    """What the teacher is shown of each sample; of texts without the padding, which is as the batch wants it."""
    x, mask = batch["x"], batch.get("mask")
    return x if mask is None or mask.shape != x.shape else x * mask


def pixels_of(x: Tensor) -> Tensor:
    """(N,) float32: a sum over each sample, every value with a weight of its own, so that flips and shifts show."""
    flat_ND = x.detach().cpu().double().reshape(len(x), -1)
    weights_D = torch.sin(torch.arange(1, flat_ND.shape[1] + 1, dtype=torch.float64))
    return (flat_ND @ weights_D).float()


def decode(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors, float32, from stored ones: the logits, or the top-k that they were reduced to, and features."""
    named = {name: value.float() for name, value in stored.items() if name not in (INDICES, PIXELS)}
    if TOPK_LOGITS in named:
        log_p_NK = named.pop(TOPK_LOGITS) - named.pop(LOGSUMEXP)[:, None]
        named[LOG_PROBABILITIES] = log_p_NK.clamp(min=NOTHING, max=0.0)
    if INDICES in stored:
        named[INDICES] = stored[INDICES].long()
    return named


def as_kept(named: Mapping[str, Tensor], store: Store, *, num_outputs: int) -> dict[str, Tensor]:
    """A teacher's named tensors as a cache with this store gives them back. Raises as `encode` does."""
    kept = encode(named, store, num_outputs=num_outputs)
    return with_logits(decode({name: torch.from_numpy(value) for name, value in kept.items()}), num_outputs)


def needed(stored: Iterable[str], taps: Iterable[str]) -> list[str]:
    """Of the names of stored tensors, those that who looks at `taps` needs."""
    wanted = {*_NO_FEATURES, *taps}
    return [name for name in stored if name in wanted]


def _topk(indices_NK: Tensor, log_probabilities_NK: Tensor, store: Store, num_outputs: int) -> dict[str, Array]:
    narrow = np.int16 if num_outputs <= np.iinfo(np.int16).max else np.int32
    return {
        INDICES: indices_NK.cpu().numpy().astype(narrow),
        LOG_PROBABILITIES: _cast(log_probabilities_NK.clamp(min=NOTHING, max=0.0), store.dtype, LOG_PROBABILITIES),
    }


def _cast(values: Tensor, dtype: Literal["float32", "float16"], name: str) -> Array:
    array: Array = values.detach().to(torch.float16 if dtype == "float16" else torch.float32).cpu().numpy()
    if not np.isfinite(array).all():
        raise StageFailed(
            f"the teacher's {name} reaches {float(values.abs().max()):.3g}, which {dtype} cannot hold; keep logits in "
            "float32 (distill.cache_dtype), or tap features behind a normalization"
        )
    return array
