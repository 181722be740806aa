"""Models that turn a text into a unit vector, near those of texts that mean the same.

Reimers and Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", 2019, arXiv:1908.10084.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pooling = Literal["mean", "first"]


class SentenceEncoder(nn.Module):
    """An encoder's last hidden states (N, L, W), pooled over the tokens that count, as vectors (N, D) of length 1.

    body     ids (N, L) and mask (N, L) to hidden states: `body(input_ids=, attention_mask=).last_hidden_state`
    pad      the id of the padding
    rows     (V,) the body's own id of each id that it is given, or None
    width    W
    outputs  D; another number than W: the vectors go through a matrix W x D (the teacher's of a principal component
             analysis, the student's learned) and are made unit vectors again
    """

    rows: Tensor | None

    def __init__(
        self, body: nn.Module, *, pad: int, rows: Tensor | None, width: int, outputs: int, pooling: Pooling = "mean"
    ) -> None:
        super().__init__()
        self.body, self.pad, self.pooling = body, pad, pooling
        self.register_buffer("rows", rows)
        self.project = nn.Linear(width, outputs, bias=False) if outputs != width else None

    def forward(self, ids_NL: Tensor) -> Tensor:
        mask_NL = ids_NL != self.pad
        own = ids_NL if self.rows is None else self.rows[ids_NL]
        hidden_NLW: Tensor = self.body(input_ids=own, attention_mask=mask_NL.to(torch.int64)).last_hidden_state
        if self.pooling == "first":
            pooled_NW = hidden_NLW[:, 0]
        else:
            weights_NL1 = mask_NL.unsqueeze(-1).to(hidden_NLW.dtype)
            pooled_NW = (hidden_NLW * weights_NL1).sum(dim=1) / weights_NL1.sum(dim=1).clamp(min=1.0)
        vectors = F.normalize(pooled_NW, dim=-1)
        return vectors if self.project is None else F.normalize(self.project(vectors), dim=-1)


class Unit(nn.Module):
    """Any model of texts whose outputs (N, D) are made unit vectors: a student of a `SentenceEncoder` that is none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_NL: Tensor) -> Tensor:
        output = self.model(ids_NL)
        vectors: Tensor = output["logits"] if isinstance(output, Mapping) else output
        return F.normalize(vectors, dim=-1)
