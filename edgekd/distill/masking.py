"""Masked language modelling: which tokens of a text a model has to guess, as a pure function of (seed, view, sample).

Of the tokens that are no special ones a share is asked for, and at least one of each text. Of these 80 % are shown as
the mask, 10 % as any other token and 10 % as they are, in every epoch others (dynamic masking).

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2018, arXiv:1810.04805. Liu et al., "RoBERTa",
2019, arXiv:1907.11692 (dynamic masking).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.randomness import key, uniforms, words
from edgekd.errors import UsageError

# What batches of masked texts hold besides: (N,) how many tokens of each are asked for.
ASKED = "asked"
SHOWN_AS_MASK, SHOWN_AS_OTHER = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """How texts of a vocabulary are masked.

    token        the id of the mask
    others       (K,) the ids that are no special tokens: those that may be asked for, and shown in the place of others
    size         of the vocabulary
    probability  the share of the tokens that is asked for
    """

    token: int
    others: NDArray[np.int64]
    size: int
    probability: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise UsageError(f"found probability = {self.probability} of a mask, expected a share above 0 and below 1")

    def describe(self) -> dict[str, float]:
        """Plain values, equal for maskings that do the same to the same texts."""
        return {"token": self.token, "others": len(self.others), "size": self.size, "probability": self.probability}

    def __call__(
        self, ids_NL: Tensor, samples_N: NDArray[np.int64], *, seed: int, view: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a model reads (N, 2, L): the ids as they are shown, and 1 where it is asked; what is right there (M,),
        row by row; and of each text how many tokens are asked for (N,)."""
        ids = ids_NL.numpy()
        count, length = ids.shape
        is_other = np.zeros(self.size, np.bool_)
        is_other[self.others] = True
        # Longer batches draw more numbers, but the same ones first: neighbours do not change a text's mask.
        drawn = uniforms(words(key(seed, view, 5), samples_N), 3 * length).reshape(count, length, 3)
        may = is_other[ids]
        first = np.where(may, drawn[..., 0], 2.0)
        asked = may & ((first < self.probability) | (first == first.min(axis=1, keepdims=True)))
        other = self.others[np.floor(drawn[..., 2] * len(self.others)).astype(np.intp)]
        kind = drawn[..., 1]
        shown = np.where(kind < SHOWN_AS_MASK + SHOWN_AS_OTHER, other, ids)
        shown = np.where(kind < SHOWN_AS_MASK, self.token, shown)
        x = np.stack([np.where(asked, shown, ids), asked], axis=1).astype(np.int64)
        return torch.from_numpy(x), torch.from_numpy(ids[asked]), torch.from_numpy(asked.sum(axis=1))


def likelihoods(logits_MV: Tensor, labels_M: Tensor, asked_N: Tensor) -> Tensor:
    """(N, 2) float32: for each text the sum of log softmax(logits) of the right tokens, and how many those are."""
    right_M = -torch.nn.functional.cross_entropy(logits_MV.float(), labels_M, reduction="none")
    rows_M = torch.repeat_interleave(torch.arange(len(asked_N), device=right_M.device), asked_N)
    sums_N = torch.zeros(len(asked_N), device=right_M.device).index_add_(0, rows_M, right_M)
    return torch.stack([sums_N, asked_N.to(sums_N.dtype)], dim=1)
