"""Somebody's finished graph as a bundle holds it: one input, the steps that lead there, samples to prove it with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.device.preprocess import apply_arithmetic, split_steps
from edgekd.device.texts import IDS, all_inputs, ids_of
from edgekd.device.tokens import encode, tokenize_step, vocabulary_of
from edgekd.errors import AnswerIsNo, DataError, EdgekdError, InputRefused, UsageError
from edgekd.graph.clean import load_model
from edgekd.graph.inspection import Inspection
from edgekd.graph.metadata import tokens_sha256
from edgekd.graph.text_inputs import alone, reading_ids_alone, table_rows
from edgekd.spec import Array, CenterCrop, Layout, Resize, Step, TensorSpec, Tokenize, Trim, Vocabulary
from edgekd.stages.alone import random_feeds
from edgekd.stages.inside import run_graph
from edgekd.stages.shipping import GOLDEN_SAMPLES, golden_tolerance
from edgekd.stages.texts import opened, random_texts

_OF_TEXTS = "A model of texts: say so with --preprocess, whose first step is tokenize"
# Of a golden text.
MOST_TOKENS = 48


@dataclass(frozen=True)
class Network:
    """Somebody's graph as a bundle holds it.

    spec        its one input
    steps       what turns raw samples into that
    raw, feeds  samples before the arithmetic steps (N, ...), and as the graph reads them
    warnings    what may be wrong with it, a sentence each
    """

    graph: Path | bytes
    spec: TensorSpec
    steps: tuple[Step, ...]
    raw: Array
    feeds: Mapping[str, Array]
    warnings: tuple[str, ...] = ()


def network_of_numbers(model: Path, found: Inspection, steps: tuple[Step, ...], seed: int) -> Network:
    """A graph of images or rows of numbers, with random ones."""
    if len(found.inputs) != 1:
        raise InputRefused(
            f"{model} has {len(found.inputs)} inputs; bundles of such models are not made yet, expected one. "
            f"({_OF_TEXTS})"
        )
    spec = found.inputs[0]
    if _reads_ids(model, spec):
        # Of ids that are 0 or 1 its golden vectors would hold whatever the rest of the table is.
        raise InputRefused(
            f"{model} reads {spec.name} {spec.dtype} {list(spec.shape)}, which are ids of tokens; expected images or "
            f"rows of numbers. {_OF_TEXTS}"
        )
    feeds = random_feeds((spec,), GOLDEN_SAMPLES, seed)
    raw = feeds[spec.name]
    if steps:
        raw = raw_for(steps, spec, seed)
        feeds = {spec.name: apply_arithmetic(split_steps(steps)[1], raw)}
    return Network(model, spec, steps, raw, feeds)


def _reads_ids(model: Path, spec: TensorSpec) -> bool:
    """Whether whole numbers (N, L) are ids: so called, of any length, or looked up in a table."""
    if spec.dtype not in ("int64", "int32") or len(spec.shape) != 2:
        return False
    is_open = spec.name == IDS or isinstance(spec.shape[1], str)
    return is_open or table_rows(load_model(model), spec.name) is not None


def network_of_texts(model: Path, found: Inspection, steps: tuple[Step, ...], seed: int) -> Network:
    """A graph of texts, with random tokens: mask and types of tokens made inside, and the same as before."""
    try:
        steps = opened(steps, Path.cwd())
    except DataError as error:
        raise UsageError(str(error).replace("preprocess.steps", "--preprocess", 1)) from error
    step, ids = tokenize_step(steps), ids_of(found.inputs)
    assert step is not None, "asked for by whoever calls this"
    vocabulary = vocabulary_of(step)
    _check_tokens(model, found, steps, step, vocabulary)
    is_alone = len(found.inputs) == 1 and ids.dtype == "int64"
    pad, loaded = vocabulary.pad, load_model(model)
    graph = model if is_alone else reading_ids_alone(loaded, found.inputs, pad).SerializeToString(deterministic=True)
    rows, warnings = table_rows(loaded, ids.name) or 0, list[str]()
    if rows > vocabulary.size and "tokens" not in found.metadata:
        warnings.append(
            f"{step.file} has {vocabulary.size:,} tokens, but {model} a table of {rows:,} rows, and the file does not "
            "say what its ids stand for. Some models have rows to spare; if yours has none, this is not its tokenizer: "
            "compare a few answers with those that it gave before"
        )
    raw = texts_for(step, vocabulary, GOLDEN_SAMPLES, seed)
    feeds = {ids.name: apply_arithmetic(split_steps(steps)[1], raw)}
    # As long as can be, with the last of the tokens.
    longest = np.full((1, step.max_length), vocabulary.size - 1 if vocabulary.size - 1 != pad else 0, np.int64)
    for batch in (feeds[ids.name], longest):
        try:
            before = run_graph(model, all_inputs(found.inputs, batch, pad))
        except EdgekdError as error:
            raise InputRefused(
                f"{model} fails on texts of {batch.shape[1]} tokens, of the {vocabulary.size} that its tokenizer "
                f"knows: {error}. Is it the model's own tokenizer, and max_length at most what the model reads?"
            ) from error
        after = before if is_alone else run_graph(graph, {ids.name: batch})
        for name, values in before.items():
            allowed = golden_tolerance(found.precision, [values])["abs"]
            if not np.allclose(after[name], values, rtol=0, atol=allowed):
                worst = float(np.abs(after[name] - values).max())
                raise AnswerIsNo(f"{model}: with its mask made inside, {name} differs by {worst:.2g}")
    return Network(graph, alone(ids), steps, raw, feeds, tuple(warnings))


def _check_tokens(
    model: Path, found: Inspection, steps: Sequence[Step], step: Tokenize, vocabulary: Vocabulary
) -> None:
    """Whether texts that went through the steps are what the graph reads."""
    length, is_trimmed = ids_of(found.inputs).shape[1], any(isinstance(item, Trim) for item in steps)
    if step.vocabulary is not None:
        raise UsageError(
            "--preprocess: vocabulary cuts a tokenizer down to a run's data; leave it out for a finished model"
        )
    if isinstance(length, int) and (is_trimmed or step.max_length != length):
        raise UsageError(
            f"--preprocess: {model} reads exactly {length} tokens, found max_length = {step.max_length}"
            f"{' and trim' if is_trimmed else ''}; expected max_length = {length} and no trim"
        )
    stated = found.metadata.get("tokens")
    if stated is not None and stated != tokens_sha256(vocabulary.tokens):
        raise UsageError(
            f"--preprocess: {step.file} is not the tokenizer of {model}: the file says that its ids stand for other "
            "tokens; take the tokenizer.json that lay beside it"
        )


def texts_for(step: Tokenize, vocabulary: Vocabulary, count: int, seed: int) -> Array:
    """Random texts (count, max_length) of a few dozen tokens, with the tokenizer's own at both ends."""
    rng = np.random.default_rng(seed)
    own = encode(step, "")
    own = own[own != vocabulary.pad]
    lengths = rng.integers(min(len(own) + 1, step.max_length), min(step.max_length, MOST_TOKENS) + 1, count)
    rows = np.where(
        np.arange(step.max_length) < lengths[:, None], (vocabulary.pad + 1) % vocabulary.size, vocabulary.pad
    )
    if len(own) > 1:
        rows[:, 0], rows[np.arange(count), lengths - 1] = own[0], own[-1]
    return random_texts(rows, vocabulary, count, rng)


def raw_for(steps: Sequence[Step], spec: TensorSpec, seed: int) -> Array:
    """Random uint8 samples as the arithmetic steps read them, that end in the model's input shape, or a clear error."""
    rng = np.random.default_rng(seed)
    spatial, arithmetic = split_steps(steps)
    shape = spec.concrete()[1:]
    moves = [step.to for step in arithmetic if isinstance(step, Layout)]
    sizes = [step.size for step in spatial if isinstance(step, (Resize, CenterCrop)) and isinstance(step.size, tuple)]
    before = (shape[1], shape[2], shape[0]) if "CHW" in moves and len(shape) == 3 else shape
    if "flat" in moves and sizes:
        before = (*sizes[-1], math.prod(shape) // math.prod(sizes[-1]))
    raw: Array = rng.integers(0, 256, (GOLDEN_SAMPLES, *before), dtype=np.uint8)
    made = apply_arithmetic(arithmetic, raw).shape[1:]
    if made != shape:
        raise UsageError(
            f"--preprocess makes samples of shape {made}, but the model's input is {spec.shape}; check layout"
        )
    return raw
