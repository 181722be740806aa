"""From an image or array to an answer: `edgekd.load("student.edgekd").predict(x)`, with numpy and one runtime."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from edgekd.device.bundle import Bundle
from edgekd.device.postprocess import apply_post, parse_post_steps, threshold_of
from edgekd.device.preprocess import Raw, as_fed, prepare, split_steps
from edgekd.device.programs import classify, embed, multilabel, regress
from edgekd.device.programs.answer import Program
from edgekd.device.runtimes import Session, open_session
from edgekd.device.runtimes.chunks import CHUNK, rows_at_once, run_in_chunks
from edgekd.device.tokens import is_cut, tokenize_step
from edgekd.errors import BundleError, DataError, ModelError, UsageError
from edgekd.spec import Array

PROGRAMS: dict[str, Program] = {
    "classification": classify.interpret,
    "multilabel": multilabel.interpret,
    "regression": regress.interpret,
    "embedding": embed.interpret,
}


@dataclass(frozen=True)
class Prediction:
    """What the model says about one sample.

    label, index, score   the best label; label and index are None where a multilabel model finds none present, and for
                          an embedding, whose vector is in `outputs`
    top                   (label, score) pairs: the top_k classes, the labels that are present, or all targets
    outputs               what the graph gave for this sample, by name, before the bundle's postprocessing
    latency_ms            preprocessing, inference and postprocessing; in a batch, its share of the whole
    truncated             whether the text was longer than the model reads: its end was not looked at
    uncertainty           for classes, the entropy of their probabilities: 0 (sure of one) to 1 (all alike); else None
    """

    label: str | None
    index: int | None
    score: float
    top: tuple[tuple[str, float], ...]
    outputs: dict[str, Array]
    latency_ms: float
    uncertainty: float | None = None
    truncated: bool = False


def load(
    path: str | Path, *, variant: str | None = None, runtime: str = "onnxruntime", threads: int | None = None
) -> Predictor:
    """Open the bundle at `path` (folder or zip), check it, and load one variant (default: its choice for this CPU).

    `threads` defaults to 1. Raises `BundleError` for a bundle that must not be used, `UsageError` for an unknown
    variant or runtime or too many threads, `MissingExtra` when the runtime is not installed.
    """
    bundle = Bundle.open(path)
    graph = bundle.graph(variant=variant)
    session = open_session(graph, runtime=runtime, threads=threads)
    return Predictor(bundle, session, one_by_one=rows_at_once(graph, CHUNK) == 1)


class Predictor:
    """A loaded bundle. Threads may share it; `close` (or a `with` block) frees the model.

    bundle       the opened bundle
    session      the loaded graph
    one_by_one   whether a sample's answer would depend on its neighbours in a call (`rows_at_once`)
    """

    def __init__(self, bundle: Bundle, session: Session, *, one_by_one: bool = False) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.session = session
        self.one_by_one = one_by_one
        if len(session.inputs) != 1:
            names = ", ".join(spec.name for spec in session.inputs)
            raise UsageError(f"predict works on models with one input, this one has {names}; use edgekd.open_session")
        self._program = PROGRAMS[manifest["task"]]
        self._spatial, self._arithmetic = split_steps(bundle.steps())
        self._post = parse_post_steps(manifest["postprocess"])
        self._threshold = threshold_of(self._post)
        self._labels: tuple[str, ...] = tuple(manifest["labels"])
        self._input = session.inputs[0]
        self._output: str = manifest["outputs"][0]["name"]
        found = {spec.name: spec.shape for spec in session.outputs}
        if self._output not in found:
            raise BundleError(f"the graph gives {', '.join(found)}, but bundle.json expects '{self._output}'")
        shape = found[self._output]
        if len(shape) != 2 or (isinstance(shape[1], int) and shape[1] != len(self._labels)):
            raise BundleError(
                f"the output '{self._output}' has the shape {shape}, expected (N, {len(self._labels)}): one number per "
                "label of the bundle"
            )

    def predict(self, x: Raw, *, top_k: int = 1) -> Prediction:
        """The answer for one sample: a text, an image's path, its encoded bytes, or an array without batch axis.

        Raises `DataError` for an image or array that does not fit the preprocessing, `UsageError` for one that
        does not fit the model, and when the predictor is closed.
        """
        return self.predict_batch([x], top_k=top_k)[0]

    async def predict_async(self, x: Raw, *, top_k: int = 1) -> Prediction:
        """`predict` in a thread of the running event loop, which goes on meanwhile."""
        import asyncio  # here: it takes 7 MB, and who calls this has it already

        return await asyncio.to_thread(self.predict, x, top_k=top_k)

    def predict_batch(self, xs: Iterable[Raw], *, top_k: int = 1) -> list[Prediction]:
        """The answers for several samples, in their order; run together, a chunk at a time.

        One by one where the graph measures its activations in every call (int8_dynamic): the same answers as `predict`.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise UsageError(f"top_k is {top_k!r}, expected a whole number from 1")
        if isinstance(xs, (str, bytes, Path)):
            raise UsageError(f"predict_batch found one {type(xs).__name__}, expected a list of samples; use predict")
        started = time.perf_counter()
        xs = list(xs)
        if self.one_by_one and len(xs) > 1:
            return [self.predict(x, top_k=top_k) for x in xs]
        prepared = [prepare(self._spatial, x) for x in xs]
        if not prepared:
            return []
        step = tokenize_step(self._spatial)
        cut = [step is not None and is_cut(step, x, ids) for x, ids in zip(xs, prepared)]
        any_size = any(isinstance(size, str) for size in self._input.shape[1:])
        if not any_size and len({sample.shape for sample in prepared}) > 1:
            shapes = ", ".join(str(shape) for shape in sorted({sample.shape for sample in prepared}))
            raise DataError(
                f"the samples have the shapes {shapes}, expected one shape; call predict for each, or put a resize "
                "step into the preprocessing"
            )
        outputs = self._run(prepared)
        scores_ND = self._scores(outputs)
        answers = [
            self._program(scores_D, labels=self._labels, top_k=top_k, threshold=self._threshold)
            for scores_D in scores_ND
        ]
        latency_ms = 1000.0 * (time.perf_counter() - started) / len(prepared)
        return [
            Prediction(
                answer.label,
                answer.index,
                answer.score,
                answer.top,
                {name: array[row] for name, array in outputs.items()},
                latency_ms,
                answer.uncertainty,
                cut[row],
            )
            for row, answer in enumerate(answers)
        ]

    def warm_up(self) -> None:
        """Run the model once, so that the first prediction is not the slow one: on zeros, or a golden sample where the
        model takes samples of any size."""
        sample = np.zeros(self._input.concrete(), self._input.dtype)
        if any(isinstance(size, str) for size in self._input.shape[1:]):
            sample = self.bundle.golden().get(f"input.{self._input.name}", sample)[:1]
        self.session.run({self._input.name: sample})

    def close(self) -> None:
        """Free the model; predictions afterwards raise `UsageError`."""
        self.session.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, prepared: list[Array]) -> dict[str, Array]:
        """The outputs of all samples, in their order; those of one size run together."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, sample in enumerate(prepared):
            places.setdefault(sample.shape, []).append(place)
        parts = []
        for rows in places.values():
            ready = as_fed(self._arithmetic, np.stack([prepared[row] for row in rows]), self._input.dtype)
            parts.append(run_in_chunks(self.session, {self._input.name: ready}))
        if len(parts) == 1:
            return parts[0]
        order = np.argsort([row for rows in places.values() for row in rows])
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

    def _scores(self, outputs: dict[str, Array]) -> Array:
        scores_ND = apply_post(self._post, outputs[self._output])
        if scores_ND.ndim != 2 or scores_ND.shape[1] != len(self._labels):
            raise ModelError(
                f"the model gave {scores_ND.shape}, expected (N, {len(self._labels)}): one number per label"
            )
        if not np.isfinite(scores_ND).all():
            raise DataError("the model's answer is NaN or infinite; look for NaN or infinite values in the input")
        return scores_ND
