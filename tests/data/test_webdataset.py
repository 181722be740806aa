"""Tar shards: samples, labels and splits by value, what is kept, and everything unusable by its name."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digit_files import Member, digit_shards, digits, npy, png, write_tar

from edgekd.data.registry import load_dataset
from edgekd.data.webdataset import Index
from edgekd.device.preprocess import prepare
from edgekd.errors import DataError, UsageError
from edgekd.rows import DiskRows
from edgekd.spec import Dataset, Decode, Resize, Step

STEPS = (Decode(),)
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))


def load(root: Path, *, steps: tuple[Step, ...] = STEPS, **options: Any) -> Dataset:
    return load_dataset(
        kind="webdataset", root=root, prepare=lambda raw: prepare(steps, raw), steps=repr(steps), **options
    )


def sample(key: str, *, label: str = "0", pixels: Any = GREY) -> list[Member]:
    return [(f"{key}.png", png(pixels)), (f"{key}.cls", label.encode())]


def pair(*more: Member | tarfile.TarInfo) -> list[Any]:
    """Enough of two classes, and more."""
    return [member for index in range(8) for member in sample(f"s{index}", label=str(index % 2))] + list(more)


def test_the_digits_come_out_as_they_went_in(tmp_path: Path) -> None:
    x, y = digits(200)
    data = load(digit_shards(tmp_path / "in", count=200))
    by_pixels = {pixels.tobytes(): int(label) for pixels, label in zip(x, y)}
    seen = 0
    for split in (data.train, data.val, data.test):
        assert isinstance(split.x, DiskRows)
        assert split.x.shape == (len(split), 8, 8, 1)
        assert split.x.dtype == np.uint8
        for pixels, label in zip(split.x[:], split.y):
            assert by_pixels[pixels.tobytes()] == label
            seen += 1
    assert seen == 200
    assert data.labels == tuple("0123456789")
    ids = np.concatenate([data.train.ids, data.val.ids, data.test.ids])
    assert len(set(ids.tolist())) == 200
    assert data.name == "in"


def test_any_rows_are_as_those_of_an_array(tmp_path: Path) -> None:
    rows = load(digit_shards(tmp_path / "in", count=100)).train.x
    whole = rows[:]
    assert np.array_equal(rows[3:9], whole[3:9])
    assert np.array_equal(rows[np.array([5, 1, 5])], whole[[5, 1, 5]])
    assert isinstance(rows, DiskRows)
    taken = rows.take(np.array([7, 2, 0]))
    assert np.array_equal(taken[1:], whole[[2, 0]])


def test_the_same_data_again_decodes_nothing_and_is_the_same(tmp_path: Path) -> None:
    root = digit_shards(tmp_path / "in", count=100)
    decoded = []

    def counting(raw: Any) -> Any:
        decoded.append(raw)
        return prepare(STEPS, raw)

    def again(**options: Any) -> Dataset:
        return load_dataset(kind="webdataset", root=root, prepare=counting, steps="decode", **options)

    first = again()
    assert len(decoded) == 100
    second = again()
    assert len(decoded) == 100
    assert first.sha256 == second.sha256
    assert np.array_equal(first.train.ids, second.train.ids)
    # Another seed shares the samples out otherwise, from the same store.
    assert again(seed=1).sha256 != first.sha256
    assert len(decoded) == 100
    # Another shard order on the disk is none: names are sorted. Changed files are read anew.
    write_tar(root / "digits-000.tar", pair())
    assert again().sha256 != first.sha256
    assert len(decoded) > 100


def test_only_the_samples_that_are_wanted_are_decoded(tmp_path: Path) -> None:
    decoded = []
    load_dataset(
        kind="webdataset",
        root=digit_shards(tmp_path / "in", count=200),
        prepare=lambda raw: (decoded.append(raw), prepare(STEPS, raw))[1],
        limit=10,
    )
    assert len(decoded) == 30


def test_a_sample_stays_in_its_split_when_shards_are_cut_otherwise(tmp_path: Path) -> None:
    one = load(digit_shards(tmp_path / "one", count=120, shards=2))
    other = load(digit_shards(tmp_path / "other", count=120, shards=7))
    assert np.array_equal(one.val.ids, other.val.ids)
    assert one.sha256 == other.sha256


def test_splits_of_their_own(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "validation-0"):
        count = 6 if name.startswith("train") else 4
        members = [m for i in range(count) for m in sample(f"{name[-1]}{i}", label=("cat", "dog")[i % 2])]
        write_tar(tmp_path / "in" / f"pets-{name}.tar", members)
    data = load(tmp_path / "in", test_fraction=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 4, 4)
    assert data.labels == ("cat", "dog")
    # The same key in two splits stands for two samples.
    assert len({*data.train.ids.tolist(), *data.val.ids.tolist(), *data.test.ids.tolist()}) == 16


def test_targets_in_json(tmp_path: Path) -> None:
    def members(value: Callable[[int], Any]) -> list[Member]:
        return [
            m
            for i in range(12)
            for m in [
                (f"{i}.npy", npy(np.full(3, i, np.float32))),
                (f"{i}.json", json.dumps({"speed": value(i), "heat": i / 2, "kind": "ab"[i % 2]}).encode()),
            ]
        ]

    write_tar(tmp_path / "a.tar", members(lambda i: 2 * i))
    options: dict[str, Any] = {"steps": (), "task": "regression"}
    data = load(tmp_path / "a.tar", target=("speed", "heat"), **options)
    assert data.train.x.dtype == np.float32
    assert np.array_equal(data.train.y, np.stack([data.train.x[:][:, 0] * 2, data.train.x[:][:, 0] / 2], axis=1))
    kinds = load(tmp_path / "a.tar", target=("kind",), steps=())
    assert kinds.labels == ("a", "b")
    write_tar(tmp_path / "b.tar", members(lambda i: [i % 2, 1]))
    marks = load(tmp_path / "b.tar", target=("speed",), steps=(), task="multilabel")
    assert marks.train.y.dtype == np.uint8
    assert marks.train.y.shape == (len(marks.train), 2)


def test_other_files_are_left_out(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("./deep")
    folder.type = tarfile.DIRTYPE
    more = [
        folder,
        *sample("./deep/a", label="1"),
        ("deep/a.txt", b"a caption"),
        ("README", b"hello"),
        (".DS_Store", b""),
    ]
    assert len(load(write_tar(tmp_path / "a.tar", pair(*more))).train.ids) > 0


def link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([("../../etc/a.png", b""), ("/b.png", b"")], r"\.\./etc/a.png: its name leads out of the archive.*\n.*/b.png"),
        ([link("a.png")], "a.png: it is a link, a device or a file with holes; expected a plain file"),
        (sample("s3"), "s3.png: its key is there twice; give each sample of a split a key of its own"),
        ([*sample("a"), ("a.png", png(GREY))], "a.png: it is there twice; remove one"),
        ([("a.png", png(GREY))], "a.png: there is no cls beside it"),
        ([("a.png", png(GREY)), ("a.json", b"{}")], "a.png: there is no cls beside it; data.target names the key in"),
        ([("a.cls", b"1")], "a.cls: there is no image and no .npy beside it"),
        ([*sample("a"), ("a.jpg", b"x")], "a: there are png and jpg; expected one image or .npy for each key"),
        (sample("a", label=""), "a.cls: it is empty, expected a class"),
        ([("a.png", png(GREY)[:45]), ("a.cls", b"0")], "a.png: the encoded image cannot be decoded as an image"),
        ([("a.npy", npy(GREY)[:90]), ("a.cls", b"0")], "a.npy: it cannot be read as .npy"),
        (sample("a", pixels=np.zeros((4, 4), np.uint8)), r"a.png: is uint8 \[4, 4, 1\], but the others are"),
        (sample("a", label="-1"), "the label -1 is out of range in sample 8"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(members: list[Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=text):
        load(write_tar(tmp_path / "in.tar", pair(*members)))


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "train-0.tar", pair(("a.png", png(GREY)), ("../b.png", b"")))
    write_tar(tmp_path / "in" / "val-0.tar", pair(link("c.png")))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "in")
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 samples cannot be used; repair or remove:"
    assert [name in text for name, text in zip(("../b.png", "a.png", "c.png"), lines[1:])] == [True] * 3


def test_damaged_images_of_all_splits_are_told_at_once(tmp_path: Path) -> None:
    bad = [("a.png", b"no image"), ("a.cls", b"0"), ("b.png", b""), ("b.cls", b"1")]
    for split in ("train", "test"):
        write_tar(tmp_path / "in" / f"{split}.tar", pair(*bad))
    with pytest.raises(DataError) as caught:
        load(tmp_path / "in")
    told = str(caught.value)
    assert told.startswith("4 samples cannot be used")
    assert all(f"{split}.tar: {name}.png: the encoded image" in told for split in ("train", "test") for name in "ab")


def test_a_cut_and_a_damaged_shard(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "in.tar", pair()).read_bytes()
    for damaged in (whole[: 512 * 6], whole[: 512 * 5 + 100], whole[:2048] + b"\xff" * 512 + whole[2560:]):
        (tmp_path / "in.tar").write_bytes(damaged)
        with pytest.raises(DataError, match=r"in.tar: it (is cut off or damaged at byte \d+|cannot be read as a tar)"):
            load(tmp_path / "in.tar")
    (tmp_path / "in.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(
        DataError, match=r"in.tar: it cannot be read as a tar file .* expected .tar without compression"
    ):
        load(tmp_path / "in.tar")


def test_places_that_hold_no_shards(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"there is no .*nowhere; expected data.root = a .tar file, or a folder of them"
    ):
        load(tmp_path / "nowhere")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"holds no file that ends in .tar; unpack compressed ones first"):
        load(tmp_path / "in")
    write_tar(tmp_path / "in" / "train-0.tar", pair())
    write_tar(tmp_path / "in" / "more.tar", pair())
    with pytest.raises(DataError, match=r"some files below .* say their split, but .*more.tar says none"):
        load(tmp_path / "in")
    (tmp_path / "in" / "more.tar").rename(tmp_path / "in" / "train-test.tar")
    with pytest.raises(DataError, match=r"train-test.tar says several splits: test, train; expected one"):
        load(tmp_path / "in")
    (tmp_path / "a.zip").touch()
    with pytest.raises(DataError, match=r"a.zip ends in '.zip', expected .tar"):
        load(tmp_path / "a.zip")
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(
        DataError, match=r"empty.tar and what belongs to it hold no sample; expected KEY.jpg with KEY.cls"
    ):
        load(tmp_path / "empty.tar")
    with pytest.raises(UsageError, match="webdataset needs prepare="):
        load_dataset(kind="webdataset", root=write_tar(tmp_path / "in.tar", pair()))


def test_bad_json(tmp_path: Path) -> None:
    def told(text: str, *target: str) -> str:
        write_tar(tmp_path / "in.tar", [("a.npy", npy(np.zeros(3))), ("a.json", text.encode())])
        with pytest.raises(DataError) as caught:
            load(tmp_path / "in.tar", target=target or ("speed",), steps=(), task="regression")
        return str(caught.value)

    assert "a.json: it has no 'speed' (data.target); it has heat" in told('{"heat": 1}')
    assert "a.json: it holds a list, expected an object" in told("[1]")
    assert "a.json: 'speed' is null, expected finite numbers or a text" in told('{"speed": null}')
    assert "a.json: 'speed' is NaN, expected finite numbers or a text" in told('{"speed": NaN}')
    assert "a.json: Expecting" in told("{")


def test_the_index_is_kept_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    root = digit_shards(tmp_path / "in", count=60)
    first = load(root)
    [kept] = (tmp_path / "cache" / "data").rglob("train.npz")
    assert set(np.load(kept).files) == {"facts", *Index.__dataclass_fields__}
    kept.write_bytes(b"rubbish")
    assert load(root).sha256 == first.sha256
    assert np.load(kept)["ids"].shape == (60,)


def test_resize_makes_images_of_one_size(tmp_path: Path) -> None:
    members = pair(*sample("a", pixels=np.zeros((20, 12), np.uint8)))
    data = load(write_tar(tmp_path / "in.tar", members), steps=(Decode(), Resize(size=(6, 6))))
    assert data.train.x.shape[1:] == (6, 6, 1)
