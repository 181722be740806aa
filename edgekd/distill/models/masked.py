"""Models that guess the tokens behind masks, from transformers: teacher and student of a masked-language programme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.models.from_teacher import parse_init, student_from
from edgekd.distill.models.hub import HuggingFace, fitted, load, quiet
from edgekd.errors import ModelError
from edgekd.spec import TensorSpec


class MaskedLanguageModel(HuggingFace):
    """Texts (N, 2, L) int64, the ids and 1 where one is asked for, to "logits" (M, V) for what is asked, row by row.

    Beside them "hidden" (N, L, D), the last hidden states; and where it is tapped, "token_logits" (N, L, V) of all
    tokens. Else the head computes nothing of those that are not asked for: they are six of seven, and the head of a
    small model costs as much as its layers.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.token_logits = nn.Identity()

    def forward(self, *args: Tensor) -> dict[str, Tensor]:
        (x_N2L,) = args
        assert self.pad is not None
        ids_NL, asked_NL = x_N2L[:, 0], x_N2L[:, 1].bool()
        own = ids_NL if self.rows is None else self.rows[ids_NL]
        mask = torch.ne(ids_NL, self.pad).to(torch.int64)
        base: Any = self.model.base_model
        hidden_NLD: Tensor = base(input_ids=own, attention_mask=mask, return_dict=True).last_hidden_state
        if self.token_logits._forward_hooks:
            logits_NLV: Tensor = self.token_logits(self._guess(hidden_NLD))
            return {"logits": logits_NLV[asked_NL], "hidden": hidden_NLD}
        return {"logits": self._guess(hidden_NLD[asked_NL]), "hidden": hidden_NLD}

    def _guess(self, states: Tensor) -> Tensor:
        logits = _head(self.model, states)
        return logits if self.rows is None else logits[..., self.rows]


def masked_language_model(
    reference: str,
    *,
    vocabulary: int,
    pad: int,
    tokens: Sequence[str] = (),
    args: Mapping[str, Any],
    init: Mapping[str, Any] | None = None,
    longest: int | None = None,
) -> MaskedLanguageModel:
    """The model of hf:`reference` with its head for masked words; the arguments are those of `text_classifier`.

    A kind of transformers, such as "bert", is a fresh one of the size that `args` say, for this vocabulary.
    Raises `ModelError` for a kind without such a head.
    """
    model = load(reference, head="MaskedLM", num_outputs=None, args=args, vocabulary=vocabulary, pad=pad)
    model, rows = fitted(model, reference, vocabulary=vocabulary, pad=pad, tokens=tokens, init=init, longest=longest)
    inputs = (TensorSpec("input_ids", "int64", ("N", 2, "L")),)
    return MaskedLanguageModel(model, inputs, vocabulary, pad=pad, rows=rows)


def save_folder(module: nn.Module, folder: Path, tokenizer: str) -> None:
    """What `save_pretrained` writes, and the tokenizer.json beside it: a folder that hf:FOLDER reads in other recipes.

    A model that reads a smaller vocabulary through a map keeps the rows of that vocabulary only.
    """
    assert isinstance(module, HuggingFace)
    assert module.pad is not None
    model: Any = module.model
    if module.rows is not None:
        model = student_from(model, parse_init({}), rows=module.rows, pad=module.pad)
    with quiet():
        model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")


def _head(model: Any, states: Tensor) -> Tensor:
    """The logits of states, as the model's own forward pass computes them behind its layers."""
    for name in ("cls", "lm_head"):
        if hasattr(model, name):
            logits: Tensor = getattr(model, name)(states)
            return logits
    if hasattr(model, "vocab_projector"):
        inner = model.vocab_layer_norm(model.activation(model.vocab_transform(states)))
        projected: Tensor = model.vocab_projector(inner)
        return projected
    raise ModelError(
        f"{type(model).__name__} has a head for masked words that is not known here; take a model of the BERT, "
        "RoBERTa or DistilBERT family"
    )
