"""Small text models for the smallest devices: a bag of words, convolutions, a recurrent network.

All take token ids (N, L) int64, padded on the right with `pad`, and give logits (N, num_outputs). The mask is
`ids != pad`, computed inside: the answer to a text does not depend on how far it is padded, and no gradient reaches
the row of `pad`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.errors import ModelError

# Of the pair (a, b): a * _FACTOR + b. A prime, so that pairs spread over the buckets.
_FACTOR = 1_000_003


def bow_s(*, num_outputs: int, vocabulary: int, pad: int = 0) -> nn.Module:
    """`BagOfWords` of width 64."""
    return BagOfWords(num_outputs, vocabulary, pad, width=64)


def bow_m(*, num_outputs: int, vocabulary: int, pad: int = 0, width: int = 64, buckets: int = 16384) -> nn.Module:
    """`BagOfWords` of width 64 with bigrams in 16384 buckets."""
    return BagOfWords(num_outputs, vocabulary, pad, width=width, buckets=buckets)


def text_cnn_s(*, num_outputs: int, vocabulary: int, pad: int = 0) -> nn.Module:
    """`TextCNN` of width 48 and 48 filters of each length."""
    return TextCNN(num_outputs, vocabulary, pad, width=48, filters=48)


def text_cnn_m(
    *,
    num_outputs: int,
    vocabulary: int,
    pad: int = 0,
    width: int = 96,
    filters: int = 128,
    lengths: Sequence[int] = (3, 4, 5),
) -> nn.Module:
    """`TextCNN` of width 96 and 128 filters of each length."""
    return TextCNN(num_outputs, vocabulary, pad, width=width, filters=filters, lengths=lengths)


def bigru_s(*, num_outputs: int, vocabulary: int, pad: int = 0) -> nn.Module:
    """`BiGRU` of width 48 and 64 units in each direction."""
    return BiGRU(num_outputs, vocabulary, pad, width=48, hidden=64)


def bigru_m(*, num_outputs: int, vocabulary: int, pad: int = 0, width: int = 96, hidden: int = 128) -> nn.Module:
    """`BiGRU` of width 96 and 128 units in each direction."""
    return BiGRU(num_outputs, vocabulary, pad, width=width, hidden=hidden)


class BagOfWords(nn.Module):
    """Mean of the embeddings of all tokens and, with `buckets`, of all pairs of neighbours; then linear.

    A pair has the row (1000003 a + b) mod buckets of a table of its own: different pairs may share one. An empty text
    has the mean 0.

    Joulin, Grave, Bojanowski and Mikolov, "Bag of Tricks for Efficient Text Classification", 2016, arXiv:1607.01759.
    """

    def __init__(
        self, num_outputs: int, vocabulary: int, pad: int, *, width: int, buckets: int = 0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        _at_least_one("bow", width=width)
        self.pad = pad
        self.buckets = buckets
        self.embedding = token_embedding(vocabulary, width, pad)
        self.pairs = Embedding(buckets, width, std=0.1) if buckets else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, L) to (N, num_outputs)."""
        mask_NL = ids != self.pad
        sum_ND = _masked(self.embedding(ids), mask_NL).sum(dim=1)
        count_N = mask_NL.sum(dim=1)
        if self.pairs is not None:
            # A text of one token has no pair, but its slices would be empty: the pair of the last token is `pad`'s.
            next_NL = F.pad(ids, (0, 1), value=self.pad)[:, 1:]
            both_NL = mask_NL & (next_NL != self.pad)
            rows_NL = (ids * _FACTOR + next_NL) % self.buckets
            sum_ND = sum_ND + _masked(self.pairs(rows_NL), both_NL).sum(dim=1)
            count_N = count_N + both_NL.sum(dim=1)
        mean_ND = sum_ND / count_N.clamp(min=1).to(sum_ND.dtype)[:, None]
        logits: Tensor = self.head(self.dropout(mean_ND))
        return logits


class TextCNN(nn.Module):
    """Convolutions of several `lengths` over the embeddings, ReLU, maximum over time, dropout, linear.

    Convolutions are wide: each window that holds at least one token counts, so a text may be shorter than any of them.

    Kim, "Convolutional Neural Networks for Sentence Classification", 2014, arXiv:1408.5882.
    """

    def __init__(
        self,
        num_outputs: int,
        vocabulary: int,
        pad: int,
        *,
        width: int,
        filters: int,
        lengths: Sequence[int] = (3, 4, 5),
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        _at_least_one("text_cnn", width=width, filters=filters, lengths=min(lengths, default=0))
        self.pad = pad
        self.embedding = token_embedding(vocabulary, width, pad)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, n, padding=n - 1) for n in lengths)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(filters * len(lengths), num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, L) to (N, num_outputs)."""
        mask_NL = ids != self.pad
        x_NDL = _masked(self.embedding(ids), mask_NL).transpose(1, 2)
        found = []
        for convolution in self.convolutions:
            found_NFW = torch.relu(convolution(x_NDL))
            # Of the L + n - 1 windows the first (tokens + n - 1) hold a token. The others are taken for 0, which is
            # the least that a ReLU gives.
            more = found_NFW.shape[2] - ids.shape[1]
            windows_NW = F.pad(mask_NL.to(x_NDL.dtype), (more, 0), value=1.0)
            found.append((found_NFW * windows_NW[:, None, :]).amax(dim=2))
        logits: Tensor = self.head(self.dropout(torch.cat(found, dim=1)))
        return logits


class BiGRU(nn.Module):
    """A GRU over the text and another over the text read backwards, maximum over time of both, dropout, linear.

    The second one gets the tokens of each text in reverse and then its padding, instead of walking through the padding
    first as a bidirectional `nn.GRU` would: what a GRU says of a token depends only on those before it, so neither
    direction sees any padding, in torch and in ONNX alike.

    Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk and Bengio, "Learning Phrase Representations using RNN
    Encoder-Decoder", 2014, arXiv:1406.1078.
    """

    def __init__(
        self, num_outputs: int, vocabulary: int, pad: int, *, width: int, hidden: int, dropout: float = 0.3
    ) -> None:
        super().__init__()
        _at_least_one("bigru", width=width, hidden=hidden)
        self.pad = pad
        self.embedding = token_embedding(vocabulary, width, pad)
        self.forwards = GRU(width, hidden)
        self.backwards = GRU(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, L) to (N, num_outputs)."""
        mask_NL = ids != self.pad
        place_L = torch.arange(ids.shape[1], device=ids.device)
        last_N1 = mask_NL.sum(dim=1, keepdim=True) - 1
        reversed_NL = ids.gather(1, (last_N1 - place_L).clamp(min=0))
        states = [self.forwards(self.embedding(ids)), self.backwards(self.embedding(reversed_NL))]
        # -1 is the least that a GRU can say.
        found = [torch.where(mask_NL[:, :, None], h_NLH, -1.0).amax(dim=1) for h_NLH in states]
        logits: Tensor = self.head(self.dropout(torch.cat(found, dim=1)))
        return logits


class GRU(nn.Module):
    """A gated recurrent unit, (N, L, D) to its states (N, L, H), with its weights in the order of ONNX: z, r, n.

    torch's exporter unrolls `nn.GRU` over the length of its example, so that only this length could be run. This one
    is a single operator in ONNX, and `nn.GRU` in torch. The reset gate comes behind the product, as in cuDNN.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.input_weight = nn.Parameter(torch.empty(1, 3 * hidden, width))
        self.hidden_weight = nn.Parameter(torch.empty(1, 3 * hidden, hidden))
        self.bias = nn.Parameter(torch.empty(1, 6 * hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as `nn.GRU` does."""
        reach = self.hidden**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -reach, reach)

    def forward(self, x_NLD: Tensor) -> Tensor:
        """What it says of each token, knowing those before it."""
        if torch.onnx.is_in_onnx_export():
            return self._as_operator(x_NLD)
        weights = [_for_torch(value[0]) for value in (self.input_weight, self.hidden_weight)]
        biases = [_for_torch(value) for value in self.bias[0].chunk(2)]
        first_1NH = x_NLD.new_zeros(1, x_NLD.shape[0], self.hidden)
        states_NLH: Tensor = torch.gru(x_NLD, first_1NH, [*weights, *biases], True, 1, 0.0, False, False, True)[
            0
        ]  # with biases, 1 layer, no dropout, not training it, one direction, batch first
        return states_NLH

    def _as_operator(self, x_NLD: Tensor) -> Tensor:
        x_LND = x_NLD.transpose(0, 1)
        states_LDNH = torch.onnx.ops.symbolic(
            "GRU",
            [x_LND, self.input_weight, self.hidden_weight, self.bias],
            {"hidden_size": self.hidden, "linear_before_reset": 1},
            dtype=x_NLD.dtype,
            shape=(x_LND.shape[0], 1, x_LND.shape[1], self.hidden),
            version=18,
        )
        return states_LDNH.squeeze(1).transpose(0, 1)


def _for_torch(gates: Tensor) -> Tensor:
    """z, r, n of ONNX to torch's r, z, n."""
    z, r, n = gates.chunk(3)
    return torch.cat([r, z, n])


class Embedding(nn.Embedding):
    """A table of normal random rows with the deviation `std`; that of `pad` is zero and stays so."""

    def __init__(self, rows: int, width: int, *, std: float, pad: int | None = None) -> None:
        self.std = std  # torch's own constructor draws the rows
        super().__init__(rows, width, padding_idx=pad)

    def reset_parameters(self) -> None:
        """Draw the rows anew."""
        super().reset_parameters()  # its draws come first: the same seed has always given the same weights
        nn.init.normal_(self.weight, std=self.std)
        self._fill_padding_idx_with_zero()


def token_embedding(vocabulary: int, width: int, pad: int, *, std: float = 0.1) -> nn.Embedding:
    """The table of a vocabulary. Raises `ModelError` for a pad id outside."""
    _at_least_one("the embedding", vocabulary=vocabulary)
    if not 0 <= pad < vocabulary:
        raise ModelError(f"found pad = {pad} in a vocabulary of {vocabulary} tokens, expected 0 to {vocabulary - 1}")
    return Embedding(vocabulary, width, std=std, pad=pad)


def _masked(x_NLD: Tensor, mask_NL: Tensor) -> Tensor:
    return x_NLD * mask_NL.to(x_NLD.dtype)[:, :, None]


def _at_least_one(what: str, **sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ModelError(f"{what}: found {name} = {value!r}, expected a whole number from 1")
