"""Arrays from .npz, .csv and the user's own function: what is read, and what each defect is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.data.registry import load_dataset, source_signature
from edgekd.errors import DataError
from edgekd.spec import Dataset

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def load(path: Path, **options: Any) -> Dataset:
    return load_dataset(kind="arrays", root=path, **options)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    return str(caught.value)


def test_classes_by_number(tmp_path: Path) -> None:
    data = load(npz(tmp_path, x=X, y=Y), val_fraction=0.25, test_fraction=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 15, 15)
    assert data.labels == ("0", "1", "2")
    assert (data.name, data.licence, data.num_outputs) == ("data", "not stated", 3)
    assert (data.train.x.dtype, data.train.y.dtype, data.train.ids.dtype) == (np.float32, np.int64, np.int64)
    for split in (data.train, data.val, data.test):
        assert np.array_equal(split.x, X[split.ids])
        assert np.array_equal(split.y, Y[split.ids])
        assert set(np.bincount(split.y)) == {len(split) // 3}


def test_own_splits_are_kept_apart(tmp_path: Path) -> None:
    data = load(npz(tmp_path, x=X[:40], y=Y[:40], x_test=X[40:], y_test=Y[40:]), val_fraction=0.25)
    assert sorted(data.test.ids) == list(range(40, 60))
    assert np.array_equal(data.test.x, X[data.test.ids])
    assert len(data.train) + len(data.val) == 40


@pytest.mark.parametrize(
    ("given", "kept"), [(np.uint8, np.uint8), (np.float64, np.float32), (np.int64, np.float32), (np.bool_, np.float32)]
)
def test_bytes_stay_and_other_numbers_become_float32(tmp_path: Path, given: type, kept: type) -> None:
    x = (np.arange(240).reshape(60, 4) % 2).astype(given)
    data = load(npz(tmp_path, x=x, y=Y))
    assert data.train.x.dtype == kept
    assert np.array_equal(data.train.x, x[data.train.ids])


def test_classes_by_name(tmp_path: Path) -> None:
    names = np.array(["cat", "ant", "bee"])[Y]
    data = load(npz(tmp_path, x=X, y=names))
    assert data.labels == ("ant", "bee", "cat")
    assert [data.labels[label] for label in data.val.y] == list(names[data.val.ids])
    ordered = load(npz(tmp_path, x=X, y=names), labels=["cat", "ant", "bee", "eel"])
    assert np.array_equal(ordered.val.y, Y[ordered.val.ids])
    assert "y holds cat, which is not in labels" in refusal(npz(tmp_path, x=X, y=names), labels=["ant", "bee"])


def test_marks_and_numbers(tmp_path: Path) -> None:
    marks = RNG.integers(0, 2, (60, 5))
    data = load(npz(tmp_path, x=X, y=marks), task="multilabel")
    assert data.labels == ("label_0", "label_1", "label_2", "label_3", "label_4")
    assert data.train.y.dtype == np.uint8
    assert np.array_equal(data.train.y, marks[data.train.ids])
    data = load(npz(tmp_path, x=X, y=X[:, 0] * 2), task="regression")
    assert (data.labels, data.train.y.shape, data.train.y.dtype) == (("target",), (36, 1), np.float32)
    assert np.array_equal(data.train.y[:, 0], X[data.train.ids, 0] * 2)


@pytest.mark.parametrize(
    ("arrays", "options", "expected"),
    [
        ({"x": X}, {}, "there is no array 'y'; expected both x and y"),
        ({"y": Y}, {}, "there is no array 'x'"),
        ({"x": X, "y": Y, "xtest": X}, {}, "unknown array 'xtest'. Did you mean 'x_test'?"),
        ({"x": X, "y": Y, "x_val": X}, {}, "there is no array 'y_val'"),
        ({"x": X, "y": Y[:50]}, {}, "x has 60 samples, but y has 50; expected one y for each x"),
        ({"x": X[:0], "y": Y[:0]}, {"labels": ["a", "b"]}, "there are no samples"),
        ({"x": X[:, 0], "y": Y}, {}, "x has the shape [60], expected (samples, features...)"),
        ({"x": X.astype(str), "y": Y}, {}, "expected numbers (uint8 or float32)"),
        ({"x": X * np.nan, "y": Y}, {}, "x is NaN or infinite in samples 0, 1, 2, 3, 4 and"),
        ({"x": np.full((60, 4), 1e300), "y": Y}, {}, "x is NaN or infinite"),
        ({"x": X, "y": Y + 1}, {}, "the classes go up to 3, but no sample has class 0"),
        (
            {"x": X, "y": Y},
            {"labels": ["a", "b"]},
            "the label 2 is out of range in samples 2, 5, 8, 11, 14 and 15 more",
        ),
        ({"x": X, "y": Y}, {"labels": ["a", "b"]}, "expected 0 to 1, for 2 labels"),
        ({"x": X, "y": Y - 1}, {}, "the label -1 is out of range in samples 0, 3, 6, 9, 12 and 15 more"),
        ({"x": X, "y": Y + 0.5}, {}, "y is not a whole number in samples 0, 1, 2, 3, 4 and 55 more"),
        ({"x": X, "y": np.where(Y == 1, np.nan, Y)}, {}, "y is not a whole number in samples 1, 4"),
        ({"x": X, "y": Y * 0}, {}, "only one class is there to learn ('0'); expected two or more"),
        ({"x": X, "y": np.eye(3)[Y]}, {}, "several marks per sample are task = 'multilabel'"),
        ({"x": X, "y": np.eye(3)[Y] * 2}, {"task": "multilabel"}, "y holds other values than 0 and 1 in samples 0"),
        (
            {"x": X, "y": np.eye(3)[Y]},
            {"task": "multilabel", "labels": ["a"]},
            "y has 3 columns, but 1 labels are named",
        ),
        ({"x": X, "y": np.full(60, np.inf)}, {"task": "regression"}, "y is NaN or infinite in samples 0"),
        ({"x": X[:2], "y": Y[:2]}, {}, "the split 'val' is empty: 2 samples are too few to share out"),
        (
            {"x": X, "y": Y, "x_test": X[:, :3], "y_test": Y},
            {},
            "samples of 'test' are float32 [3], but those of 'train'",
        ),
    ],
)
def test_defects_are_named(tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], expected: str) -> None:
    message = refusal(npz(tmp_path, **arrays), **options)
    assert expected in message


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object), y=Y[:1])
    assert "Python objects are never loaded from a file" in refusal(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.npz")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 and then nothing")
    assert "broken.npz cannot be read as .npz" in refusal(broken)
    whole = npz(tmp_path, x=X, y=Y)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-50])
    assert "cut.npz cannot be read as .npz" in refusal(cut)
    other = tmp_path / "data.parquet"
    other.touch()
    assert "found a file that ends in '.parquet', expected .npz or .csv" in refusal(other)


def csv(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


TABLE = "a,kind,b\n" + "".join(f"{i},{'xyz'[i % 3]},{i / 2}\n" for i in range(30))


def test_a_table_with_class_names(tmp_path: Path) -> None:
    data = load(csv(tmp_path, TABLE), target=["kind"])
    assert data.labels == ("x", "y", "z")
    assert np.array_equal(data.train.x, np.stack([data.train.ids, data.train.ids / 2], axis=1).astype(np.float32))
    assert np.array_equal(data.train.y, data.train.ids % 3)


def test_a_table_with_numbers_to_predict(tmp_path: Path) -> None:
    text = "a,b,price,size\n" + "".join(f"{i},{-i},{2 * i},{3 * i}\n" for i in range(20))
    data = load(csv(tmp_path, "\ufeff" + text), target=["size", "price"], task="regression")
    assert data.labels == ("size", "price")
    assert np.array_equal(data.train.y, np.outer(data.train.ids, [3, 2]).astype(np.float32))


def test_a_table_with_class_numbers_and_quotes(tmp_path: Path) -> None:
    text = 'a,"b, with a comma",class\n' + "".join(f'"{i}",{i},{i % 2}\n' for i in range(20)) + "\n"
    data = load(csv(tmp_path, text), target=["class"])
    assert data.labels == ("0", "1")
    assert data.train.x.shape[1] == 2


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (TABLE, {}, "data.target is missing"),
        (TABLE, {"target": ["kinds"]}, "there is no column 'kinds'. Did you mean 'kind'?"),
        (TABLE, {"target": ["kind", "a"]}, "data.target names 2 columns, expected one for classification"),
        (TABLE, {"target": ["a", "b", "kind"], "task": "regression"}, "every column is a target"),
        (TABLE, {"target": ["kind"], "task": "regression"}, "line 2, column 'kind': 'x' is not a finite number"),
        (TABLE + "1,x,many\n", {"target": ["kind"]}, "line 32, column 'b': 'many' is not a finite number"),
        (TABLE + "1,x,nan\n", {"target": ["kind"]}, "line 32, column 'b': 'nan' is not a finite number"),
        (TABLE + "1,x,\n", {"target": ["kind"]}, "line 32, column 'b' is empty"),
        (TABLE + "1,,2\n", {"target": ["kind"]}, "line 32, column 'kind' is empty"),
        (TABLE + "1,x\n", {"target": ["kind"]}, "line 32 has 2 cells, expected 3"),
        ("a,a,kind\n1,2,x\n", {"target": ["kind"]}, "two columns have the same name"),
        ("", {"target": ["kind"]}, "there is no column 'kind'"),
        ("a,kind\n", {"target": ["kind"], "labels": ["x", "y"]}, "there are no samples"),
    ],
)
def test_defects_of_a_table_are_named_with_the_line(tmp_path: Path, text: str, options: Any, expected: str) -> None:
    assert expected in refusal(csv(tmp_path, text), **options)


def test_lines_after_an_empty_one_keep_their_numbers(tmp_path: Path) -> None:
    text = "a,y\n1,2\n\n3,oops\n"
    assert "line 4, column 'y': 'oops'" in refusal(csv(tmp_path, text), target=["y"], task="regression")


OWN = """
import numpy as np
def make(root=None):
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    return {"x": x, "y": np.arange(20) % 2, "labels": ["even", "odd"], "licence": f"CC0 {root}"}
def wrong():
    return [1, 2]
"""


def test_own_data_comes_from_a_function(tmp_path: Path) -> None:
    (tmp_path / "samples.py").write_text(OWN)
    data = load_dataset(kind="samples:make", root="here", search_path=tmp_path)
    assert (data.name, data.labels, data.licence) == ("make", ("even", "odd"), "CC0 here")
    assert load_dataset(kind="samples:make", search_path=tmp_path, licence="MIT").licence == "MIT"
    with pytest.raises(DataError, match="samples:wrong returned list, expected a mapping of arrays"):
        load_dataset(kind="samples:wrong", search_path=tmp_path)
    with pytest.raises(DataError, match=r"the module samples has no 'mak'\. Did you mean 'make'\?"):
        load_dataset(kind="samples:mak", search_path=tmp_path)
    with pytest.raises(DataError, match="no module 'simples' was found in"):
        load_dataset(kind="simples:make", search_path=tmp_path)


def test_two_projects_may_both_have_a_data_module(tmp_path: Path) -> None:
    for index, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples2.py").write_text(OWN.replace("even", f"even{index}"))
    for index, name in enumerate(("one", "two", "one")):
        data = load_dataset(kind="samples2:make", search_path=tmp_path / name)
        assert data.labels[0] == f"even{index % 2}"


def test_an_error_inside_own_code_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "broken_samples.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        load_dataset(kind="broken_samples:make", search_path=tmp_path)


def test_the_hash_follows_the_content(tmp_path: Path) -> None:
    first = load(npz(tmp_path, x=X, y=Y)).sha256
    assert load(npz(tmp_path, x=X, y=Y)).sha256 == first
    changed = X.copy()
    changed[7, 1] += 1
    assert load(npz(tmp_path, x=changed, y=Y)).sha256 != first
    assert load(npz(tmp_path, x=X, y=Y), labels=["a", "b", "c"]).sha256 != first
    assert load(npz(tmp_path, x=X, y=Y), seed=1).sha256 != first


def test_a_limit_keeps_a_fair_draw_of_each_split(tmp_path: Path) -> None:
    path = npz(tmp_path, x=X, y=np.sort(Y))
    data = load(path, limit=9)
    assert (len(data.train), len(data.val), len(data.test)) == (9, 9, 9)
    assert len(np.unique(data.train.y)) == 3
    assert set(data.train.ids) <= set(load(path).train.ids)


def test_the_signature_follows_the_source_without_reading_it(tmp_path: Path) -> None:
    path = npz(tmp_path, x=X, y=Y)

    def signature() -> str:
        return source_signature(kind="arrays", root=path, search_path=None)

    first = signature()
    assert signature() == first
    npz(tmp_path, x=X[:50], y=Y[:50])
    assert signature() != first
    code = tmp_path / "samples3.py"
    code.write_text(OWN)
    before = source_signature(kind="samples3:make", root=None, search_path=tmp_path)
    code.write_text(OWN + "# changed\n")
    assert source_signature(kind="samples3:make", root=None, search_path=tmp_path) != before


def test_an_unknown_kind_is_told_the_nearest() -> None:
    with pytest.raises(DataError, match=r"data\.kind: found 'arays'\. Did you mean 'arrays'\?"):
        load_dataset(kind="arays")
