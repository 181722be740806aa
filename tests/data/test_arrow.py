"""Data sets of Hugging Face: the files that `datasets` writes, made here with pyarrow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digit_files import digits, png

from edgekd.data.registry import load_dataset
from edgekd.device.preprocess import prepare
from edgekd.errors import DataError
from edgekd.rows import DiskRows
from edgekd.spec import Dataset, Decode, Step

pa = pytest.importorskip("pyarrow", reason="needs the extra 'hf'")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'hf'")

NAMES = [f"digit {number}" for number in range(10)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))


def table(start: int = 0, end: int = 100, *, labelled: bool = True, **changed: Any) -> Any:
    """Digits as `datasets` keeps them: images in a struct, classes by number, both described in the schema."""
    x, y = digits(end)
    features = {
        "image": {"_type": "Image"},
        "label": {"names": NAMES, "_type": "ClassLabel"},
        "note": {"_type": "Value"},
    }
    columns = {
        "image": pa.array([{"bytes": png(pixels), "path": None} for pixels in x[start:]], IMAGE),
        "label": pa.array(y[start:], pa.int64()),
        "note": pa.array([f"row {row}" for row in range(start, end)]),
        **changed,
    }
    found = pa.table(columns)
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    return found.replace_schema_metadata(info) if labelled else found


def write_arrow(path: Path, found: Any, *, rows: int = 30, stream: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, new(sink, found.schema) as writer:
        for batch in found.to_batches(max_chunksize=rows):
            writer.write_batch(batch)


def saved(root: Path, name: str, *tables: Any) -> Path:
    """One split as `save_to_disk` leaves it."""
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for file, found in zip(names, tables):
        write_arrow(root / name / file, found)
    (root / name / "state.json").write_text(json.dumps({"_data_files": [{"filename": file} for file in names]}))
    write_arrow(root / name / "cache-1234.arrow", pa.table({"indices": [1, 2]}))
    return root


def load(root: Path, *, steps: tuple[Step, ...] = (Decode(),), **options: Any) -> Dataset:
    return load_dataset(kind="arrow", root=root, prepare=lambda raw: prepare(steps, raw), steps=repr(steps), **options)


def check_digits(data: Dataset, count: int) -> None:
    x, y = digits(count)
    by_pixels = {pixels.tobytes(): int(label) for pixels, label in zip(x, y)}
    seen = 0
    for split in (data.train, data.val, data.test):
        assert isinstance(split.x, DiskRows)
        for pixels, label in zip(split.x[:], split.y):
            assert by_pixels[pixels.tobytes()] == label
            seen += 1
    assert seen == count
    assert len({*data.train.ids, *data.val.ids, *data.test.ids}) == count


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    root = saved(tmp_path / "in", "train", table(0, 70), table(70, 150))
    saved(root, "validation", table(150, 180))
    saved(root, "test", table(180, 200))
    (root / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    data = load(root)
    assert [len(data.train), len(data.val), len(data.test)] == [150, 30, 20]
    assert data.labels == tuple(NAMES)
    check_digits(data, 200)
    assert load(root).sha256 == data.sha256


@pytest.mark.parametrize("kind", ["stream", "file", "parquet"])
def test_files_of_every_format_give_the_same(kind: str, tmp_path: Path) -> None:
    paths = {"stream": tmp_path / "in.arrow", "file": tmp_path / "in.arrow", "parquet": tmp_path / "in.parquet"}
    if kind == "parquet":
        pq.write_table(table(), paths[kind], row_group_size=40)
    else:
        write_arrow(paths[kind], table(), stream=kind == "stream")
    data = load(paths[kind])
    assert data.labels == tuple(NAMES)
    check_digits(data, 100)
    few = load(paths[kind], limit=5)
    assert np.array_equal(few.train.x[:], data.train.x[:5])


def test_columns_that_nobody_described(tmp_path: Path) -> None:
    """Plain bytes, classes by text, from pandas or DuckDB for example."""
    x, y = digits(60)
    pq.write_table(
        pa.table({"png": [png(pixels) for pixels in x], "label": [NAMES[label] for label in y]}), tmp_path / "a.parquet"
    )
    data = load(tmp_path / "a.parquet")
    assert data.labels == tuple(NAMES)
    assert data.train.x.shape[1:] == (8, 8, 1)


def test_arrays_of_numbers_and_several_targets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3, 2)).astype(np.float32)
    columns = {"wave": x.tolist(), "mean": x.mean(axis=(1, 2)), "top": x.max(axis=(1, 2)), "when": list(range(40))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet", steps=(), task="regression", target=("mean", "top"))
    found = data.train.x[:]
    assert found.shape[1:] == (3, 2)
    assert found.dtype == np.float32
    assert np.allclose(data.train.y, np.stack([found.mean(axis=(1, 2)), found.max(axis=(1, 2))], axis=1))
    small = pa.array(rng.integers(0, 256, (40, 4)).tolist(), pa.list_(pa.uint8()))
    pq.write_table(pa.table({"x": small, "label": [[row % 2, 1] for row in range(40)]}), tmp_path / "b.parquet")
    marks = load(tmp_path / "b.parquet", steps=(), task="multilabel", target=("label",))
    assert marks.train.x.dtype == np.uint8
    assert marks.train.y.shape == (len(marks.train), 2)


def test_damaged_images_are_named_by_file_and_row(tmp_path: Path) -> None:
    images = table().column("image").to_pylist()
    images[41] = {"bytes": b"no image", "path": None}
    images[80] = {"bytes": None, "path": "cat.png"}
    images[99] = None
    pq.write_table(table(image=pa.array(images, IMAGE)), tmp_path / "a.parquet", row_group_size=30)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "a.parquet")
    told = str(caught.value)
    assert told.startswith("3 samples cannot be used")
    assert "a.parquet, row 41: the encoded image cannot be decoded as an image (no known format)" in told
    assert "a.parquet, row 80: it names the file cat.png instead of holding its bytes; save the data set with" in told
    assert "a.parquet, row 99: it is empty; remove it" in told


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"

    def told(found: Any = None, **options: Any) -> str:
        if found is not None:
            pq.write_table(found, path)
        with pytest.raises(DataError) as caught:
            load(path, **options)
        return str(caught.value)

    assert "there is no column 'lable'. Did you mean 'label'?" in told(table(), target=("lable",))
    assert "no column could be what is to be learned" in told(table().drop(["label"]))
    assert "no column could be what is to be learned, of image" in told(table(labelled=False).drop(["label"]))
    assert "no column could hold the samples, of label (int64), note (string)" in told(table().drop(["image"]))
    two = table(labelled=False, png=pa.array([b""] * 100))
    assert "image and png could hold the samples" in told(two)
    empty = pa.array([None, *range(99)], pa.int64())
    assert "the column 'label' is empty in 1 of 100 rows, first in row 0" in told(table(label=empty))
    assert "the label 11 is out of range" in told(table(label=pa.array([11] * 100, pa.int64())))
    assert "data.target names 2 columns, expected one for classification" in told(target=("label", "note"))
    ragged = pa.array([[1.0], *[[1.0, 2.0]] * 99])
    assert "holds lists of different lengths" in told(table(label=ragged), task="regression", target=("label",))
    assert "holds no rows to train on" in told(table()[:0])
    path.write_bytes(b"PAR1 rubbish")
    assert "a.parquet cannot be read as parquet (" in told()
    arrow = tmp_path / "b.arrow"
    for damaged in (b"", b"ARROW1 rubbish", b"rubbish" * 9):
        arrow.write_bytes(damaged)
        with pytest.raises(DataError, match=r"b.arrow cannot be read as arrow \(.*\); make it again"):
            load(arrow)


def test_files_with_other_columns(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    pq.write_table(table().drop(["note"]), tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"b.parquet has the columns image \(.*expected the same columns of the same types"
    ):
        load(tmp_path)
