"""What crosses from one stage to the next: tensors, preprocessing steps, data sets, limits and their verdicts.

Only frozen dataclasses of plain values and numpy arrays, so that every floor may use them and each of them
can be written as JSON.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import RecipeError, nearest
from edgekd.rows import Array as Array
from edgekd.rows import Rows, take

Task = Literal["classification", "multilabel", "regression", "embedding", "masked_lm"]
# Those of which a bundle can be made: a masked language model is the beginning of one for another task.
TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression", "embedding")


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a model's input or output; a string in the shape is a symbolic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def concrete(self, **axes: int) -> tuple[int, ...]:
        """The shape with each symbolic axis replaced by its value in `axes` (1 where it is not named)."""
        return tuple(axes.get(size, 1) if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval; `low` and `high` are NaN-free and `low <= value <= high`."""

    value: float
    low: float
    high: float
    n: int | None = None

    def to_json(self) -> dict[str, float | int]:
        """Plain values; `n` only where it is known."""
        plain: dict[str, float | int] = {"value": self.value, "low": self.low, "high": self.high}
        return plain if self.n is None else {**plain, "n": self.n}


# Preprocessing steps. Each is one frozen dataclass with an `op` name; a recipe and a bundle write them as
# {"op": "resize", "size": [28, 28]}. edgekd.device.preprocess says what each does to the numbers.


@dataclass(frozen=True)
class Decode:
    """Image file or bytes to uint8 (H, W, 3) or (H, W, 1); EXIF orientation applied, alpha composed over a colour."""

    op: ClassVar[str] = "decode"
    exif: bool = True
    alpha: Literal["black", "white"] = "black"


@dataclass(frozen=True)
class ToRgb:
    """One channel to three equal ones; three stay."""

    op: ClassVar[str] = "to_rgb"


@dataclass(frozen=True)
class ToGrey:
    """Three channels to one (ITU-R 601-2 luma, as Pillow's mode L); one stays."""

    op: ClassVar[str] = "to_grey"


@dataclass(frozen=True)
class Resize:
    """To `size`: [height, width], or one number for the shorter side with the aspect ratio kept."""

    op: ClassVar[str] = "resize"
    size: tuple[int, int] | int = 0
    filter: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    antialias: bool = True


@dataclass(frozen=True)
class CenterCrop:
    """The middle [height, width] of the image."""

    op: ClassVar[str] = "center_crop"
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Scale:
    """Multiply by `factor` in float32 (1/255 turns bytes into 0..1)."""

    op: ClassVar[str] = "scale"
    factor: float = 1.0 / 255.0


@dataclass(frozen=True)
class Normalize:
    """(x - mean) / std over the last axis, in float32; the text "train" is replaced by figures of the train split."""

    op: ClassVar[str] = "normalize"
    mean: tuple[float, ...] | Literal["train"] = (0.0,)
    std: tuple[float, ...] | Literal["train"] = (1.0,)


@dataclass(frozen=True)
class Layout:
    """`CHW` moves the channels of an image in front; `flat` makes one vector of a sample; `HWC` leaves it."""

    op: ClassVar[str] = "layout"
    to: Literal["CHW", "HWC", "flat"] = "CHW"


@dataclass(frozen=True)
class Tokenize:
    """A text to int32 ids (max_length,) by the Hugging Face tokenizer `file`: cut and padded on the right.

    vocabulary  in a recipe: keep so many of the tokenizer's tokens, those that the training texts use most
    content     the text of the file, once it was read; it is never written as JSON
    """

    op: ClassVar[str] = "tokenize"
    file: str = ""
    max_length: int = 128
    vocabulary: int | None = None
    content: str = field(default="", repr=False)


@dataclass(frozen=True)
class Trim:
    """A batch (N, T) of ids without the last columns in which every row is `pad`; None in a recipe: the tokenizer's."""

    op: ClassVar[str] = "trim"
    pad: int | None = None


Step = Decode | ToRgb | ToGrey | Resize | CenterCrop | Tokenize | Scale | Normalize | Layout | Trim
STEPS: dict[str, type[Step]] = {
    step.op: step for step in (Decode, ToRgb, ToGrey, Resize, CenterCrop, Tokenize, Scale, Normalize, Layout, Trim)
}
# What a step holds in memory only.
_UNWRITTEN = ("content",)
MAX_TOKENS = 16384


def parse_steps(steps: Iterable[Mapping[str, Any]], *, where: str = "preprocess.steps") -> tuple[Step, ...]:
    """Typed steps from their JSON or TOML form. Raises `RecipeError` on an unknown op, key or value."""
    parsed: list[Step] = []
    for index, raw in enumerate(steps):
        place = f"{where}[{index}]"
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        op = options.pop("op", None)
        if not isinstance(op, str) or op not in STEPS:
            raise RecipeError(f"{place}: unknown op {op!r}. {nearest(str(op), STEPS)}")
        known = {item.name for item in dataclasses.fields(STEPS[op])} - {*_UNWRITTEN}
        for key in options:
            if key not in known:
                raise RecipeError(f"{place} ({op}): unknown key '{key}'. {nearest(key, known)}")
        build: Callable[..., Step] = STEPS[op]
        step = build(**options)
        _check_step(step, place)
        parsed.append(step)
    return tuple(parsed)


def steps_to_json(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """The form that a bundle holds; `parse_steps` reads it back to equal values (but for the content of files)."""
    plain = []
    for step in steps:
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(step).items()}
        written = {key: v for key, v in values.items() if v is not None and key not in _UNWRITTEN}
        plain.append({"op": step.op, **written})
    return plain


def _check_step(step: Step, place: str) -> None:
    def refuse(found: object, expected: str) -> None:
        raise RecipeError(f"{place} ({step.op}): found {found!r}, expected {expected}")

    def is_size(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 16384

    def is_count(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31

    def is_number(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    if isinstance(step, Decode):
        if not isinstance(step.exif, bool):
            refuse(step.exif, "exif = true or false")
        if step.alpha not in ("black", "white"):
            refuse(step.alpha, 'alpha = "black" or "white"')
    if isinstance(step, Resize):
        sides = step.size if isinstance(step.size, tuple) else (step.size, step.size)
        if len(sides) != 2 or not all(is_size(side) for side in sides):
            refuse(step.size, "size = [height, width] or one number, each from 1 to 16384")
        if step.filter not in ("nearest", "bilinear", "bicubic"):
            refuse(step.filter, 'filter = "nearest", "bilinear" or "bicubic"')
        if not isinstance(step.antialias, bool):
            refuse(step.antialias, "antialias = true or false")
    if isinstance(step, CenterCrop) and not (
        isinstance(step.size, tuple) and len(step.size) == 2 and all(is_size(side) for side in step.size)
    ):
        refuse(step.size, "size = [height, width], each from 1 to 16384")
    if isinstance(step, Scale) and not is_number(step.factor):
        refuse(step.factor, "a finite factor")
    if isinstance(step, Normalize):
        for value in (step.mean, step.std):
            if value != "train" and not (isinstance(value, tuple) and value and all(is_number(v) for v in value)):
                refuse(value, 'a list of finite numbers, or "train"')
        if isinstance(step.std, tuple) and any(v == 0 for v in step.std):
            refuse(step.std, "no std of 0")
    if isinstance(step, Layout) and step.to not in ("CHW", "HWC", "flat"):
        refuse(step.to, 'to = "CHW", "HWC" or "flat"')
    if isinstance(step, Tokenize):
        if not isinstance(step.file, str) or not step.file:
            raise RecipeError(f'{place} (tokenize): "file" is missing, expected a tokenizer.json')
        if not is_size(step.max_length) or step.max_length < 2:
            refuse(step.max_length, f"max_length = 2 to {MAX_TOKENS}")
        if step.vocabulary is not None and (not is_count(step.vocabulary) or step.vocabulary < 2):
            refuse(step.vocabulary, "a number of tokens to keep, from 2")
    if isinstance(step, Trim) and step.pad is not None and not is_count(step.pad):
        refuse(step.pad, "the id of the padding token")


@dataclass(frozen=True)
class Split:
    """One part of a data set, before the arithmetic steps (scale, normalize, layout).

    x    (N, ...) uint8 or float32; images are (N, H, W, C); texts (N, T) int32 ids of tokens, padded; an array, or
         rows on the disk (`edgekd.rows`)
    y    (N,) int64 classes | (N, L) uint8 labels | (N, D) float32 targets; nothing that counts of masked_lm
    ids  (N,) int64, unique within the data set and stable from run to run
    """

    x: Rows
    y: Array
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: NDArray[np.intp] | slice) -> Split:
        """The samples at `indices`."""
        return Split(take(self.x, indices), self.y[indices], self.ids[indices])


@dataclass(frozen=True)
class Dataset:
    """Train trains, validation chooses, test is read once. `labels` name the outputs, in order; `tokens` the ids that
    samples of texts are made of."""

    name: str
    task: Task
    labels: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    licence: str
    sha256: str
    tokens: tuple[str, ...] = field(default=(), repr=False)

    @property
    def num_outputs(self) -> int:
        """How many numbers the model's output has: classes, labels or targets."""
        return len(self.labels)


@dataclass(frozen=True)
class Vocabulary:
    """The token ids that a model of texts reads: 0 to size - 1, of which `pad` fills up short texts.

    tokens  what each id stands for; empty where only the size is known
    """

    size: int
    pad: int
    tokens: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Limits:
    """The budget of the user; None means no limit. kB = 1000 bytes, MB = 1000 kB, drops in percentage points."""

    latency_p90_ms: float | None = None
    size_kb: float | None = None
    peak_memory_mb: float | None = None
    accuracy_drop_points: float | None = None
    confidence: float = 0.95
    unproven: Literal["warn", "fail"] = "warn"


@dataclass(frozen=True)
class LimitVerdict:
    """How one limit ended. `value` is None when too little was measured to tell it at all; `needed_n` says how many
    samples a proof would take when the limit is unproven."""

    name: str
    limit: float
    value: Interval | None
    verdict: Literal["met", "missed", "unproven"]
    needed_n: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields of INTERFACES: name, limit, value, interval, verdict (and needed_n)."""
        plain: dict[str, Any] = {
            "name": self.name,
            "limit": self.limit,
            "value": None if self.value is None else self.value.value,
            "interval": None if self.value is None else [self.value.low, self.value.high],
            "verdict": self.verdict,
        }
        return plain if self.needed_n is None else {**plain, "needed_n": self.needed_n}
