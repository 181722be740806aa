"""What a student of vectors is to say: the teacher's own vectors, of every split, asked for once and kept.

CACHE/vectors/KEY.npz     train, val, test (N, D) float32; matrix (W, D) where they were made shorter
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekd.data.download import cache_folder
from edgekd.data.npz import read_npz
from edgekd.device.machine import versions
from edgekd.errors import ModelError
from edgekd.files import canonical_json, sha256_bytes, write_bytes
from edgekd.recipe import Recipe
from edgekd.references import locate
from edgekd.spec import Array, Dataset, Split, Step, Vocabulary, steps_to_json

SPLITS = ("train", "val", "test")
MATRIX = "matrix"


def with_vectors(
    recipe: Recipe, dataset: Dataset, steps: tuple[Step, ...], vocabulary: Vocabulary, search_path: Path
) -> tuple[Dataset, Array | None]:
    """The data with the teacher's vectors as targets, and the matrix (W, D) that makes them so short, if any does."""
    found = vectors_of(recipe, dataset, steps, vocabulary, search_path)

    def taught(name: str, split: Split) -> Split:
        return replace(split, y=found[name])

    width = found["train"].shape[1]
    hashed = sha256_bytes(dataset.sha256.encode() + b"".join(found[name].tobytes() for name in SPLITS))
    named = replace(
        dataset,
        labels=tuple(str(number) for number in range(width)),
        train=taught("train", dataset.train),
        val=taught("val", dataset.val),
        test=taught("test", dataset.test),
        sha256=hashed,
    )
    return named, found.get(MATRIX)


def vectors_of(
    recipe: Recipe, dataset: Dataset, steps: tuple[Step, ...], vocabulary: Vocabulary, search_path: Path
) -> Mapping[str, Array]:
    """Those that were kept, else those that the teacher says now."""
    reference = (recipe.teacher.model or "").removeprefix("hf:")
    place = locate(reference, search_path)
    weights = [] if place is None else sorted([*place.glob("*.safetensors"), *place.glob("*.bin")])
    facts = {
        "teacher": recipe.teacher.model,
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights],
        "args": recipe.teacher.args,
        "embedding": recipe.embedding.model_dump(mode="json"),
        "data": dataset.sha256,
        # The data are ids: what they stand for decides what the teacher reads.
        "tokens": sha256_bytes("\0".join(vocabulary.tokens).encode()),
        "steps": steps_to_json(steps),
        "torch": versions().get("torch"),
    }
    path = cache_folder("vectors") / f"{sha256_bytes(canonical_json(facts).encode())[:24]}.npz"
    if path.is_file():
        return read_npz(path)
    found = _ask(recipe, dataset, steps, vocabulary, search_path)
    buffer = io.BytesIO()
    np.savez(buffer, **found)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())
    return found


def _ask(
    recipe: Recipe, dataset: Dataset, steps: tuple[Step, ...], vocabulary: Vocabulary, search_path: Path
) -> dict[str, Array]:
    from edgekd.distill.evaluation import evaluate
    from edgekd.distill.models import build_encoder

    teacher = build_encoder(
        recipe.teacher.model or "",
        outputs=None,
        vocabulary=vocabulary,
        args=recipe.teacher.args,
        pooling=recipe.embedding.pooling,
        search_path=search_path,
        longest=dataset.train.x.shape[1],
    )
    found = {name: evaluate(teacher, getattr(dataset, name), steps, task="embedding") for name in SPLITS}
    wanted, width = recipe.embedding.dimensions, found["train"].shape[1]
    if wanted is None or wanted == width:
        return dict(found)
    if wanted > width:
        raise ModelError(
            f"the teacher's vectors have {width} numbers, but embedding.dimensions = {wanted}; expected at most {width}"
        )
    matrix = principal_components(found["train"], wanted)
    return {**{name: unit(values @ matrix) for name, values in found.items()}, MATRIX: matrix}


def principal_components(vectors_NW: Array, count: int) -> Array:
    """(W, count) float32: the directions in which the vectors differ most; the largest number of each is positive."""
    centred = vectors_NW.astype(np.float64) - vectors_NW.mean(axis=0, dtype=np.float64)
    # Of the W x W matrix, however many vectors there are; eigh gives the largest last.
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :count]
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(count)])
    matrix: Array = np.ascontiguousarray(directions * signs, dtype=np.float32)
    return matrix


def unit(vectors_ND: Array) -> Array:
    """Each vector divided by its length."""
    lengths = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    divided: Array = (vectors_ND / np.maximum(lengths, 1e-12)).astype(np.float32)
    return divided
