"""`mnist` and `fashion_mnist` in torchvision's own layout: ROOT/MNIST/raw/*-ubyte, packed (.gz) or not.

The folder is only read. Format: LeCun, Cortes and Burges, "The MNIST database of handwritten digits"
(magic 0x0000TTNN with the type TT and the number NN of axes, then each axis as 4 bytes, most significant first).
"""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.data.download import cache_folder, fetch
from edgekd.data.source import Request, Source, array_pool
from edgekd.errors import DataError
from edgekd.spec import Array

UNSIGNED_BYTE = 0x08
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class Published:
    """One data set: where it lies below the root, what it may be used for, where it can be fetched."""

    folder: str
    licence: str
    labels: tuple[str, ...]
    mirror: str
    sha256: dict[str, str]


SETS = {
    "mnist": Published(
        folder="MNIST",
        licence="CC BY-SA 3.0, as commonly stated (LeCun, Cortes, Burges); no licence file comes with the data",
        labels=tuple("0123456789"),
        mirror="https://ossci-datasets.s3.amazonaws.com/mnist/",
        sha256={
            "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": Published(
        folder="FashionMNIST",
        licence="MIT (Zalando SE)",
        labels=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        mirror="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        sha256={
            "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def read(request: Request) -> Source:
    """(N, 28, 28, 1) uint8 in ten classes, with the published test split.

    Without a root: EDGEKD_DATA, then the user's cache folder, into which the files are fetched once.
    """
    published = SETS[request.kind]
    folder = folder_of(request.kind, request.root)
    if request.root is None and not os.environ.get("EDGEKD_DATA") and not _is_complete(folder):
        if not request.download:
            raise DataError(f"{request.kind} is not in {folder}, and downloading is off; set data.root or EDGEKD_DATA")
        for name, sha256 in published.sha256.items():
            fetch(f"{published.mirror}{name}.gz", folder / f"{name}.gz", sha256=sha256)
    labels = request.labels or published.labels
    if len(labels) != len(published.labels):
        raise DataError(f"data.labels names {len(labels)} classes, but {request.kind} has {len(published.labels)}")
    pools = {}
    first_id = 0
    for split, (images, classes) in FILES.items():
        x, y = read_idx(_find(folder, images, request.kind)), read_idx(_find(folder, classes, request.kind))
        if x.shape != (len(y), 28, 28):
            raise DataError(
                f"{folder / images} holds {list(x.shape)} and {classes} {list(y.shape)}; "
                f"expected [{len(y)}, 28, 28] and [{len(y)}]: one of the files is another data set's"
            )
        if y.max(initial=0) >= len(labels):
            raise DataError(f"{folder / classes}: the label {y.max()} is out of range; expected 0 to 9")
        pools[split] = array_pool(x[..., None], y.astype(np.int64), first_id=first_id, prepare=request.prepare)
        first_id += len(y)
    return Source(request.kind, labels, published.licence, pools)


def folder_of(kind: str, root: Path | None) -> Path:
    """The folder with the four files: ROOT/MNIST/raw; ROOT may also be that folder's parent or itself."""
    name = SETS[kind].folder
    named = os.environ.get("EDGEKD_DATA")
    base = root if root is not None else Path(named) if named else cache_folder("data")
    candidates = (base / name / "raw", base / "raw", base)
    return next((place for place in candidates if _is_complete(place)), candidates[0])


def read_idx(path: Path) -> Array:
    """The array of bytes in an idx file, packed or not. Raises `DataError` that names the file."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch it again") from error
    kind, axes = (data[2], data[3]) if len(data) >= 4 and data[:2] == b"\0\0" else (0, 0)
    if kind != UNSIGNED_BYTE or not axes:
        raise DataError(f"{path} begins with {data[:4].hex() or 'nothing'}, expected an idx file of bytes (000008..)")
    start = 4 + 4 * axes
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4")) if len(data) >= start else ()
    if len(shape) != axes or len(data) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(
            f"{path} has {len(data)} bytes (unpacked), but its header says {list(shape)}; it is cut off or damaged: "
            "fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _names() -> list[str]:
    return [name for pair in FILES.values() for name in pair]


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in _names())


def _find(folder: Path, name: str, kind: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(
        f"{kind}: there is no file {folder / name} (or .gz); expected ROOT/{SETS[kind].folder}/raw/{name} with ROOT "
        "from data.root or EDGEKD_DATA. Without both, edgekd downloads it into your cache folder"
    )
