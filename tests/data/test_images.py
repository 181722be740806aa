"""Folders of images: classes, splits, and every unusable image by its name. `prepare` is the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd.data.registry import load_dataset
from edgekd.device.preprocess import prepare
from edgekd.errors import DataError, UsageError
from edgekd.spec import Array, Dataset, Decode, Resize, ToRgb

Image = pytest.importorskip("PIL.Image", reason="needs the extra 'image'")
STEPS = (Decode(), ToRgb(), Resize(size=(8, 8)))


def paint(path: Path, value: int, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def folder(root: Path, *splits: str, count: int = 10) -> Path:
    for split in splits or ("",):
        for shade, name in enumerate(("cat", "dog")):
            for index in range(count):
                paint(root / split / name / f"{index}.png", 100 * shade + index)
    return root


def load(root: Path, **options: object) -> Dataset:
    spatial = options.pop("steps", STEPS)

    def prepared(raw: Path | Array) -> Array:
        return prepare(spatial, raw)  # type: ignore[arg-type]

    return load_dataset(kind="image_folder", root=root, prepare=prepared, **options)  # type: ignore[arg-type]


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load(root, **options)
    return str(caught.value)


def test_one_folder_per_class_is_split_by_hash(tmp_path: Path) -> None:
    data = load(folder(tmp_path / "pets"), val_fraction=0.2, test_fraction=0.3)
    assert (data.name, data.labels, data.licence) == ("pets", ("cat", "dog"), "not stated")
    assert (len(data.train), len(data.val), len(data.test)) == (10, 4, 6)
    assert data.train.x.shape == (10, 8, 8, 3)
    assert data.train.x.dtype == np.uint8
    for split in (data.train, data.val, data.test):
        assert np.array_equal(split.x[:, 0, 0, 0] >= 100, split.y == 1)


def test_more_images_and_another_order_of_the_file_system_move_nothing(tmp_path: Path) -> None:
    small = load(folder(tmp_path / "a"))
    backwards = tmp_path / "b"
    for index in reversed(range(10)):
        for shade, name in ((1, "dog"), (0, "cat")):
            paint(backwards / name / f"{index}.png", 100 * shade + index)
    other = load(backwards)
    assert small.sha256 == other.sha256
    assert np.array_equal(small.val.x, other.val.x)


def test_own_split_folders_are_used(tmp_path: Path) -> None:
    data = load(folder(tmp_path, "train", "test"), val_fraction=0.2)
    assert (len(data.train), len(data.val), len(data.test)) == (16, 4, 20)
    data = load(folder(tmp_path, "train", "val", "test"))
    assert (len(data.train), len(data.val), len(data.test)) == (20, 20, 20)
    assert len(set(np.concatenate([data.train.ids, data.val.ids, data.test.ids]))) == 60


def test_labels_set_the_order_and_hidden_files_do_not_count(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = load(tmp_path, labels=["dog", "cat"])
    assert np.array_equal(data.train.x[:, 0, 0, 0] >= 100, data.train.y == 0)


def test_every_unusable_image_is_named(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "cat" / "empty.png").write_bytes(b"")
    (tmp_path / "dog" / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    whole = paint(tmp_path / "dog" / "cut.png", 5, (64, 64)).read_bytes()
    (tmp_path / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    message = refusal(tmp_path, val_fraction=0.01, test_fraction=0.01)
    assert message.startswith("3 samples cannot be used; repair or remove:\n  ")
    named = [name for name in ("empty.png", "corrupt.jpg", "cut.png") if name in message]
    assert named == ["empty.png", "corrupt.jpg", "cut.png"]


def test_images_of_different_sizes_ask_for_a_resize(tmp_path: Path) -> None:
    folder(tmp_path)
    paint(tmp_path / "cat" / "large.png", 3, (9, 8))
    message = refusal(tmp_path, steps=(Decode(),))
    assert "large.png is [8, 9, 3]" in message or "is [8, 8, 3], but" in message
    assert '{op = "resize", size = [height, width]}' in message


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "none")
    assert "has no folders; expected one folder of images per class" in refusal(tmp_path)
    folder(tmp_path, "train")
    (tmp_path / "valid").mkdir()
    assert "has a folder 'train' and beside it 'valid'; expected only train, val and test" in refusal(tmp_path)
    (tmp_path / "valid").rmdir()
    paint(tmp_path / "test" / "cow" / "0.png", 1)
    assert "has the folder 'cow', which is no class; the classes are 'cat', 'dog'" in refusal(tmp_path)
    (tmp_path / "train" / "eel").mkdir()
    assert "eel holds no image; expected files that end in" in refusal(tmp_path)


def test_without_prepare_nothing_can_be_decoded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="image_folder needs prepare="):
        load_dataset(kind="image_folder", root=folder(tmp_path))
