"""`image_folder`: ROOT/train/CLASS/*.png (and ROOT/val, ROOT/test, where you have them), or ROOT/CLASS/*.png.

Without val or test folders, their samples are drawn from train by a hash of each image's path below its class
folder, so adding images never moves the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.data.source import Pool, Prepare, Request, Source, UnusableSamples
from edgekd.errors import DataError, UsageError
from edgekd.spec import Array

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SPLITS = ("train", "val", "test")


def read(request: Request) -> Source:
    """Images as `prepare` makes them, (N, H, W, C), one class per folder.

    Raises `DataError` that names every image that is empty, corrupt or of another size than the rest.
    """
    root = request.root
    if root is None or not root.is_dir():
        raise DataError(
            f"image_folder: there is no folder {root}; expected data.root = a folder with one folder per class"
        )
    if request.prepare is None:
        raise UsageError("image_folder needs prepare=, the function that decodes an image (edgekd.device.preprocess)")
    folders = _folders(root)
    has_splits = "train" in folders
    if has_splits:
        strange = sorted(set(folders) - set(SPLITS))
        if strange:
            raise DataError(
                f"{root} has a folder 'train' and beside it {_listed(strange)}; expected only train, val and test "
                "there (or one folder per class and no 'train')"
            )
    parts = {name: folders[name] for name in SPLITS if name in folders} if has_splits else {"train": root}
    labels = request.labels or tuple(_folders(parts["train"]))
    if not labels:
        raise DataError(f"{parts['train']} has no folders; expected one folder of images per class")
    pools = {name: _pool(name, folder, labels, request.prepare) for name, folder in parts.items()}
    return Source(root.resolve().name, labels, "not stated", pools)


def _pool(name: str, folder: Path, labels: Sequence[str], prepare: Prepare) -> Pool:
    classes = _folders(folder)
    unknown = sorted(set(classes) - set(labels))
    if unknown:
        raise DataError(
            f"{folder} has the folder {_listed(unknown)}, which is no class; the classes are {_listed(labels)}"
        )
    paths: list[Path] = []
    numbers: list[int] = []
    ids: list[int] = []
    for number, label in enumerate(labels):
        images = _images(classes[label]) if label in classes else []
        if not images and name == "train":
            raise DataError(
                f"{folder / label} holds no image; expected files that end in {', '.join(sorted(SUFFIXES))}"
            )
        paths += images
        numbers += [number] * len(images)
        ids += [_id(f"{name}/{label}/{path.relative_to(classes[label]).as_posix()}") for path in images]
    if len(set(ids)) != len(ids):
        raise DataError(f"{folder}: two images have the same path hash; rename one of them")

    def read_images(positions: NDArray[np.intp]) -> Array:
        return _decode([paths[position] for position in positions], prepare)

    return Pool(np.array(numbers, np.int64), np.array(ids, np.int64), read_images)


def _decode(paths: Sequence[Path], prepare: Prepare) -> Array:
    images: list[Array] = []
    problems: list[str] = []
    for path in paths:
        try:
            image = prepare(path)
        except (DataError, OSError) as error:
            text = str(error)
            problems.append(text if str(path) in text else f"{path}: {text}")
            continue
        if images and image.shape != images[0].shape:
            problems.append(
                f"{path} is {list(image.shape)}, but {paths[0]} is {list(images[0].shape)}; add a step "
                '{op = "resize", size = [height, width]} (and to_rgb or to_grey) to preprocess.steps'
            )
            continue
        images.append(image)
    if problems:
        raise UnusableSamples(problems)
    return np.stack(images)


def _folders(folder: Path) -> dict[str, Path]:
    """Folders by name, sorted by name and not as the file system lists them; hidden ones are left out."""
    found = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: path for path in sorted(found, key=lambda path: path.name)}


def _images(folder: Path) -> list[Path]:
    found = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    return sorted(found, key=lambda path: path.as_posix())


def _id(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:8]) + (", ..." if len(names) > 8 else "")
