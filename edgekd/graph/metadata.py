"""What travels inside a graph for whoever opens it alone: key-value pairs under the names that others read.

Netron shows all of them. `names`, `task`, `imgsz`, `stride`, `batch` and `channels` are spelled as Ultralytics' loader
expects them: Python literals in text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from edgekd.device.tokens import tokenize_step, vocabulary_of
from edgekd.errors import RecipeError
from edgekd.files import sha256_bytes
from edgekd.spec import Step, Tokenize, parse_steps, steps_to_json
from edgekd.version import __version__

_TASKS = {"classification": "classify"}


def metadata(
    *,
    name: str,
    task: str,
    labels: Sequence[str] = (),
    licence: str = "",
    sample_shape: Sequence[int] = (),
    steps: Sequence[Step] | None = (),
    tokens: Sequence[str] = (),
) -> dict[str, str]:
    """The pairs for a model; nothing about when, where and by whom it was made, so that equal models stay equal.

    sample_shape  of one model-ready sample; (channels, height, width) is an image
    steps         what turns raw samples into that; None where nobody said it, of which the file then says nothing
    tokens        what each id of a text stands for; those of the steps' own tokenizer need not be given
    """
    step = tokenize_step(steps or ())
    tokens = tokens if step is None or not step.content else vocabulary_of(step).tokens
    pairs = {
        "description": f"{name}: {task} model made with edgekd",
        "license": licence or "not stated",
        **meaning(labels, steps, tokens),
        "producer": "edgekd",
        "task": _TASKS.get(task, task),
        "version": __version__,
    }
    if len(sample_shape) == 3:
        channels, height, width = sample_shape
        pairs |= {"batch": "1", "channels": str(channels), "imgsz": str([height, width]), "stride": "1"}
    return pairs


def meaning(labels: Sequence[str], steps: Sequence[Step] | None, tokens: Sequence[str] = ()) -> dict[str, str]:
    """The pairs that say what goes in and what comes out: of a graph, and of weights alone.

    steps   None where they are not known
    tokens  what each id of a text stands for, of which the SHA-256 is kept
    """
    made = {} if steps is None else {"preprocess": json.dumps(steps_to_json(tuple(steps)))}
    read = {"tokens": tokens_sha256(tokens)} if tokens else {}
    return {"names": str(dict(enumerate(labels))), **made, **read}


def tokens_sha256(tokens: Sequence[str]) -> str:
    """The SHA-256 of a vocabulary, in the order of its ids."""
    return sha256_bytes(json.dumps(list(tokens)).encode())


def steps_in(pairs: Mapping[str, str]) -> tuple[Step, ...] | None:
    """What turns raw samples into the input, by the file's own word; None where it says nothing that edgekd knows."""
    try:
        return parse_steps(json.loads(pairs["preprocess"]))
    except (KeyError, ValueError, TypeError, AttributeError, RecipeError):
        return None


def most_tokens(pairs: Mapping[str, str]) -> int | None:
    """How many tokens the longest text has that a file says it reads; None where it says nothing of texts."""
    return next((step.max_length for step in steps_in(pairs) or () if isinstance(step, Tokenize)), None)
