"""The objective: weights, what each loss gets, what it says about wrong terms and about terms that hardly count."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgekd.distill.ledger import first_non_finite
from edgekd.distill.losses.logits import cross_entropy, kd
from edgekd.distill.losses.targets import regression_kd
from edgekd.distill.objective import Objective, Schedule, Term
from edgekd.errors import ModelError, UsageError

torch.manual_seed(0)
STUDENT = torch.randn(6, 4)
TEACHER = torch.randn(6, 4)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
BATCH = {"x": torch.zeros(6, 3), "y": LABELS, "id": torch.arange(6)}


def value_of(objective: Objective, progress: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    return objective({"logits": STUDENT}, {"logits": TEACHER}, BATCH, progress)


def test_weighted_sum() -> None:
    terms = [Term("hard", "cross_entropy", weight=0.25), Term("soft", "kd", weight=3.0, options={"temperature": 2.0})]
    loss, values = value_of(Objective(terms))
    hard, soft = cross_entropy(STUDENT, LABELS), kd(STUDENT, TEACHER, temperature=2.0)
    torch.testing.assert_close(loss, 0.25 * hard + 3.0 * soft)
    assert list(values) == ["hard", "soft"]
    torch.testing.assert_close(values["hard"], 0.25 * hard)
    torch.testing.assert_close(values["soft"], 3.0 * soft)


def test_gradient_reaches_the_student_and_values_hold_none() -> None:
    student = STUDENT.clone().requires_grad_()
    objective = Objective([Term("soft", "kd", weight=2.0)])
    loss, values = objective({"logits": student}, {"logits": TEACHER}, BATCH, 0.0)
    loss.backward()
    twin = STUDENT.clone().requires_grad_()
    (2.0 * kd(twin, TEACHER)).backward()
    torch.testing.assert_close(student.grad, twin.grad)
    assert not values["soft"].requires_grad


def test_a_loss_gets_what_its_parameters_name() -> None:
    seen: dict[str, object] = {}

    def full(s: Tensor, t: Tensor, y: Tensor, *, power: int = 2) -> Tensor:
        seen.update(s=s, t=t, y=y, power=power)
        return s.sum()

    def truth_first(student_N: Tensor, labels_N: Tensor, teacher_N: Tensor) -> Tensor:
        seen.update(labels=labels_N, teacher=teacher_N)
        return student_N.sum()

    value_of(Objective([Term("a", full, options={"power": 3}), Term("b", truth_first)]))
    assert seen["s"] is STUDENT
    assert seen["t"] is seen["teacher"] is TEACHER
    assert seen["y"] is seen["labels"] is LABELS
    assert seen["power"] == 3


def test_optional_arguments_are_given_too() -> None:
    batch = {"y": torch.randn(6, 4)}
    objective = Objective([Term("bounded", "regression_kd", options={"margin": 0.1})])
    loss, _ = objective({"logits": STUDENT}, {"logits": TEACHER}, batch, 0.0)
    torch.testing.assert_close(loss, regression_kd(STUDENT, TEACHER, batch["y"], margin=0.1))


def test_taps() -> None:
    feature = torch.randn(6, 9)
    objective = Objective(
        [Term("hint", "logit_mse", student_tap="body", teacher_tap="trunk"), Term("ce", "cross_entropy")]
    )
    _, values = objective({"logits": STUDENT, "body": feature}, {"trunk": feature + 2.0}, BATCH, 0.0)
    assert float(values["hint"]) == pytest.approx(4.0)
    assert objective.teacher_taps == ("trunk",)
    with pytest.raises(ModelError, match=r"term 'hint' looks at 'body' of the student, which gives \['logits'\]"):
        objective({"logits": STUDENT}, {"trunk": feature}, BATCH, 0.0)
    with pytest.raises(ModelError, match="term 'hint' looks at 'trunk' of the teacher, which gives nothing"):
        objective({"logits": STUDENT, "body": feature}, {}, BATCH, 0.0)


def test_who_needs_a_teacher() -> None:
    alone = Objective([Term("ce", "cross_entropy")])
    assert alone.teacher_terms == alone.teacher_taps == ()
    alone({"logits": STUDENT}, {}, BATCH, 0.0)
    both = Objective([Term("ce", "cross_entropy"), Term("kd", "kd"), Term("mse", "logit_mse")])
    assert both.teacher_terms == ("kd", "mse")
    assert both.teacher_taps == ("logits",)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(2.0, 8.0), [2.0, 3.5, 5.0, 8.0]),
        (Schedule(2.0, 8.0, until=0.5), [2.0, 5.0, 8.0, 8.0]),
        (Schedule(0.0, 1.0, shape="cosine"), [0.0, 0.5 - 0.5 * math.cos(math.pi / 4), 0.5, 1.0]),
        (Schedule(8.0, 0.0, shape="cosine"), [8.0, 4 + 4 * math.cos(math.pi / 4), 4.0, 0.0]),
        (Schedule(3.0, 8.0, shape="constant"), [3.0, 3.0, 3.0, 3.0]),
    ],
)
def test_schedules_of_weights(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.at(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(expected)
    objective = Objective([Term("ce", "cross_entropy", weight=schedule)])
    for progress, weight in zip((0.0, 0.25, 0.5, 1.0), expected):
        loss, _ = value_of(objective, progress)
        assert float(loss) == pytest.approx(weight * float(cross_entropy(STUDENT, LABELS)), abs=1e-6)


def test_a_term_of_weight_0_is_not_computed_and_adds_nothing() -> None:
    def infinite(student: Tensor) -> Tensor:
        return student.sum() * math.inf

    fading_in = Schedule(0.0, 1.0)
    objective = Objective([Term("ce", "cross_entropy"), Term("bad", infinite, weight=fading_in)])
    loss, values = value_of(objective, 0.0)
    assert float(loss) == pytest.approx(float(cross_entropy(STUDENT, LABELS)))
    assert float(values["bad"]) == 0.0
    assert not math.isfinite(float(value_of(objective, 0.5)[0]))


def test_a_step_on_which_all_weights_are_0_still_has_a_gradient_of_0() -> None:
    student = STUDENT.clone().requires_grad_()
    objective = Objective([Term("ce", "cross_entropy", weight=Schedule(0.0, 1.0))])
    loss, values = objective({"logits": student}, {}, BATCH, 0.0)
    loss.backward()
    assert student.grad is not None
    assert not student.grad.any()
    assert list(values) == ["ce"]


def test_negligible_terms_are_named() -> None:
    objective = Objective(
        [Term("ce", "cross_entropy"), Term("sp", "kd", weight=1.0), Term("ramp", "kd", weight=Schedule(0.0, 1.0))]
    )
    assert objective.negligible({"ce": 2.0, "sp": 0.01, "ramp": 0.0}) == {}
    texts = objective.negligible({"ce": 2.0, "sp": 1e-4, "ramp": 0.0})
    assert texts == {
        "sp": "term 'sp' is only 5.0e-05 of the loss (weight 1) and hardly teaches anything; raise its weight, or "
        "drop the term"
    }
    assert Objective([Term("ce", "cross_entropy")]).negligible({"ce": 0.0}) == {}


def needs_option(student: Tensor, *, strength: float) -> Tensor:
    return student.sum() * strength


def odd(student: Tensor, neighbour: Tensor) -> Tensor:
    return student.sum()


def nothing() -> Tensor:
    return torch.zeros(())


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        ([], "found an objective without terms, expected at least one; add a [[distill.terms]]"),
        (
            [Term("a", "kd"), Term("a", "cross_entropy")],
            "term names are ['a', 'a'], expected different names, none of them empty",
        ),
        ([Term("", "kd")], "term names are [''], expected different names, none of them empty"),
        ([Term("a", "kd", weight=0.0)], "the weights of all terms (a) are 0: there is nothing to learn from"),
        ([Term("a", "kd", weight=-1.0)], "term 'a': found weight = -1.0, expected finite numbers from 0"),
        ([Term("a", "kd", weight=math.nan)], "term 'a': found weight = nan, expected finite numbers from 0"),
        (
            [Term("a", "kd", weight=Schedule(0.0, 1.0, until=0.0))],
            "term 'a': found until = 0.0, expected a part above 0, at most 1",
        ),
        (
            [Term("a", "kd", options={"temprature": 2.0})],
            "term 'a': unknown option 'temprature'. Did you mean 'temperature'? Known: temperature",
        ),
        ([Term("a", "kd", options={"teacher_NC": 2.0})], "term 'a': unknown option 'teacher_NC'."),
        ([Term("a", needs_option)], "term 'a': the loss needs the option 'strength'; add it to options"),
        (
            [Term("a", odd)],
            "term 'a': the loss has the parameter 'neighbour', expected names that begin with student, teacher, labels "
            "or targets, and options with a default",
        ),
        ([Term("a", nothing)], "term 'a': the loss takes no arguments, expected the student's output first"),
        ([Term("a", "kdd")], "unknown loss 'kdd'. Did you mean 'kd'?"),
    ],
)
def test_wrong_terms(terms: list[Term], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Objective(terms)
    assert str(caught.value).startswith(text)


def per_sample(student: Tensor) -> Tensor:
    return student.sum(dim=1)


def a_number(student: Tensor) -> float:
    return 1.0


@pytest.mark.parametrize(("loss", "found"), [(per_sample, r"\[6\]"), (a_number, "float")])
def test_a_loss_must_give_one_number(loss: Callable[..., Tensor], found: str) -> None:
    with pytest.raises(UsageError, match=f"the loss of term 'a' returned {found}, expected a tensor with one number"):
        value_of(Objective([Term("a", loss)]))


def test_description_tells_objectives_apart() -> None:
    def describe(**changed: object) -> str:
        fields: dict[str, object] = {"name": "a", "loss": "kd", "weight": 1.0, **changed}
        return str(Objective([Term(**fields)]).describe())  # type: ignore[arg-type]

    assert describe() == describe(loss=kd), "by name or by function is the same"
    others = [
        describe(weight=2.0),
        describe(weight=Schedule(0.0, 1.0)),
        describe(loss="logit_mse"),
        describe(options={"temperature": 3.0}),
        describe(student_tap="body"),
        describe(name="b"),
    ]
    assert len({describe(), *others}) == 7


def test_first_non_finite() -> None:
    table = torch.tensor([[1.0, 2.0], [3.0, math.inf], [math.nan, math.nan]])
    assert first_non_finite(["loss", "kd"], table) == (1, ["kd"])
    assert first_non_finite(["loss", "kd"], table[:1]) is None
    assert first_non_finite(["loss", "kd"], table[2:]) == (0, ["loss", "kd"])


def of_two(student_NC: Tensor, teacher_indices_NK: Tensor, teacher_log_p_NK: Tensor) -> Tensor:
    return (student_NC.gather(1, teacher_indices_NK) - teacher_log_p_NK).square().mean()


def test_a_loss_of_several_tensors_of_the_teacher_gets_one_tap_for_each() -> None:
    named = {"topk_indices": torch.tensor([[1], [0]]), "topk_log_probabilities": torch.tensor([[0.0], [2.0]])}
    term = Term("top", of_two, teacher_tap=("topk_indices", "topk_log_probabilities"))
    student = {"logits": torch.tensor([[5.0, 1.0], [2.0, 7.0]])}
    assert float(Objective([term])(student, named, {}, 0.0)[0]) == 0.5
    for tap in ("topk_indices", ("topk_indices",)):
        with pytest.raises(
            UsageError, match=r"the loss takes 2 tensors of the teacher \(teacher_indices_NK, teacher_log"
        ):
            Objective([Term("top", of_two, teacher_tap=tap)])(student, named, {}, 0.0)
