"""Stages, the average of the weights, early stop, clipping, mixed samples: what each does to a training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_features import DATA, cnn, mse, state_bytes, train
from torch import Tensor, nn

from edgekd.device.metrics import contributions, score
from edgekd.distill.averaging import Average
from edgekd.distill.engine import TrainResult, evaluate
from edgekd.distill.objective import Objective, Schedule, Term
from edgekd.distill.programme import Stage
from edgekd.distill.teachers import ModuleTeacher
from edgekd.errors import UsageError
from edgekd.spec import Layout, Scale

HINT = Term("hint", mse, student_tap="1", teacher_tap="1", adapter="auto")
SOFT = Term("kd", "kd")
HARD = Term("ce", "cross_entropy")
FITNETS = (Stage("hints", 2, ("hint",)), Stage("soft", 3, ("kd", "ce"), lr=5e-3))


def fitnets(**changed: Any) -> TrainResult:
    settings: dict[str, Any] = {"stages": FITNETS, "epochs": 5, **changed}
    return train(Objective([HARD, SOFT, HINT]), cnn(4), ModuleTeacher(cnn(6, seed=1)), **settings)


# Stages


def test_each_stage_has_its_terms_epochs_and_learning_rate() -> None:
    heard: list[str] = []
    result = fitnets(
        schedule="linear", progress=lambda text, done, total, figures: heard.append(f"{text} {done}/{total}")
    )
    assert [item["stage"] for item in result.history] == ["hints", "hints", "soft", "soft", "soft"]
    assert [list(item["terms"]) for item in result.history] == [["hint"]] * 2 + [["ce", "kd"]] * 3
    # 2 steps an epoch; the learning rate of each stage's last step of each epoch.
    expected = [1e-2 * f for f in (3 / 4, 1 / 4)] + [5e-3 * f for f in (5 / 6, 3 / 6, 1 / 6)]
    assert [item["lr"] for item in result.history] == pytest.approx(expected)
    assert heard == [
        f"{stage}, epoch {n}/5 {2 * n}/10" for n, stage in enumerate(["hints"] * 2 + ["soft"] * 3, start=1)
    ]
    assert [item["gradients"] is not None for item in result.history] == [True, False, True, False, False]


def test_hints_train_the_layers_up_to_the_tap_only() -> None:
    begin = cnn(4)
    result = train(
        Objective([HINT, HARD]), cnn(4), ModuleTeacher(cnn(6, seed=1)), epochs=3,
        stages=(Stage("a", 2, ("hint",)), Stage("b", 1, ("ce",), lr=1e-12)), weight_decay=0.0,
    )  # fmt: skip
    after = result.student.state_dict()
    assert torch.allclose(after["3.weight"], begin[3].weight, atol=1e-6)
    assert not torch.allclose(after["1.0.weight"], begin[1][0].weight, atol=1e-3)


def test_the_best_epoch_is_one_of_the_last_stage() -> None:
    """Labels first, then unlearning them: the better first stage does not count."""

    def wrong(student: Tensor, labels: Tensor) -> Tensor:
        return -F.cross_entropy(student, labels).clamp(max=5.0)

    objective = Objective([HARD, Term("wrong", wrong)])
    stages = (Stage("learn", 12, ("ce",)), Stage("unlearn", 6, ("wrong",), lr=0.05))
    model = cnn(4)
    data_like = train(objective, model, stages=stages, epochs=18, schedule="constant")
    values = [item["val"] for item in data_like.history]
    assert data_like.best_epoch > 12
    assert data_like.best == max(values[12:])
    outputs = evaluate(data_like.student, DATA.val, (Scale(), Layout("CHW")))
    assert score("classification", contributions("classification", outputs, DATA.val.y)) == data_like.best


def test_a_term_keeps_its_adapter_from_stage_to_stage() -> None:
    """Three stages (logits; hints; both) cost the hint less at the start of the third than at that of the second."""
    stages = (Stage("logits", 1, ("kd",)), Stage("hidden", 8, ("hint",)), Stage("both", 1, ("kd", "hint")))
    history = train(
        Objective([SOFT, HINT]), cnn(4), ModuleTeacher(cnn(6, seed=1)), stages=stages, epochs=10
    ).history  # fmt: skip
    assert history[-1]["terms"]["hint"] < 0.8 * history[1]["terms"]["hint"]


def test_weights_and_options_run_within_their_stage() -> None:
    seen: list[float] = []

    def noting(student: Tensor, *, strength: float = 0.0) -> Tensor:
        seen.append(strength)
        return student.square().mean()

    objective = Objective([HARD, Term("n", noting, options={"strength": Schedule(0.0, 1.0)})])
    train(objective, cnn(4), stages=(Stage("a", 2, ("ce",)), Stage("b", 2, ("n",))), epochs=4)
    assert seen[-4:] == pytest.approx([0.0, 0.25, 0.5, 0.75])


def test_the_teacher_is_asked_only_where_a_stage_wants_it() -> None:
    result = train(
        Objective([HARD, SOFT]), cnn(4), ModuleTeacher(cnn(4, seed=1)), epochs=3,
        stages=(Stage("a", 2, ("ce",)), Stage("b", 1, ("kd",))),
    )  # fmt: skip
    assert (result.images_seen, result.teacher_passes) == (192, 64)


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        (
            (Stage("a", 2, ("ce",)), Stage("a", 3, ("kd", "hint"))),
            "stage names are ['a', 'a'], expected different names",
        ),
        ((Stage("a", 5, ()),), "stage 'a' has no terms, expected some of ce, kd, hint"),
        ((Stage("a", 5, ("ce", "kdd", "hint")),), "there is no term 'kdd'. Did you mean 'kd'? Known: ce, hint, kd"),
        ((Stage("a", 4, ("ce", "kd", "hint")),), "the stages have 4 epochs in all, but epochs = 5; expected the same"),
        ((Stage("a", 5, ("ce", "kd")),), "no stage learns the term 'hint'; name it in a stage, or drop the term"),
        ((Stage("a", 5, ("ce", "kd", "hint"), lr=0.0),), "stage 'a': found lr = 0.0, expected a number above 0"),
        (
            (Stage("a", 1, ("ce",)), Stage("b", 4, ("kd", "hint"))),
            "stage 'a' has 1 epochs, expected more than warmup_epochs = 1",
        ),
    ],
)
def test_stages_that_make_no_training(stages: tuple[Stage, ...], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        fitnets(stages=stages, warmup_epochs=1 if "warmup" in text else 0)
    assert text in str(caught.value)


# The average of the weights


def test_average_by_its_formula() -> None:
    model = nn.Linear(3, 2)
    average = Average(model, decay=0.6)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in model.state_dict().items()}
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.applied():
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name])
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name])
    other = Average(nn.Linear(3, 2), decay=0.6)
    other.load_state_dict(average.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), average.state_dict().values()))


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    def run(ema: float | None, folder: str) -> TrainResult:
        objective = Objective([HARD])
        return train(objective, cnn(4), ema=ema, epochs=6, lr=0.05, schedule="constant", run_dir=tmp_path / folder)

    plain, averaged = run(None, "plain"), run(0.9, "averaged")
    assert [item["loss"] for item in averaged.history] == [item["loss"] for item in plain.history], (
        "training is the same"
    )
    assert state_bytes(averaged.student) != state_bytes(plain.student)
    outputs = evaluate(averaged.student, DATA.val, (Scale(), Layout("CHW")))
    assert score("classification", contributions("classification", outputs, DATA.val.y)) == averaged.best


def test_every_step_goes_into_the_average() -> None:
    """One that forgets at once is the weights of the last step; one that never did would be those of the start."""
    short: dict[str, Any] = {"epochs": 1, "lr": 0.05, "schedule": "constant"}
    plain = train(Objective([HARD]), cnn(4), **short).student
    forgetful = train(Objective([HARD]), cnn(4), ema=1e-9, **short).student
    for mine, theirs in zip(forgetful.parameters(), plain.parameters()):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


# Early stop


def test_patience_ends_a_training_that_does_not_improve() -> None:
    """The score rises while it learns the labels, stays for a while, and that is it: a tie is no improvement."""
    settings: dict[str, Any] = {"epochs": 60, "lr": 0.02, "schedule": "constant"}
    whole = train(Objective([HARD]), cnn(4), **settings)
    stopped = train(Objective([HARD]), cnn(4), patience=4, **settings)
    values = [item["val"] for item in whole.history]
    end = next(n for n in range(5, 61) if max(values[: n - 4]) >= max(values[n - 4 : n]))
    assert len(stopped.history) == end < 60
    assert [item["val"] for item in stopped.history] == values[:end]
    assert stopped.best == max(values[:end])


def test_patience_counts_in_the_last_stage_only() -> None:
    stages = (Stage("hints", 6, ("hint",)), Stage("soft", 2, ("kd", "ce")))
    assert len(fitnets(stages=stages, epochs=8, patience=1).history) >= 7


# Clipping


def test_clipping_bounds_the_gradient_of_all_weights_together() -> None:
    """With plain descent the step is the learning rate times the clipped gradient."""

    def step(clip: float | None) -> Tensor:
        objective = Objective([Term("ce", "cross_entropy", weight=50.0)])
        settings: dict[str, Any] = {
            "epochs": 1,
            "batch_size": 64,
            "weight_decay": 0.0,
            "lr": 1e-3,
            "schedule": "constant",
        }
        model = train(objective, cnn(4), optimizer="sgd", clip_norm=clip, **settings).student
        differences = [after - before for after, before in zip(model.parameters(), cnn(4).parameters())]
        # Nesterov's first step is 1.9 times the gradient.
        return torch.cat([difference.detach().flatten() for difference in differences]) / (1.9 * 1e-3)

    free, clipped = step(None), step(0.5)
    assert float(free.norm()) > 5
    assert float(clipped.norm()) == pytest.approx(0.5, rel=1e-2)
    assert float(F.cosine_similarity(free, clipped, dim=0)) == pytest.approx(1.0, abs=1e-3)


# Mixed samples


def test_the_teacher_sees_the_mixed_samples_and_labels_are_shares() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    asked: list[Tensor] = []

    class Spy:
        def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            asked.append(batch["x"].clone())
            return {"logits": torch.zeros(len(batch["x"]), 3)}

    def look(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        seen.append((student, labels))
        return student.square().mean()

    model = cnn(4)
    inputs: list[Tensor] = []
    model.register_forward_pre_hook(lambda part, args: inputs.append(args[0].clone()) if part.training else None)
    train(Objective([Term("look", look)]), model, Spy(), mixup=0.5, epochs=1)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(asked[-2:], inputs[-2:]))
    original = torch.from_numpy(DATA.train.x).permute(0, 3, 1, 2).float() / 255
    assert not (asked[-1][:, None] == original[None]).flatten(2).all(dim=2).any(dim=1).all()
    shares = torch.cat([labels for _, labels in seen[-2:]])
    assert shares.shape == (64, 3)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(64))
    assert ((shares > 0).sum(dim=1) == 2).any()


def test_losses_that_want_one_class_say_so() -> None:
    with pytest.raises(UsageError) as caught:
        train(Objective([Term("dkd", "dkd")]), cnn(4), ModuleTeacher(cnn(4, seed=1)), cutmix=1.0)
    assert "labels are [2, 3] of torch.float32, expected [2] whole numbers" in str(caught.value)
    assert (
        "With mixup or cutmix the labels are shares of the classes (N, C): of the losses on labels, cross_entropy"
        in str(caught.value)
    )


def test_mixing_trains_with_finite_numbers() -> None:
    history = train(
        Objective([HARD, SOFT]), cnn(4), ModuleTeacher(cnn(4, seed=1)), mixup=0.2, cutmix=1.0, epochs=3
    ).history
    assert all(math.isfinite(item["loss"]) for item in history)
    assert np.isfinite(history[-1]["val"])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"ema": 1.0}, "found ema = 1.0, expected the decay of the average, between 0 and 1, such as 0.999"),
        ({"patience": 0}, "found patience = 0, expected a whole number from 1"),
        ({"keep": "first"}, "unknown keep 'first'. Known: best, last"),
        ({"clip_norm": 0.0}, "found clip_norm = 0.0, expected a number above 0"),
        ({"mixup": -1.0}, "found mixup = -1.0, expected a number from 0 (off), such as 0.2 or 1.0"),
    ],
)
def test_numbers_that_make_no_sense(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        train(Objective([HARD]), cnn(4), **settings)
    assert str(caught.value) == text
