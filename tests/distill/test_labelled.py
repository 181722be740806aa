"""Labels that may not be used, and masks of tokens: who sees what, and what a share of the labels weighs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgekd.data.registry import load_dataset
from edgekd.distill.batches import Batches
from edgekd.distill.engine import distill
from edgekd.distill.losses.adversarial import mutual, mutual_learning
from edgekd.distill.losses.logits import kd
from edgekd.distill.mixing import Mixing
from edgekd.distill.objective import Objective, Term
from edgekd.distill.teachers import ModuleTeacher
from edgekd.errors import DataError, UsageError
from edgekd.spec import Dataset, Split, parse_steps

STEPS = parse_steps([{"op": "scale"}, {"op": "layout", "to": "flat"}])
HARD = Objective([Term("ce", "cross_entropy")])


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(kind="digits", limit=120)


def shares(count: int, share: float) -> np.ndarray:
    labelled = np.zeros(count, bool)
    labelled[np.random.default_rng(0).permutation(count)[: round(share * count)]] = True
    return labelled


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(64, 10)


@pytest.mark.parametrize(
    ("loss", "options", "wants"),
    [
        ("regression_kd", {}, False),
        ("regression_kd", {"margin": 0.5}, True),
        ("curriculum_kd", {"share": 1.0}, False),
        ("curriculum_kd", {"share": 0.5, "by": "loss"}, True),
        ("cross_entropy", {}, True),
    ],
)
def test_a_loss_that_does_not_look_at_the_labels_learns_from_all(
    loss: str, options: dict[str, Any], wants: bool
) -> None:
    objective = Objective([Term("term", loss, options=options)])
    assert bool(objective.truth_terms) is wants
    student = torch.randn(4, 3, requires_grad=True)
    classes = torch.tensor([0, 1, -1, -1])
    y = torch.full((4, 3), torch.nan) if loss == "regression_kd" else classes
    y = torch.where(classes[:, None] < 0, y, 0.0) if loss == "regression_kd" else y
    batch = {"y": y, "labelled": torch.tensor([2.0, 2.0, 0.0, 0.0])}
    objective({"logits": student}, {"logits": torch.randn(4, 3)}, batch, 0.0)[0].backward()
    assert student.grad is not None
    unlabelled = student.grad[2:].abs().sum()
    assert bool(unlabelled == 0) is wants
    assert torch.isfinite(student.grad).all()


def test_hidden_labels_are_not_in_the_batch(digits: Dataset) -> None:
    labelled = shares(len(digits.train), 0.3)
    batches = Batches(digits.train, STEPS, batch_size=16, extras={"labelled": labelled})
    for batch in batches.epoch(0):
        seen = labelled[batch["index"].numpy()]
        assert ((batch["y"] == -1).numpy() == ~seen).all()
        assert (batch["y"].numpy()[seen] == digits.train.y[batch["index"].numpy()[seen]]).all()
        assert ((batch["labelled"] > 0).numpy() == seen).all()
        assert (batch["labelled_rows"].numpy() == np.flatnonzero(seen)).all()


def test_a_mixed_sample_has_a_label_if_both_parts_have_one(digits: Dataset) -> None:
    labelled = shares(len(digits.train), 0.5)
    known = {int(sample): bool(is_known) for sample, is_known in zip(digits.train.ids, labelled)}
    batches = Batches(digits.train, STEPS, batch_size=50, mixing=Mixing(1.0, 0.0, 10), extras={"labelled": labelled})
    kinds = set()
    for batch in batches.epoch(0):
        for own, other, y in zip(batch["id"].tolist(), batch["partner"].tolist(), batch["y"]):
            assert bool(y.isnan().any()) != (known[own] and known[other])
            kinds.add((known[own], known[other]))
        assert torch.equal(batch["labelled_rows"], batch["labelled"].nonzero()[:, 0])
    assert len(kinds) == 4


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_nothing_is_asked_of_the_device(digits: Dataset, share: float) -> None:
    """Tensors without values, as those on a GPU that has not computed them yet: a shape must not depend on values."""
    labelled = shares(len(digits.train), share)
    batch = next(Batches(digits.train, STEPS, batch_size=16, extras={"labelled": labelled}).epoch(0))
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(value) for name, value in batch.items()}
        logits = torch.randn(16, 10, requires_grad=True)
        HARD({"logits": logits}, {}, fake, 0.0)[0].backward()
    assert logits.grad is not None


@pytest.mark.parametrize("batch_size", [7, 32])
def test_the_mean_over_batches_is_the_mean_over_the_labelled(digits: Dataset, batch_size: int) -> None:
    labelled = shares(len(digits.train), 0.2)
    model = linear()
    total, gradient = 0.0, torch.zeros(10, 64)
    for batch in Batches(digits.train, STEPS, batch_size=batch_size, extras={"labelled": labelled}).epoch(0):
        loss, _ = HARD({"logits": model(batch["x"])}, {}, batch, 0.0)
        model.zero_grad()
        loss.backward()
        part = len(batch["y"]) / len(digits.train)
        total += float(loss.detach()) * part
        gradient += model.weight.grad * part
    x = torch.from_numpy(digits.train.x[labelled].reshape(-1, 64) / np.float32(255))
    whole = torch.nn.functional.cross_entropy(model(x), torch.from_numpy(digits.train.y[labelled]))
    model.zero_grad()
    whole.backward()
    assert total == pytest.approx(float(whole.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, model.weight.grad, rtol=1e-4, atol=1e-6)


def test_wrong_labels_that_are_hidden_change_no_byte(digits: Dataset) -> None:
    labelled = shares(len(digits.train), 0.4)
    spoilt = np.where(labelled, digits.train.y, (digits.train.y + 1) % 10)
    other = Dataset(**{**vars(digits), "train": Split(digits.train.x, spoilt, digits.train.ids)})

    def trained(data: Dataset, extras: Mapping[str, np.ndarray] | None) -> Tensor:
        model = linear()
        distill(model, [], data, HARD, steps=STEPS, epochs=2, batch_size=32, threads=1, extras=extras)
        return model.weight.detach()

    right = trained(digits, {"labelled": labelled})
    assert torch.equal(right, trained(other, {"labelled": labelled}))
    assert not torch.equal(right, trained(digits, None))
    assert torch.equal(trained(digits, None), trained(digits, {"labelled": np.ones(len(labelled), bool)}))


def test_it_goes_on_to_the_same_bytes_and_other_labels_are_another_training(digits: Dataset, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def dying(text: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if "val" in text or done >= 6:
            raise Killed

    def run(folder: Path, extras: Mapping[str, np.ndarray], progress=None) -> Tensor:  # type: ignore[no-untyped-def]
        model = linear()
        options = {"steps": STEPS, "epochs": 3, "batch_size": 32, "threads": 1, "run_dir": folder}
        distill(model, [], digits, HARD, extras=extras, progress=progress, **options)  # type: ignore[arg-type]
        return model.weight.detach()

    extras = {"labelled": shares(len(digits.train), 0.4)}
    whole = run(tmp_path / "whole", extras)
    with pytest.raises(Killed):
        run(tmp_path / "killed", extras, dying)
    assert torch.equal(run(tmp_path / "killed", extras), whole)
    with pytest.raises(UsageError, match="extras"):
        run(tmp_path / "killed", {"labelled": ~extras["labelled"]})


def test_a_batch_without_labels_says_nothing_of_terms_on_labels(digits: Dataset) -> None:
    extras = {"labelled": np.arange(len(digits.train)) == 0}  # in one batch of ten, seldom the one in the middle
    terms = Objective([Term("ce", "cross_entropy"), Term("kd", "kd")])
    options: dict[str, Any] = {"steps": STEPS, "epochs": 1, "batch_size": len(digits.train) // 10, "threads": 1}
    measured = []
    for seed in range(4):
        result = distill(linear(), [ModuleTeacher(linear(1))], digits, terms, seed=seed, extras=extras, **options)
        assert not result.warnings
        measured.append(result.history[0]["gradients"])
    norms = [found["ce"] for found in measured if found is not None]
    assert norms, "sometimes the label comes after the middle"
    assert all(norms)


def test_no_label_at_all_leaves_nothing_to_learn(digits: Dataset) -> None:
    nothing = {"labelled": np.zeros(len(digits.train), bool)}
    values = Objective([Term("ce", "cross_entropy"), Term("kd", "kd", weight=2.0)])
    batch = next(Batches(digits.train, STEPS, batch_size=8, extras=nothing).epoch(0))
    logits = torch.randn(8, 10, requires_grad=True)
    loss, parts = values({"logits": logits}, {"logits": torch.randn(8, 10)}, batch, 0.0)
    assert float(parts["ce"]) == 0.0
    assert float(loss.detach()) == pytest.approx(float(parts["kd"]), rel=1e-6)


class Counted(nn.Module):
    """Has batch norm, which cannot learn from one row; notes how many rows its copies see."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__()
        self.rows = rows
        self.layers = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

    def __deepcopy__(self, memo: object) -> Counted:
        return Counted(self.rows)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.rows.append(len(x))
        logits: Tensor = self.layers(x)
        return logits


def test_peers_see_all_samples(digits: Dataset) -> None:
    """Also those of a batch of which one has a label."""
    labelled = np.zeros(len(digits.train), bool)
    labelled[::40] = True
    rows: list[int] = []
    objective = Objective([Term("ce", "cross_entropy"), Term("mutual", "mutual_learning")])
    distill(Counted(rows), [], digits, objective, steps=STEPS, epochs=2, batch_size=16, extras={"labelled": labelled})
    assert set(rows[1:]) <= {16, len(digits.train) % 16}  # the first: the check before the training


def test_peers_learn_from_the_unlabelled_by_what_the_others_say() -> None:
    cohort = [torch.randn(6, 3, requires_grad=True) for _ in range(3)]
    student, *others = cohort
    labels = torch.tensor([0, 1, -1, -1, 2, -1])
    weight = torch.tensor([2.0, 2.0, 0.0, 0.0, 2.0, 0.0])
    mixed = mutual_learning(student, labels, peer_logits=others, labelled=weight)
    supervised = sum(torch.nn.functional.cross_entropy(peer[weight > 0], labels[weight > 0]) for peer in others)
    pairs = [(one, [other for other in cohort if other is not one]) for one in cohort]
    torch.testing.assert_close(mixed, supervised + sum(mutual(one, rest) for one, rest in pairs))
    mixed.backward()
    assert all(value.grad is not None and value.grad[2].any() for value in cohort)
    assert torch.isfinite(mutual_learning(student, labels * 0 - 1, peer_logits=others, labelled=weight * 0))
    everyone = labels.clamp(min=0)
    torch.testing.assert_close(
        mutual_learning(student, everyone, peer_logits=others, labelled=torch.ones(6)),
        mutual_learning(student, everyone, peer_logits=others),
    )


def test_a_loss_that_weighs_the_labels_itself_gets_all_samples() -> None:
    torch.manual_seed(0)
    network, x = nn.Linear(64, 10), torch.rand(4, 64)
    student = {"logits": network(x).detach().requires_grad_()}
    own = Objective([Term("it", "mutual_learning")]).build(student, {}, student_module=lambda _: network)
    batch = {"x": x, "y": torch.tensor([3, -1, -1, 5]), "labelled": torch.tensor([2.0, 0.0, 0.0, 2.0])}
    own(student, {}, batch, 0.0)[0].backward()
    assert student["logits"].grad is not None
    assert student["logits"].grad.abs().sum(dim=1).all(), "the unlabelled teach by what the peers say"


class Doubled(nn.Module):
    """An adapter that learns and adds something for each sample."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__()
        self.rows = rows
        self.norm = nn.BatchNorm1d(10)

    def forward(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> tuple[Any, Any, dict[str, Any]]:
        self.rows.append(len(student))
        return self.norm(student), teacher, {"weights": [batch["x"][:, 0], torch.ones(3)]}


def weighted(student: Tensor, labels: Tensor, weights: list[Tensor], class_weight: Tensor | None = None) -> Tensor:
    assert len(student) == len(labels) == len(weights[0])
    assert len(weights[1]) == 3
    assert (labels >= 0).all()
    assert class_weight is None or len(class_weight) == 10
    return torch.nn.functional.cross_entropy(student, labels, class_weight)


@pytest.mark.parametrize("known", [0, 1, 4])
def test_adapters_see_all_samples_and_their_losses_the_labelled(known: int) -> None:
    rows: list[int] = []
    option = {"class_weight": torch.ones(10)}  # as long as the batch, and no row of it
    term = Term("own", weighted, adapter=lambda *_, **__: Doubled(rows), options=option)
    student = {"logits": torch.randn(10, 10, requires_grad=True)}
    objective = Objective([term]).build(student, {"logits": student["logits"].detach()})
    y = torch.full((10,), -1)
    y[:known] = 3
    batch = {"x": torch.rand(10, 64), "y": y, "labelled": (y >= 0) * 2.0}
    loss, _ = objective(student, {"logits": torch.randn(10, 10)}, batch, 0.0)
    loss.backward()
    assert rows == [10]
    assert student["logits"].grad is not None
    assert bool(student["logits"].grad.any()) == (known > 0)


def test_extras_of_another_length(digits: Dataset) -> None:
    with pytest.raises(DataError, match=r"extras: found 3 rows of 'mask' for \d+ samples, expected one for each"):
        Batches(digits.train, STEPS, batch_size=8, extras={"mask": np.ones((3, 4), bool)})


class Tokens(nn.Module):
    """Reads an image row by row: logits of its class, and of each of its 8 rows (N, 8, 10)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.body(x.reshape(len(x), 8, 8))
        return {"logits": tokens.mean(dim=1), "tokens": tokens}


class MaskedTeacher:
    """Says nonsense about the tokens that do not count."""

    def __init__(self, mask: np.ndarray, nonsense: float) -> None:
        self.model, self.mask, self.nonsense = Tokens(1), torch.from_numpy(mask), nonsense

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        given = self.model(batch["x"])
        kept = self.mask[batch["index"]][..., None]
        assert torch.equal(batch["mask"], self.mask[batch["index"]])
        return {**given, "tokens": torch.where(kept, given["tokens"], torch.full_like(given["tokens"], self.nonsense))}


@pytest.mark.parametrize("loss", ["kd", "generalized_jsd", "hidden_mse"])
def test_tokens_that_do_not_count_teach_nothing(digits: Dataset, loss: str) -> None:
    mask = np.random.default_rng(0).random((len(digits.train), 8)) < 0.6
    objective = Objective([Term("tokens", loss, student_tap="tokens", teacher_tap="tokens")])

    def trained(nonsense: float, extras: Mapping[str, np.ndarray]) -> tuple[Tensor, float]:
        student, teacher = Tokens(0), MaskedTeacher(mask, nonsense)
        result = distill(
            student, [teacher], digits, objective, steps=STEPS, epochs=1, batch_size=32, threads=1, extras=extras
        )
        return student.body.weight.detach(), result.history[0]["loss"]

    one, first = trained(5.0, {"mask": mask})
    assert torch.equal(one, trained(float("nan"), {"mask": mask})[0])
    assert first < 100


def test_the_mask_is_the_losses_own(digits: Dataset) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    s, t = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    objective = Objective([Term("a", "kd", student_tap="tokens", teacher_tap="tokens"), Term("b", "kd")])
    student = {"tokens": s, "logits": s[:, 0]}
    _, values = objective(student, {"tokens": t, "logits": t[:, 0]}, {"mask": mask}, 0.0)
    torch.testing.assert_close(values["a"], kd(s, t, mask=mask))
    torch.testing.assert_close(values["b"], kd(s[:, 0], t[:, 0]))
