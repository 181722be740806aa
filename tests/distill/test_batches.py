"""Batches: a pure function of seed, epoch and sample; every sample once; nothing that batch norm cannot learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.device.preprocess import apply_arithmetic
from edgekd.distill import augmentation, batches
from edgekd.distill.augmentation import AUGMENTATIONS, augment_batch, check_augment
from edgekd.distill.batches import Batches
from edgekd.distill.randomness import key, normals, permutation, uniforms, words
from edgekd.errors import DataError, RecipeError, UsageError
from edgekd.spec import Layout, Normalize, Scale, Split

STEPS = (Scale(1 / 255), Normalize((0.5,), (0.25,)), Layout("CHW"))


def images(count: int, *, size: int = 8, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (count, size, size, 1)).astype(np.uint8)
    return Split(x, rng.integers(0, 10, count), np.arange(count, dtype=np.int64) + 1000)


def of_epoch(loader: Batches, number: int) -> dict[str, torch.Tensor]:
    parts = list(loader.epoch(number))
    return {name: torch.cat([part[name] for part in parts]) for name in ("x", "y", "id")}


@given(count=st.integers(1, 70), batch_size=st.integers(1, 40), drop_last=st.booleans())
@settings(deadline=None)
def test_sizes(count: int, batch_size: int, drop_last: bool) -> None:
    loader = Batches(images(count, size=2), STEPS, batch_size=batch_size, drop_last=drop_last)
    sizes = [len(batch["id"]) for batch in loader.epoch(0)]
    assert len(loader) == len(sizes)
    assert loader.num_samples == sum(sizes)
    assert loader.smallest == min(sizes)
    if count >= 2 and batch_size >= 2:
        assert min(sizes) >= 2, "batch norm cannot learn from one sample"
    assert max(sizes) <= batch_size + 1
    if drop_last and count >= batch_size:
        assert set(sizes) == {batch_size}
    else:
        assert sum(sizes) == count
        ids = of_epoch(loader, 0)["id"]
        assert sorted(ids.tolist()) == list(range(1000, 1000 + count))


def test_one_left_over_joins_the_batch_before() -> None:
    assert [len(b["id"]) for b in Batches(images(9), STEPS, batch_size=4).epoch(0)] == [4, 5]
    assert [len(b["id"]) for b in Batches(images(10), STEPS, batch_size=4).epoch(0)] == [4, 4, 2]
    assert [len(b["id"]) for b in Batches(images(1), STEPS, batch_size=4).epoch(0)] == [1]


def test_rows_belong_together() -> None:
    split = images(50)
    batch = of_epoch(Batches(split, STEPS, batch_size=16), 3)
    rows = batch["id"].numpy() - 1000
    assert batch["x"].dtype == torch.float32
    assert batch["y"].dtype == torch.int64
    np.testing.assert_array_equal(batch["x"].numpy(), apply_arithmetic(STEPS, split.x[rows]))
    np.testing.assert_array_equal(batch["y"].numpy(), split.y[rows])


def test_order_is_a_function_of_seed_and_epoch() -> None:
    split = images(200, size=2)
    orders = {
        (seed, epoch): tuple(of_epoch(Batches(split, batch_size=32, seed=seed), epoch)["id"].tolist())
        for seed in (0, 1, -1)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == 9, "every seed and epoch has its own order"
    loader = Batches(split, batch_size=32, seed=1)
    list(loader.epoch(0))
    assert tuple(of_epoch(loader, 2)["id"].tolist()) == orders[1, 2], "an epoch does not depend on those before"


def test_order_does_not_depend_on_how_samples_are_stored() -> None:
    split = images(60, size=2)
    turned = split.take(np.arange(60)[::-1])
    first, second = (of_epoch(Batches(s, batch_size=16), 5) for s in (split, turned))
    assert torch.equal(first["id"], second["id"])
    assert torch.equal(first["x"], second["x"])


def test_full_is_in_order_and_without_augmentation() -> None:
    split = images(21)
    augmented = {"shift": 2, "noise": 3.0, "flip": True, "scale": 0.2}
    parts = list(Batches(split, STEPS, batch_size=4, augment=augmented).full())
    assert [len(part["id"]) for part in parts] == [4, 4, 4, 4, 4, 1]
    np.testing.assert_array_equal(torch.cat([p["x"] for p in parts]).numpy(), apply_arithmetic(STEPS, split.x))
    np.testing.assert_array_equal(torch.cat([p["id"] for p in parts]).numpy(), split.ids)


def test_too_many_samples_to_keep_ready_give_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    split = images(40)
    ready = of_epoch(Batches(split, STEPS, batch_size=16), 1)
    monkeypatch.setattr(batches, "READY_BYTES", 0)
    lazy = of_epoch(Batches(split, STEPS, batch_size=16), 1)
    assert all(torch.equal(ready[name], lazy[name]) for name in ready)


def test_targets_by_task() -> None:
    x, ids = np.zeros((4, 3), np.float32), np.arange(4)
    labels = Batches(Split(x, np.eye(4, 2, dtype=np.uint8), ids), batch_size=4, task="multilabel")
    assert next(labels.full())["y"].dtype == torch.float32
    numbers = Batches(Split(x, np.full((4, 2), 1.5, np.float32), ids), batch_size=4, task="regression")
    assert next(numbers.full())["y"].tolist() == [[1.5, 1.5]] * 4


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match="found batch_size = 0, expected a whole number from 1"):
        Batches(images(4), batch_size=0)
    with pytest.raises(DataError, match="found a split with 0 samples, expected at least 1"):
        Batches(images(4).take(slice(0, 0)), batch_size=2)


# Augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_sample_is_augmented_alike_in_every_batch(name: str) -> None:
    split = images(64)
    augment = {name: {"shift": 2, "flip": True, "scale": 0.3, "noise": 9.0}[name]}
    by_size = []
    for batch_size in (64, 7):
        batch = of_epoch(Batches(split, STEPS, batch_size=batch_size, seed=3, augment=augment), 4)
        by_size.append(batch["x"][torch.argsort(batch["id"])])
    assert torch.equal(*by_size)
    plain = torch.from_numpy(apply_arithmetic(STEPS, split.x))
    changed = (by_size[0] != plain).flatten(1).any(dim=1).float().mean()
    assert 0.3 < changed <= 1.0, "it does something"
    other = of_epoch(Batches(split, STEPS, batch_size=64, seed=3, augment=augment), 5)
    assert not torch.equal(other["x"][torch.argsort(other["id"])], by_size[0]), "and something else in each epoch"


def test_one_augmentation_more_leaves_the_draws_of_the_others() -> None:
    split = images(32)
    alone, with_flip = ({"shift": 2.0}, {"shift": 2.0, "flip": 1.0})
    a = augment_batch(split.x, split.ids, alone, seed=0, epoch=0)
    b = augment_batch(split.x, split.ids, with_flip, seed=0, epoch=0)
    for one, other in zip(a, b):
        assert (one == other).all() or (one == other[:, ::-1]).all()


def test_augmentations_draw_independently() -> None:
    split = images(400)
    flipped = augment_batch(split.x, split.ids, {"flip": 1.0}, seed=0, epoch=0)
    is_flipped = (flipped != split.x).any(axis=(1, 2, 3))
    bright = Split(np.full((400, 1), 100.0, np.float32), split.y, split.ids)
    is_brighter = augment_batch(bright.x, bright.ids, {"scale": 0.5}, seed=0, epoch=0)[:, 0] > 100
    assert abs(np.corrcoef(is_flipped, is_brighter)[0, 1]) < 0.2


def test_shift_moves_and_fills_with_zeros() -> None:
    x = np.full((500, 6, 5, 2), 7, np.uint8)
    out = augmentation.shift(x, 2, words(key(0), np.arange(500)))
    places = set()
    for image in out:
        rows, columns = image.any(axis=(1, 2)), image.any(axis=(0, 2))
        height, width = int(rows.sum()), int(columns.sum())
        assert (image[rows][:, columns] == 7).all()
        assert image.sum() == 7 * height * width * 2
        places.add((6 - height, 5 - width, bool(rows[0]), bool(columns[0])))
    assert {place[0] for place in places} == {0, 1, 2}
    assert {place[1] for place in places} == {0, 1, 2}
    assert x.min() == 7, "the data set stays as it is"


def test_shift_moves_a_series_along_time_only() -> None:
    series = np.arange(1, 9, dtype=np.float32).reshape(1, 8, 1).repeat(50, axis=0).repeat(2, axis=2)
    out = augmentation.shift(series, 3, words(key(0), np.arange(50)))
    assert (out[..., 0] == out[..., 1]).all()
    for row in out[..., 0]:
        left = int((row == 0).sum())
        kept = row[row > 0]
        assert left <= 3
        assert (np.diff(kept) == 1).all()


def test_flip_is_a_mirror_for_about_half() -> None:
    x = images(400).x
    out = augmentation.flip(x, 1.0, words(key(0), np.arange(400)))
    flipped = [(a == b[:, ::-1]).all() for a, b in zip(out, x)]
    same = [(a == b).all() for a, b in zip(out, x)]
    assert all(f or s for f, s in zip(flipped, same))
    assert 150 < sum(flipped) < 250


def test_scale_multiplies_a_sample_by_one_number() -> None:
    x = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32) + 5
    ratio = augmentation.scale(x, 0.2, words(key(0), np.arange(300))) / x
    assert np.ptp(ratio, axis=1).max() < 1e-6
    assert 0.8 <= ratio.min() < 0.83
    assert 1.17 < ratio.max() <= 1.2


def test_noise_has_the_deviation_and_bytes_stay_bytes() -> None:
    x = np.zeros((200, 50), np.float32)
    out = augmentation.noise(x, 0.5, words(key(0), np.arange(200)))
    assert out.dtype == np.float32
    assert abs(out.mean()) < 0.02
    assert abs(out.std() - 0.5) < 0.01
    as_bytes = augmentation.noise(np.full((50, 8, 8, 1), 250, np.uint8), 20.0, words(key(0), np.arange(50)))
    assert as_bytes.dtype == np.uint8
    assert as_bytes.max() == 255
    assert as_bytes.min() > 100, "values do not wrap around"


@pytest.mark.parametrize(
    ("augment", "text"),
    [
        ({"shfit": 1}, "data.augment: unknown key 'shfit'. Did you mean 'shift'? Known: flip, noise, scale, shift"),
        ({"shift": 1.5}, "data.augment.shift: found 1.5, expected whole pixels below the size [8, 8]"),
        ({"shift": 8}, "data.augment.shift: found 8, expected whole pixels below the size [8, 8]"),
        ({"shift": -1}, "data.augment.shift: found -1, expected a number from 0"),
        ({"noise": float("nan")}, "data.augment.noise: found nan, expected a number from 0"),
        ({"noise": True}, "data.augment.noise: found True, expected a number from 0"),
        ({"scale": 1.0}, "data.augment.scale: found 1.0, expected a fraction below 1"),
        ({"flip": 1}, "data.augment.flip: found 1, expected true or false"),
    ],
)
def test_bad_augmentation(augment: dict[str, float], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Batches(images(4), STEPS, batch_size=2, augment=augment)
    assert str(caught.value) == text


def test_vectors_have_no_neighbours() -> None:
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(RecipeError, match=r"found samples of shape \[3\], only images can be flipped"):
        check_augment({"flip": True}, x)
    with pytest.raises(RecipeError, match=r"found samples of shape \[3\], only images and series can be shifted"):
        check_augment({"shift": 1}, x)
    assert check_augment({"shift": 0, "flip": False, "noise": 0.1}, x) == {"noise": 0.1}


def test_grey_images_without_a_channel_axis_are_images() -> None:
    split = images(30)
    flat = Split(split.x[..., 0].astype(np.float32), split.y, split.ids)
    whole = Split(split.x.astype(np.float32), split.y, split.ids)
    both = [of_epoch(Batches(s, STEPS, batch_size=8, augment={"flip": True, "shift": 1}), 0) for s in (flat, whole)]
    assert torch.equal(both[0]["x"], both[1]["x"])


# Random numbers


def test_words_are_known_values() -> None:
    """Resuming and caches depend on these: they must never change. The first is splitmix64's own for the seed 0."""
    assert key(0) == 0xE220A8397B1DCDAF
    known = [0xA4122DB13FA0F942, 0x247382989DC880EA, 0x6CA810DF26D94317]
    assert words(key(1, 2), np.array([0, 1, 2])).tolist() == known
    assert permutation(7, 3, np.arange(10)).tolist() == [9, 8, 1, 4, 5, 7, 2, 3, 0, 6]


def test_different_ids_and_keys_give_different_words() -> None:
    ids = np.concatenate([np.arange(50_000), np.arange(50_000) + (1 << 40), -np.arange(1, 1000)])
    assert len(np.unique(words(key(0), ids))) == len(ids)
    keys = {key(seed, *parts) for seed in range(50) for parts in [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]}
    assert len(keys) == 300


def test_draws_look_random() -> None:
    drawn = uniforms(words(key(0), np.arange(2000)), 50)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.08
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.08
    bell = normals(words(key(1), np.arange(2000)), 51)
    assert bell.shape == (2000, 51)
    assert np.isfinite(bell).all()
    assert abs(bell.mean()) < 0.02
    assert abs(bell.std() - 1) < 0.02
    assert abs((bell**4).mean() - 3) < 0.15
    assert abs(np.corrcoef(bell[:, 0], bell[:, 26])[0, 1]) < 0.08


# Views


def test_views_are_cycled() -> None:
    split = images(40)
    loader = Batches(split, STEPS, batch_size=16, seed=3, augment={"shift": 2, "noise": 4.0}, views=3)
    endless = Batches(split, STEPS, batch_size=16, seed=3, augment={"shift": 2, "noise": 4.0})
    assert (loader.views, endless.views) == (3, None)
    by_id = {}
    for epoch in range(6):
        batch = of_epoch(loader, epoch)
        by_id[epoch] = batch["x"][torch.argsort(batch["id"])]
        assert torch.cat([part["view"] for part in loader.epoch(epoch)]).unique().tolist() == [epoch % 3]
    for epoch in range(3):
        assert torch.equal(by_id[epoch], by_id[epoch + 3]), "the same pixels, three epochs later"
        assert torch.equal(of_epoch(loader, epoch)["x"], of_epoch(endless, epoch)["x"]), "the first cycle is as without"
    assert not torch.equal(by_id[0], by_id[1])
    assert not torch.equal(of_epoch(loader, 0)["id"], of_epoch(loader, 3)["id"]), "the order is new in every epoch"
    assert [batch["view"].unique().tolist() for batch in endless.epoch(5)] == [[5]] * 3


def test_at_gives_the_pixels_of_a_view() -> None:
    loader = Batches(images(40), STEPS, batch_size=16, augment={"shift": 2}, views=2)
    for batch in loader.epoch(1):
        again = loader.at(batch["id"].numpy() - 1000, view=1)
        assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_samples_that_nothing_changes_have_one_view() -> None:
    plain = Batches(images(20), STEPS, batch_size=8, views=4)
    assert plain.views == 1
    assert {int(v) for epoch in (0, 7) for part in plain.epoch(epoch) for v in part["view"]} == {0}
    assert {int(v) for part in plain.full() for v in part["view"]} == {0}
    augmented = Batches(images(20), STEPS, batch_size=8, augment={"shift": 1}, views=4)
    assert {int(v) for part in augmented.full() for v in part["view"]} == {batches.PLAIN}


def test_a_number_of_views_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="found views = 0, expected a whole number from 1"):
        Batches(images(4), batch_size=2, views=0)


def test_samples_that_never_change_lie_where_the_student_computes() -> None:
    """On a GPU the data set is copied once. The device "meta" computes nothing, but says what lies where."""
    split = Split(np.zeros((10, 4, 4, 1), np.uint8), np.arange(10) % 3, np.arange(10))
    extras = {"labelled": np.arange(10) < 7}
    meta = torch.device("meta")
    still = Batches(split, (Scale(), Layout("CHW")), batch_size=4, extras=extras)
    still.place(meta)
    first, *_, last = still.epoch(0)
    assert {name: value.device.type for name, value in first.items()} == dict.fromkeys(first, "meta")
    assert (tuple(first["x"].shape), tuple(last["x"].shape)) == ((4, 1, 4, 4), (2, 1, 4, 4))
    moving = Batches(split, (Scale(), Layout("CHW")), batch_size=4, augment={"flip": True})
    moving.place(meta)
    assert {value.device.type for value in next(iter(moving.epoch(0))).values()} == {"cpu"}
