"""Random encoders of the BERT family, as small as they can be, in folders as save_pretrained writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd.distill.models.vision import import_torchvision

import_torchvision()
transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")

SENTENCE = "[PAD] [UNK] [CLS] [SEP] [MASK] a the film is good bad not very ##s ##ly ##er o f g b"
WORDS = SENTENCE.split()
VOCABULARY = len(WORDS)
SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 24}
FAMILIES = {
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", SIZES),
    "camembert": ("Camembert", SIZES),
    "xlm-roberta": ("XLMRoberta", SIZES),
    "electra": ("Electra", {**SIZES, "embedding_size": 8}),
    "distilbert": ("DistilBert", {"dim": 16, "n_layers": 4, "n_heads": 4, "hidden_dim": 24}),
}


def encoder(family: str = "bert", head: str = "ForSequenceClassification", **changes: Any) -> Any:
    """A random model whose norms are none of the identity."""
    name, sizes = FAMILIES[family]
    usual = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "pad_token_id": 0, "num_labels": 3}
    config = getattr(transformers, f"{name}Config")(**{**usual, **sizes, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{head}")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path.lower():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def saved(model: Any, folder: Path, words: list[str] = WORDS) -> Path:
    """`model` and a WordPiece tokenizer in `folder`."""
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(words)}
    model_table = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocabulary}
    table = {"version": "1.0", "added_tokens": [], "model": model_table}
    (folder / "tokenizer.json").write_text(json.dumps(table))
    return folder


def ids_of(count: int = 6, length: int = 9, *, size: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    """Texts (count, length) of different lengths, the pad id 0 behind them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, size, (count, length), generator=generator)
    lengths = torch.randint(2, length + 1, (count, 1), generator=generator)
    lengths[0] = length
    return torch.where(torch.arange(length) < lengths, ids, 0)
