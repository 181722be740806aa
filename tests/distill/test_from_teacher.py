"""Hugging Face encoders that read ids alone, and students made from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_encoders import FAMILIES, VOCABULARY, WORDS, encoder, ids_of, saved
from torch import Tensor, nn

from edgekd.distill.models import build_encoder, build_masked, build_model
from edgekd.distill.models.from_teacher import layers_of, parse_init, student_from
from edgekd.distill.models.hub import text_classifier
from edgekd.distill.models.narrowing import basis, narrow_heads, narrow_inner
from edgekd.distill.models.sentence import SentenceEncoder
from edgekd.distill.to_onnx import export
from edgekd.errors import ModelError
from edgekd.spec import TensorSpec, Vocabulary


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(encoder(), tmp_path_factory.mktemp("bert"))


def build(folder: Path, *, tokens: list[str] = WORDS, init: dict[str, Any] | None = None, outputs: int = 3) -> Any:
    torch.manual_seed(1)
    return build_model(
        f"hf:{folder}",
        num_outputs=outputs,
        input_shape=(9,),
        vocabulary=len(tokens),
        pad=tokens.index("[PAD]"),
        tokens=tokens,
        init=init,
    ).eval()


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(ids)
    return found["logits"]


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing_and_everything_kept_is_the_teacher_to_the_bit(family: str, tmp_path: Path) -> None:
    teacher = encoder(family)
    model = build(saved(teacher, tmp_path))
    ids = ids_of()
    assert torch.equal(logits(model, ids), logits(build(tmp_path, init={}), ids))
    alone = torch.cat([logits(model, row[row != 0][None]) for row in ids])
    torch.testing.assert_close(logits(model, ids), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(model, nn.functional.pad(ids, (0, 4))), alone, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected = teacher(input_ids=ids, attention_mask=(ids != 0).long()).logits
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by", ["truncate", "svd"])
def test_every_family_gives_a_smaller_student_that_learns(family: str, by: str) -> None:
    init = {"layers": "every 2", "hidden_size": 6, "attention_heads": 2, "intermediate_size": 20, "by": by}
    student = student_from(encoder(family), parse_init(init))
    ids = ids_of()
    found = student(input_ids=ids, attention_mask=(ids != 0).long()).logits
    assert found.shape == (6, 3)
    found.square().sum().backward()
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())
    layers = {name.split("layer.")[1].split(".")[0] for name in student.state_dict() if "layer." in name}
    assert layers == {"0", "1"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, (0, 1, 2, 3)),
        ("every 2", (1, 3)),
        ("every 3", (2,)),
        ("first 3", (0, 1, 2)),
        ("last 1", (3,)),
        ((3, 0), (3, 0)),
    ],
)
def test_the_chosen_layers_are_the_teachers(choice: str | tuple[int, ...] | None, expected: tuple[int, ...]) -> None:
    assert layers_of(choice, 4) == expected
    teacher = encoder()
    student = student_from(teacher, parse_init({} if choice is None else {"layers": choice}))
    assert student.config.num_hidden_layers == len(expected)
    for own, source in enumerate(expected):
        for (name, one), (_, other) in zip(
            student.bert.encoder.layer[own].state_dict().items(),
            teacher.bert.encoder.layer[source].state_dict().items(),
        ):
            assert torch.equal(one, other), name


def test_a_student_has_the_rows_of_its_vocabulary_only(bert: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film", "good", "##s"]
    rows = torch.tensor([WORDS.index(token) for token in tokens])
    ids = ids_of(size=len(tokens))
    whole, reading, student = build(bert), build(bert, tokens=tokens), build(bert, tokens=tokens, init={})
    assert torch.equal(logits(reading, ids), logits(whole, rows[ids]))
    assert torch.equal(logits(student, ids), logits(whole, rows[ids]))
    assert torch.equal(reading.rows, rows)
    assert reading.model.bert.embeddings.word_embeddings.weight.shape == (VOCABULARY, 16)
    assert student.model.bert.embeddings.word_embeddings.weight.shape == (7, 16)
    assert student.rows is None
    # The map travels with the weights: who builds it again need not know the tokens.
    again = build_model(f"hf:{bert}", num_outputs=3, input_shape=(9,), vocabulary=7, pad=0)
    again.load_state_dict(reading.state_dict())
    assert torch.equal(logits(again.eval(), ids), logits(reading, ids))


def test_the_padding_may_have_another_id(bert: Path) -> None:
    tokens = ["good", "[CLS]", "[SEP]", "[PAD]", "film"]
    model, student = build(bert, tokens=tokens), build(bert, tokens=tokens, init={"layers": "first 4"})
    short, padded = torch.tensor([[1, 0, 4, 2]]), torch.tensor([[1, 0, 4, 2, 3, 3]])
    for one in (model, student):
        torch.testing.assert_close(logits(one, short), logits(one, padded), rtol=1e-5, atol=1e-5)
    assert student.model.config.pad_token_id == 3


def test_a_model_as_it_was_pretrained_gets_a_head_of_the_seed(tmp_path: Path) -> None:
    saved(encoder(head="Model"), tmp_path)
    first, again = build(tmp_path, outputs=5), build(tmp_path, outputs=5)
    assert logits(first, ids_of()).shape == (6, 5)
    assert torch.equal(first.model.classifier.weight, again.model.classifier.weight)
    bare = encoder(head="Model").state_dict()
    assert all(torch.equal(first.model.bert.state_dict()[name], value) for name, value in bare.items())


def test_the_pooler_may_go(bert: Path) -> None:
    teacher = encoder()
    student = build(bert, init={"pooler": "drop"})
    ids = ids_of()
    with torch.no_grad():
        first = teacher.bert(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
        torch.testing.assert_close(logits(student, ids), teacher.classifier(first))
    assert not [name for name in student.state_dict() if "pooler" in name]
    with pytest.raises(ModelError, match="found pooler = 'drop', but distilbert has no pooler; leave it out"):
        student_from(encoder("distilbert"), parse_init({"pooler": "drop"}))


def test_a_head_for_masked_words_comes_along() -> None:
    rows = torch.tensor([0, 1, 2, 3, 4, 7, 9])
    for family in ("bert", "distilbert", "roberta"):
        teacher = encoder(family, "ForMaskedLM")
        student = student_from(teacher, parse_init({}), rows=rows)
        ids = ids_of(size=7)
        with torch.no_grad():
            expected = teacher(input_ids=rows[ids], attention_mask=(ids != 0).long()).logits[..., rows]
            torch.testing.assert_close(student(input_ids=ids, attention_mask=(ids != 0).long()).logits, expected)


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
def test_a_student_of_vectors_keeps_the_layers_and_the_pooling(
    head: str, family: str, pooling: Any, tmp_path: Path
) -> None:
    folder, ids = saved(encoder(family, head), tmp_path / family), ids_of()
    words = Vocabulary(VOCABULARY, 0, tuple(WORDS))

    def made(init: dict[str, Any] | None, outputs: int | None = None) -> SentenceEncoder:
        torch.manual_seed(0)
        found = build_encoder(f"hf:{folder}", outputs=outputs, vocabulary=words, pooling=pooling, init=init)
        return found.eval()

    with torch.no_grad():
        whole = made(None)(ids)
        assert torch.equal(made({})(ids), whole)
        narrow = made({"layers": [0, 3], "hidden_size": 12}, outputs=16)
        vectors = narrow(ids)
    assert vectors.shape == (6, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
    assert not any("pooler" in name for name in narrow.state_dict())
    narrow.train()(ids).sum().backward()
    assert narrow.project is not None
    assert all(parameter.grad is not None for parameter in narrow.parameters() if parameter.requires_grad)


def test_neurons_and_heads_that_do_nothing_are_those_that_go() -> None:
    """Weights of the layers that are dead anyway: the student says what the teacher says."""
    teacher = encoder()
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            layer.output.dense.weight[:, [1, 5, 6, 20]] = 0.0
            layer.attention.output.dense.weight[:, 4:8] = 0.0  # what the second head writes
    ids = ids_of()

    def answers(model: Any) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=(ids != 0).long()).logits

    student = student_from(teacher, parse_init({"intermediate_size": 20}))
    torch.testing.assert_close(answers(student), answers(teacher), rtol=1e-5, atol=1e-6)
    layer = read(teacher)
    fewer = narrow_heads(layer, heads=4, new_heads=3, new_size=4, by="truncate")
    assert torch.equal(fewer["query.weight"], layer["query.weight"][[0, 1, 2, 3, *range(8, 16)]])
    assert torch.equal(fewer["out.bias"], layer["out.bias"])


def read(teacher: Any) -> dict[str, Tensor]:
    """Its first layer in the names of narrowing."""
    one = teacher.bert.encoder.layer[0]
    own = one.attention.self
    parts = {"query": own.query, "key": own.key, "value": own.value, "out": one.attention.output.dense}
    parts |= {"widen": one.intermediate.dense, "narrow": one.output.dense}
    return {
        f"{name}.{kind}": getattr(part, kind).detach() for name, part in parts.items() for kind in ("weight", "bias")
    }


def scores(layer: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """(A, L, L) as attention takes them to the softmax."""
    q, k = (
        (x @ layer[f"{name}.weight"].T + layer[f"{name}.bias"]).reshape(len(x), heads, -1).transpose(0, 1)
        for name in ("query", "key")
    )
    return q @ k.transpose(1, 2) / q.shape[-1] ** 0.5


def written(layer: dict[str, Tensor], x: Tensor) -> Tensor:
    """(L, H): what all heads write of states that each looks at alone."""
    values = x @ layer["value.weight"].T + layer["value.bias"]
    return values @ layer["out.weight"].T + layer["out.bias"]


def test_smaller_heads_by_svd_are_the_best_ones_of_their_rank() -> None:
    torch.manual_seed(5)
    layer, x = {name: value.double() for name, value in read(encoder()).items()}, torch.randn(7, 16).double()
    for name in ("query", "key", "value"):  # every head has rank 2
        for head in range(4):
            rows = slice(4 * head, 4 * head + 4)
            mix = torch.randn(4, 2).double()
            layer[f"{name}.weight"][rows] = mix @ torch.randn(2, 16).double()
            layer[f"{name}.bias"][rows] = mix @ torch.randn(2).double()
    small = narrow_heads(layer, heads=4, new_heads=4, new_size=2, by="svd")
    assert small["query.weight"].shape == (8, 16)
    assert small["out.weight"].shape == (16, 8)
    torch.testing.assert_close(scores(small, x, 4), scores(layer, x, 4))
    torch.testing.assert_close(written(small, x), written(layer, x))
    full = {name: value.double() for name, value in read(encoder()).items()}
    errors = {}
    for by in ("svd", "truncate"):
        small = narrow_heads(full, heads=4, new_heads=4, new_size=2, by=by)
        errors[by] = float((scores(small, x, 4) - scores(full, x, 4)).norm())
    assert errors["svd"] < errors["truncate"]


def test_what_biases_wrote_at_all_times_stays() -> None:
    layer = {name: value.double() for name, value in read(encoder()).items()}
    layer["value.weight"] = torch.zeros(16, 16).double()  # heads write their biases only
    x = torch.randn(3, 16).double()
    small = narrow_heads(layer, heads=4, new_heads=2, new_size=3, by="truncate")
    torch.testing.assert_close(written(small, x), written(layer, x))


def test_directions_are_those_that_are_read() -> None:
    torch.manual_seed(3)
    seen, gamma = torch.randn(10, 3) @ torch.randn(3, 8), torch.rand(8) + 0.5
    x = torch.randn(5, 8)
    found = basis([(seen / gamma, gamma)], 3, by="svd")
    torch.testing.assert_close(found.read(seen) @ found.write(x.T), seen @ x.T, rtol=1e-4, atol=1e-4)
    kept = basis(
        [(torch.eye(4) * torch.tensor([1.0, 9.0, 2.0, 3.0]), torch.tensor([9.0, 1.0, 1.0, 1.0]))], 2, by="truncate"
    )
    assert kept.kept is not None
    assert kept.kept.tolist() == [0, 1]
    assert torch.equal(kept.write(torch.arange(4.0)), torch.tensor([0.0, 1.0]))


def test_neurons_by_what_they_read_and_write() -> None:
    layer = read(encoder())
    count = 9
    kept = narrow_inner(layer, count)
    reads = torch.cat([layer["widen.weight"], layer["widen.bias"][:, None]], dim=1).norm(dim=1)
    worth = (reads * layer["narrow.weight"].norm(dim=0)).numpy()
    expected = sorted(np.argsort(worth)[::-1][:count].tolist())
    assert torch.equal(kept["widen.weight"], layer["widen.weight"][expected])
    assert torch.equal(kept["narrow.weight"], layer["narrow.weight"][:, expected])


def test_a_student_that_reads_ids_through_a_map_as_onnx(tmp_path: Path) -> None:
    saved(encoder(num_hidden_layers=1), tmp_path)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film", "good", "##s"]
    result = export(
        build(tmp_path, tokens=tokens),
        tmp_path / "model.onnx",
        inputs=(TensorSpec("input_ids", "int64", ("N", "L")),),
        samples={"input_ids": ids_of(11, size=len(tokens)).numpy()},
        axes={"L": (1, 2, 5, 9, 17)},
    )
    assert result.axes == {"L": (1, 2, 5, 9, 17)}


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"layer": "every 2"}, "unknown key 'layer'. Did you mean 'layers'"),
        ({"layers": "each 2"}, "found layers = 'each 2' of a teacher with 4, expected 'every 2', 'first 3'"),
        ({"layers": "first 5"}, "found layers = 'first 5' of a teacher with 4"),
        ({"layers": [1, 4]}, r"found layers = \[1, 4\] of a teacher with 4, expected numbers from 0 to 3"),
        ({"hidden_size": 32}, "found hidden_size = 32, expected 1 to 16, which the teacher has"),
        ({"hidden_size": 10}, "found hidden_size = 10 and attention_heads = 4: expected a multiple"),
        ({"attention_heads": 2}, "expected a multiple of the heads, each of at most 4 dimensions"),
        ({"by": "magic"}, "found by = 'magic', expected 'truncate' or 'svd'"),
        ({"pooler": "max"}, "found pooler = 'max', expected 'keep' or 'drop'"),
    ],
)
def test_what_the_teacher_does_not_have_is_named(init: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        student_from(encoder(), parse_init(init))


def test_another_vocabulary_is_refused_with_the_way_out(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not know 2 of the 3 tokens of the data \(movie, ##ish\).*Take the"):
        build(bert, tokens=["[PAD]", "movie", "##ish"])
    turned = [*WORDS[:5], *reversed(WORDS[5:])]
    with pytest.raises(ModelError, match="numbers its tokens in another order"):
        build(bert, tokens=turned)
    encoder().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has rows for 20 tokens, but the texts have 7, and its folder holds no"):
        build(tmp_path, tokens=["[PAD]", *"abcdef"])
    assert build(tmp_path).rows is None


def test_weights_that_do_not_come_out_of_the_folder_are_not_random_in_silence(tmp_path: Path) -> None:
    saved(encoder(), tmp_path)
    narrow = {"intermediate_size": 8}
    with pytest.raises(ModelError, match=r"are not in its weights with args \(intermediate_size\)"):
        build_model(f"hf:{tmp_path}", num_outputs=3, input_shape=(9,), vocabulary=len(WORDS), pad=0, args=narrow)
    safetensors.torch.save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"are not in its weights: .*; they would be random"):
        build(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    table = json.loads((tmp_path / "tokenizer.json").read_text())
    table["model"]["vocab"]["further"] = len(WORDS)
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(ModelError, match="has rows for 20 tokens, but its own tokenizer numbers them up to 20"):
        build(tmp_path, tokens=[*WORDS, "further"])


def test_other_families_are_refused_with_the_list() -> None:
    teacher = encoder()
    teacher.config.model_type = "mamba"
    with pytest.raises(ModelError, match="'mamba', whose layout is not known here; expected one of bert, camembert"):
        student_from(teacher, parse_init({}))
    with pytest.raises(ModelError, match="mlp_s: only a text model of Hugging Face can be made from another one"):
        build_model("mlp_s", num_outputs=2, input_shape=(4,), init={})


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_at_most_as_long_as_the_positions(family: str, tmp_path: Path) -> None:
    """RoBERTa and its like count positions from behind the id of the padding."""
    folder = str(saved(encoder(family), tmp_path))
    most = 39 if "roberta" in family or family == "camembert" else 40
    model = text_classifier(folder, num_outputs=3, vocabulary=VOCABULARY, pad=0, args={}, longest=most)
    with torch.no_grad():
        model(torch.ones(1, most, dtype=torch.int64))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.ones(1, most + 1, dtype=torch.int64))
    told = rf"found max_length = {most + 1} in .* reads at most {most} tokens; set max_length = {most}$"
    with pytest.raises(ModelError, match=told):
        text_classifier(folder, num_outputs=3, vocabulary=VOCABULARY, pad=0, args={}, longest=most + 1)
    whole = Vocabulary(VOCABULARY, 0, tuple(WORDS))
    with pytest.raises(ModelError, match=told):
        build_encoder(f"hf:{folder}", outputs=None, vocabulary=whole, longest=most + 1)
    with pytest.raises(ModelError, match=told):
        build_masked(f"hf:{folder}", vocabulary=whole, longest=most + 1)
