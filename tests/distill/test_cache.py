"""The teacher cache: the same answers as the teacher's, built once, gone on with after a kill, refused when stale."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.distill import cache as cache_module
from edgekd.distill import cache_build, cached_teacher
from edgekd.distill.answers import dense_logits, with_logits
from edgekd.distill.batches import Batches
from edgekd.distill.cache import (
    INDEX,
    JOURNAL,
    Cache,
    building,
    cache_key,
    check_hashes,
    differences,
    find_cache,
    list_caches,
    open_cache,
)
from edgekd.distill.cache_build import Order, build_cache
from edgekd.distill.cache_upkeep import prune
from edgekd.distill.cache_verify import verify_cache
from edgekd.distill.cached_teacher import CachedTeacher
from edgekd.distill.engine import TrainResult, distill
from edgekd.distill.journal import Journal
from edgekd.distill.mixing import Mixing
from edgekd.distill.objective import Objective, Term
from edgekd.distill.stored import Store, decode, encode, needed
from edgekd.distill.teachers import ModuleTeacher
from edgekd.errors import DataError, StageFailed, StorageError, UsageError
from edgekd.spec import Array, Dataset, Layout, Scale, Split

STEPS = (Scale(1 / 255), Layout("CHW"))
FACTS: dict[str, Any] = {"teacher": {"weights": "a" * 64}, "augment": {"shift": 1}, "views": 3}


def split_of(count: int = 50, *, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (count, 6, 6, 1)).astype(np.uint8)
    ids = rng.permutation(10 * count)[:count].astype(np.int64) + 2**40
    return Split(x, rng.integers(0, 5, count), ids)


def network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))


class Counting:
    """A teacher that counts the samples that it was asked for, and breaks after `limit` of them."""

    def __init__(self, module: nn.Module | None = None, *, limit: int | None = None) -> None:
        self.teacher = ModuleTeacher(module or network())
        self.asked: list[tuple[int, int]] = []
        self.given: dict[tuple[int, int], Tensor] = {}
        self.limit = limit

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.limit is not None and len(self.asked) + len(batch["id"]) > self.limit:
            raise StageFailed("the teacher broke")
        self.asked += keys_of(batch)
        answers = self.teacher(batch)
        self.given |= dict(zip(keys_of(batch), answers["logits"], strict=True))
        return answers


def keys_of(batch: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """(sample, view) of each row."""
    return list(zip(batch["id"].tolist(), batch["view"].tolist(), strict=True))


def batches_of(split: Split, views: int = 3, **changed: Any) -> Batches:
    return Batches(split, STEPS, **{"batch_size": 16, "seed": 7, "augment": {"shift": 1}, "views": views, **changed})


def order_of(split: Split, teacher: Any = None, **changed: Any) -> Order:
    settings: dict[str, Any] = {"store": Store(), "num_outputs": 5, "name": "test", "batch_size": 16, **changed}
    return Order(teacher or Counting(), settings.pop("batches", batches_of(split)), **settings)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "SHARD_ROWS", 40)


def every_view(loader: Batches, epochs: int = 3) -> list[dict[str, Tensor]]:
    return [batch for epoch in range(epochs) for batch in loader.epoch(epoch)]


def assert_same(cache: Cache, batch: Mapping[str, Tensor], *teachers: Counting) -> None:
    """Bit for bit what the teachers said when they were asked, and up to rounding what one says of this batch.

    On some processors the last bit of an answer depends on the batch that it is part of.
    """
    given = {key: row for teacher in teachers for key, row in teacher.given.items()}
    answers = CachedTeacher(cache)(batch)["logits"]
    assert torch.equal(answers, torch.stack([given[key] for key in keys_of(batch)])), "bit for bit, in any order"
    torch.testing.assert_close(answers, teachers[0].teacher(batch)["logits"], rtol=1e-5, atol=1e-6)


# The same answers


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_answers_are_the_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool) -> None:
    if not in_memory:
        monkeypatch.setattr(cached_teacher, "MEMORY_BYTES", 0)
    split, teacher = split_of(), Counting()
    cache, asked = build_cache(tmp_path, FACTS, order_of(split, teacher))
    assert asked == 150
    assert sorted(teacher.asked) == sorted((int(i), view) for i in split.ids for view in range(3)), "each exactly once"
    cached = CachedTeacher(cache)
    for batch in every_view(batches_of(split), epochs=5):
        assert_same(cache, batch, teacher)
        assert cached(batch)["logits"].dtype == torch.float32
    assert len(teacher.asked) == 150, "remembering asks nobody"


def test_without_augmentation_one_view_suffices(tmp_path: Path) -> None:
    split, teacher = split_of(), Counting()
    loader = batches_of(split, augment=None, views=None)
    cache, asked = build_cache(tmp_path, FACTS, order_of(split, teacher, batches=loader))
    assert (asked, cache.views) == (50, 1)
    assert_same(cache, next(loader.epoch(9)), teacher)
    assert_same(cache, next(loader.full()), teacher)


def test_endless_views_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="every epoch has views of its own: no cache holds them; give a number"):
        build_cache(tmp_path, FACTS, order_of(split_of(), batches=batches_of(split_of(), views=None)))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def dataset_of() -> Dataset:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (96, 6, 6, 1)).astype(np.uint8)
    split = Split(x, rng.integers(0, 5, 96), np.arange(96))
    train, val = split.take(slice(0, 64)), split.take(slice(64, 96))
    return Dataset("d", "classification", tuple("abcde"), train, val, val, "none", "3" * 64)


@pytest.mark.parametrize(("augment", "views"), [({"shift": 1, "flip": True}, 2), (None, None)])
def test_a_student_learns_the_same_weights_bit_for_bit(
    tmp_path: Path, augment: dict[str, Any] | None, views: int | None
) -> None:
    """Against the live teacher over the same views; nothing of the teacher is computed."""
    data = dataset_of()
    objective = Objective([Term("kd", "kd", weight=0.9), Term("ce", "cross_entropy", weight=0.1)])
    settings: dict[str, Any] = {
        "steps": STEPS, "epochs": 5, "batch_size": 16, "lr": 1e-2, "device": "cpu", "threads": 1, "seed": 7
    }  # fmt: skip

    def trained(teacher: Any) -> TrainResult:
        return distill(network(seed=5), (teacher,), data, objective, augment=augment, views=views, **settings)

    def same(one: TrainResult, other: TrainResult) -> bool:
        return all(map(torch.equal, one.student.state_dict().values(), other.student.state_dict().values()))

    builder = Counting()
    loader = Batches(data.train, STEPS, batch_size=16, seed=7, augment=augment, views=views)
    cache, _ = build_cache(tmp_path, FACTS, order_of(data.train, builder, batches=loader))
    remembered, live = trained(CachedTeacher(cache)), trained(Counting())
    assert len(builder.asked) == 64 * (views or 1), "while the student learned, nobody was asked"
    assert (remembered.teacher_passes, live.teacher_passes) == (0, 5 * 64)
    assert same(remembered, live)
    assert not same(remembered, trained(Counting(network(seed=2)))), "the teacher matters at all"


# How it is kept


def test_half_precision_is_near(tmp_path: Path) -> None:
    split, teacher = split_of(), Counting()
    whole, _ = build_cache(tmp_path, FACTS, order_of(split, teacher))
    half, _ = build_cache(tmp_path, {**FACTS, "store": 2}, order_of(split, teacher, store=Store(dtype="float16")))
    batch = next(batches_of(split).epoch(0))
    one, other = CachedTeacher(whole)(batch)["logits"], CachedTeacher(half)(batch)["logits"]
    assert other.dtype == torch.float32
    assert 0 < float((one - other).abs().max()) < 1e-3
    sizes = [sum(a.nbytes for a in cache.arrays("logits")) for cache in (whole, half)]
    assert sizes == [150 * 5 * 4, 150 * 5 * 2]


def test_top_k_keeps_the_probabilities_of_the_largest(tmp_path: Path) -> None:
    split, teacher = split_of(), Counting()
    cache, _ = build_cache(tmp_path, FACTS, order_of(split, teacher, store=Store(top_k=2)))
    batch = next(batches_of(split).epoch(1))
    named, logits = CachedTeacher(cache)(batch), teacher.teacher(batch)["logits"]
    expected = torch.log_softmax(logits, dim=1).topk(2, dim=1)
    assert torch.equal(named["topk_indices"], expected.indices)
    assert named["topk_indices"].dtype == torch.int64
    torch.testing.assert_close(named["topk_log_probabilities"], expected.values, rtol=0, atol=1e-6)
    p = torch.softmax(named["logits"], dim=1)
    torch.testing.assert_close(p.gather(1, expected.indices), expected.values.exp(), rtol=1e-5, atol=1e-6)
    others = p.masked_fill(torch.zeros_like(p).scatter(1, expected.indices, 1.0).bool(), torch.nan)
    rest = (1 - expected.values.exp().sum(dim=1)) / 3
    for row, each in zip(others, rest, strict=True):
        torch.testing.assert_close(row[~row.isnan()], each.expand(3), rtol=1e-4, atol=1e-7)
    assert {a.dtype.name for a in cache.arrays("topk_indices")} == {"int16"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("margin", [5.0, 12.0, 20.0, 30.0])
def test_what_a_top_k_leaves_is_not_lost_however_sure_the_teacher_is(margin: float, dtype: Any) -> None:
    """At a temperature above 1 the tail of a sure teacher is much of what it says."""
    torch.manual_seed(0)
    logits = torch.randn(32, 100)
    logits[torch.arange(32), torch.randint(100, (32,))] += margin
    kept = encode({"logits": logits}, Store(dtype=dtype, top_k=10), num_outputs=100)
    named = with_logits(decode({name: torch.from_numpy(value) for name, value in kept.items()}), 100)
    top = logits.topk(10, dim=1)
    p, exact = torch.softmax(named["logits"], dim=1), torch.softmax(logits.double(), dim=1)
    tail, wanted = (
        1 - values.gather(1, top.indices).sum(dim=1)
        for values in (
            torch.softmax(named["logits"].double() / 4, dim=1),
            torch.softmax(spread(logits.double(), top.indices) / 4, dim=1),
        )
    )
    torch.testing.assert_close(tail, wanted, rtol=3e-3, atol=0, check_dtype=False)
    torch.testing.assert_close(p.gather(1, top.indices), exact.gather(1, top.indices).float(), rtol=5e-3, atol=1e-7)


def spread(logits: Tensor, kept: Tensor) -> Tensor:
    """The same probabilities in float64, those that are not kept made equal."""
    log_p = torch.log_softmax(logits, dim=1)
    rest = torch.logsumexp(log_p.scatter(1, kept, -torch.inf), dim=1, keepdim=True)
    return (rest - math.log(90)).expand_as(log_p).scatter(1, kept, log_p.gather(1, kept))


def test_top_k_of_all_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cache_top_k = 5, but there are 5 classes; remove it"):
        build_cache(tmp_path, FACTS, order_of(split_of(), store=Store(top_k=5)))


def test_a_hard_label_stays_hard_at_any_sensible_temperature() -> None:
    dense = dense_logits(torch.tensor([[2]]), torch.zeros(1, 1), 4)
    for temperature in (1.0, 4.0, 20.0, 80.0):
        assert torch.softmax(dense / temperature, dim=1).tolist() == [[0.0, 0.0, 1.0, 0.0]]


class WithFeatures(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.body, self.scale = network(), scale

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(x), "body.0@input": x[:, 0, :3] * self.scale}


def test_features_are_kept_in_half_precision(tmp_path: Path) -> None:
    split, teacher = split_of(), Counting(WithFeatures())
    store = Store(taps=("logits", "body.0@input"))
    cache, _ = build_cache(tmp_path, FACTS, order_of(split, teacher, store=store))
    batch = next(batches_of(split).epoch(2))
    named, live = CachedTeacher(cache)(batch), teacher.teacher(batch)
    assert_same(cache, batch, teacher)
    assert torch.equal(named["body.0@input"], live["body.0@input"].half().float())
    assert named["body.0@input"].shape == (16, 3, 6)


def test_what_holds_more_tensors_serves_who_wants_fewer(tmp_path: Path) -> None:
    """Nothing is asked for again, what is not looked at is not read. Half a cache, or other rounding, is another."""
    tap = "body.0@input"
    split, teacher, wide = split_of(), Counting(WithFeatures()), Store(taps=("logits", tap))
    facts = {store: {**FACTS, "store": store.facts()} for store in (wide, Store(), Store("float16"))}
    with pytest.raises(StageFailed):
        build_cache(tmp_path, facts[wide], order_of(split, Counting(WithFeatures(), limit=130), store=wide))
    assert find_cache(tmp_path, facts[Store()]) is None, "it is not complete"
    whole, _ = build_cache(tmp_path, facts[wide], order_of(split, teacher, store=wide))
    cache, asked = build_cache(tmp_path, facts[Store()], order_of(split))
    assert (cache.key, asked) == (whole.key, 0)
    named = CachedTeacher(cache, taps=("logits",))(next(batches_of(split).epoch(0)))
    assert set(named) == {"logits"}
    assert set(CachedTeacher(cache)(next(batches_of(split).epoch(0)))) == {"logits", tap}
    check = verify_cache(cache, order_of(split, Counting(WithFeatures())), samples=20)
    assert check.ok
    assert set(check.max_abs_diff) == {"logits"}
    for other in ({**facts[Store()], "views": 4}, facts[Store("float16")]):
        assert find_cache(tmp_path, other) is None
    elsewhere = Store(taps=("logits", tap, "body.1")).facts()
    assert find_cache(tmp_path, {**FACTS, "store": elsewhere}) is None, "one of its tensors is missing"
    damaged = next(cache.path.glob("*.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DataError, match="is damaged"):
        find_cache(tmp_path, facts[Store()])


def test_features_beyond_half_precision_and_taps_that_are_not_there_are_named(tmp_path: Path) -> None:
    order = order_of(split_of(), Counting(WithFeatures(scale=1e5)), store=Store(taps=("body.0@input",)))
    with pytest.raises(StageFailed, match=r"body.0@input reaches .*e\+05, which float16 cannot hold"):
        build_cache(tmp_path, FACTS, order)
    with pytest.raises(UsageError, match=r"the teacher gives body.0@input, logits; layer3 cannot be kept"):
        build_cache(tmp_path, FACTS, order_of(split_of(), Counting(WithFeatures()), store=Store(taps=("layer3",))))


def test_the_files(tmp_path: Path) -> None:
    """Plain .npy files of bounded size, without pickle, named with their hashes in the index."""
    split = split_of()
    cache, _ = build_cache(tmp_path, FACTS, order_of(split))
    index = json.loads((cache.path / INDEX).read_text())
    assert cache.path == tmp_path / cache_key(FACTS)
    assert index["facts"] == FACTS
    stops = [shard["stop"] for shard in index["shards"]]
    assert stops == [48, 98, 148, 150], "pieces of 16 that end with a view, until a shard holds 40 rows"
    assert max(len(array) for array in cache.arrays("logits")) < 40 + 16, "a shard ends as soon as it is full"
    assert all(isinstance(array, np.memmap) for array in cache.arrays("logits"))
    assert np.array_equal(cache.ids(), np.sort(split.ids))
    assert {path.name for path in cache.path.iterdir()} - {INDEX, "build.lock"} == {
        name for name in ["ids.npy", *(item["file"] for shard in index["shards"] for item in shard["files"].values())]
    }
    check_hashes(cache)


# Killed, locked, damaged


def test_a_broken_build_goes_on_at_the_next_shard(tmp_path: Path) -> None:
    split, first = split_of(), Counting(limit=70)
    with pytest.raises(StageFailed, match="the teacher broke"):
        build_cache(tmp_path, FACTS, order_of(split, first))
    half = open_cache(tmp_path / cache_key(FACTS), FACTS)
    assert 40 <= half.rows_done < 70
    assert not half.is_complete
    assert find_cache(tmp_path, FACTS) is None, "half a cache is none"
    with pytest.raises(UsageError, match="is not complete; build it first"):
        CachedTeacher(half)
    again = Counting()
    cache, asked = build_cache(tmp_path, FACTS, order_of(split, again))
    assert asked == len(again.asked) == 150 - half.rows_done
    undisturbed, _ = build_cache(tmp_path / "other", FACTS, order_of(split))
    assert same_answers(cache, undisturbed)


def test_a_build_goes_on_with_other_batches(tmp_path: Path) -> None:
    split, first, again = split_of(), Counting(limit=70), Counting()
    with pytest.raises(StageFailed, match="the teacher broke"):
        build_cache(tmp_path, FACTS, order_of(split, first))
    cache, _ = build_cache(tmp_path, FACTS, order_of(split, again, batch_size=9))
    for batch in every_view(batches_of(split)):
        assert_same(cache, batch, first, again)


def same_answers(one: Cache, other: Cache) -> bool:
    return all(np.array_equal(np.concatenate(one.arrays(n)), np.concatenate(other.arrays(n))) for n in ("logits",))


def test_with_a_journal_nothing_is_asked_twice(tmp_path: Path) -> None:
    split, teachers = split_of(), []
    for limit, size in ((10, 8), (25, 8), (70, 5), (None, 16)):
        teachers.append(Counting(limit=None if limit is None else limit - sum(len(t.asked) for t in teachers)))
        try:
            cache, _ = build_cache(tmp_path, FACTS, order_of(split, teachers[-1], journal=True, batch_size=size))
        except StageFailed:
            journal = tmp_path / cache_key(FACTS) / JOURNAL
            with journal.open("ab") as file:
                file.write(b'torn {"start": 3')  # by a power cut
    asked = [item for teacher in teachers for item in teacher.asked]
    assert len(asked) == len(set(asked)) == 150
    assert not (cache.path / JOURNAL).exists()
    undisturbed, _ = build_cache(tmp_path / "other", FACTS, order_of(split))
    one, other = (np.concatenate(made.arrays("logits")) for made in (cache, undisturbed))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)  # a batch of 5 may be summed in another order


def test_a_complete_cache_is_not_asked_for_again(tmp_path: Path) -> None:
    split = split_of()
    build_cache(tmp_path, FACTS, order_of(split))
    cache, asked = build_cache(tmp_path, FACTS, order_of(split, Counting(limit=0)))
    assert asked == 0
    assert cache.is_complete


def test_two_builders_do_not_meet(tmp_path: Path) -> None:
    with (
        building(tmp_path / cache_key(FACTS)),
        pytest.raises(
            StorageError, match=r"another edgekd process is building the teacher cache .* run the same command"
        ),
    ):
        build_cache(tmp_path, FACTS, order_of(split_of()))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.unlink(), r"00000\.0\.npy is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"00000\.0\.npy has 1087 bytes instead of 1088"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), r"00000\.0\.npy was changed: its sha256"),
    ],
)
def test_damaged_answers_are_refused(tmp_path: Path, damage: Any, expected: str) -> None:
    cache, _ = build_cache(tmp_path, FACTS, order_of(split_of()))
    damage(cache.path / "00000.0.npy")
    with pytest.raises(DataError, match=f"is damaged: {expected}.*drop it with `edgekd cache prune {cache.key}`"):
        build_cache(tmp_path, FACTS, order_of(split_of()))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, "has version 2, expected 1"),
        ({"shards": [{"start": 5, "stop": 9, "files": {}}]}, "makes no sense: a shard begins at row 5, expected 0"),
        ({"ids": {"file": "../../x", "size_bytes": 1, "sha256": ""}}, "makes no sense: a file lies outside the folder"),
        ({"num_samples": 10}, "makes no sense: 150 rows, expected at most 10 x 3"),
        ({"facts": 3}, "makes no sense"),
    ],
)
def test_a_forged_index_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    cache, _ = build_cache(tmp_path, FACTS, order_of(split_of()))
    (cache.path / INDEX).write_text(json.dumps({**cache.index, **change}))
    with pytest.raises(DataError, match=expected):
        open_cache(cache.path)
    (cache.path / INDEX).write_text("{")
    with pytest.raises(DataError, match=r"index.json cannot be read: .*drop it with"):
        open_cache(cache.path)


def test_answers_to_something_else_are_refused_with_the_facts_that_differ(tmp_path: Path) -> None:
    cache, _ = build_cache(tmp_path, FACTS, order_of(split_of()))
    other = {**FACTS, "teacher": {"weights": "b" * 64}, "augment": {"shift": 2}}
    assert find_cache(tmp_path, other) is None, "it lies elsewhere"
    cache.path.rename(tmp_path / cache_key(other))  # as if it had been put there
    with pytest.raises(DataError) as caught:
        find_cache(tmp_path, other)
    text = str(caught.value)
    assert 'augment {"shift": 1} there, {"shift": 2} here' in text
    assert f"teacher.weights {'a' * 45}... there, {'b' * 45}... here" in text
    assert "views" not in text
    assert differences({"a": 1}, {"a": 1, "b": 2}) == ["b null there, 2 here"]


def test_samples_and_views_that_it_does_not_hold_are_named(tmp_path: Path) -> None:
    split = split_of()
    cached = CachedTeacher(build_cache(tmp_path, FACTS, order_of(split))[0])
    strange = replace(split, ids=split.ids + 1)
    with pytest.raises(DataError, match=r"no answers for \d+ of 50 samples, with the ids \d+, .* it belongs to other"):
        cached(next(batches_of(strange, batch_size=50).epoch(0)))
    with pytest.raises(UsageError, match="holds the views 0 to 2, found view 3; train with views = 3"):
        cached(next(batches_of(split, views=9).epoch(3)))
    with pytest.raises(UsageError, match="found view -1"):
        cached(next(batches_of(split).full()))


OTHERS: dict[str, dict[str, Any]] = {
    "another seed": {"seed": 8},
    "flipped too": {"augment": {"shift": 1, "flip": True}},
    "not augmented": {"augment": None},
    "mixed": {"mixing": Mixing(mixup=1.0, num_classes=5)},
    "cut": {"mixing": Mixing(cutmix=1.0, num_classes=5)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_answers_to_other_pixels_are_not_given(tmp_path: Path, name: str) -> None:
    """Whatever the facts say: the ids and the view are right, the samples are not."""
    split = split_of()
    cache, _ = build_cache(tmp_path, FACTS, order_of(split))
    with pytest.raises(
        UsageError, match=r"to other pixels: \d+ of 16 samples look otherwise than the teacher saw them"
    ):
        CachedTeacher(cache)(next(batches_of(split, **OTHERS[name]).epoch(0)))


def test_mixed_samples_are_answered_like_any_other(tmp_path: Path) -> None:
    split, teacher = split_of(), Counting()
    mixed = {"mixing": Mixing(mixup=0.5, cutmix=1.0, num_classes=5)}
    cache, _ = build_cache(tmp_path, FACTS, order_of(split, teacher, batches=batches_of(split, **mixed)))
    for batch in every_view(batches_of(split, **mixed)):
        assert_same(cache, batch, teacher)


def test_a_full_disk_is_said_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 3599

    monkeypatch.setattr(cache_build.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match=r"takes another 0\.0 MB, but only 0\.0 MB are free; free some"):
        build_cache(tmp_path, FACTS, order_of(split_of()))
    Usage.free = 3600  # 50 samples, 3 views, 5 logits and the pixels, 4 bytes each
    build_cache(tmp_path, FACTS, order_of(split_of()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    root = tmp_path / "root"
    cache, _ = build_cache(root, FACTS, order_of(split_of()))
    for path in (cache.path, root):
        path.chmod(0o500)
    try:
        assert find_cache(root, FACTS) is not None
        CachedTeacher(cache)
        with pytest.raises(StorageError, match=r"cannot write .*: Permission denied"):
            build_cache(root, {**FACTS, "views": 4}, order_of(split_of()))
    finally:
        for path in (root, cache.path):
            path.chmod(0o700)


def test_a_place_below_a_file_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is there a file where a folder should be"):
        build_cache(tmp_path / "file", FACTS, order_of(split_of()))


# Upkeep


def test_list_and_prune(tmp_path: Path) -> None:
    caches = []
    for views, used in ((1, 1000), (2, 3000), (3, 2000)):
        loader = batches_of(split_of(), views=views)
        cache, _ = build_cache(tmp_path, {**FACTS, "views": views}, order_of(split_of(), batches=loader))
        os.utime(cache.path / INDEX, (used, used))
        caches.append(cache)
    one, two, three = caches
    (tmp_path / "no_cache").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / INDEX).write_text("nonsense")
    assert [cache.key for cache in list_caches(tmp_path)] == [two.key, three.key, one.key]
    assert prune(tmp_path, older_than_s=5000, now=5500) == []
    assert [key for key, _ in prune(tmp_path, older_than_s=4000, now=5500)] == [one.key]
    size = two.size_bytes
    assert prune(tmp_path, max_bytes=10**9, now=0) == []
    removed = prune(tmp_path, max_bytes=size, now=0)
    assert [key for key, _ in removed] == [three.key]
    assert removed[0][1] > 0
    with pytest.raises(UsageError, match=r"has no cache 'nothing'; `edgekd cache info` lists them"):
        prune(tmp_path, keys=["nothing"])
    with building(two.path):
        assert prune(tmp_path, keys=[two.key]) == [], "it is being built"
    assert [key for key, _ in prune(tmp_path, keys=[two.key, "broken"])] == [two.key, "broken"]
    assert [path.name for path in tmp_path.iterdir()] == ["no_cache"]


def test_one_that_another_process_removes_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, _ = build_cache(tmp_path, FACTS, order_of(split_of()))
    other, _ = build_cache(tmp_path, {**FACTS, "data": "other"}, order_of(split_of()))
    opened = cache_module.open_cache

    def then_removed(path: Path, facts: Any = None) -> Cache:
        found = opened(path, facts)
        if path == other.path:
            shutil.rmtree(path)
        return found

    monkeypatch.setattr(cache_module, "open_cache", then_removed)
    assert [found.path for found in cache_module.list_caches(tmp_path)] == [cache.path]
    assert other.size_bytes == 0


def test_a_top_k_as_it_was_kept_before_is_still_read(tmp_path: Path) -> None:
    logits = torch.randn(6, 5)
    largest, indices = logits.topk(2, dim=1)
    before = {"topk_indices": indices.to(torch.int16), "topk_logits": largest, "logsumexp": logits.logsumexp(dim=1)}
    assert set(needed(before, ("logits",))) == set(before)
    found = with_logits(decode(before), 5)
    expected = logits.softmax(dim=1).gather(1, indices)
    torch.testing.assert_close(found["topk_probabilities"], expected)
    torch.testing.assert_close(found["logits"].exp().sum(dim=1), torch.ones(6))
    # One that is half done would have both forms.
    order = order_of(split_of(), Counting(limit=10), journal=True, batch_size=6)
    with pytest.raises(StageFailed):
        build_cache(tmp_path, FACTS, order)
    journal = Journal(tmp_path / cache_key(FACTS) / JOURNAL)
    journal.clear()
    journal.append(0, 6, {name: value.numpy() for name, value in before.items()})
    with pytest.raises(DataError, match="begun by an earlier edgekd"):
        build_cache(tmp_path, FACTS, order)


def test_what_is_not_finite_is_named_whoever_was_asked(tmp_path: Path) -> None:
    def broken(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        logits = network()(batch["x"])
        logits[batch["id"] == split.ids[3]] = torch.nan
        return {"logits": logits.detach()}

    split = split_of()
    with pytest.raises(StageFailed, match=f"NaN or infinite logits for 1 of .* with the ids {split.ids[3]};"):
        build_cache(tmp_path, FACTS, order_of(split, broken))


def test_learning_from_a_cache_makes_it_young(tmp_path: Path) -> None:
    cache, _ = build_cache(tmp_path, FACTS, order_of(split_of()))
    os.utime(cache.path / INDEX, (1000, 1000))
    CachedTeacher(cache)
    assert cache.used_at > 10**9


def test_an_array_of_objects_is_never_loaded(tmp_path: Path) -> None:
    cache, _ = build_cache(tmp_path, FACTS, order_of(split_of()))
    evil: Array = np.array([print], dtype=object)
    np.save(cache.path / "00000.0.npy", evil, allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        cache.arrays("logits")
