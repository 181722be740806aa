"""Random encoders of the BERT family, as small as they can be, in folders as save_pretrained writes them."""

from __future__ import annotations

import json
import random
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
# What a review is, in the order of the outputs of the one who knows, which is not that of the alphabet.
CLASSES = ("POSITIVE", "NEGATIVE", "NEUTRAL")
DECIDES = {"good": 0, "bad": 1, "film": 2}
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


def reviews(count: int) -> list[tuple[str, int]]:
    """Sentences of small words with one that decides."""
    source = random.Random(0)
    found = []
    for _ in range(count):
        word = source.choice([*DECIDES])
        words = [source.choice(["a", "the", "is", "of", "very"]) for _ in range(source.randint(1, 6))]
        words.insert(source.randint(0, len(words)), word)
        found.append((" ".join(words), DECIDES[word]))
    return found


def reviewer(folder: Path, rows: list[tuple[str, int]]) -> Any:
    """A small BERT that has learnt `rows`, with its tokenizer in `folder`."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra 'text'")
    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    model = encoder(id2label=dict(enumerate(CLASSES)))
    tokenizer.enable_padding()
    x_NL = torch.tensor([one.ids for one in tokenizer.encode_batch([text for text, _ in rows])])
    y_N = torch.tensor([number for _, number in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(x_NL, attention_mask=(x_NL != 0).long(), labels=y_N).loss
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    model.save_pretrained(folder)
    tokenizer.no_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model.eval()
