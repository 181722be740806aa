"""Feature distillation in the engine: taps of student and teacher; adapters are trained, kept and never shipped."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distill.engine import TrainResult, distill
from edgekd.distill.objective import Objective, Schedule, Term
from edgekd.distill.teachers import EnsembleTeacher, ModuleTeacher, StandardizedTeacher, Teacher, tapped
from edgekd.errors import ModelError, UsageError
from edgekd.spec import Dataset, Layout, Scale, Split

RNG = np.random.default_rng(0)
SPLIT = Split(RNG.integers(0, 256, (96, 8, 8, 1), dtype=np.uint8), RNG.integers(0, 3, 96), np.arange(200, 296))
VAL = SPLIT.take(slice(64, 96))
DATA = Dataset("noise", "classification", ("a", "b", "c"), SPLIT.take(slice(0, 64)), VAL, VAL, "none", "0" * 64)


def cnn(width: int, *, seed: int = 0, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(16 * width, outputs),
    )


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Stands for any loss that compares element by element."""
    return F.mse_loss(student, teacher)


def train(objective: Objective, student: nn.Module, *teachers: Teacher, **changed: Any) -> TrainResult:
    settings: dict[str, Any] = {
        "steps": (Scale(), Layout("CHW")),
        "epochs": 2,
        "batch_size": 32,
        "device": "cpu",
        "threads": 1,
        "lr": 1e-2,
        **changed,
    }
    return distill(student, teachers, DATA, objective, **settings)


def state_bytes(module: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


class Scaled(nn.Module):
    """An adapter with one weight, a memory by sample, and something for the loss."""

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.memory: Tensor
        self.register_buffer("memory", torch.zeros(num_samples))

    def forward(
        self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        before = self.memory.index_select(0, batch["index"])
        with torch.no_grad():
            self.memory.index_copy_(0, batch["index"], student.detach().flatten(1).mean(dim=1) + 0.5 * before)
        return student * self.scale, teacher, {"before": before}


SEEN: dict[str, Any] = {}


def scaled(
    student_shape: Sequence[int],
    teacher_shape: Sequence[int],
    *,
    student_module: nn.Module | None = None,
    teacher_module: nn.Module | None = None,
    num_samples: int | None = None,
    factor: float = 1.0,
) -> nn.Module:
    SEEN.update(shapes=(student_shape, teacher_shape), modules=(student_module, teacher_module), samples=num_samples)
    assert num_samples is not None
    module = Scaled(num_samples)
    SEEN.setdefault("built", []).append(module)
    with torch.no_grad():
        module.scale.mul_(factor)
    return module


def remembering(student: Tensor, teacher: Tensor, before: Tensor) -> Tensor:
    return F.mse_loss(student, teacher) + before.square().mean()


def test_one_step_with_an_automatic_adapter_is_the_textbook_step() -> None:
    """One batch, one epoch, by hand: hooks, 1x1 convolution, hint loss, one optimizer for both."""
    objective = Objective([Term("hint", mse, weight=3.0, student_tap="1", teacher_tap="1", adapter="auto")])
    teacher = cnn(6, seed=1)
    mine = train(objective, cnn(4), ModuleTeacher(teacher), epochs=1, batch_size=64, optimizer="sgd").student
    theirs = cnn(4)
    x = torch.from_numpy(DATA.train.x).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        student_map, teacher_map = theirs.eval()[:2](x[:2]), teacher[:2](x)
    theirs.load_state_dict(cnn(4).state_dict())
    built = objective.build({"1": student_map}, {"1": teacher_map}, seed=0)
    (convolution,) = [part for part in built.modules.modules() if isinstance(part, nn.Conv2d)]
    assert convolution.weight.shape == (6, 4, 1, 1)
    step = torch.optim.SGD([*theirs.parameters(), *built.modules.parameters()], lr=1e-2, momentum=0.9,
                           weight_decay=0.01, nesterov=True)  # fmt: skip
    (3.0 * F.mse_loss(convolution(theirs.train()[:2](x)), teacher_map)).backward()  # type: ignore[no-untyped-call]
    step.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine[3].weight, cnn(4)[3].weight)  # type: ignore[index]


def test_the_student_ends_as_it_came_but_for_its_weights() -> None:
    objective = Objective(
        [Term("ce", "cross_entropy"), Term("hint", mse, student_tap="0", teacher_tap="0.0", adapter="auto")]
    )
    model, teacher = cnn(4), ModuleTeacher(cnn(6, seed=1))
    before, teacher_before = cnn(4).state_dict().keys(), state_bytes(teacher.module)
    result = train(objective, model, teacher)
    assert model.state_dict().keys() == before
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in (*model.modules(), *teacher.module.modules())
    )
    assert state_bytes(teacher.module) == teacher_before
    assert list(result.history[-1]["terms"]) == ["ce", "hint"]
    assert result.history[-1]["terms"]["hint"] < result.history[0]["terms"]["hint"]
    assert len(objective.modules) == 0, "the objective that was passed in is not changed"


def test_builders_learn_everything_and_a_dry_run_leaves_no_trace() -> None:
    SEEN.clear()
    objective = Objective(
        [
            Term("ce", "cross_entropy"),
            Term(
                "r",
                remembering,
                student_tap="0",
                teacher_tap="0@input",
                adapter=scaled,
                adapter_options={"factor": 2.0},
            ),
        ]
    )
    model, teacher = cnn(1), cnn(1, seed=1)
    train(objective, model, ModuleTeacher(teacher), epochs=1, batch_size=64, lr=1e-9)
    assert SEEN["shapes"] == ((1, 8, 8), (1, 8, 8))
    assert SEEN["modules"] == (model[0], teacher[0])
    assert SEEN["samples"] == 64
    dry, real = SEEN["built"]
    assert dry.memory.count_nonzero() == 2
    assert real.memory.count_nonzero() == 64
    with torch.no_grad():
        x = torch.from_numpy(DATA.train.x).permute(0, 3, 1, 2).float() / 255
        expected = model.train()[0](x).flatten(1).mean(dim=1)
    torch.testing.assert_close(real.memory, expected, atol=1e-4, rtol=1e-4)
    assert real.scale.item() == pytest.approx(2.0)


def test_the_module_of_the_logits_is_the_whole_model() -> None:
    SEEN.clear()
    model, teacher = cnn(4), cnn(4, seed=1)
    objective = Objective([Term("ce", "cross_entropy"), Term("r", remembering, adapter=scaled)])
    train(objective, model, ModuleTeacher(teacher), epochs=1)
    assert SEEN["modules"] == (model, teacher)


def test_several_taps_come_as_lists() -> None:
    seen = []

    def spread(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        seen.append(([tuple(s.shape[1:]) for s in student], [tuple(t.shape[1:]) for t in teacher]))
        return torch.stack([F.mse_loss(s, t) for s, t in zip(student, teacher)]).sum()

    objective = Objective([Term("two", spread, student_tap=("0", "1"), teacher_tap=("0", "1"))])
    train(objective, cnn(4), ModuleTeacher(cnn(4, seed=1)))
    assert set(map(str, seen)) == {str(([(4, 8, 8), (4, 4, 4)], [(4, 8, 8), (4, 4, 4)]))}


def test_options_may_change_over_the_training() -> None:
    seen = []

    def soft(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
        seen.append(temperature)
        return F.mse_loss(student / temperature, teacher / temperature)

    cooling = Schedule(8.0, 2.0, until=0.5)
    train(Objective([Term("kd", soft, options={"temperature": cooling})]), cnn(4), ModuleTeacher(cnn(4)), epochs=4)
    assert seen[-8:] == pytest.approx([8.0, 6.5, 5.0, 3.5, 2.0, 2.0, 2.0, 2.0])


def test_teachers_of_an_ensemble_are_tapped_one_by_one() -> None:
    one, two = ModuleTeacher(cnn(4, seed=1)), ModuleTeacher(cnn(6, seed=2))
    batch = {"x": torch.rand(5, 1, 8, 8), "id": torch.arange(5)}
    ensemble = EnsembleTeacher((one, StandardizedTeacher(two, ())))
    with tapped(ensemble, ["logits", "0/1", "1/0.0"], batch):
        given = ensemble(batch)
    assert set(given) == {"logits", "0/logits", "1/logits", "0/1", "1/0.0"}
    torch.testing.assert_close(given["0/1"], one.module[:2](batch["x"]))  # type: ignore[index]
    torch.testing.assert_close(given["1/0.0"], two.module[0][0](batch["x"]))  # type: ignore[index]
    assert set(one(batch)) == {"logits"}
    both = Objective(
        [
            Term("first", mse, student_tap="1", teacher_tap="0/1"),
            Term("second", mse, student_tap="1", teacher_tap="1/1", adapter="auto"),
        ]
    )
    history = train(both, cnn(4), one, two).history
    assert all(value > 0 for value in history[0]["terms"].values())


def test_a_teacher_of_other_classes_may_give_features() -> None:
    objective = Objective([Term("ce", "cross_entropy"), Term("hint", mse, student_tap="1", teacher_tap="1")])
    train(objective, cnn(4), ModuleTeacher(cnn(4, seed=1, outputs=7)))
    with pytest.raises(UsageError, match=r"student logits are \[2, 3\] but teacher logits are \[2, 7\]"):
        train(Objective([Term("kd", "kd")]), cnn(4), ModuleTeacher(cnn(4, seed=1, outputs=7)))


def test_gradient_norms_of_each_term() -> None:
    objective = Objective(
        [Term("ce", "cross_entropy", weight=0.5), Term("hint", mse, weight=2.0, student_tap="0", teacher_tap="0")]
    )
    teacher = cnn(4, seed=1)
    history = train(objective, cnn(4), ModuleTeacher(teacher), epochs=3, batch_size=64, lr=1e-9).history
    model = cnn(4).train()
    x, y = torch.from_numpy(DATA.train.x).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(DATA.train.y)
    with torch.no_grad():
        features = teacher.eval()[0](x)
    for name, part in {"ce": 0.5 * F.cross_entropy(model(x), y), "hint": 2 * F.mse_loss(model[0](x), features)}.items():
        gradients = torch.autograd.grad(part, list(model.parameters()), allow_unused=True)
        norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
        assert history[0]["gradients"][name] == pytest.approx(float(norm), rel=1e-3)
    assert [item["gradients"] is None for item in history] == [False, True, True], "seldom: it costs backward passes"


def test_a_large_loss_that_hardly_moves_is_negligible() -> None:
    def stubborn(student: Tensor) -> Tensor:
        return 100.0 + 1e-6 * student.square().mean()

    result = train(Objective([Term("ce", "cross_entropy"), Term("stubborn", stubborn)]), cnn(4))
    assert result.history[0]["terms"]["stubborn"] > 50 * result.history[0]["terms"]["ce"]
    (warning,) = result.warnings
    assert warning.startswith("term 'stubborn' is only ")
    assert "of the gradient (weight 1) and hardly teaches anything" in warning


def test_a_compiled_student_learns_the_same() -> None:
    objective = Objective([Term("ce", "cross_entropy"), Term("hint", mse, student_tap="1", teacher_tap="1")])
    plain = train(objective, cnn(4), ModuleTeacher(cnn(4, seed=1)))
    model = cnn(4)
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    result = train(objective, compiled, ModuleTeacher(cnn(4, seed=1)))
    assert [item["terms"] for item in result.history] == [item["terms"] for item in plain.history]
    assert state_bytes(model) == state_bytes(plain.student)


def test_features_do_not_outlive_their_step() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def watch(student: Tensor, teacher: Tensor) -> Tensor:
        gc.collect()
        # The tensors of this step and, until the loop takes the next ones, of the step before.
        assert sum(ref() is not None for ref in alive) <= 2
        alive.extend((weakref.ref(student), weakref.ref(teacher)))
        return F.mse_loss(student, teacher)

    objective = Objective([Term("hint", watch, student_tap="0", teacher_tap="0")])
    train(objective, cnn(4), ModuleTeacher(cnn(4, seed=1)), batch_size=16)
    assert len(alive) > 16


class Talkative(nn.Module):
    """Gives a tensor that is no module's."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Flatten(), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(x)), "doubled": 2 * self.body(x)}


def test_what_a_model_gives_by_itself_needs_no_tap() -> None:
    there = Term("there", mse, student_tap="doubled", teacher_tap="body")
    back = Term("back", mse, student_tap="body", teacher_tap="doubled")
    objective = Objective([Term("ce", "cross_entropy"), there, back])
    terms = train(objective, Talkative(), ModuleTeacher(Talkative())).history[0]["terms"]
    assert terms["there"] == pytest.approx(terms["back"], rel=1e-4)
    assert terms["there"] > 0
    with pytest.raises(UsageError, match="no term depends on a weight of the student"):
        train(Objective([there, back]), Talkative(), ModuleTeacher(Talkative()))


@pytest.mark.parametrize(
    ("term", "error", "text"),
    [
        (
            {"student_tap": "body", "teacher_tap": "1"},
            ModelError,
            "the tap 'body' leads nowhere: there is no module 'body'. The model has 0, 1, 2, 3; edgekd taps",
        ),
        ({"student_tap": "1", "teacher_tap": "7"}, ModelError, "the tap '7' leads nowhere"),
        ({"student_tap": "1", "teacher_tap": "0/1"}, ModelError, "the tap '0/1' leads nowhere"),
        ({"student_tap": (), "teacher_tap": "1"}, UsageError, "term 'a': student_tap names nothing"),
        ({"adapter": "autto"}, UsageError, "unknown adapter 'autto'. Did you mean 'auto'?"),
        ({"adapter_options": {"width": 3}}, UsageError, "term 'a': adapter_options say how an adapter is built, but"),
        (
            {"adapter": "auto", "adapter_options": {"width": 3}},
            UsageError,
            "term 'a': its adapter cannot be built: auto() got an unexpected keyword argument 'width'",
        ),
        (
            {"adapter": lambda *_, **__: 3},
            UsageError,
            "term 'a': its adapter's builder returned a int, expected a torch.nn.Module",
        ),
        (
            {"adapter": "auto", "student_tap": "1"},
            UsageError,
            "found [4, 4, 4] of the student and [3] of the teacher: no adapter brings these together by itself",
        ),
        (
            {"loss": remembering, "adapter": "auto"},
            UsageError,
            "term 'a': its adapter gives nothing beside the tensors, but the loss takes ['before']; is it the adapter",
        ),
        (
            {"adapter": scaled},
            UsageError,
            "term 'a': its adapter gives ['before'] beside the tensors, but the loss takes nothing more",
        ),
    ],
)
def test_mistakes(term: dict[str, Any], error: type[Exception], text: str) -> None:
    def attempt() -> None:
        objective = Objective([Term("ce", "cross_entropy"), Term(**{"name": "a", "loss": mse, **term})])
        train(objective, cnn(4), ModuleTeacher(cnn(4, seed=1)))

    with pytest.raises(error) as caught:
        attempt()
    assert text in str(caught.value)


def test_a_black_box_has_nothing_to_tap() -> None:
    class BlackBox:
        def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return {"logits": torch.zeros(len(batch["x"]), 3)}

    objective = Objective([Term("hint", mse, student_tap="1", teacher_tap="1")])
    with pytest.raises(ModelError, match=r"term 'hint' looks at '1' of the teacher, which gives nothing"):
        train(objective, cnn(4), BlackBox())


def test_an_objective_with_adapters_wants_to_be_built() -> None:
    objective = Objective([Term("hint", mse, adapter="auto")])
    with pytest.raises(UsageError, match="term 'hint' has an adapter: call build on the objective first"):
        objective({"logits": torch.zeros(2, 3)}, {"logits": torch.zeros(2, 3)}, {}, 0.0)
