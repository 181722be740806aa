"""Attention of torch's exporter as one operator: found, equal at every length and padding, and never guessed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto
from torch import nn

from edgekd.distill.models.encoder import Encoder as Built
from edgekd.distill.to_onnx import export
from edgekd.graph.attention import fuse_attention
from edgekd.graph.clean import load_model
from edgekd.graph.fusion import fuse
from edgekd.graph.quantization import Int8Static, quantize
from edgekd.graph.quantizers import prepare
from edgekd.graph.sessions import open_graph
from edgekd.spec import TensorSpec

PAD, HEADS, WIDTH, WORDS = 0, 4, 32, 50


class Encoder(nn.Module):
    """A BERT-like layer as transformers writes it: heads taken apart, a bias for the mask, heads joined."""

    def __init__(self, *, causal: bool, divided: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        self.causal, self.divided = causal, divided

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        counts = ids.ne(PAD)
        x = self.embed(ids)
        batch, length, _ = x.shape
        bias = torch.where(counts[:, None, None, :], 0.0, torch.finfo(x.dtype).min)
        if self.causal:
            place = torch.arange(length)
            bias = bias + torch.where(place[None, :] <= place[:, None], 0.0, -10000.0)

        def apart(layer: nn.Linear) -> torch.Tensor:
            heads: torch.Tensor = layer(x).view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2)
            return heads

        scores = apart(self.query) @ apart(self.key).transpose(2, 3)
        size = (WIDTH // HEADS) ** 0.5
        weights = ((scores / size if self.divided else scores * (1 / size)) + bias).softmax(dim=-1)
        joined = (weights @ apart(self.value)).transpose(1, 2).reshape(batch, length, WIDTH)
        x = self.norm(x + self.out(joined))
        shares = counts.unsqueeze(-1).to(x.dtype)
        answer: torch.Tensor = self.last((x * shares).sum(dim=1) / shares.sum(dim=1).clamp(min=1))
        return answer


def texts(seed: int, length: int, count: int = 6) -> np.ndarray:
    random = np.random.default_rng(seed)
    ids = random.integers(1, WORDS, (count, length))
    ids[np.arange(length) >= random.integers(1, length + 1, (count, 1))] = PAD
    return ids


def graph(tmp_path, *, causal: bool = False, divided: bool = False) -> ModelProto:
    torch.manual_seed(0)
    export(
        Encoder(causal=causal, divided=divided),
        tmp_path / "m.onnx",
        inputs=(TensorSpec("ids", "int64", ("N", "L")),),
        samples={"ids": texts(0, 12)},
    )
    return prepare(load_model(tmp_path / "m.onnx"))


def kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("divided", [False, True])
def test_attention_becomes_one_operator_and_says_the_same_at_every_length(tmp_path, divided: bool) -> None:
    before = graph(tmp_path, divided=divided)
    after = fuse(before, attention=False)
    assert kinds(after).count("MultiHeadAttention") == 1
    assert "Softmax" not in kinds(after)
    read = {name for node in after.graph.node for name in node.input}
    assert {tensor.name for tensor in after.graph.initializer} <= read, "onnxruntime warns about what nobody reads"
    first, second = open_graph(before), open_graph(after)
    for length in (1, 2, 7, 12, 33):
        feeds = {"ids": texts(length, length)}
        np.testing.assert_allclose(second.run(feeds)["logits"], first.run(feeds)["logits"], atol=1e-5)


def test_a_mask_that_depends_on_the_query_is_left_alone(tmp_path) -> None:
    before = graph(tmp_path, causal=True)
    after = fuse(before, attention=False)
    assert "MultiHeadAttention" not in kinds(after)
    feeds = {"ids": texts(3, 9)}
    np.testing.assert_allclose(
        open_graph(after).run(feeds)["logits"], open_graph(before).run(feeds)["logits"], atol=1e-5
    )


def test_scores_that_somebody_else_reads_are_left_alone(tmp_path) -> None:
    model = graph(tmp_path)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    shown = model.graph.output.add()
    shown.name = softmax.output[0]
    shown.type.tensor_type.elem_type = 1
    assert fuse_attention(model) == 0


def own_encoder(tmp_path) -> ModelProto:
    """What `encoder_s` and its like are exported as; scores of a few units, as trained ones have."""
    torch.manual_seed(0)
    module = Built(3, WORDS, PAD, layers=2, width=WIDTH, heads=HEADS, inner=64, positions=40)
    for layer in module.layers:
        for part in (layer.query, layer.key):
            nn.init.normal_(part.weight, std=0.3)
    module.eval()
    export(
        module,
        tmp_path / "own.onnx",
        inputs=(TensorSpec("input_ids", "int64", ("N", "L")),),
        samples={"input_ids": texts(0, 12)},
    )
    return load_model(tmp_path / "own.onnx")


def test_our_own_encoders_attention_becomes_one_operator(tmp_path) -> None:
    before = prepare(own_encoder(tmp_path))
    after = fuse(before, attention=False)
    assert kinds(after).count("MultiHeadAttention") == 2
    first, second = open_graph(before), open_graph(after)
    for length in (1, 2, 7, 12, 33):
        feeds = {"input_ids": texts(length, length)}
        np.testing.assert_allclose(second.run(feeds)["logits"], first.run(feeds)["logits"], atol=1e-5)


@pytest.mark.parametrize("weight", ["int8", "uint8"])
def test_no_padding_is_looked_at_in_static_int8(tmp_path, weight) -> None:
    """The range of scores is that of tokens that count: a mask within it could take nothing out."""
    whole = [np.random.default_rng(length).integers(1, WORDS, (8, length)) for length in (3, 6, 12)]
    config = Int8Static(activation="uint8", weight=weight)
    result = quantize(
        own_encoder(tmp_path), tmp_path / "q.onnx", config, calibration=[{"input_ids": ids} for ids in whole]
    )
    session = open_graph(load_model(result.path))
    for ids in whole[:2]:
        padded = np.pad(ids, ((0, 0), (0, 12 - ids.shape[1])), constant_values=PAD)
        alone = session.run({"input_ids": ids})["logits"]
        np.testing.assert_allclose(session.run({"input_ids": padded})["logits"], alone, atol=1e-5)
