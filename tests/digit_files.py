"""Shards for tests: tar files in the layout of webdataset, from real digits or from whatever is given."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from edgekd.spec import Array

Member = tuple[str, bytes]


def write_tar(path: Path, members: Iterable[Member | tarfile.TarInfo]) -> Path:
    """A tar file of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def png(pixels: Array) -> bytes:
    """An image file (H, W) or (H, W, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def npy(values: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def digits(count: int = 1797) -> tuple[Array, Array]:
    """(N, 8, 8) uint8 and (N,) int64: the digits of scikit-learn, as edgekd reads them."""
    data = load_digits()
    return np.rint(data.images * (255 / 16)).astype(np.uint8)[:count], data.target.astype(np.int64)[:count]


def digit_shards(root: Path, *, count: int = 1797, shards: int = 4, words: Sequence[str] | None = None) -> Path:
    """`count` digits in so many tar files below `root`."""
    x, y = digits(count)
    for shard in range(shards):
        members: list[Member] = []
        for index in range(shard, count, shards):
            label = str(y[index]) if words is None else words[y[index]]
            members += [(f"{index:05d}.png", png(x[index])), (f"{index:05d}.cls", label.encode())]
        write_tar(root / f"digits-{shard:03d}.tar", members)
    return root
