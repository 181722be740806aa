"""From the graph's output to what a user reads: typed steps, as a bundle's `postprocess` lists them.

Axes: N batch, D outputs (classes, labels or targets).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from edgekd.errors import DataError, RecipeError, UsageError, nearest
from edgekd.spec import TASKS, Array


@dataclass(frozen=True)
class Softmax:
    """exp(x / temperature) over its sum along the last axis.

    The text "calibrated" is replaced by the temperature that fits the validation split (edgekd.device.calibration).
    """

    op: ClassVar[str] = "softmax"
    temperature: float | Literal["calibrated"] = 1.0


@dataclass(frozen=True)
class Sigmoid:
    """1 / (1 + exp(-x))."""

    op: ClassVar[str] = "sigmoid"


@dataclass(frozen=True)
class Denormalize:
    """x * std + mean along the last axis: back to the units of the targets."""

    op: ClassVar[str] = "denormalize"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Threshold:
    """From which score on a label counts as present. It marks: the scores stay as they are."""

    op: ClassVar[str] = "threshold"
    value: float = 0.5


@dataclass(frozen=True)
class TopK:
    """How many of the best classes a graph with its postprocessing inside gives. The scores stay as they are."""

    op: ClassVar[str] = "top_k"
    k: int = 5


PostStep = Softmax | Sigmoid | Denormalize | Threshold | TopK
POST_STEPS: dict[str, type[PostStep]] = {step.op: step for step in (Softmax, Sigmoid, Denormalize, Threshold, TopK)}
# Steps that tell how scores are read; they change no number.
MARKS: tuple[type[PostStep], ...] = (Threshold, TopK)


def default_post_steps(
    task: str, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[PostStep, ...]:
    """The steps of a task whose recipe names none; regression takes mean and std of the training targets.

    classification: softmax. multilabel: sigmoid, threshold 0.5. regression: denormalize. embedding: none.
    """
    if task not in TASKS:
        raise UsageError(f"unknown task '{task}'. {nearest(task, TASKS)}")
    if task == "classification":
        return (Softmax(),)
    if task == "multilabel":
        return (Sigmoid(), Threshold())
    if task == "regression" and mean is not None and std is not None:
        return (Denormalize(tuple(float(v) for v in mean), tuple(float(v) for v in std)),)
    return ()


def parse_post_steps(steps: Iterable[Mapping[str, Any]], *, where: str = "postprocess.steps") -> tuple[PostStep, ...]:
    """Typed steps from their JSON or TOML form. Raises `RecipeError` on an unknown op, key or value."""
    parsed: list[PostStep] = []
    for index, raw in enumerate(steps):
        place = f"{where}[{index}]"
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        op = options.pop("op", None)
        if not isinstance(op, str) or op not in POST_STEPS:
            raise RecipeError(f"{place}: unknown op {op!r}. {nearest(str(op), POST_STEPS)}")
        known = {field.name for field in dataclasses.fields(POST_STEPS[op])}
        for key, value in options.items():
            if key not in known:
                raise RecipeError(f"{place} ({op}): unknown key '{key}'. {nearest(key, known)}")
            _check(value, key, f"{place} ({op})")
        build: Callable[..., PostStep] = POST_STEPS[op]
        parsed.append(build(**options))
    return tuple(parsed)


def post_steps_to_json(steps: Iterable[PostStep]) -> list[dict[str, Any]]:
    """The form that a bundle holds; `parse_post_steps` reads it back to equal values."""
    plain = []
    for step in steps:
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(step).items()}
        plain.append({"op": step.op, **values})
    return plain


def apply_post(steps: Iterable[PostStep], outputs_ND: Array) -> Array:
    """The graph's outputs through the steps, float64 inside and float32 out; the shape stays (N, D).

    Raises `DataError` when denormalize holds another number of targets than the outputs.
    """
    values_ND = outputs_ND.astype(np.float64)
    for step in steps:
        if isinstance(step, Softmax):
            if isinstance(step.temperature, str):
                raise RecipeError("softmax: the temperature is not calibrated yet; run the recipe, which fills it in")
            scaled_ND = values_ND / step.temperature
            powers_ND = np.exp(scaled_ND - scaled_ND.max(axis=-1, keepdims=True))
            values_ND = powers_ND / powers_ND.sum(axis=-1, keepdims=True)
        elif isinstance(step, Sigmoid):
            # The tanh form neither overflows nor needs two branches.
            values_ND = 0.5 * (1.0 + np.tanh(0.5 * values_ND))
        elif isinstance(step, Denormalize):
            if not {len(step.mean), len(step.std)} <= {1, values_ND.shape[-1]}:
                raise DataError(
                    f"denormalize: {len(step.mean)} mean and {len(step.std)} std for {values_ND.shape[-1]} outputs; "
                    "expected one, or one per output"
                )
            values_ND = values_ND * np.array(step.std) + np.array(step.mean)
    return values_ND.astype(np.float32)


def threshold_of(steps: Iterable[PostStep]) -> float:
    """The value of the threshold step; 0.5 where there is none."""
    for step in steps:
        if isinstance(step, Threshold):
            return step.value
    return 0.5


def as_judged(task: str, steps: Sequence[PostStep], outputs_ND: Array) -> tuple[Array, float]:
    """Outputs as the metrics read them, with the threshold of a label: what a predictor says, and nothing rounded away.

    Classes are read off the scores of the graph (a softmax changes no order, but its large values tie), labels and
    targets off the postprocessed outputs. No steps: those of the task.
    """
    if task == "classification":
        return outputs_ND, 0.0
    known = tuple(steps) or default_post_steps(task)
    return apply_post(known, outputs_ND), threshold_of(known)


def without_units(steps: Iterable[PostStep], targets_ND: Array) -> Array:
    """What the graph must give so that the denormalize steps make `targets_ND` of it: float32 (N, D)."""
    values_ND = targets_ND.astype(np.float64)
    for step in reversed([step for step in steps if isinstance(step, Denormalize)]):
        values_ND = (values_ND - np.array(step.mean)) / np.array(step.std)
    return values_ND.astype(np.float32)


def _check(value: object, key: str, place: str) -> None:
    def is_number(item: object) -> bool:
        return isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item)

    if key in ("mean", "std"):
        fits = isinstance(value, tuple) and len(value) > 0 and all(is_number(item) for item in value)
        if not fits:
            raise RecipeError(f"{place}: found {key} = {value!r}, expected a list of finite numbers")
        if key == "std" and isinstance(value, tuple) and 0 in value:
            raise RecipeError(f"{place}: found {key} = {value!r}, expected no std of 0")
    elif key == "temperature" and value == "calibrated":
        return
    elif key == "k":
        if type(value) is not int or value < 1:
            raise RecipeError(f"{place}: found {key} = {value!r}, expected a whole number from 1")
    elif not is_number(value) or (key == "temperature" and isinstance(value, (int, float)) and value <= 0):
        expected = 'a temperature above 0, or "calibrated"' if key == "temperature" else "a finite number"
        raise RecipeError(f"{place}: found {key} = {value!r}, expected {expected}")
