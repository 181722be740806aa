"""A teacher behind a URL: a model server, somebody's API, a script of thirty lines.

One POST per batch, `content-type: application/json`:

    {"ids": [17, 4], "shape": [2, 1, 8, 8], "encoding": "json", "inputs": [[[[0.0, ...]]], ...]}

`inputs` are the samples as a model sees them, float32 after every preprocessing step; of texts their token ids, whole
numbers (int64), by the recipe's tokenizer. Nested lists, or with `"encoding": "npy"` a base64 text of one .npy file.
The answer, status 200, is one of

    {"logits": [[...], [...]]}                          (N, C); for a regression its numbers
    {"probabilities": [[...], [...]]}                   (N, C), each row sums to 1
    {"topk": {"indices": [[3, 5], ...], "probabilities": [[0.9, 0.05], ...]}}   or "log_probabilities"
    {"labels": [3, "cat"]}                              class numbers or names, also mixed

with the samples in the order in which they were sent. Arrays may be base64 texts of .npy files too. Optional:
`"ids"`, the ids that it answers to, and `"classes"`, the names of its classes; both are then compared with ours.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd.device.tokens import is_ids
from edgekd.distill.answers import (
    CLASSES,
    INDICES,
    LABELS,
    LOG_PROBABILITIES,
    LOGITS,
    PROBABILITIES,
    TOPK_PROBABILITIES,
    Ids,
    classes_of,
    read_answers,
    with_logits,
)
from edgekd.distill.endpoint import Endpoint
from edgekd.errors import DataError, StageFailed
from edgekd.spec import Array, Task

TOPK = "topk"
_TOPK_PARTS = {"indices": INDICES, "probabilities": TOPK_PROBABILITIES, "log_probabilities": LOG_PROBABILITIES}
_IDS = "ids"


class HttpTeacher:
    """Asks an endpoint, one request per batch; whoever asks it should keep the answers (see cache_build).

    own  the classes of a specialist, whose columns may be these alone (`edgekd.distill.answers.classes_of`)

    Raises `StageFailed` for an endpoint that does not answer, and for rubbish: no JSON, another number of samples or
    width, NaN, probabilities that are none, other classes. The text names what was found.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        labels: Sequence[str],
        own: Sequence[str] = (),
        task: Task = "classification",
        encoding: str = "json",
    ) -> None:
        self._endpoint = endpoint
        self._labels = tuple(labels)
        self._own = tuple(own)
        self._classes: Sequence[str] = ()  # those of its columns, as its first answer shows
        self._task = task
        self._encoding = encoding

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        ids_N: Ids = batch["id"].cpu().numpy()
        x = batch["x"].detach().cpu().numpy()
        x = np.ascontiguousarray(x, dtype=np.int64 if is_ids(x) else np.float32)
        body = {
            "ids": ids_N.tolist(),
            "shape": list(x.shape),
            "encoding": self._encoding,
            "inputs": _to_npy(x) if self._encoding == "npy" else x.tolist(),
        }
        where = self._endpoint.name
        try:
            raw = _arrays(self._endpoint.post(body), ids_N, self._labels, where)
            self._classes = self._classes or classes_of(raw, self._labels, self._own, where=where)
            answers = read_answers(raw, ids_N, labels=self._classes, task=self._task, where=where)
        except DataError as error:
            raise StageFailed(f"{error}; answers so far are kept") from error
        return with_logits({name: torch.from_numpy(array) for name, array in answers.items()}, len(self._classes))


def _arrays(answer: object, ids_N: Ids, labels: Sequence[str], where: str) -> dict[str, Array]:
    """The arrays of an answer by the names of `read_answers`; its ids compared with ours."""
    if not isinstance(answer, Mapping):
        raise DataError(f"{where} answered a {type(answer).__name__}, expected an object with logits or the like")
    named: dict[str, Any] = {
        name: answer[name] for name in (LOGITS, PROBABILITIES, LABELS, CLASSES) if answer.get(name) is not None
    }
    if LABELS in named:
        named[LABELS] = _names(named[LABELS], labels)
    topk = answer.get(TOPK)
    if topk is not None:
        if not isinstance(topk, Mapping):
            raise DataError(f"{where} gives topk as a {type(topk).__name__}, expected indices and probabilities")
        named |= {_TOPK_PARTS[name]: value for name, value in topk.items() if name in _TOPK_PARTS}
    if not named:
        said = ", ".join(sorted(map(str, answer))[:8]) or "nothing"
        error = f"; it says '{str(answer['error'])[:120]}'" if "error" in answer else ""
        raise DataError(
            f"{where} answered an object with {said}, expected logits, probabilities, topk or labels{error}"
        )
    if answer.get(_IDS) is not None:
        echoed = _array(answer[_IDS], _IDS, where)
        if echoed.shape != ids_N.shape or not np.array_equal(echoed, ids_N):
            raise DataError(f"{where} answers to other ids than it was asked for; expected the same, in the same order")
    return {name: _array(value, name, where) for name, value in named.items()}


def _names(value: object, labels: Sequence[str]) -> object:
    """A list of classes in which some are named: the numbers among them become names, too."""
    if not isinstance(value, list) or not any(isinstance(item, str) for item in value):
        return value
    numbers = range(len(labels))
    named = [labels[int(item)] if item in numbers else f"the number {item}" for item in value]
    return [item if isinstance(item, str) else name for item, name in zip(value, named)]


def _array(value: object, name: str, where: str) -> Array:
    if isinstance(value, str):
        try:
            array: Array = np.lib.format.read_array(
                io.BytesIO(base64.b64decode(value, validate=True)), allow_pickle=False
            )
        except (ValueError, EOFError, binascii.Error) as error:
            raise DataError(f"{where} gives {name} as a text that is no base64 of an .npy file ({error})") from error
        return array
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where} gives {name} with rows of different lengths ({error})") from error
    if array.dtype.kind not in "fiubU":
        raise DataError(f"{where} gives {name} as {type(value).__name__} of something else than numbers")
    return array


def _to_npy(array: Array) -> str:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()
