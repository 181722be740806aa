"""Whether a teacher that was made elsewhere means the same as the data: the order of its classes, what it expects to
see. A student would learn from one that does not without a word.

What a file says of itself is compared with the recipe; the order of classes is looked for in the answers, too.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import ModelError
from edgekd.graph.metadata import steps_in, tokens_sha256
from edgekd.spec import Array, Step, steps_to_json

# Another order of the classes is believed when it makes the teacher right at least this often, and this many times as
# often as the data's own.
_LEAST_ACCURACY = 0.5
_LEAST_GAIN = 2.0
_LEAST_SAMPLES = 20
_NAMED, _SHOWN = 5, 20
# How far means and deviations may be apart that were measured on two splits of one data set.
_NEAR, _NEAR_ZERO = 0.05, 0.01


def stated(path: Path) -> dict[str, str]:
    """What a model file says of itself: the metadata of an ONNX or safetensors file; nothing for other files."""
    if path.suffix == ".onnx":
        import onnx

        return {pair.key: pair.value for pair in onnx.load(path, load_external_data=False).metadata_props}
    if path.suffix == ".safetensors":
        from edgekd.distill.models.weights import metadata_of

        return metadata_of(path)
    return {}


def check_stated(
    said: Mapping[str, str], labels: Sequence[str], steps: Sequence[Step], *, tokens: Sequence[str] = (), where: str
) -> None:
    """Raise `ModelError` when a teacher's file names the data's classes in another order, other preprocessing or
    another vocabulary.

    said    the pairs of `edgekd.graph.metadata`; `names` are those of Ultralytics' files. What is not there, or names
            classes that the data does not have, says nothing
    tokens  what the ids in the data stand for
    """
    if tokens and said.get("tokens", "") not in ("", tokens_sha256(tokens)):
        raise ModelError(
            f"{where} reads the ids of another vocabulary than the data's {len(tokens):,} tokens: it would take words "
            "for others. Give the recipe the tokenizer that it was made with (tokenizer.json in the bundle of its "
            "run), without 'vocabulary': preprocess.steps = [{op = \"tokenize\", file = ...}, ...]"
        )
    names = _names(said.get("names", ""))
    if sorted(names) == sorted(labels) and list(names) != list(labels):
        raise ModelError(_other_order(where, "its file names", list(names), list(labels), range(len(labels))))
    theirs = steps_in(said)
    if theirs is None or theirs == tuple(steps):
        return
    found, expected = (steps_to_json(given) for given in (theirs, steps))
    for place in range(max(len(found), len(expected))):
        one, other = (given[place] if place < len(given) else None for given in (found, expected))
        if not _alike(one, other):
            raise ModelError(
                f"{where} was made for other preprocessing than the data gets: its file says {_shown(one)} in step "
                f"{place + 1}, the recipe {_shown(other)}. Give the recipe the teacher's: preprocess.steps = "
                f"{json.dumps(found)}"
            )


def check_own(said: Mapping[str, str], own: Sequence[str], labels: Sequence[str], *, where: str) -> None:
    """Raise `ModelError` when a teacher's file names as many of the data's labels as the recipe gives it of its `own`,
    but others, or these in another order."""
    names = _names(said.get("names", ""))
    if len(names) != len(own) or not set(names) <= set(labels) or len(own) == len(labels) or names == tuple(own):
        return
    raise ModelError(
        f"{where} has other outputs than its labels say: its file names {_listed(names)}, the recipe {_listed(own)}. "
        f"Give it its own: labels = {json.dumps(list(names), ensure_ascii=False)}"
    )


def check_ids(
    said: Mapping[str, str], rows: int | None, tokens: Sequence[str], *, cut: int | None, where: str
) -> str | None:
    """Raise `ModelError` when a teacher's graph cannot read the ids of the data; what may be wrong otherwise.

    said    the pairs of `edgekd.graph.metadata`: a graph that names its tokens is judged by `check_stated`
    rows    of the table in which it looks up ids; None where that is not known
    tokens  what the ids in the data stand for; none of data that are no texts
    cut     how many tokens the recipe keeps of its tokenizer, which gives them other ids; None: all
    """
    if not tokens or said.get("tokens"):
        return None
    if cut is not None:
        raise ModelError(
            f"{where} does not say which tokens its ids are, and preprocess.steps keep {cut:,} of the tokenizer's "
            "(vocabulary), which gives them other ids: it would take words for others. Remove 'vocabulary'; or take "
            'the teacher as a folder of transformers, whose own ids are known (teacher.model = "hf:FOLDER")'
        )
    if rows is None or rows == len(tokens):
        return None
    found = f"{where} has a table of {rows:,} rows, but the texts have {len(tokens):,} tokens"
    if rows < len(tokens):
        raise ModelError(
            f"{found}: they were tokenized with another tokenizer than the teacher's. Take its own in "
            'preprocess.steps: {op = "tokenize", file = ...}'
        )
    return (
        f"{found}, and its file does not say what its ids stand for. Some models have rows to spare; if this one has "
        "none, preprocess.steps name another tokenizer than the teacher's"
    )


def places_of(
    classes: Sequence[str], labels: Sequence[str], *, where: str, whose: str = "the data has"
) -> list[int] | None:
    """Which of a finished classifier's outputs is each of the data's labels, by name, large or small letters alike.

    None where nothing is to be moved: they come in the data's order, or nobody named the `classes`. Raises `ModelError`
    where the names are others.
    """
    theirs, ours = [name.casefold() for name in classes], [name.casefold() for name in labels]
    if not classes or theirs == ours or tuple(classes) == tuple(labels):
        return None
    if sorted(theirs) != sorted(ours) or len(set(ours)) < len(ours):
        raise ModelError(
            f"{where} answers with the classes {_listed(classes)}, but {whose} the labels {_listed(labels)}: a "
            "finished teacher is taken by these names. Where both mean the same, say so with teacher.args.id2label = "
            '{0 = "...", 1 = "..."}, the data\'s labels in the order of its outputs; where they do not, remove '
            "teacher.weights, and it learns the data's"
        )
    return [theirs.index(name) for name in ours]


def check_order(
    answers_NC: Array, y_N: NDArray[np.int64], labels: Sequence[str], *, where: str, own: bool = False
) -> None:
    """Raise `ModelError` when the answers fit the labels in another order of the classes far better than in their own.

    own  the labels are those of a specialist, which its recipe says, and not the data's

    The order is the assignment of answers to labels that is right most often (Kuhn 1955, through scipy).
    """
    from scipy.optimize import linear_sum_assignment

    known = y_N >= 0
    given_N, y_N = answers_NC[known].argmax(axis=1), y_N[known]
    if len(y_N) < _LEAST_SAMPLES:
        return
    count_CC = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(count_CC, (given_N, y_N), 1)
    _, meaning = linear_sum_assignment(count_CC, maximize=True)
    right, best = np.trace(count_CC) / len(y_N), count_CC[np.arange(len(labels)), meaning].sum() / len(y_N)
    if best < _LEAST_ACCURACY or best < _LEAST_GAIN * right:
        return
    # Classes that it never says are where nothing is known of them.
    said = np.flatnonzero(count_CC.sum(axis=1)).tolist()
    rates = f"right for {right:.0%} of the validation samples, in another order for {best:.0%}; by that"
    raise ModelError(_other_order(where, rates, [labels[index] for index in meaning], list(labels), said, own=own))


def _other_order(
    where: str, by: str, found: list[str], expected: list[str], known: Sequence[int], *, own: bool = False
) -> str:
    differing = [index for index in known if found[index] != expected[index]]
    pairs = ", ".join(f"{index} is '{found[index]}', not '{expected[index]}'" for index in differing[:_NAMED])
    more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    order = json.dumps(found, ensure_ascii=False)
    if own:
        return f"{where} does not follow its labels: {by} {pairs}{more}. Expected labels = {order}"
    return (
        f"{where} has the classes in another order than the data: {by} {pairs}{more}. Bring its answers into the "
        "data's order; or, where the data names its classes (folders, tables), take the teacher's order: data.labels = "
        f"{order}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return json.dumps(list(names[:_SHOWN]), ensure_ascii=False) + more


def _alike(one: object, other: object) -> bool:
    """Equal, but for numbers that were measured on other samples of the same data."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_NEAR, abs_tol=_NEAR_ZERO)
    return one == other


def _shown(step: object) -> str:
    return "nothing" if step is None else json.dumps(step)


def _names(text: str) -> tuple[str, ...]:
    """The classes of a Python or JSON literal {0: "name", ...} or ["name", ...]; none where it is something else."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    if isinstance(value, dict):
        value = [value.get(index) for index in range(len(value))]
    return tuple(value) if isinstance(value, list) and all(isinstance(name, str) for name in value) else ()
