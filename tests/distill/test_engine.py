"""The engine: it learns, keeps the best epoch, asks teachers rightly, leaves no trace, and refuses early."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from edgekd.device.metrics import contributions, score
from edgekd.distill.engine import TrainResult, distill, evaluate
from edgekd.distill.objective import Objective, Schedule, Term
from edgekd.distill.teachers import EnsembleTeacher, ModuleTeacher
from edgekd.errors import DataError, MissingHere, ModelError, UsageError
from edgekd.spec import Array, Dataset, Layout, Scale, Split, Task

HARD = Objective([Term("ce", "cross_entropy")])
BOTH = Objective([Term("ce", "cross_entropy", weight=0.5), Term("kd", "kd", weight=0.5, options={"temperature": 3.0})])


def digits() -> Dataset:
    """Real handwritten digits, 8x8, as bytes 0..16."""
    x, y = load_digits(return_X_y=True)
    images = x.reshape(-1, 8, 8, 1).astype(np.uint8)
    train, val, test = (
        Split(images[part], y[part].astype(np.int64), np.arange(1797)[part])
        for part in (slice(0, 1200), slice(1200, 1500), slice(1500, 1797))
    )
    return Dataset("digits", "classification", tuple("0123456789"), train, val, test, "CC BY 4.0", "1" * 64)


def blobs(count: int = 96, *, classes: int = 3, task: Task = "classification", noise: float = 1.0) -> Dataset:
    """Vectors of 6 numbers that a linear model can tell apart, more or less."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * count, 6)).astype(np.float32)
    signal = x @ rng.normal(size=(6, classes)) + noise * rng.normal(size=(2 * count, classes))
    y: dict[Task, Array] = {
        "classification": signal.argmax(axis=1),
        "multilabel": (signal > 0).astype(np.uint8),
        "regression": (signal / signal.std(axis=0)).astype(np.float32),
    }
    split = Split(x, y[task], np.arange(2 * count))
    train, val = split.take(slice(0, count)), split.take(slice(count, 2 * count))
    return Dataset("blobs", task, tuple("abcdefgh"[:classes]), train, val, val, "none", "2" * 64)


def mlp(outputs: int = 3, *, inputs: int = 6, hidden: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def train(student: nn.Module, data: Dataset, objective: Objective = HARD, **changed: Any) -> TrainResult:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 32, "device": "cpu", "threads": 1, **changed}
    return distill(student, settings.pop("teachers", ()), data, objective, **settings)


def state_bytes(module: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


# It learns


def test_learns_real_digits_alone_and_from_a_teacher_without_labels() -> None:
    data = digits()
    settings: dict[str, Any] = {"steps": (Scale(1 / 16), Layout("flat")), "epochs": 12, "lr": 5e-3}
    taught = train(mlp(10, inputs=64, hidden=128), data, augment={"shift": 1}, **settings)
    assert taught.best is not None
    assert taught.best > 0.9
    teacher = ModuleTeacher(taught.student)
    only_kd = Objective([Term("kd", "kd")])
    pupil = train(mlp(10, inputs=64, hidden=24, seed=1), data, only_kd, teachers=(teacher,), **settings)
    assert pupil.best is not None
    assert pupil.best > 0.88
    told = evaluate(teacher, data.val, settings["steps"]).argmax(axis=1)
    said = evaluate(pupil.student, data.val, settings["steps"]).argmax(axis=1)
    assert (told == said).mean() > 0.9


@pytest.mark.parametrize(
    ("task", "hard", "soft"),
    [("multilabel", "binary_cross_entropy", "multilabel_kd"), ("regression", "mean_squared_error", "regression_kd")],
)
def test_learns_labels_and_numbers(task: Task, hard: str, soft: str) -> None:
    data = blobs(400, task=task, noise=0.1)
    settings: dict[str, Any] = {"epochs": 20, "lr": 1e-2}
    alone = train(mlp(), data, Objective([Term("hard", hard)]), **settings)
    assert alone.best is not None
    assert alone.best > 0.9
    pupil = train(
        mlp(seed=1), data, Objective([Term("soft", soft)]), teachers=(ModuleTeacher(alone.student),), **settings
    )
    assert pupil.best is not None
    assert pupil.best > 0.9


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_one_step_is_the_textbook_step(optimizer: str) -> None:
    """One batch, one epoch: the same weights as the loop that everybody writes."""
    data, teacher = blobs(32), mlp(seed=5)
    mine = train(
        mlp(), data, BOTH, teachers=(ModuleTeacher(teacher),), epochs=1, optimizer=optimizer, lr=0.1, weight_decay=0.2
    ).student
    theirs = mlp()
    makers = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, momentum=0.9, nesterov=True),
    }
    step = makers[optimizer](theirs.parameters())
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    logits = theirs(x)
    with torch.no_grad():
        soft = F.softmax(teacher(x) / 3, dim=1)
    kl = F.kl_div(F.log_softmax(logits / 3, dim=1), soft, reduction="batchmean") * 9
    (0.5 * F.cross_entropy(logits, y) + 0.5 * kl).backward()
    step.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, atol=1e-4, rtol=1e-3)


# What it reports


def test_history_and_counters() -> None:
    data, teacher = blobs(70), ModuleTeacher(mlp(seed=1))
    ticks = iter(range(1000))
    result = train(
        mlp(), data, BOTH, teachers=(teacher,), epochs=4, schedule="linear", warmup_epochs=1, clock=lambda: next(ticks)
    )
    assert [item["epoch"] for item in result.history] == [1, 2, 3, 4]
    assert [item["seconds"] for item in result.history] == [1, 1, 1, 1]
    assert result.seconds == 4
    for item in result.history:
        assert set(item) == {"epoch", "stage", "lr", "loss", "terms", "gradients", "val", "seconds"}
        assert item["stage"] is None
        assert list(item["terms"]) == ["ce", "kd"]
        assert sum(item["terms"].values()) == pytest.approx(item["loss"], rel=1e-5)
    # 70 samples in batches of 32: 3 steps an epoch; lr of the last step of each.
    assert [item["lr"] for item in result.history] == pytest.approx([1e-3 * f for f in (3 / 4, 7 / 9, 4 / 9, 1 / 9)])
    assert result.images_seen == 280
    assert result.teacher_passes == 280
    assert result.last == result.history[-1]["val"]


def test_loss_is_the_mean_over_samples() -> None:
    data, model = blobs(40), mlp()
    result = train(mlp(), data, epochs=1, lr=1e-12, schedule="constant")
    with torch.no_grad():
        expected = F.cross_entropy(model(torch.from_numpy(data.train.x)), torch.from_numpy(data.train.y))
    assert result.history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_best_epoch_is_kept() -> None:
    data = blobs(48, noise=4.0)
    result = train(mlp(), data, epochs=12, lr=0.3, schedule="constant", batch_size=8)
    values = [item["val"] for item in result.history]
    assert max(values) > values[-1], "or this test shows nothing"
    assert result.best == max(values)
    assert result.best_epoch == max(epoch for epoch, value in enumerate(values, start=1) if value == max(values))
    assert result.last == values[-1]
    outputs = evaluate(result.student, data.val)
    assert score("classification", contributions("classification", outputs, data.val.y)) == result.best
    assert not result.student.training


def test_or_the_last_epoch_is() -> None:
    data = blobs(48, noise=4.0)
    settings: dict[str, Any] = {"epochs": 12, "lr": 0.3, "schedule": "constant", "batch_size": 8}
    best, last = train(mlp(), data, **settings), train(mlp(), data, keep="last", **settings)
    assert best.best_epoch < 12, "or this test shows nothing"
    assert (last.best_epoch, last.best) == (12, best.last)
    outputs = evaluate(last.student, data.val)
    assert score("classification", contributions("classification", outputs, data.val.y)) == best.last


def test_progress_reaches_the_end() -> None:
    heard: list[tuple[str, int, int, dict[str, float]]] = []
    train(mlp(), blobs(60), batch_size=1, progress=lambda t, d, n, f: heard.append((t, d, n, dict(f))))
    assert [done for _, done, _, _ in heard] == [50, 60, 110, 120, 170, 180]
    assert [text for text, _, _, _ in heard] == [f"epoch {epoch}/3" for epoch in (1, 1, 2, 2, 3, 3)]
    assert {total for _, _, total, _ in heard} == {180}
    assert set(heard[0][3]) == {"loss"}
    assert set(heard[1][3]) == {"loss", "accuracy"}


def test_warnings() -> None:
    weak = Objective([Term("ce", "cross_entropy"), Term("kd", "kd", weight=1e-5)])
    teacher = ModuleTeacher(mlp(seed=1))
    result = train(mlp(), blobs(), weak, teachers=(teacher,))
    assert len(result.warnings) == 1, "once, not in every epoch"
    assert re.fullmatch(
        r"term 'kd' is only .*e-0\d of the gradient \(weight 1e-05\) and hardly teaches anything; raise its weight, or "
        r"drop the term \(seen in epoch 1\)",
        result.warnings[0],
    )
    idle = train(mlp(), blobs(), teachers=(teacher,))
    assert idle.warnings == ("no term of the objective wants the teacher: it is not asked",)
    assert idle.teacher_passes == 0
    assert train(mlp(), blobs(), BOTH, teachers=(teacher,)).warnings == ()


# Determinism, and no traces


def test_equal_seeds_give_equal_bytes_whatever_the_global_state() -> None:
    def once(seed: int, before: int) -> dict[str, bytes]:
        model = nn.Sequential(mlp(8), nn.Dropout(0.5), nn.Linear(8, 3))
        torch.manual_seed(before)
        np.random.seed(before)
        return state_bytes(train(model, blobs(), seed=seed, augment={"noise": 0.1}).student)

    first = once(0, before=1)
    assert once(0, before=2) == first
    assert once(1, before=1) != first


@pytest.mark.parametrize("random_number", [lambda: torch.rand(()), lambda: np.random.rand(), lambda: random.random()])
def test_a_model_may_draw_from_any_generator(random_number: Callable[[], Any]) -> None:
    class Jumpy(nn.Module):
        """Skips its hidden layer now and then, as stochastic depth does."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            skip = self.training and float(random_number()) < 0.5
            result: Tensor = self.out(x if skip else self.inner(x))
            return result

    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Jumpy()
        torch.manual_seed(len(states))
        np.random.seed(len(states))
        random.seed(len(states))
        states.append(state_bytes(train(model, blobs()).student))
    assert states[0] == states[1]


def test_nothing_global_is_changed() -> None:
    dropout, misfit = nn.Sequential(mlp(), nn.Dropout(0.5)), ModuleTeacher(mlp(4))
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[union-attr, index]
    threads = torch.get_num_threads()
    train(dropout, blobs(), threads=threads + 1)
    with pytest.raises(UsageError):
        train(dropout, blobs(), BOTH, teachers=(misfit,), threads=threads + 1)
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[union-attr, index]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.is_grad_enabled()


def test_deterministic_kernels_and_threads_while_it_trains() -> None:
    seen = []

    def look(student: Tensor, labels: Tensor) -> Tensor:
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()))
        return F.cross_entropy(student, labels)

    assert train(mlp(), blobs(), Objective([Term("ce", look)]), epochs=1, threads=2).threads == 2
    assert set(seen) == {(True, 2)}


# Teachers


class Spy:
    """A careless teacher: its parameters want gradients, it keeps its graph."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inference: set[bool] = set()
        self.batches: list[Mapping[str, Tensor]] = []

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self.inference.add(torch.is_inference_mode_enabled())
        self.batches.append(batch)
        return {"logits": self.module(batch["x"]), "unused": batch["x"]}


def test_a_teacher_never_gets_gradients() -> None:
    spy = Spy(mlp(seed=1))
    before = state_bytes(spy.module)

    def product(student: Tensor, teacher: Tensor) -> Tensor:
        assert not teacher.requires_grad
        return (student * teacher).mean()  # saves the teacher's tensor for the backward pass

    result = train(mlp(), blobs(), Objective([Term("p", product)]), teachers=(spy,))
    assert all(parameter.grad is None for parameter in spy.module.parameters())
    assert state_bytes(spy.module) == before
    assert spy.inference == {True}
    assert result.teacher_passes == 3 * 96
    assert set(spy.batches[-1]) == {"x", "y", "id", "index", "view"}


def test_several_teachers_are_averaged() -> None:
    one, two = ModuleTeacher(mlp(seed=1)), ModuleTeacher(mlp(seed=2))
    soft = Objective([Term("mse", "logit_mse")])
    many = train(mlp(), blobs(), soft, teachers=(one, two))
    same = train(mlp(), blobs(), soft, teachers=(EnsembleTeacher((one, two)),))
    assert state_bytes(many.student) == state_bytes(same.student)
    assert state_bytes(many.student) != state_bytes(train(mlp(), blobs(), soft, teachers=(one,)).student)
    assert many.teacher_passes == 2 * 3 * 96


# Students


class Talkative(nn.Module):
    """Returns named tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x), "body": x}


def test_tensor_or_mapping_is_the_same() -> None:
    plain, named = train(mlp(), blobs()).student, train(Talkative(), blobs()).student
    assert list(state_bytes(plain).values()) == list(state_bytes(named).values())
    tapped = Objective(
        [Term("ce", "cross_entropy"), Term("l2", lambda student: student.square().mean(), student_tap="body")]
    )
    assert train(Talkative(), blobs(), tapped).history[0]["terms"]["l2"] > 0
    with pytest.raises(ModelError, match="the tap 'body' leads nowhere: there is no module 'body'"):
        train(mlp(), blobs(), tapped)


class Masked(nn.Module):
    """What models bring along: a mask that is infinite on purpose, and outputs that are no tensors of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"logits": self.body(x), "past": None, "states": (x, x), "place": torch.arange(len(x))}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_infinite_buffers_and_other_outputs_do_no_harm(precision: str) -> None:
    result = train(Masked(), blobs(), precision=precision, epochs=2)
    assert len(result.history) == 2
    assert result.last is not None


def test_batch_norm_survives_a_remainder_of_one() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    assert train(model, blobs(65)).images_seen == 3 * 65


def test_a_student_in_eval_mode_trains_like_any_other() -> None:
    models = [nn.Sequential(mlp(8), nn.BatchNorm1d(8), nn.Linear(8, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].eval()
    states = [state_bytes(train(model, blobs()).student) for model in models]
    assert states[0] == states[1]


def test_frozen_parts_stay() -> None:
    model = mlp()
    model[1].requires_grad_(False)
    before = state_bytes(model)
    after = state_bytes(train(model, blobs()).student)
    assert after["1.weight"] == before["1.weight"]
    assert after["3.weight"] != before["3.weight"]


def test_teacher_computes_under_autocast_in_bfloat16_and_speaks_in_float32() -> None:
    seen: dict[str, list[Any]] = {"autocast": [], "dtype": [], "rounded": []}

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp(seed=3)

        def forward(self, x: Tensor) -> Tensor:
            seen["autocast"].append(torch.is_autocast_enabled("cpu"))
            out: Tensor = self.inner(x)
            return out

    def watch(student: Tensor, teacher: Tensor) -> Tensor:
        seen["dtype"].append(teacher.dtype)
        seen["rounded"].append(bool((teacher.bfloat16().float() == teacher).all()))
        return (student - teacher).square().mean()

    for precision, expected in (("bfloat16", True), ("float32", False)):
        for values in seen.values():
            values.clear()
        objective = Objective([Term("watch", watch)])
        train(mlp(), blobs(), objective, teachers=(ModuleTeacher(Watched()),), precision=precision, epochs=1)
        assert seen["autocast"][-1] is expected
        assert set(seen["dtype"]) == {torch.float32}
        assert seen["rounded"][-1] is expected


def test_convolutions_in_bfloat16_learn_and_come_back_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    result = train(model, digits(), steps=(Scale(1 / 16), Layout("CHW")), precision="bfloat16", lr=5e-3, epochs=4)
    assert result.precision == "bfloat16: asked for"
    assert result.best is not None
    assert result.best > 0.8
    assert all(parameter.dtype == torch.float32 and parameter.is_contiguous() for parameter in model.parameters())


# It refuses before the first step


def with_labels(data: Dataset, y: Array, *, split: str = "train") -> Dataset:
    changed = replace(getattr(data, split), y=y)
    return replace(data, **{split: changed})


def bad_label() -> Dataset:
    y = blobs().train.y.copy()
    y[[7, 9]] = 3
    return with_labels(blobs(), y)


def bad_target() -> Dataset:
    data = blobs(task="regression")
    y = data.val.y.copy()
    y[4, 1] = np.nan
    return with_labels(data, y, split="val")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            bad_label(),
            "blobs, train: 2 labels are out of range, the first is 3 (sample 7), expected 0 to 2 for 3 labels",
        ),
        (bad_target(), "blobs, val: 1 targets are NaN or infinite, the first in sample 100"),
        (
            replace(blobs(), val=blobs().val.take(slice(0, 0))),
            "blobs: the val split is empty, expected at least 1 sample; check val_fraction",
        ),
        (
            replace(blobs(), task="multilabel"),
            "blobs, train: found targets [96], expected [96, 3]",
        ),
        (
            with_labels(blobs(task="multilabel"), np.full((96, 3), 2, np.uint8)),
            "blobs, train: found label values other than 0 and 1, expected 1 where a label holds and else 0",
        ),
        (
            with_labels(blobs(), np.zeros(96, np.float32)),
            "blobs, train: found labels [96] of float32, expected one whole number per sample",
        ),
        (
            with_labels(blobs(), np.zeros(95, np.int64)),
            "blobs, train: found 96 samples, 95 labels and 96 ids, expected as many of each",
        ),
    ],
)
def test_bad_data(data: Dataset, text: str) -> None:
    with pytest.raises(DataError) as caught:
        train(mlp(), data)
    assert str(caught.value) == text


def test_teacher_with_other_classes() -> None:
    with pytest.raises(UsageError) as caught:
        train(mlp(3), blobs(), BOTH, teachers=(ModuleTeacher(mlp(4)),))
    assert str(caught.value) == (
        "student logits are [2, 3] but teacher logits are [2, 4]; do both models end in the same classes?"
    )


def test_student_with_other_classes_than_the_data() -> None:
    with pytest.raises(ModelError) as caught:
        train(mlp(5), blobs())
    assert str(caught.value) == (
        "student logits are [2, 5] but the data has 3 labels, expected [2, 3]; build the student with num_outputs = 3"
    )


def test_student_that_cannot_take_the_samples() -> None:
    with pytest.raises(ModelError, match=r"the model fails on an input of shape \[2, 6\]: .* preprocessing steps"):
        train(mlp(inputs=7), blobs())


class Wordy(nn.Module):
    """Returns something that has no logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.inner(x)}


def test_student_without_logits() -> None:
    text = r"the model gives a mapping with \['scores'\], expected a tensor or a mapping that holds the tensor 'logits'"
    with pytest.raises(ModelError, match=text):
        train(Wordy(), blobs())


def test_checking_changes_no_statistics() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = state_bytes(model)
    with pytest.raises(UsageError):
        train(model, blobs(), BOTH, teachers=(ModuleTeacher(mlp(4)),))
    assert state_bytes(model) == before


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"objective": BOTH},
            "the term 'kd' compares with a teacher, but there is none; give a teacher, or drop the term",
        ),
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm'. Did you mean 'adam'? Known: adam, adamw, sgd"),
        (
            {"schedule": "cosin"},
            "unknown schedule 'cosin'. Did you mean 'cosine'? Known: constant, cosine, linear, onecycle",
        ),
        ({"lr": 0.0}, "found lr = 0.0, expected a number above 0"),
        ({"weight_decay": -1.0}, "found weight_decay = -1.0, expected a number from 0"),
        ({"epochs": 0}, "found epochs = 0, expected a whole number from 1"),
        ({"warmup_epochs": 3}, "found warmup_epochs = 3, expected 0 to 2 (below epochs = 3)"),
        (
            {"warmup_epochs": 1, "schedule": "onecycle"},
            "found warmup_epochs = 1 with onecycle, which warms up itself; expected 0",
        ),
        ({"batch_size": 0}, "found batch_size = 0, expected a whole number from 1"),
        ({"checkpoint_epochs": 0}, "found checkpoint_epochs = 0, expected a whole number from 1"),
        ({"threads": 0}, "found threads = 0, expected a whole number from 1"),
        ({"device": "gpu"}, "unknown device 'gpu'. Did you mean 'cpu'? Known: auto, cpu, cuda, mps"),
        (
            {"precision": "float16"},
            "unknown precision 'float16'. Did you mean 'bfloat16'? Known: auto, bfloat16, float32",
        ),
    ],
)
def test_bad_settings(changed: dict[str, Any], text: str) -> None:
    settings = dict(changed)
    with pytest.raises(UsageError) as caught:
        train(mlp(), blobs(), settings.pop("objective", HARD), **settings)
    assert str(caught.value) == text


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens where there is no GPU")
def test_missing_device() -> None:
    with pytest.raises(MissingHere, match="device 'cuda' was asked for, but torch"):
        train(mlp(), blobs(), device="cuda")


def test_batch_norm_with_batches_of_one() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(UsageError, match="the student has batch norm, which cannot learn from a batch of 1 sample"):
        train(model, blobs(), batch_size=1)
    assert train(mlp(), blobs(), batch_size=1).images_seen == 3 * 96


def test_nothing_to_train() -> None:
    with pytest.raises(ModelError, match="the student has no parameter that can be trained"):
        train(mlp().requires_grad_(False), blobs())


def test_weights_may_fade_in() -> None:
    fading = Objective([Term("ce", "cross_entropy"), Term("kd", "kd", weight=Schedule(0.0, 4.0))])
    result = train(mlp(), blobs(), fading, teachers=(ModuleTeacher(mlp(seed=1)),), lr=1e-6, epochs=4)
    parts = [item["terms"]["kd"] for item in result.history]
    assert parts == sorted(parts)
    # Progress goes 0, 1/12, ... 11/12 in 4 epochs of 3 steps; the divergence itself hardly moves.
    assert parts[3] / parts[0] == pytest.approx(10.0, rel=0.05)
    assert result.warnings == ()


# Evaluation


def test_evaluate_keeps_order_and_modes() -> None:
    data, model = blobs(50), nn.Sequential(mlp(8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.Linear(8, 3))
    model.train()
    model[1].eval()
    before = state_bytes(model)
    outputs = evaluate(model, data.val, batch_size=7)
    assert outputs.dtype == np.float32
    assert outputs.shape == (50, 3)
    assert [part.training for part in model] == [True, False, True, True]
    assert state_bytes(model) == before
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(outputs, model(torch.from_numpy(data.val.x)).numpy(), atol=1e-6)
    np.testing.assert_array_equal(evaluate(ModuleTeacher(model), data.val, batch_size=7), outputs)


def test_evaluate_names_a_wrong_shape() -> None:
    with pytest.raises(ModelError, match=r"the model fails on an input of shape \[5, 6\].*layout"):
        evaluate(mlp(inputs=5), blobs(5).val)
