"""Running many samples through a session, whatever batch its graph takes."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekd.device.runtimes import Session
from edgekd.errors import UsageError
from edgekd.spec import Array

CHUNK = 64
# How the operators that measure an activation in every call begin; .onnx and .ort hold the names as they are.
_MEASURES = b"DynamicQuantize"


def rows_at_once(model: Path | bytes, most: int) -> int:
    """In how large batches a graph is judged: `most`, or one sample where it quantizes activations at run time.

    All samples of a call share one scale then, and padding has its part in it: another batch, other answers.
    """
    if isinstance(model, bytes):
        measures = _MEASURES in model
    elif not model.is_file() or not model.stat().st_size:  # a runtime of one's own may read what it likes
        measures = False
    else:
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            measures = content.find(_MEASURES) >= 0
    return 1 if measures else most


def answer_name(session: Session) -> str:
    """The output that holds the answer: "logits", where a graph names one so, else its first."""
    names = [spec.name for spec in session.outputs]
    return "logits" if "logits" in names else names[0]


def by_name_or_place(wanted: Sequence[str], found: Sequence[str]) -> dict[str, str]:
    """Which of `found` stands for each of `wanted`: that of the same name, or of the same place where names changed.

    Converters rename tensors ("serving_default_x:0", "in0") but keep their order. Where neither fits, what is missing
    stands for itself, so that whoever looks it up says so.
    """
    if not set(wanted) <= set(found) and len(wanted) == len(found):
        return dict(zip(wanted, found))
    return {name: name for name in wanted}


def run_in_chunks(session: Session, feeds: Mapping[str, Array], *, size: int = CHUNK) -> dict[str, Array]:
    """The outputs of N samples, `size` at a time, or as many as a graph with a fixed batch axis takes.

    The last chunk of a fixed batch is filled up with copies of its last sample, whose outputs are dropped.
    Raises `UsageError` for feeds of different lengths, or of none; otherwise what `session.run` raises.
    """
    lengths = {len(array) for array in feeds.values() if array.ndim > 0}
    if len(lengths) != 1 or lengths == {0}:
        raise UsageError(f"found inputs of the lengths {sorted(lengths)}, expected one length of at least 1")
    num_samples = lengths.pop()
    fixed = [spec.shape[0] for spec in session.inputs if spec.shape and isinstance(spec.shape[0], int)]
    step = int(fixed[0]) if fixed else size
    parts: list[dict[str, Array]] = []
    for start in range(0, num_samples, step):
        part = {name: array[start : start + step] for name, array in feeds.items()}
        missing = start + step - num_samples if fixed else 0
        if missing > 0:
            part = {name: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for name, a in part.items()}
        outputs = session.run(part)
        parts.append({name: a[: step - missing] if missing > 0 else a for name, a in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
