"""Mixup and cutmix: what is mixed is told exactly, sample by sample, with ratios of the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from edgekd.distill.batches import PLAIN, Batches
from edgekd.distill.losses.logits import cross_entropy
from edgekd.distill.mixing import Mixing, beta, boxes, partners
from edgekd.distill.randomness import key, words
from edgekd.errors import UsageError
from edgekd.spec import Layout, Scale, Split

RNG = np.random.default_rng(0)
IDS = np.arange(100, 140)
IMAGES = Split(RNG.integers(0, 256, (40, 6, 8, 3), dtype=np.uint8), RNG.integers(0, 5, 40), IDS)
STEPS = (Scale(), Layout("CHW"))


def mixed(mixing: Mixing, *, batch_size: int = 16, **changed: object) -> Batches:
    settings: dict[str, object] = {"steps": STEPS, "seed": 3, **changed}
    return Batches(IMAGES, batch_size=batch_size, mixing=mixing, **settings)  # type: ignore[arg-type]


PLAIN_X = torch.cat([batch["x"] for batch in Batches(IMAGES, STEPS, batch_size=40).full()])


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_ratios_are_beta_distributed(alpha: float) -> None:
    ids = np.arange(20000)
    drawn = beta(words(key(1, 1), ids), words(key(1, 2), ids), alpha)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 0.001


def test_partners_are_a_permutation_that_changes_with_seed_and_view() -> None:
    first = partners(IDS, seed=0, view=0)
    assert sorted(first) == list(range(40))
    assert (first == partners(IDS, seed=0, view=0)).all()
    assert (first != partners(IDS, seed=0, view=1)).any()
    assert (first != partners(IDS, seed=1, view=0)).any()


def test_mixup_blends_values_and_labels() -> None:
    for batch in mixed(Mixing(mixup=0.5, num_classes=5)).epoch(2):
        own, other = batch["id"] - 100, batch["partner"] - 100
        ratio = batch["ratio"][:, None, None, None]
        torch.testing.assert_close(batch["x"], ratio * PLAIN_X[own] + (1 - ratio) * PLAIN_X[other])
        labels = torch.from_numpy(IMAGES.y)
        expected = torch.zeros(len(own), 5)
        for row, (a, b, share) in enumerate(zip(own, other, batch["ratio"])):
            expected[row, labels[a]] += share
            expected[row, labels[b]] += 1 - share
        torch.testing.assert_close(batch["y"], expected)
        assert len(set(batch["ratio"].tolist())) == len(own)


def test_cutmix_shows_each_pixel_of_one_of_the_two_and_tells_the_exact_share() -> None:
    seen = []
    for batch in mixed(Mixing(cutmix=1.0, num_classes=5)).epoch(1):
        own, other = PLAIN_X[batch["id"] - 100], PLAIN_X[batch["partner"] - 100]
        is_own = (batch["x"] == own).all(dim=1)
        is_other = (batch["x"] == other).all(dim=1)
        assert (is_own | is_other).all()
        different = batch["id"] != batch["partner"]
        torch.testing.assert_close(is_own.float().mean(dim=(1, 2))[different], batch["ratio"][different])
        seen += batch["ratio"].tolist()
    assert min(seen) < 0.5
    assert max(seen) > 0.9


def test_boxes() -> None:
    ids = np.arange(4000)
    ratio = np.repeat([0.0, 0.36, 0.75, 1.0], 1000)
    box, kept = boxes(ratio, words(5, ids), 20, 10)
    np.testing.assert_allclose(kept, 1 - box.mean(axis=(1, 2)))
    assert (kept[ratio == 1.0] == 1.0).all()
    assert (kept >= ratio - 1e-9).all(), "an edge cuts off, it never adds"
    inner = box[1000:2000].any(axis=2).sum(axis=1)
    assert inner.max() == 16, "sqrt(1 - 0.36) of 20 rows"
    assert box[:1000].mean(axis=0).min() > 0.2, "it comes everywhere"


def test_both_share_the_samples() -> None:
    batches = mixed(Mixing(mixup=1.0, cutmix=1.0, num_classes=5))
    cut = []
    for batch in batches.epoch(0):
        own, other = PLAIN_X[batch["id"] - 100], PLAIN_X[batch["partner"] - 100]
        cut += ((batch["x"] == own) | (batch["x"] == other)).flatten(1).all(dim=1).tolist()
    assert 5 < sum(cut) < 35


@pytest.mark.parametrize("augment", [None, {"flip": True, "noise": 3.0}])
def test_a_mixed_sample_is_a_function_of_seed_view_and_sample_alone(augment: dict[str, object] | None) -> None:
    mixing = Mixing(mixup=1.0, cutmix=1.0, num_classes=5)

    def by_id(batches: Batches, epoch: int) -> dict[int, bytes]:
        return {
            int(number): batch["x"][row].numpy().tobytes() + batch["y"][row].numpy().tobytes()
            for batch in batches.epoch(epoch)
            for row, number in enumerate(batch["id"])
        }

    first = by_id(mixed(mixing, batch_size=16, augment=augment, views=3), 1)
    assert by_id(mixed(mixing, batch_size=7, augment=augment, views=3), 4) == first, "the same view, other batches"
    assert by_id(mixed(mixing, augment=augment, views=3), 2) != first
    assert by_id(mixed(mixing, augment=augment, views=3, seed=4), 1) != first


def test_validation_is_never_mixed() -> None:
    batches = mixed(Mixing(mixup=1.0, num_classes=5))
    whole = list(batches.full())
    assert torch.equal(torch.cat([batch["x"] for batch in whole]), PLAIN_X)
    assert {int(view) for batch in whole for view in batch["view"]} == {PLAIN}
    assert whole[0]["y"].dtype == torch.int64
    assert "ratio" not in whole[0]


def test_cross_entropy_of_shares_is_the_blend_of_both_labels() -> None:
    student = torch.randn(6, 4, dtype=torch.float64)
    one, two, ratio = torch.arange(6) % 4, (torch.arange(6) * 3 + 1) % 4, torch.rand(6, dtype=torch.float64)
    shares = ratio[:, None] * F.one_hot(one, 4) + (1 - ratio[:, None]) * F.one_hot(two, 4)
    for smoothing in (0.0, 0.1):
        first, second = (
            F.cross_entropy(student, labels, reduction="none", label_smoothing=smoothing) for labels in (one, two)
        )
        expected = (ratio * first + (1 - ratio) * second).mean()
        torch.testing.assert_close(cross_entropy(student, shares, label_smoothing=smoothing), expected)
    with pytest.raises(UsageError, match=r"labels are \[6, 3\] of torch.float64, expected \[6\] whole"):
        cross_entropy(student, shares[:, :3])


def test_numbers_and_several_labels_are_blended_as_they_are() -> None:
    split = Split(RNG.normal(size=(30, 4)).astype(np.float32), RNG.normal(size=(30, 2)).astype(np.float32), IDS[:30])
    for batch in Batches(split, batch_size=30, mixing=Mixing(mixup=1.0), task="regression").epoch(0):
        own, other = torch.from_numpy(split.y)[batch["id"] - 100], torch.from_numpy(split.y)[batch["partner"] - 100]
        ratio = batch["ratio"][:, None]
        torch.testing.assert_close(batch["y"], ratio * own + (1 - ratio) * other)


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"found mixup = -0.1, expected a number from 0 \(off\)"):
        Mixing(mixup=-0.1)
    vectors = Split(RNG.normal(size=(30, 4)).astype(np.float32), np.zeros(30, np.int64), IDS[:30])
    with pytest.raises(UsageError, match=r"cutmix cuts boxes out of images, found samples of shape \[4\]"):
        Batches(vectors, batch_size=8, mixing=Mixing(cutmix=1.0, num_classes=2))
