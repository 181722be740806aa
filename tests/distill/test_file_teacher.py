"""Answers in a file, by sample id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.distill.file_teacher import LogitsFile
from edgekd.errors import DataError, UsageError
from edgekd.spec import Split

NAMES = ("ant", "bee", "cat")
IDS = np.array([5, 3, 900, 4], np.int64)
LOGITS = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def write(folder: Path, suffix: str, **arrays: Any) -> Path:
    """The arrays as a file of that kind."""
    path = folder / f"answers{suffix}"
    classes = arrays.pop("classes", None)
    if suffix == ".npz":
        np.savez(path, **arrays, **({} if classes is None else {"classes": np.array(classes)}))
        return path
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (the extra hf) is not installed: no Parquet to read")
    from pyarrow import parquet

    table = pyarrow.table({name: np.asarray(value).tolist() for name, value in arrays.items()})
    if classes is not None:
        table = table.replace_schema_metadata({"classes": ", ".join(classes)})
    parquet.write_table(table, path)
    return path


def batch_of(*ids: int) -> dict[str, torch.Tensor]:
    return {"id": torch.tensor(ids), "x": torch.zeros(len(ids), 2)}


BOTH = pytest.mark.parametrize("suffix", [".npz", ".parquet"])


@BOTH
def test_answers_come_by_id(tmp_path: Path, suffix: str) -> None:
    teacher = LogitsFile(write(tmp_path, suffix, ids=IDS, logits=LOGITS, classes=NAMES), labels=NAMES)
    found = teacher(batch_of(900, 5, 900, 3))["logits"]
    assert torch.equal(found, torch.from_numpy(LOGITS[[2, 0, 2, 1]]))
    assert found.dtype == torch.float32
    teacher.check({"train": Split(LOGITS, IDS, IDS)})


@BOTH
def test_every_kind(tmp_path: Path, suffix: str) -> None:
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    soft = LogitsFile(write(tmp_path, suffix, ids=IDS, probabilities=p), labels=NAMES)(batch_of(3))
    np.testing.assert_allclose(torch.softmax(soft["logits"], 1).numpy(), p[[1]], rtol=1e-5)
    best = p.argmax(axis=1)
    top = write(tmp_path, suffix, ids=IDS, topk_indices=best[:, None], topk_probabilities=p.max(axis=1, keepdims=True))
    named = LogitsFile(top, labels=NAMES)(batch_of(4, 5))
    assert named["topk_indices"].tolist() == [[best[3]], [best[0]]]
    assert named["logits"].argmax(dim=1).tolist() == [best[3], best[0]]
    hard = write(tmp_path, suffix, ids=IDS, labels=[NAMES[i] for i in best])
    assert LogitsFile(hard, labels=NAMES)(batch_of(4, 5))["logits"].argmax(dim=1).tolist() == [best[3], best[0]]


@BOTH
@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"logits": LOGITS}, "has no array 'ids'; expected the sample ids"),
        ({"ids": IDS.astype(np.float64), "logits": LOGITS}, r"ids is \[4\] of float64, expected one whole number for"),
        ({"ids": [5, 3, 5, 3], "logits": LOGITS}, "2 ids are there more than once: 3, 5; expected one row per sample"),
        ({"ids": IDS, "logits": LOGITS[:, :2]}, r"gives logits \[4, 2\] of float\d\d, expected numbers \[4, 3\]"),
        ({"ids": IDS, "logits": LOGITS * [np.nan, 1, 1]}, "infinite, for 4 of 4 samples, with the ids 5, 3, 900, 4"),
        ({"ids": IDS, "logits": LOGITS, "classes": ["bee", "ant", "cat"]}, "has the classes in another order: output"),
        ({"ids": IDS, "scores": LOGITS}, "gives scores; expected one of: logits"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, suffix: str, arrays: dict[str, Any], expected: str) -> None:
    path = write(tmp_path, suffix, **arrays)
    with pytest.raises(DataError, match=expected) as caught:
        LogitsFile(path, labels=NAMES)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_specialists_columns_are_its_own_classes(tmp_path: Path, suffix: str) -> None:
    own = ("cat", "ant")
    path = write(tmp_path, suffix, ids=IDS, logits=LOGITS[:, :2], classes=own)
    teacher = LogitsFile(path, labels=NAMES, own=own)
    assert torch.equal(teacher(batch_of(900, 5))["logits"], torch.from_numpy(LOGITS[[2, 0], :2]))
    whole = write(tmp_path, suffix, ids=IDS, logits=LOGITS, classes=NAMES)
    assert torch.equal(LogitsFile(whole, labels=NAMES, own=own)(batch_of(5))["logits"], torch.from_numpy(LOGITS[:1]))
    path = write(tmp_path, suffix, ids=IDS, logits=LOGITS[:, :2], classes=("ant", "cat"))
    with pytest.raises(DataError, match="has the classes in another order: output 0 is 'ant' there and 'cat' in"):
        LogitsFile(path, labels=NAMES, own=own)
    path = write(tmp_path, suffix, ids=IDS, logits=LOGITS[:, :1])
    with pytest.raises(DataError, match=r"answers\..* gives 1 numbers for each sample, expected 3, .*, or 2, one for"):
        LogitsFile(path, labels=NAMES, own=own)


def test_samples_without_an_answer_are_named(tmp_path: Path) -> None:
    teacher = LogitsFile(write(tmp_path, ".npz", ids=IDS, logits=LOGITS), labels=NAMES)
    with pytest.raises(DataError, match=r"no answers for 2 of 3 samples, with the ids 6, 901; add them to the file"):
        teacher(batch_of(6, 5, 901))
    ids = np.array([3, 7, 8, 9, 10, 11, 12])
    with pytest.raises(
        DataError, match=r"no answers for 6 of 7 samples of val, with the ids 7, 8, 9, 10, 11 and 1 more"
    ):
        teacher.check({"train": Split(LOGITS, IDS, IDS), "val": Split(ids[:, None], ids, ids)})


def test_a_file_knows_no_mixed_samples(tmp_path: Path) -> None:
    teacher = LogitsFile(write(tmp_path, ".npz", ids=IDS, logits=LOGITS), labels=NAMES)
    with pytest.raises(UsageError, match="mixup and cutmix make samples of two"):
        teacher({**batch_of(3), "ratio": torch.ones(1)})


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in '\.csv', expected \.npz or \.parquet"):
        LogitsFile(tmp_path / "a.csv", labels=NAMES)
    with pytest.raises(DataError, match="is not there"):
        LogitsFile(tmp_path / "a.npz", labels=NAMES)
    np.savez(tmp_path / "evil.npz", ids=IDS, logits=np.array([print] * 4, dtype=object))
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        LogitsFile(tmp_path / "evil.npz", labels=NAMES)


def test_parquet_that_is_none(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (the extra hf) is not installed: no Parquet to read")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        LogitsFile(path, labels=NAMES)
    parquet.write_table(pyarrow.table({"ids": [1, 2], "logits": [[1.0, 2.0, 3.0], [1.0]]}), path)
    with pytest.raises(DataError, match="the lists in the column logits have 1 to 3 items, expected the same number"):
        LogitsFile(path, labels=NAMES)
    more = {"note": ["a", None], "lengths": [[1], [1, 2]], "classes": ["x", "y"], "of": [{"a": 1}, None]}
    parquet.write_table(pyarrow.table({"ids": [1, 2], "logits": [[1.0, 2.0, 3.0]] * 2, **more}), path)
    assert LogitsFile(path, labels=NAMES)(batch_of(2))["logits"].tolist() == [[1.0, 2.0, 3.0]]
    parquet.write_table(pyarrow.table({"ids": [1, 2], **more}), path)
    with pytest.raises(DataError, match="gives lengths, note, of; expected one of: logits"):
        LogitsFile(path, labels=NAMES)
    parquet.write_table(pyarrow.table({"ids": [1, None], "logits": [[1.0, 2.0, 3.0]] * 2}), path)
    with pytest.raises(DataError, match="the column ids has 1 empty cells; fill them or drop the rows"):
        LogitsFile(path, labels=NAMES)
