"""Reads samples from files for the verbs that take them: images, texts, npy, npz. Never unpickles."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgekd.data.npz import read_npz
from edgekd.data.text import SUFFIXES, texts_of
from edgekd.device.preprocess import apply_arithmetic, prepare, split_steps
from edgekd.device.texts import all_inputs
from edgekd.device.tokens import tokenize_step, vocabulary_of
from edgekd.errors import DataError, RecipeError, UsageError
from edgekd.spec import Array, Decode, Step, TensorSpec, parse_steps
from edgekd.stages.texts import opened

ARRAYS = (".npy", ".npz")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# As many as change a calibration; spread evenly over a larger folder or file.
MOST_SAMPLES = 512
# Characters of a text that stands before its answer.
MOST_SHOWN = 60
# Lines that an error names.
MOST_NAMED = 5

Sample = TypeVar("Sample")


def read_inputs(paths: Sequence[Path]) -> Iterator[tuple[str, Path | Array]]:
    """Samples with a name each: an image file is one; an array file is one sample per row of its first axis.

    An .npz gives its array `x`, or its only one.
    """
    for path in paths:
        if not path.is_file():
            found = "is no file" if path.exists() else "is not there"
            raise DataError(f"{path} {found}; expected an image, or an .npy or .npz file of samples")
        if path.suffix not in ARRAYS:
            yield str(path), path
            continue
        for index, row in enumerate(read_array(path)):
            yield f"{path}[{index}]", row


def read_texts(texts: Sequence[str]) -> Iterator[tuple[str, str | bytes]]:
    """The texts with a name each, short enough for a line; "-" stands for those of standard input, one per line.

    Raises `DataError` that names the lines that are not UTF-8, before the first of them is answered.
    """
    for text in texts:
        if text != "-":
            yield _shown(text), text
            continue
        lines = [line.rstrip(b"\r\n") for line in sys.stdin.buffer]
        broken = [str(number) for number, line in enumerate(lines, start=1) if not _is_utf8(line)]
        if broken:
            more = f" and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
            raise DataError(
                f"standard input, line {', '.join(broken[:MOST_NAMED])}{more}: not valid UTF-8; convert it (iconv -f "
                "latin1 -t utf-8), or leave these lines out"
            )
        for line in lines:
            yield _shown(line.decode("utf-8")), line


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 3] + "..."


def read_array(path: Path) -> Array:
    """The samples of an .npy or .npz file, (N, ...)."""
    if path.suffix == ".npz":
        arrays = read_npz(path)
        if "x" not in arrays and len(arrays) != 1:
            raise DataError(
                f"{path} holds {', '.join(sorted(arrays)) or 'no arrays'}; expected an array x, or only one array"
            )
        array = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    else:
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} cannot be read as .npy: {error}; write it with numpy.save") from error
    if array.ndim < 2 or len(array) == 0:
        raise DataError(f"{path} has the shape {array.shape}; expected samples along the first axis, (N, ...)")
    return array


def read_feeds(
    path: Path, inputs: Sequence[TensorSpec], steps: Sequence[Mapping[str, object]] | None
) -> dict[str, Array]:
    """Samples as a model with these `inputs` reads them: a folder of images, a file of texts (.txt, .csv, .tsv or
    .jsonl), an .npz with an array per input, an .npy.

    Images and texts go through `steps` (as a recipe's preprocess.steps), and so does a single array where steps are
    given. Of a large folder or file 512 are taken, spread evenly. Raises `UsageError` for images and texts without
    steps, and where several inputs would be fed from one array; `DataError` for what cannot be read, or does not end in
    the shape of the input; `InputRefused` for texts that the model has no inputs for.
    """
    if path.suffix == ".npz" and steps is None:
        arrays = read_npz(path)
        if len(inputs) == 1 and len(arrays) > 1 and inputs[0].name not in arrays and "x" in arrays:
            return {inputs[0].name: arrays["x"]}  # x and y, as edgekd's own files have them
        return arrays
    try:
        parsed = parse_steps(steps or (), where="--preprocess")
        spatial, arithmetic = split_steps(parsed)
    except RecipeError as error:
        raise UsageError(str(error)) from error
    if tokenize_step(parsed) is not None:
        return _read_texts(path, inputs, parsed)
    if path.with_name(path.name.removesuffix(".gz")).suffix in SUFFIXES:
        raise UsageError(
            f"{path} holds texts, and how the model reads them is not known: add --preprocess, for example "
            '\'[{"op":"tokenize","file":"tokenizer.json","max_length":64},{"op":"trim"}]\''
        )
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"{path} is one array, but the model reads {names}; give an .npz with an array for each")
    spec = inputs[0]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES and file.is_file())
        if not files:
            raise DataError(f"{path} holds no image ({', '.join(IMAGES[:3])}, ...), nor do its folders; check the path")
        if not spatial or not isinstance(spatial[0], Decode):
            raise UsageError(
                f"{path} holds images, and how the model reads them is not known: add --preprocess, for example "
                '\'[{"op":"decode"},{"op":"to_rgb"},{"op":"resize","size":[224,224]},{"op":"scale"},{"op":"layout"}]\''
            )
        prepared = [prepare(spatial, file) for file in _spread(files)]
    else:
        prepared = [prepare(spatial, sample) for sample in read_array(path)]
    shapes = {sample.shape for sample in prepared}
    if len(shapes) > 1:
        raise DataError(f"{path}: samples have the shapes {sorted(shapes)}, expected one; add resize to --preprocess")
    ready = apply_arithmetic(arithmetic, np.stack(prepared)).astype(spec.dtype, copy=False)
    fits = len(ready.shape) == len(spec.shape) and all(
        isinstance(wanted, str) or wanted == found for wanted, found in zip(spec.shape[1:], ready.shape[1:])
    )
    if not fits:
        raise DataError(
            f"{path}: samples end in {list(ready.shape[1:])}, but '{spec.name}' reads {list(spec.shape)}; "
            "check resize and layout in --preprocess"
        )
    return {spec.name: ready}


def _read_texts(path: Path, inputs: Sequence[TensorSpec], steps: tuple[Step, ...]) -> dict[str, Array]:
    """The texts of a file as their ids, with mask and types where the model reads those."""
    spatial, arithmetic = split_steps(opened(steps, Path.cwd()))
    ids_NL = apply_arithmetic(arithmetic, np.stack([prepare(spatial, text) for text in _spread(texts_of(path))]))
    tokenize = tokenize_step(spatial)
    assert tokenize is not None
    return all_inputs(inputs, ids_NL, vocabulary_of(tokenize).pad)


def _spread(found: Sequence[Sample]) -> list[Sample]:
    return [found[place] for place in np.linspace(0, len(found) - 1, min(len(found), MOST_SAMPLES)).astype(int)]
