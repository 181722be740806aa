"""`text`: files of sentences and labels in every layout, and what is wrong with some."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_data import real_data

from edgekd.data.registry import load_dataset
from edgekd.errors import DataError
from edgekd.spec import Dataset

STEPS = '[{"op": "tokenize"}]'


def characters(raw: object) -> np.ndarray:
    """A tokenizer that needs no file: a code point is an id."""
    assert isinstance(raw, str)
    row = np.zeros(16, np.int32)
    row[: len(raw[:16])] = [ord(letter) for letter in raw[:16]]
    return row


def load(root: Path, **options: Any) -> Dataset:
    return load_dataset(**{"kind": "text", "root": root, "prepare": characters, "steps": STEPS, **options})


def texts(dataset: Dataset) -> dict[str, str]:
    """Text -> label, of all splits."""
    found = {}
    for split in (dataset.train, dataset.val, dataset.test):
        for row, label in zip(split.x[:], split.y):
            found["".join(chr(number) for number in row if number)] = dataset.labels[int(label)]
    return found


LINES = [(f"text {number}", ("no", "yes")[number % 2]) for number in range(12)]


def write(path: Path, rows: list[tuple[str, Any]], *, names: tuple[str, str] = ("text", "label")) -> Path:
    if ".jsonl" in path.name:
        content = "".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows)
    else:
        mark = "\t" if ".tsv" in path.name else ","
        content = "".join(f"{a}{mark}{b}\n" for a, b in [names, *rows])
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz", "a.jsonl.gz"])
def test_one_file_of_any_kind_is_split_and_keeps_every_text(tmp_path: Path, name: str) -> None:
    found = load(write(tmp_path / name, LINES))
    assert texts(found) == dict(LINES)
    assert found.labels == ("no", "yes")
    assert found.train.x.dtype == np.int32
    assert len({*found.train.ids, *found.val.ids, *found.test.ids}) == 12


def test_a_folder_has_a_file_for_each_split_and_dev_is_validation(tmp_path: Path) -> None:
    for name, rows in (("train.tsv", LINES[:6]), ("dev.tsv", LINES[6:9]), ("test.csv", LINES[9:])):
        write(tmp_path / name, rows)
    found = load(tmp_path)
    assert [len(found.train), len(found.val), len(found.test)] == [6, 3, 3]
    assert texts(found) == dict(LINES)


def test_the_only_other_column_is_the_text_and_names_choose_among_several(tmp_path: Path) -> None:
    assert texts(load(write(tmp_path / "a.csv", LINES, names=("sentence", "label")))) == dict(LINES)
    rows = [{"body": text, "title": "t", "mark": label} for text, label in LINES]
    path = tmp_path / "b.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert texts(load(path, text="body", target=["mark"])) == dict(LINES)
    with pytest.raises(DataError, match="there is no column 'text' of texts"):
        load(path, target=["mark"])
    with pytest.raises(DataError, match=r"data\.target: there is no column 'label'"):
        load(path)


def test_quotes_and_line_breaks_in_csv_and_none_in_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f'"say ""{n}"",\nhi",{n % 2}\n' for n in range(6)))
    assert 'say "3",\nhi' in texts(load(tmp_path / "a.csv"))
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f'"open {n}\t{n % 2}\n' for n in range(6)))
    assert '"open 3' in texts(load(tmp_path / "a.tsv"))


def test_a_line_of_csv_ends_where_csv_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\r\n" + "".join(f"one\u2028{n}\x0bx,{n % 2}\r\n" for n in range(6)))
    assert "one\u20283\x0bx" in texts(load(tmp_path / "a.csv"))


def test_texts_alone_are_enough_for_vectors(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\nthree\nfour\nfive\nsix\n")
    found = load(tmp_path / "a.txt", task="embedding")
    assert sum(map(len, (found.train, found.val, found.test))) == 6
    pytest.importorskip("datasets", reason="the kind huggingface needs the extra datasets")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.jsonl").write_text("".join(json.dumps({"text": f"t{n}"}) + "\n" for n in range(6)))
    assert len(load(tmp_path / "b", kind="huggingface", task="embedding").labels) == 1


def test_marks_and_numbers_are_targets_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"t{n}", "hot": n % 2 == 0, "new": n % 3 == 0}) for n in range(9)))
    marks = load(path, task="multilabel", target=["hot", "new"])
    assert marks.labels == ("hot", "new")
    assert set(marks.train.y.ravel()) == {0, 1}
    (tmp_path / "b.csv").write_text("text,stars\n" + "".join(f"t{n},{n / 2}\n" for n in range(9)))
    assert load(tmp_path / "b.csv", task="regression", target=["stars"]).train.y.dtype == np.float32


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"text,label\na,0\n,1\n", "line 3: 'text' is empty"),
        (b"text,label\na,0\nb\n", "line 3 has another number of cells"),
        (b"text,label\na,0\nb,\n", "'label' is empty"),
        (b"text,label\na,0\n\xff,1\n", "line 3: not valid UTF-8"),
        (b'text,label\na,0\n"b,1\n', "not readable as csv"),
        (b"text,label\n", "holds no texts"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=told):
        load(tmp_path / "a.csv")


def test_json_lines_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": 3, "label": 1}\n[1]\n{\n')
    with pytest.raises(DataError, match=r"(?s)line 2: 'text' is 3.*line 3: found list.*line 4: no JSON"):
        load(path)
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": ["a", "b"]}\n{"text": "c", "label": NaN}\n')
    told = r"line 2: 'label' is \['a', 'b'\], expected one text or number; several marks have.*line 3: 'label' is nan"
    with pytest.raises(DataError, match=f"(?s){told}"):
        load(path)


def test_labels_like_numbers_mean_the_same_in_every_split(tmp_path: Path) -> None:
    rows = [(f"text {number}", ("1", "2", "unknown")[number % 3]) for number in range(12)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "dev.csv", [("nice one", "1"), ("awful one", "2")])
    write(tmp_path / "test.csv", [("another", "unknown")])
    found = load(tmp_path)
    assert found.labels == ("1", "2", "unknown")
    assert texts(found) == dict(rows) | {"nice one": "1", "awful one": "2", "another": "unknown"}


def test_a_label_that_training_never_saw_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", LINES)
    write(tmp_path / "test.csv", [("new", "perhaps")])
    with pytest.raises(DataError, match=r"perhaps, .* not in labels = \[no, yes\] \(2: .* training samples of it"):
        load(tmp_path)


def test_two_files_for_one_split_and_no_train_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", LINES)
    with pytest.raises(DataError, match="has no train file"):
        load(tmp_path)
    write(tmp_path / "train.csv", LINES)
    write(tmp_path / "train.tsv", LINES)
    with pytest.raises(DataError, match=r"train\.csv and train\.tsv"):
        load(tmp_path)


def test_texts_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", LINES)
    with pytest.raises(DataError, match="nothing says how they become numbers"):
        load(path, steps="[]")


def test_a_damaged_gz_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv.gz", LINES)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        load(path)


def test_sst2_and_clinc150_as_their_publishers_lay_them_out() -> None:
    root = real_data("sst2").parent
    sst2 = load(root, kind="sst2")
    assert [len(sst2.train), len(sst2.val), len(sst2.test)] == [6920, 872, 1821]
    assert sst2.labels == ("negative", "positive")
    assert int(sst2.train.y.sum()) == 3610
    clinc = load(real_data("clinc150").parent, kind="clinc150")
    assert [len(clinc.train), len(clinc.val), len(clinc.test)] == [15100, 3100, 5500]
    assert len(clinc.labels) == 151
    assert clinc.labels[-1] == "oos"
    assert int((clinc.test.y == 150).sum()) == 1000


def test_a_data_set_of_hugging_face_by_its_place(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the kind huggingface needs the extra datasets")
    for name, rows in (("train", LINES[:6]), ("validation", LINES[6:9]), ("test", LINES[9:])):
        write(tmp_path / f"{name}.jsonl", rows)
    found = load(tmp_path, kind="huggingface")
    assert [len(found.train), len(found.val), len(found.test)] == [6, 3, 3]
    assert texts(found) == dict(LINES)
    with pytest.raises(DataError, match="there is no column 'mark'"):
        load(tmp_path, kind="huggingface", target=["mark"])


def test_rows_of_hugging_face_without_a_text_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the kind huggingface needs the extra datasets")
    table = datasets.Dataset.from_dict({"text": ["a", None, "b", " "], "label": ["no", "yes", "no", "yes"]})
    table.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"(?s)2 of 4 rows cannot .* row 1: 'text' is empty\n  row 3: 'text' is empty"):
        load(tmp_path, kind="huggingface")


@pytest.mark.parametrize(
    ("marks", "told"),
    [
        ([0, 1, None, 1], "1 of 4 rows .* filter them out.* row 2: 'label' is empty"),
        (["no", "yes", " ", "no"], "row 2: 'label' is empty"),
        ([0.0, 1.0, 0.0, float("nan")], "row 3: 'label' is nan, expected one text or number"),
        ([["a", "b"], ["a"], ["b"], ["a"]], r"4 of 4 rows .* row 0: 'label' is \['a', 'b'\], expected .*data.target"),
    ],
)
def test_rows_of_hugging_face_without_one_label_are_named(tmp_path: Path, marks: list[Any], told: str) -> None:
    datasets = pytest.importorskip("datasets", reason="the kind huggingface needs the extra datasets")
    datasets.Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": marks}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=f"(?s)train: .*{told}"):
        load(tmp_path, kind="huggingface")
    assert len(load(tmp_path, kind="huggingface", task="embedding").labels) == 1, "nobody asks for the labels"


def test_marks_of_hugging_face_are_as_those_of_text_files(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the kind huggingface needs the extra datasets")
    write(tmp_path / "train.jsonl", [(text, label == "yes") for text, label in LINES])
    assert load(tmp_path, kind="huggingface").labels == load(tmp_path / "train.jsonl").labels == ("0", "1")


def test_names_of_classes_come_with_the_data_set_and_hidden_labels_are_no_test(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the kind huggingface needs the extra datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    hidden = {"validation": [None] * 3, "test": [-1] * 3}
    for name, marks in {"train": [n % 2 for n in range(12)], **hidden}.items():
        table = datasets.Dataset.from_dict(
            {"sentence": [f"{name} {n}" for n in range(len(marks))], "label": marks}, features
        )
        table.to_parquet(tmp_path / f"{name}.parquet")
    found = load(tmp_path, kind="huggingface")
    assert found.labels == ("no", "yes")
    assert sum(map(len, (found.train, found.val, found.test))) == 12


def test_a_name_that_leads_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the kind huggingface needs the extra datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"'nobody/nothing' cannot be loaded: .*expected the name of a data set"):
        load(Path("nobody/nothing"), kind="huggingface")
