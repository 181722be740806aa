"""MNIST and Fashion-MNIST: the real files, and small made-up ones for what can be wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from real_data import real_data

from edgekd.data import mnist
from edgekd.data.download import fetch
from edgekd.data.registry import load_dataset, source_signature
from edgekd.errors import DataError
from edgekd.spec import Array


def idx(array: Array) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def small(root: Path, *, packed: bool = True, name: str = "MNIST") -> Path:
    random = np.random.default_rng(0)
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, count in (("train", 100), ("t10k", 30)):
        arrays = {"images-idx3": random.integers(0, 256, (count, 28, 28)), "labels-idx1": np.arange(count) % 10}
        for part, array in arrays.items():
            data = idx(array)
            path = folder / f"{split}-{part}-ubyte"
            (path.with_name(path.name + ".gz") if packed else path).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.fixture(autouse=True)
def _no_data_variable(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real" not in request.node.name:
        monkeypatch.delenv("EDGEKD_DATA", raising=False)


@pytest.mark.parametrize(
    ("kind", "folder", "first_test_labels"),
    [
        ("mnist", "MNIST", [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]),
        ("fashion_mnist", "FashionMNIST", [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
    ],
)
def test_real_files_give_the_published_numbers(kind: str, folder: str, first_test_labels: list[int]) -> None:
    root = real_data(folder).parent
    data = load_dataset(kind=kind, root=root, val_fraction=0.1)
    assert len(data.test) == 10_000
    assert len(data.train) + len(data.val) == 60_000
    assert abs(len(data.val) - 6000) <= 5
    assert data.train.x.shape[1:] == (28, 28, 1)
    by_id = np.argsort(data.test.ids)
    assert list(data.test.y[by_id][:10]) == first_test_labels
    if kind == "mnist":
        assert list(np.bincount(data.test.y)) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    else:
        assert set(np.bincount(data.val.y)) == {600}
        assert data.labels[9] == "Ankle boot"


def test_real_files_have_the_checksums_that_a_download_must_have() -> None:
    for published in mnist.SETS.values():
        folder = real_data(published.folder) / "raw"
        for name, sha256 in published.sha256.items():
            assert hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest() == sha256


def test_packed_and_unpacked_files_are_the_same(tmp_path: Path) -> None:
    small(tmp_path / "packed")
    small(tmp_path / "plain", packed=False)
    first, second = (load_dataset(kind="mnist", root=tmp_path / name) for name in ("packed", "plain"))
    assert first.sha256 == second.sha256
    ids = [*first.train.ids, *first.val.ids, *first.test.ids]
    assert sorted(ids) == list(range(130))
    assert sorted(path.suffix for path in (tmp_path / "packed/MNIST/raw").iterdir()) == [".gz"] * 4


def test_the_root_may_be_any_folder_on_the_way_and_comes_from_the_variable(tmp_path, monkeypatch) -> None:
    folder = small(tmp_path)
    hashes = {load_dataset(kind="mnist", root=root).sha256 for root in (tmp_path, folder.parent, folder)}
    monkeypatch.setenv("EDGEKD_DATA", str(tmp_path))
    hashes.add(load_dataset(kind="mnist").sha256)
    assert len(hashes) == 1
    before = source_signature(kind="mnist", root=None, search_path=None)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"changed")
    assert source_signature(kind="mnist", root=None, search_path=None) != before


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = small(tmp_path)
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    good_images, good_labels = images.read_bytes(), labels.read_bytes()

    def refusal() -> str:
        with pytest.raises(DataError) as caught:
            load_dataset(kind="mnist", root=tmp_path)
        return str(caught.value)

    images.write_bytes(good_images[:-100])
    assert f"{images} cannot be read" in refusal()
    images.write_bytes(gzip.compress(gzip.decompress(good_images)[:-1]))
    assert f"{images} has 78415 bytes (unpacked), but its header says [100, 28, 28]; it is cut off" in refusal()
    images.write_bytes(gzip.compress(b"PNG not idx"))
    assert f"{images} begins with 504e4720, expected an idx file of bytes" in refusal()
    images.write_bytes(gzip.compress(b""))
    assert f"{images} begins with nothing, expected an idx file" in refusal()
    images.write_bytes(good_images)
    labels.write_bytes(gzip.compress(idx(np.arange(99) % 10)))
    assert "holds [100, 28, 28] and train-labels-idx1-ubyte [99]" in refusal()
    labels.write_bytes(gzip.compress(idx(np.arange(100) % 11)))
    assert "the label 10 is out of range; expected 0 to 9" in refusal()
    labels.write_bytes(good_labels)
    images.unlink()
    assert "there is no file" in refusal()
    assert "MNIST/raw/train-images-idx3-ubyte" in refusal()
    with pytest.raises(DataError, match=r"data\.labels names 2 classes, but mnist has 10"):
        load_dataset(kind="mnist", root=tmp_path, labels=["a", "b"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    folder = small(tmp_path / "server")
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            path = folder / self.path.rpartition("/")[2]
            self.send_response(200 if path.is_file() else 404)
            self.end_headers()
            self.wfile.write(path.read_bytes() if path.is_file() else b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/", asked
    http.shutdown()
    http.server_close()
    thread.join()


def test_without_a_root_the_files_are_fetched_once_into_the_cache(tmp_path, server, monkeypatch) -> None:
    url, asked = server
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "server/MNIST/raw"
    sums = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()}
    here = mnist.Published("MNIST", "licence", tuple("0123456789"), url, sums)
    monkeypatch.setitem(mnist.SETS, "mnist", here)
    with pytest.raises(DataError, match=r"downloading is off; set data\.root or EDGEKD_DATA"):
        load_dataset(kind="mnist", download=False)
    first = load_dataset(kind="mnist")
    assert len(asked) == 4
    assert load_dataset(kind="mnist", download=False).sha256 == first.sha256
    assert len(asked) == 4
    assert (tmp_path / "cache/data/MNIST/raw/train-labels-idx1-ubyte.gz").is_file()


def test_a_download_is_believed_only_with_its_checksum(tmp_path: Path, server) -> None:
    url, _ = server
    path = tmp_path / "file.gz"
    with pytest.raises(DataError, match="expected 00; nothing was written"):
        fetch(f"{url}train-labels-idx1-ubyte.gz", path, sha256="00")
    with pytest.raises(DataError, match=r"cannot download .*404.*put the file at .*file\.gz yourself"):
        fetch(f"{url}nothing.gz", path, sha256="00")
    assert not path.exists()


def test_digits_ship_with_scikit_learn() -> None:
    pytest.importorskip("sklearn", reason="needs the extra 'train'")
    data = load_dataset(kind="digits")
    assert len(data.train) + len(data.val) + len(data.test) == 1797
    assert (data.train.x.shape[1:], data.train.x.dtype, data.train.x.max()) == ((8, 8, 1), np.uint8, 255)
    assert data.labels == tuple("0123456789")
    assert "CC BY 4.0" in data.licence
    assert min(np.bincount(data.val.y)) >= 34
