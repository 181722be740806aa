"""TinyBERT, MiniLM and BERT-PKD on tiny encoders: taps, masks, stages, and what they are worth at equality."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import VOCABULARY, encoder, ids_of
from torch import Tensor, nn

from edgekd.distill.adapters.attention import attention_scores
from edgekd.distill.engine import distill
from edgekd.distill.losses.transformers import attention_mse
from edgekd.distill.models.from_teacher import parse_init, student_from
from edgekd.distill.models.hub import HuggingFace
from edgekd.distill.objective import Objective, Term
from edgekd.distill.programme import Stage
from edgekd.distill.taps import Taps
from edgekd.distill.teachers import ModuleTeacher
from edgekd.errors import UsageError
from edgekd.spec import Dataset, Split, TensorSpec, Trim

INPUTS = (TensorSpec("input_ids", "int64", ("N", "L")),)


def layer(number: int, part: str = "") -> str:
    return f"model.bert.encoder.layer.{number}{part}"


def attention(*layers: int, parts: tuple[str, ...] = ("query", "key")) -> tuple[str, ...]:
    return tuple(layer(number, f".attention.self.{part}") for number in layers for part in parts)


EMBEDDINGS = "model.bert.embeddings"
QKV = ("query", "key", "value")


def programme(name: str, own: tuple[int, ...], theirs: tuple[int, ...]) -> list[Term]:
    """The terms between layers `own` of the student and `theirs` of the teacher."""
    hidden = Term(
        "hidden",
        "hidden_mse",
        student_tap=(EMBEDDINGS, *map(layer, own)),
        teacher_tap=(EMBEDDINGS, *map(layer, theirs)),
        adapter="linear",
    )
    scores = Term(
        "attention",
        "attention_mse",
        student_tap=attention(*own),
        teacher_tap=attention(*theirs),
        adapter="attention_scores",
        adapter_options={"heads": 4},
    )
    prediction = Term("prediction", "kd", options={"temperature": 1.0})
    relation = Term(
        "relation",
        "minilm_relation",
        student_tap=attention(own[-1], parts=QKV),
        teacher_tap=attention(theirs[-1], parts=QKV),
        options={"heads": 4, "relations": "v2" if name == "minilm_v2" else "v1"},
    )
    patient = Term(
        "patient",
        "patient",
        student_tap=tuple(map(layer, own[:-1])),
        teacher_tap=tuple(map(layer, theirs[:-1])),
        adapter="linear" if name == "narrow_pkd" else None,
    )
    soft = Term("soft", "kd", weight=0.5, options={"temperature": 5.0})
    return {
        "tinybert": [hidden, scores, prediction],
        "minilm_v1": [relation],
        "minilm_v2": [relation],
        "pkd": [patient, soft],
        "narrow_pkd": [patient, soft],
    }[name]


def wrapped(model: Any) -> HuggingFace:
    return HuggingFace(model, INPUTS, VOCABULARY, pad=0)


def given(model: nn.Module, taps: tuple[str, ...], ids: Tensor) -> dict[str, Tensor]:
    with Taps(model, [tap for tap in taps if tap != "logits"]) as hooks:
        logits = model(ids)["logits"]
        return {**hooks.read(), "logits": logits}


def value(objective: Objective, student: nn.Module, teacher: nn.Module, ids: Tensor) -> dict[str, float]:
    batch = {"x": ids, "mask": ids != 0}
    one, other = given(student, objective.student_taps, ids), given(teacher, objective.teacher_taps, ids)
    with torch.no_grad():
        return {name: float(part) for name, part in objective.parts(one, other, batch, 0.5).items()}


def built(
    name: str, student: nn.Module, teacher: nn.Module, own: tuple[int, ...], theirs: tuple[int, ...]
) -> Objective:
    objective, ids = Objective(programme(name, own, theirs)), ids_of()
    return objective.build(
        given(student, objective.student_taps, ids), given(teacher, objective.teacher_taps, ids), seed=1
    )


@pytest.mark.parametrize("name", ["tinybert", "minilm_v1", "minilm_v2", "pkd", "narrow_pkd"])
def test_no_term_depends_on_the_padding_and_all_see_a_difference(name: str) -> None:
    teacher = wrapped(encoder())
    init = {"layers": "every 2"}
    if name in ("minilm_v1", "minilm_v2", "narrow_pkd"):
        init |= {"hidden_size": 8, "attention_heads": 2}
    student = wrapped(student_from(encoder(), parse_init(init)))
    objective, ids = built(name, student, teacher, (0, 1), (1, 3)), ids_of()
    found = value(objective, student, teacher, ids)
    padded = value(objective, student, teacher, nn.functional.pad(ids, (0, 5)))
    assert found == pytest.approx(padded, rel=1e-4)
    assert all(part > 1e-4 for part in found.values()), found


@pytest.mark.parametrize("name", ["tinybert", "minilm_v1", "minilm_v2", "pkd"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name: str) -> None:
    teacher, student = wrapped(encoder()), wrapped(student_from(encoder(), parse_init({})))
    every = (0, 1, 2, 3)
    objective = built(name, student, teacher, every, every)
    for adapter in objective.modules.values():
        for part in adapter.modules():
            if isinstance(part, nn.Linear):
                nn.init.eye_(part.weight)
                nn.init.zeros_(part.bias)
    assert all(part == pytest.approx(0, abs=1e-10) for part in value(objective, student, teacher, ids_of()).values())


def test_the_scores_are_those_that_the_model_takes_the_softmax_of() -> None:
    model, ids = wrapped(encoder()), ids_of()
    with torch.no_grad():
        queries = given(model, attention(0, 2), ids)
        maps = model.model(input_ids=ids, attention_mask=(ids != 0).long(), output_attentions=True).attentions
    taps = [queries[tap] for tap in attention(0, 2)]
    shapes = [tuple(tap.shape[1:]) for tap in taps]
    adapter = attention_scores(shapes, shapes, heads=4)
    scores, again, extras = adapter(taps, taps, {"mask": ids != 0})
    assert len(scores) == len(again) == 2
    for own, expected in zip(scores, (maps[0], maps[2])):
        masked = own.masked_fill((ids == 0)[:, None, None, :], -torch.inf)
        torch.testing.assert_close(masked.softmax(dim=-1), expected)
    assert torch.equal(extras["mask"], ids != 0)
    assert adapter(taps, taps, {})[2] == {}


def test_attention_by_value_with_a_mask() -> None:
    rng = np.random.default_rng(2)
    s, t = rng.normal(size=(2, 2, 3, 5, 5))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    pairs = mask[:, :, None] & mask[:, None, :]
    expected = sum(((s[b] - t[b]) ** 2)[:, pairs[b]].sum() for b in range(2)) / (3 * pairs.sum())
    found = attention_mse(torch.from_numpy(s), torch.from_numpy(t), mask=torch.from_numpy(mask))
    assert found.item() == pytest.approx(expected)


def texts() -> Dataset:
    """Whether the first word is one of the first half of the vocabulary."""
    ids = ids_of(96, 9, seed=4).numpy().astype(np.int32)
    y = (ids[:, 0] > VOCABULARY // 2).astype(np.int64)
    parts = [Split(ids[rows], y[rows], np.arange(96)[rows]) for rows in (slice(0, 64), slice(64, 80), slice(80, 96))]
    return Dataset("texts", "classification", ("low", "high"), *parts, "0" * 64, "CC0-1.0")


def test_tinybert_learns_the_inside_first_and_then_the_answers() -> None:
    torch.manual_seed(0)
    teacher = wrapped(encoder(num_labels=2))
    student = wrapped(student_from(encoder(num_labels=2, num_hidden_layers=2), parse_init({"intermediate_size": 12})))
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    result = distill(
        student,
        [ModuleTeacher(teacher)],
        texts(),
        Objective(programme("tinybert", (0, 1), (1, 3))),
        steps=(Trim(pad=0),),
        epochs=14,
        batch_size=16,
        lr=1e-2,
        stages=[Stage("inside", 4, ("hidden", "attention")), Stage("prediction", 10, ("prediction",))],
    )
    inside, prediction = result.history[:4], result.history[4:]
    assert {"hidden", "attention"} <= inside[0]["terms"].keys()
    assert inside[3]["terms"]["hidden"] < inside[0]["terms"]["hidden"]
    assert inside[3]["terms"]["attention"] < inside[0]["terms"]["attention"]
    losses = [epoch["terms"]["prediction"] for epoch in prediction]
    assert np.mean(losses[5:]) < 0.85 * np.mean(losses[:3])
    assert student.state_dict().keys() == before.keys()  # the projections stand beside the student
    assert not torch.equal(student.state_dict()["model.classifier.weight"], before["model.classifier.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_tap": (layer(0),)}, "takes a query and a key for each layer, found 1 taps of the student"),
        ({"adapter_options": {"heads": 5}}, "of the student for 5 heads, expected"),
        ({"adapter_options": {"heads": [4, 2]}}, "expected one number for both models.*minilm_relation"),
        ({"student_tap": attention(0)}, "found 2 taps of the student and 4 of the teacher; tap as many layers"),
    ],
)
def test_attention_that_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    (term,) = [term for term in programme("tinybert", (0, 1), (1, 3)) if term.name == "attention"]
    teacher, ids = wrapped(encoder()), ids_of()
    objective = Objective([replace(term, **changes)])
    with pytest.raises(UsageError, match=message):
        objective.build(given(teacher, objective.student_taps, ids), given(teacher, objective.teacher_taps, ids))
