"""Small text models: padding changes nothing, the row of the pad id stays, they learn, and ONNX says the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgekd.distill.models import TEXT_MODELS, build_model, typical_cost
from edgekd.distill.models.encoder import Encoder
from edgekd.distill.models.text import BagOfWords, TextCNN
from edgekd.distill.to_onnx import export
from edgekd.errors import ModelError
from edgekd.spec import TensorSpec

VOCABULARY, PAD, LENGTH = 40, 3, 12
NAMES = sorted(TEXT_MODELS)
# The pad id is not 0: nothing may rest on that.


def build(name: str, **args: object) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(
        name, num_outputs=5, input_shape=(LENGTH,), vocabulary=VOCABULARY, pad=PAD, args={**SMALL.get(name, {}), **args}
    )
    return model.eval()


SMALL: dict[str, dict[str, object]] = {"bow_m": {"buckets": 64}}


def texts(count: int, length: int, *, seed: int = 0, shortest: int = 1) -> Tensor:
    """Random ids (count, length) of different lengths, padded on the right."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCABULARY - 1, (count, length))
    ids += ids >= PAD
    lengths = rng.integers(shortest, length + 1, (count, 1))
    return torch.from_numpy(np.where(np.arange(length) < lengths, ids, PAD))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str) -> None:
    model, ids = build(name), texts(9, 8)
    lengths = (ids != PAD).sum(dim=1).tolist()
    assert 1 in lengths or min(lengths) < 4
    with torch.no_grad():
        alone = torch.cat([model(row[None, :length]) for row, length in zip(ids, lengths)])
        together = model(ids)
        further = model(nn.functional.pad(ids, (0, 7), value=PAD))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(further, alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_text_has_one_answer(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        answers = [model(torch.full((1, length), PAD)) for length in (1, 2, 9)]
    for answer in answers:
        assert torch.isfinite(answer).all()
        torch.testing.assert_close(answer, answers[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_everything_learns_but_the_row_of_the_pad_id(name: str) -> None:
    model = build(name).train()
    model(texts(64, 10)).square().sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
        assert parameter.grad.any(), path
    assert not model.embedding.weight.grad[PAD].any()
    assert not model.embedding.weight[PAD].any()
    assert model.embedding.weight.grad.any(dim=1).sum() == VOCABULARY - 1


@pytest.mark.parametrize("name", sorted(TEXT_MODELS - {"bow_s"}))
def test_the_order_of_words_counts_where_it_should(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        one, other = model(torch.tensor([[5, 6, 7, 8]])), model(torch.tensor([[8, 7, 6, 5]]))
    assert not torch.allclose(one, other, atol=1e-5)


def test_a_bag_of_words_is_the_mean_of_its_rows() -> None:
    model = build("bow_s")
    assert isinstance(model, BagOfWords)
    table = model.embedding.weight
    with torch.no_grad():
        expected = model.head((table[4] + table[9] + table[9]) / 3)
        torch.testing.assert_close(model(torch.tensor([[4, 9, 9, PAD, PAD]]))[0], expected)


def test_pairs_of_words_have_rows_of_their_own() -> None:
    model = build("bow_m")
    assert isinstance(model, BagOfWords)
    assert model.pairs is not None
    words, pairs = model.embedding.weight, model.pairs.weight
    with torch.no_grad():
        row = (4 * 1_000_003 + 9) % 64
        expected = model.head((words[4] + words[9] + pairs[row]) / 3)
        torch.testing.assert_close(model(torch.tensor([[4, 9, PAD]]))[0], expected)


def test_a_convolution_by_hand() -> None:
    torch.manual_seed(1)
    model = TextCNN(2, VOCABULARY, PAD, width=3, filters=4, lengths=(2,)).eval()
    kernel, bias = model.convolutions[0].weight, model.convolutions[0].bias
    x = model.embedding.weight
    with torch.no_grad():
        zero = torch.zeros(3)
        rows = [zero, x[7], x[8], zero]
        windows = [kernel[:, :, 0] @ a + kernel[:, :, 1] @ b + bias for a, b in itertools.pairwise(rows)]
        expected = model.head(torch.relu(torch.stack(windows)).amax(dim=0))
        torch.testing.assert_close(model(torch.tensor([[7, 8, PAD, PAD]]))[0], expected)


def test_both_directions_are_those_of_a_bidirectional_gru() -> None:
    model = build("bigru_s")
    both = nn.GRU(48, 64, batch_first=True, bidirectional=True)
    for own, suffix in ((model.forwards, ""), (model.backwards, "_reverse")):
        named = {"weight_ih_l0": own.input_weight[0], "weight_hh_l0": own.hidden_weight[0]}
        named["bias_ih_l0"], named["bias_hh_l0"] = own.bias[0].chunk(2)
        for name, value in named.items():
            z, r, n = value.detach().chunk(3)
            getattr(both, name + suffix).data = torch.cat([r, z, n])
    text = torch.tensor([[5, 9, 11, 2, 30]])
    with torch.no_grad():
        expected = model.head(both(model.embedding(text))[0].amax(dim=1))
        torch.testing.assert_close(model(nn.functional.pad(text, (0, 4), value=PAD)), expected)


def test_a_layer_is_that_of_torch() -> None:
    torch.manual_seed(2)
    model = Encoder(5, VOCABULARY, PAD, layers=1, width=16, heads=4, inner=24, positions=LENGTH).eval()
    own = model.layers[0]
    reference = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True, layer_norm_eps=1e-12).eval()
    with torch.no_grad():
        parts = (own.query, own.key, own.value)
        reference.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        reference.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        reference.self_attn.out_proj.load_state_dict(own.out.state_dict())
        reference.linear1.load_state_dict(own.widen.state_dict())
        reference.linear2.load_state_dict(own.narrow.state_dict())
        mask = texts(4, 6) != PAD
        x = torch.randn(4, 6, 16)
        expected = reference(x, src_key_padding_mask=~mask)
        torch.testing.assert_close(own(x, mask)[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_texts_beyond_the_table_of_positions_share_the_last_one() -> None:
    model = build("encoder_xs")
    ids = torch.full((1, LENGTH + 3), 7)
    with torch.no_grad():
        assert torch.isfinite(model(ids)).all()
    assert model.positions.num_embeddings == LENGTH


@pytest.mark.parametrize("name", NAMES)
def test_onnx_says_the_same_at_every_batch_and_length(name: str, tmp_path: Path) -> None:
    model, path = build(name), tmp_path / "student.onnx"
    lengths = (1, 2, 3, 5, 8, LENGTH)
    result = export(
        model,
        path,
        inputs=(TensorSpec("input_ids", "int64", ("N", "L")),),
        samples={"input_ids": texts(11, LENGTH).numpy()},
        axes={"L": lengths},
    )
    assert result.batch_sizes == (1, 2, 3, 5, 8, 16)
    assert result.axes == {"L": lengths}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = texts(4, 6, seed=3)
    for further in (0, 1, 5):
        padded = nn.functional.pad(ids, (0, further), value=PAD).numpy()
        (logits,) = session.run(None, {"input_ids": padded})
        np.testing.assert_allclose(logits, model(ids).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("bow_m", {"width": 0}, "bow: found width = 0, expected a whole number from 1"),
        ("text_cnn_m", {"lengths": []}, "text_cnn: found lengths = 0, expected"),
        ("bigru_m", {"hidden": -1}, "bigru: found hidden = -1, expected"),
        ("encoder_m", {"width": 30}, "found width = 30 and heads = 4, expected a multiple"),
        ("encoder_m", {"pool": "last"}, "found pool = 'last', expected 'mean' or 'first'"),
        ("encoder_m", {"layers": 0}, "found layers = 0, expected"),
        ("bow_s", {"pad": 40}, "found pad = 40 in a vocabulary of 40 tokens, expected 0 to 39"),
    ],
)
def test_what_cannot_be_built_is_named(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, **args)


def test_a_bag_of_words_costs_next_to_nothing() -> None:
    tables, bow = 6000 * 64, typical_cost("bow_s", num_outputs=10)
    assert bow == (tables + 64 * 10 + 10, 64 * 10)
    assert typical_cost("bigru_s", num_outputs=10)[1] == 32 * 2 * 3 * 64 * (48 + 64) + 2 * 64 * 10


def test_a_text_model_wants_texts() -> None:
    with pytest.raises(ModelError, match="bow_s reads texts, but the samples are no token ids; add"):
        build_model("bow_s", num_outputs=2, input_shape=(1, 28, 28))
    with pytest.raises(ModelError, match=r"mlp_s reads no texts, but the samples are ids of tokens; take .*bow_s"):
        build_model("mlp_s", num_outputs=2, input_shape=(8,), vocabulary=30)
