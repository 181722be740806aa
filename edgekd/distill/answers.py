"""What a black box says about samples, checked and brought to one of two forms.

    logits, probabilities                   ->  logits (N, C)
    topk (indices with probabilities or     ->  topk_indices (N, K), topk_log_probabilities (N, K), at temperature 1
    log-probabilities), labels (a top-1)

As a teacher's named tensors a top-k comes with `topk_probabilities` and dense `logits` too, so that every loss can
learn from it: the mass that is left is spread evenly over the other classes, as in the loss topk_cross_entropy.
Shape suffixes: N samples, C classes, K kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from edgekd.errors import DataError
from edgekd.spec import Array, Task

LOGITS, INDICES, LOG_PROBABILITIES = "logits", "topk_indices", "topk_log_probabilities"
# The logarithm of what a top-k leaves of 1, where it is known better than by taking the difference.
LOG_REST = "topk_log_rest"
PROBABILITIES, TOPK_PROBABILITIES, LABELS, CLASSES = "probabilities", "topk_probabilities", "labels", "classes"
# Each kind of answer, and the arrays that it comes as (one of the alternatives).
KINDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "logits": ((LOGITS,),),
    "probabilities": ((PROBABILITIES,),),
    "top-k": ((INDICES, TOPK_PROBABILITIES), (INDICES, LOG_PROBABILITIES)),
    "labels": ((LABELS,),),
}
# What speaks for a task beside "logits", which for a regression are its numbers.
TASKS_OF_KIND: Mapping[str, tuple[Task, ...]] = {
    "logits": ("classification", "multilabel", "regression"),
    "probabilities": ("classification", "multilabel"),
    "top-k": ("classification",),
    "labels": ("classification",),
}
# What teachers name beside the features that are tapped from inside them.
TOLD = (LOGITS, INDICES, LOG_PROBABILITIES, TOPK_PROBABILITIES)
# Rounded to a few decimals, a thousand probabilities may miss 1 by this much.
SUM_TOLERANCE = 0.02
# The log-probability of a class that is ruled out: no temperature below 90 brings it back.
NOTHING = -1e4
_NAMED = 5

Ids = NDArray[np.int64]


def read_answers(
    raw: Mapping[str, Array], ids_N: Ids, *, labels: Sequence[str], task: Task, where: str
) -> dict[str, Array]:
    """The arrays of one kind of answer for the samples `ids_N`, checked, in the form that the module names.

    labels  names of the outputs, in order; `raw` may state its own as "classes", which must be the same
    where   whose answers these are, for the errors

    Raises `DataError` for no or two kinds, another number of rows or width, NaN, probabilities that are none,
    indices or labels that do not exist, other classes or another order of them.
    """
    if CLASSES in raw:
        _check_classes([str(name) for name in raw[CLASSES].ravel()], labels, where)
    kind, arrays = _kind_of(raw, where)
    if task not in TASKS_OF_KIND[kind]:
        fitting = " or ".join(name for name, tasks in TASKS_OF_KIND.items() if task in tasks)
        raise DataError(f"{where} gives {kind}, but task = '{task}'; expected {fitting}")
    for name, array in arrays.items():
        if array.ndim < 1 or len(array) != len(ids_N):
            raise DataError(
                f"{where} gives {name} {list(array.shape)}, expected {len(ids_N)} rows, one for each sample"
            )
    count = len(labels)
    if kind == "logits":
        return {LOGITS: _numbers(arrays[LOGITS], ids_N, count, LOGITS, where).astype(np.float32)}
    if kind == "probabilities":
        return {LOGITS: _from_probabilities(arrays[PROBABILITIES], ids_N, count, task, where)}
    if kind == "labels":
        return _from_labels(arrays[LABELS], ids_N, labels, where)
    return _from_topk(arrays, ids_N, count, where)


def classes_of(raw: Mapping[str, Array], labels: Sequence[str], own: Sequence[str], *, where: str) -> Sequence[str]:
    """Which classes the columns of a black box's answers are: `labels`, all of them, or the `own` of a specialist.

    The width of its logits or probabilities says it; a top-k and labels are of all classes. Raises `DataError` for any
    other width.
    """
    values = raw.get(LOGITS, raw.get(PROBABILITIES))
    if not own or values is None or values.ndim != 2 or values.shape[1] == len(labels):
        return labels
    if values.shape[1] == len(own):
        return own
    raise DataError(
        f"{where} gives {values.shape[1]} numbers for each sample, expected {len(labels)}, one for each label of the "
        f"data, or {len(own)}, one for each of its own: {_listed(own)}"
    )


def with_logits(named: Mapping[str, Tensor], num_outputs: int) -> dict[str, Tensor]:
    """The named tensors; of a top-k also its probabilities, and dense `logits` (N, C)."""
    if LOGITS in named:
        return dict(named)
    told = {name: value for name, value in named.items() if name != LOG_REST}
    logits_NC = dense_logits(named[INDICES], named[LOG_PROBABILITIES], num_outputs, named.get(LOG_REST))
    return {LOGITS: logits_NC, **told, TOPK_PROBABILITIES: named[LOG_PROBABILITIES].exp()}


def dense_logits(
    indices_NK: Tensor, log_probabilities_NK: Tensor, num_outputs: int, log_rest_N: Tensor | None = None
) -> Tensor:
    """Log-probabilities (N, C): the top-k as they are, what they leave of 1 spread evenly over the other classes.

    log_rest_N  the logarithm of what they leave; else it is computed, of a sure teacher up to rounding only
    """
    others = max(num_outputs - indices_NK.shape[1], 1)
    if log_rest_N is None:
        rest_N = -torch.expm1(torch.logsumexp(log_probabilities_NK, dim=1).clamp(max=0.0))
        log_rest_N = rest_N.log()
    each_N1 = (log_rest_N - math.log(others)).clamp(min=NOTHING)[:, None]
    dense_NC = each_N1.expand(-1, num_outputs).clone()
    return dense_NC.scatter_(1, indices_NK, log_probabilities_NK)


def named_ids(ids_N: Ids) -> str:
    """`3, 17, 20, 21, 44 and 7 more`."""
    more = f" and {len(ids_N) - _NAMED} more" if len(ids_N) > _NAMED else ""
    return ", ".join(str(item) for item in ids_N[:_NAMED].tolist()) + more


def _kind_of(raw: Mapping[str, Array], where: str) -> tuple[str, dict[str, Array]]:
    fitting = [(kind, names) for kind, ways in KINDS.items() for names in ways if all(name in raw for name in names)]
    if len(fitting) != 1:
        expected = "logits, probabilities, labels, or topk_indices with topk_probabilities or topk_log_probabilities"
        found = ", ".join(sorted(raw)) or "nothing"
        raise DataError(f"{where} gives {found}; expected one of: {expected}")
    kind, names = fitting[0]
    return kind, {name: raw[name] for name in names}


def _check_classes(found: Sequence[str], labels: Sequence[str], where: str) -> None:
    if list(found) == list(labels):
        return
    if sorted(found) == sorted(labels):
        index = next(i for i, (there, here) in enumerate(zip(found, labels)) if there != here)
        raise DataError(
            f"{where} has the classes in another order: output {index} is '{found[index]}' there and "
            f"'{labels[index]}' in the data; bring its columns into the order of the data"
        )
    strange = [name for name in found if name not in labels]
    missing = [name for name in labels if name not in found]
    raise DataError(
        f"{where} knows {len(found)} classes and the data {len(labels)}; only there: {_listed(strange)}, only in the "
        f"data: {_listed(missing)}. Take a teacher of the same classes, or state them as data.labels"
    )


def _numbers(array: Array, ids_N: Ids, width: int | None, name: str, where: str) -> Array:
    """A finite (N, `width`) array of numbers."""
    if array.dtype.kind not in "fiub" or array.ndim != 2 or (width is not None and array.shape[1] != width):
        wanted = f"{[len(ids_N), 'K' if width is None else width]}".replace("'", "")
        raise DataError(f"{where} gives {name} {list(array.shape)} of {array.dtype}, expected numbers {wanted}")
    _refuse(~np.isfinite(array).all(axis=1), ids_N, f"{name} that are NaN or infinite", where)
    return array


def _from_probabilities(array: Array, ids_N: Ids, width: int, task: Task, where: str) -> Array:
    p_NC = _numbers(array, ids_N, width, PROBABILITIES, where).astype(np.float64)
    _refuse_no_probabilities(p_NC, ids_N, where)
    if task == "multilabel":
        p_NC = p_NC.clip(1e-7, 1 - 1e-7)
        odds_NC: Array = np.log(p_NC) - np.log1p(-p_NC)
        return odds_NC.astype(np.float32)
    sums_N = p_NC.sum(axis=1)
    bad_N = np.abs(sums_N - 1) > SUM_TOLERANCE
    _refuse(bad_N, ids_N, f"probabilities that sum to {_first(sums_N, bad_N):.4g} instead of 1", where)
    logs_NC: Array = np.log(p_NC.clip(np.finfo(np.float32).tiny))
    return logs_NC.astype(np.float32)


def _from_labels(array: Array, ids_N: Ids, labels: Sequence[str], where: str) -> dict[str, Array]:
    if array.ndim != 1:
        raise DataError(f"{where} gives labels {list(array.shape)}, expected one class per sample, [{len(ids_N)}]")
    if array.dtype.kind in "UO":
        numbers = {name: index for index, name in enumerate(labels)}
        texts = [str(item) for item in array.tolist()]
        unknown_N = np.array([text not in numbers for text in texts])
        example = next((text for text in texts if text not in numbers), "")
        _refuse(unknown_N, ids_N, f"labels that are no class, such as '{example}' (known: {_listed(labels)})", where)
        array = np.array([numbers[text] for text in texts], np.int64)
    indices_N1 = _indices(array[:, None], ids_N, len(labels), LABELS, where)
    return {INDICES: indices_N1, LOG_PROBABILITIES: np.zeros(indices_N1.shape, np.float32)}


def _from_topk(arrays: Mapping[str, Array], ids_N: Ids, width: int, where: str) -> dict[str, Array]:
    indices_NK = _indices(arrays[INDICES], ids_N, width, INDICES, where)
    ordered_NK = np.sort(indices_NK, axis=1)
    _refuse((ordered_NK[:, 1:] == ordered_NK[:, :-1]).any(axis=1), ids_N, "the same class twice in a top-k", where)
    name = TOPK_PROBABILITIES if TOPK_PROBABILITIES in arrays else LOG_PROBABILITIES
    values_NK = _numbers(arrays[name], ids_N, indices_NK.shape[1], name, where).astype(np.float64)
    if name == TOPK_PROBABILITIES:
        _refuse_no_probabilities(values_NK, ids_N, where)
        values_NK = np.log(values_NK.clip(np.finfo(np.float32).tiny))
    sums_N = np.exp(values_NK.clip(max=SUM_TOLERANCE * 8)).sum(axis=1)
    too_much_N = (sums_N > 1 + SUM_TOLERANCE) | (values_NK > SUM_TOLERANCE).any(axis=1)
    _refuse(too_much_N, ids_N, f"a top-k with probabilities that sum to {_first(sums_N, too_much_N):.4g}", where)
    return {INDICES: indices_NK, LOG_PROBABILITIES: values_NK.clip(max=0.0).astype(np.float32)}


def _indices(array: Array, ids_N: Ids, width: int, name: str, where: str) -> NDArray[np.int64]:
    numbers = _numbers(array, ids_N, None, name, where)
    if not 1 <= numbers.shape[1] <= width:
        raise DataError(f"{where} gives {name} {list(array.shape)}, expected 1 to {width} classes per sample")
    wrong_N = ((numbers != np.rint(numbers)) | (numbers < 0) | (numbers >= width)).any(axis=1)
    _refuse(wrong_N, ids_N, f"{name} that are no class from 0 to {width - 1}", where)
    return numbers.astype(np.int64)


def _refuse_no_probabilities(values: Array, ids_N: Ids, where: str) -> None:
    outside = (values < -SUM_TOLERANCE) | (values > 1 + SUM_TOLERANCE)
    _refuse(outside.any(axis=1), ids_N, "probabilities below 0 or above 1 (are they logits?)", where)


def _refuse(bad: ArrayLike, ids_N: Ids, what: str, where: str) -> None:
    bad_N = np.asarray(bad, dtype=np.bool_)
    if bad_N.any():
        raise DataError(
            f"{where} gives {what}, for {int(bad_N.sum())} of {len(ids_N)} samples, with the ids "
            f"{named_ids(ids_N[bad_N])}; correct its answers to them"
        )


def _first(values_N: Array, bad_N: NDArray[np.bool_]) -> float:
    return float(values_N[bad_N][0]) if bad_N.any() else 0.0


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return (shown + (", ..." if len(names) > _NAMED else "")) or "none"
