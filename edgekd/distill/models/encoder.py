"""A small transformer encoder for texts, after BERT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from edgekd.distill.models.text import token_embedding
from edgekd.errors import ModelError

_POSITIONS = 128


def encoder_xs(
    *, num_outputs: int, vocabulary: int, pad: int = 0, input_shape: Sequence[int] = (_POSITIONS,)
) -> nn.Module:
    """`Encoder` of 2 layers, width 64, 2 heads and 256 inside."""
    return Encoder(num_outputs, vocabulary, pad, layers=2, width=64, heads=2, inner=256, positions=input_shape[0])


def encoder_s(
    *, num_outputs: int, vocabulary: int, pad: int = 0, input_shape: Sequence[int] = (_POSITIONS,)
) -> nn.Module:
    """`Encoder` of 2 layers, width 128, 2 heads and 512 inside: the size of BERT-tiny."""
    return Encoder(num_outputs, vocabulary, pad, layers=2, width=128, heads=2, inner=512, positions=input_shape[0])


def encoder_m(
    *,
    num_outputs: int,
    vocabulary: int,
    pad: int = 0,
    input_shape: Sequence[int] = (_POSITIONS,),
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    inner: int = 1024,
    embedding_width: int | None = 96,
    pool: Literal["mean", "first"] = "mean",
    dropout: float = 0.1,
) -> nn.Module:
    """`Encoder` of 4 layers, width 256, 4 heads and 1024 inside: BERT-mini, with a factorized embedding of width 96."""
    return Encoder(
        num_outputs,
        vocabulary,
        pad,
        layers=layers,
        width=width,
        heads=heads,
        inner=inner,
        embedding_width=embedding_width,
        positions=input_shape[0],
        pool=pool,
        dropout=dropout,
    )


class Encoder(nn.Module):
    """Embeddings and learned positions, then layers of attention and GELU with layer norm behind each, then linear.

    Takes token ids (N, L) int64, padded on the right with `pad`, and gives logits (N, num_outputs).

    embedding_width  of the tables of tokens and positions, a linear layer brings it to `width`: most of a small text
                     model is its table (ALBERT). None: `width`
    positions        length of the table; tokens behind it share the last position
    pool             what the last layer reads: the mean of all tokens, or the first one ([CLS])

    Devlin, Chang, Lee and Toutanova, "BERT", 2018, arXiv:1810.04805; Lan, Chen, Goodman, Gimpel, Sharma and Soricut,
    "ALBERT", 2019, arXiv:1909.11942. Without token types, and without BERT's pooler.
    """

    def __init__(
        self,
        num_outputs: int,
        vocabulary: int,
        pad: int,
        *,
        layers: int,
        width: int,
        heads: int,
        inner: int,
        positions: int,
        embedding_width: int | None = None,
        pool: Literal["mean", "first"] = "mean",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = {"layers": layers, "width": width, "heads": heads, "inner": inner, "positions": positions}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ModelError(f"encoder: found {name} = {value!r}, expected a whole number from 1")
        if width % heads:
            raise ModelError(f"encoder: found width = {width} and heads = {heads}, expected a multiple of the heads")
        if pool not in ("mean", "first"):
            raise ModelError(f"encoder: found pool = '{pool}', expected 'mean' or 'first'")
        self.pad = pad
        self.pool = pool
        table = embedding_width or width
        self.embedding = token_embedding(vocabulary, table, pad, std=0.02)
        self.positions = nn.Embedding(positions, table)
        self.project = nn.Identity() if table == width else nn.Linear(table, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, inner, dropout=dropout) for _ in range(layers))
        self.head = nn.Linear(width, num_outputs)
        for part in (self.positions, *(part for part in self.modules() if isinstance(part, nn.Linear))):
            self._init_weights(part)

    def _init_weights(self, part: nn.Module) -> None:
        """As BERT draws them; the table of tokens draws itself."""
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
        elif part is self.positions:
            nn.init.normal_(part.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, L) to (N, num_outputs)."""
        place_L = torch.arange(ids.shape[1], device=ids.device)
        # The first token always counts: a softmax over no token at all would depend on the padding.
        mask_NL = (ids != self.pad) | (place_L == 0)
        x_NLT = self.embedding(ids) + self.positions(place_L.clamp(max=self.positions.num_embeddings - 1))
        x_NLD = self.dropout(self.norm(self.project(x_NLT)))
        for layer in self.layers:
            x_NLD = layer(x_NLD, mask_NL)
        if self.pool == "first":
            pooled_ND = x_NLD[:, 0]
        else:
            weights_NL = mask_NL.to(x_NLD.dtype)
            pooled_ND = (x_NLD * weights_NL[:, :, None]).sum(dim=1) / weights_NL.sum(dim=1, keepdim=True)
        logits: Tensor = self.head(self.dropout(pooled_ND))
        return logits


class Layer(nn.Module):
    """Attention, then a feed-forward network, each with a shortcut and a layer norm behind it."""

    def __init__(self, width: int, heads: int, inner: int, *, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.widen = nn.Linear(width, inner)
        self.narrow = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        """(N, L, D) to the same shape; positions outside the mask are looked at by none."""
        q, k, v = (self._split(layer(x_NLD)) for layer in (self.query, self.key, self.value))
        scores_NALL = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        # Added, as exporters of others write it: `edgekd.graph.attention` knows it, and quantization then leaves the
        # scores alone. Their range is that of tokens that count: in int8 nothing could take a key out.
        bias_NL = torch.where(mask_NL, 0.0, torch.finfo(scores_NALL.dtype).min).to(scores_NALL.dtype)
        seen_NALH = self.dropout((scores_NALL + bias_NL[:, None, None, :]).softmax(dim=-1)) @ v
        x_NLD = self.attention_norm(x_NLD + self.dropout(self.out(seen_NALH.transpose(1, 2).flatten(2))))
        inner_NLI = nn.functional.gelu(self.widen(x_NLD))
        result: Tensor = self.norm(x_NLD + self.dropout(self.narrow(inner_NLI)))
        return result

    def _split(self, x_NLD: Tensor) -> Tensor:
        """(N, A, L, D / A)."""
        batch, length, _ = x_NLD.shape
        return x_NLD.reshape(batch, length, self.heads, -1).transpose(1, 2)
