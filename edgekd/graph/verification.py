"""Does a candidate graph compute what its reference computes, at every batch size and on real samples?

Exporters freeze batch axes without a word and converters write wrong graphs "successfully", so nothing is trusted
that was not run: several batch sizes, rows in different neighbourhoods, every sample, every output.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgekd.errors import UsageError, nearest
from edgekd.graph.sessions import RUNTIME_ERRORS, GraphSession, first_line, open_graph
from edgekd.spec import Array

Reference = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Precision = Literal["float32", "float16", "int8", "int4"]
BATCH_SIZES = (1, 2, 3, 5, 8, 16)
_ROWS_PER_PASS = 64


@dataclass(frozen=True)
class Tolerance:
    """What still counts as equal: |candidate - reference| <= abs + rel * |reference| for every number, and the same
    largest output (or the same whole number) in at least `label_agreement` of the rows, where that is given."""

    abs: float
    rel: float
    label_agreement: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """The fields of a bundle's `tolerance`."""
        return {"abs": self.abs, "rel": self.rel, "label_agreement": self.label_agreement}


# (abs as a share of the largest output, rel, label_agreement). Float: rounding of long sums, 20 times what deep
# nets show (1e-7 to 5e-7 of the largest output). Integers: a net that is broken, not one that is merely coarse;
# whether it is good enough is decided by the accuracy limit, on the validation split.
PRECISIONS: dict[Precision, tuple[float, float, float | None]] = {
    "float32": (1e-5, 1e-4, None),
    "float16": (5e-3, 1e-2, 0.98),
    "int8": (0.25, 0.0, 0.9),
    "int4": (0.5, 0.0, 0.8),
}


@dataclass(frozen=True)
class VerifyResult:
    """The answer of `verify`. Differences are of floating outputs, over every sample and batch size that ran.

    max_abs_diff     largest |candidate - reference|
    max_rel_diff     the same, divided by the largest |reference| of that output
    label_agreement  share of rows with the same largest output; None where no output has labels
    problems         one sentence each; empty exactly when ok
    """

    ok: bool
    max_abs_diff: float
    max_rel_diff: float
    label_agreement: float | None
    batch_sizes: tuple[int, ...]
    num_samples: int
    tolerance: Tolerance
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; a difference that could not be measured is null."""
        return {
            "ok": self.ok,
            "max_abs_diff": self.max_abs_diff if math.isfinite(self.max_abs_diff) else None,
            "max_rel_diff": self.max_rel_diff if math.isfinite(self.max_rel_diff) else None,
            "label_agreement": self.label_agreement,
            "batch_sizes": list(self.batch_sizes),
            "num_samples": self.num_samples,
            "tolerance": self.tolerance.to_json(),
            "problems": list(self.problems),
        }


def tolerance_for(precision: Precision, magnitude: float, *, labels: bool = True) -> Tolerance:
    """The tolerance for a candidate of `precision` whose outputs reach `magnitude` (largest |reference|).

    `labels` False: the outputs are not scores of classes (regression), so no agreement is asked for.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"no tolerance is known for the precision {precision!r}. {nearest(str(precision), PRECISIONS)}"
        )
    share, rel, agreement = PRECISIONS[precision]
    # A model whose outputs are all zero still rounds: float32 cannot promise less than this.
    return Tolerance(abs=max(share * magnitude, 1e-7), rel=rel, label_agreement=agreement if labels else None)


def verify(
    reference: str | os.PathLike[str] | bytes | Reference,
    candidate: str | os.PathLike[str] | bytes,
    samples: Mapping[str, Array],
    *,
    tolerance: Tolerance | Precision | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    labels: bool = True,
) -> VerifyResult:
    """Compare `candidate` (ONNX file or bytes) with `reference` (the same, or a function of named arrays).

    samples      input name -> (N, ...), model-ready; N >= 1. At each batch size rows are taken in turn, from the
                 beginning again where N is smaller; then all N samples are compared once more.
    tolerance    None: that of "float32", scaled by the magnitude of each of the reference's outputs; another
                 precision's name scales likewise; a `Tolerance` is taken as it is.
    batch_sizes  a reference file whose own batch axis is fixed is compared at that size only.
    labels       False: the outputs are no scores of classes (regression), agreement is not asked for.

    A difference is an answer (`ok` False and a sentence in `problems`), not an error. Raises `ModelError` when a
    model cannot be loaded and `UsageError` when the samples do not fit the inputs.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"batch_sizes are {list(batch_sizes)}; expected at least one, each 1 or more")
    session = open_graph(candidate, name="the candidate" if isinstance(candidate, bytes) else "")
    num_samples = session.check_samples(samples)
    fixed = None
    run_reference: Reference
    if isinstance(reference, (str, bytes, os.PathLike)):
        original = open_graph(reference, name="the reference" if isinstance(reference, bytes) else "")
        original.check_samples(samples)
        run_reference, fixed = original.run, _fixed_batch(original)
    else:
        run_reference = reference
    sizes = tuple(batch_sizes) if fixed is None else (fixed,)
    frozen = _fixed_batch(session)
    problems = []
    if frozen is not None and frozen != fixed:
        takes = "any batch size" if fixed is None else f"batches of {fixed}"
        problems.append(
            f"the candidate's batch axis is fixed at {frozen} but the reference takes {takes}: "
            "export it with a symbolic first axis"
        )
        sizes = (frozen,) if fixed is None else ()
    comparison = Comparison(run_reference, session.run, tolerance or "float32", labels)
    ran = tuple(size for size in sizes if comparison.compare(_rows(samples, 0, size), count=0))
    if ran:
        # Where some sizes fail, the rest of the samples can only be compared at one that runs.
        step = max(ran) if len(ran) < len(sizes) or frozen or fixed else max(_ROWS_PER_PASS, *ran)
        for start in range(0, num_samples, step):
            comparison.compare(_rows(samples, start, step), count=min(step, num_samples - start))
    return comparison.result(problems, ran, num_samples)


def _fixed_batch(session: GraphSession) -> int | None:
    sizes = [spec.shape[0] for spec in session.inputs if spec.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def _rows(samples: Mapping[str, Array], start: int, count: int) -> dict[str, Array]:
    """`count` rows from `start` on, from the beginning again at the end: a fixed batch axis takes no short batch."""
    return {
        name: np.ascontiguousarray(array[np.arange(start, start + count) % len(array)])
        for name, array in samples.items()
    }


@dataclass
class _Seen:
    """The worst of one floating output; `excess` is the largest |difference| - rel * |reference|."""

    magnitude: float = 0.0
    difference: float = 0.0
    excess: float = 0.0
    batch_size: int = 0


class Comparison:
    """Runs both models on the same rows, again and again, and keeps the worst that it saw."""

    def __init__(self, reference: Reference, candidate: Reference, tolerance: Tolerance | Precision, labels: bool):
        self._models = (("the reference itself", reference), ("the candidate", candidate))
        self._tolerance = tolerance
        self._labels = labels
        scale_free = tolerance if isinstance(tolerance, Tolerance) else tolerance_for(tolerance, 0.0, labels=labels)
        self._rel, self._wanted_agreement = scale_free.rel, scale_free.label_agreement
        self._seen: dict[str, _Seen] = {}
        self._failures: dict[str, tuple[str, set[int]]] = {}
        self._agreed = self._counted = 0

    def compare(self, feeds: Mapping[str, Array], *, count: int) -> bool:
        """Run both; False when they cannot be compared. The first `count` rows are counted for agreement."""
        size = len(next(iter(feeds.values())))
        results: list[Mapping[str, Array]] = []
        for title, run in self._models:
            try:
                results.append(run(feeds))
            except RUNTIME_ERRORS as error:
                self._fail(f"{title} fails", first_line(error), size)
                return False
        expected, found = results
        missing = sorted(set(expected) - set(found))
        if missing:
            self._fail(f"the candidate lacks the outputs {missing}", f"it has {sorted(found)}", size)
            return False
        return all([self._compare_output(name, np.asarray(expected[name]), found[name], count) for name in expected])

    def _compare_output(self, name: str, expected: Array, found: Array, count: int) -> bool:
        size = len(expected) if expected.ndim else 0
        if expected.shape != found.shape:
            text = f"{list(found.shape)} instead of {list(expected.shape)}"
            self._fail(f"output '{name}' of the candidate has the wrong shape", text, size)
            return False
        if expected.dtype.kind != "f" or found.dtype.kind != "f":
            self._compare_whole(name, expected, found, count)
            return True
        for title, values in (("reference", expected), ("candidate", found)):
            bad = int(np.count_nonzero(~np.isfinite(values)))
            if bad:
                self._fail(
                    f"output '{name}' of the {title} is NaN or infinite", f"{bad} of {values.size} numbers", size
                )
                return False
        seen = self._seen.setdefault(name, _Seen())
        if not expected.size:
            return True
        magnitude = np.abs(expected.astype(np.float64))
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        excess = float((difference - self._rel * magnitude).max())
        if excess > seen.excess:
            seen.excess, seen.batch_size = excess, size
        seen.magnitude = max(seen.magnitude, float(magnitude.max()))
        seen.difference = max(seen.difference, float(difference.max()))
        if self._labels and expected.ndim >= 2 and expected.shape[-1] > 1:
            same = expected[:count].argmax(axis=-1) == found[:count].argmax(axis=-1)
            self._agreed, self._counted = self._agreed + int(same.sum()), self._counted + same.size
        return True

    def _compare_whole(self, name: str, expected: Array, found: Array, count: int) -> None:
        """Whole numbers are labels: equal, or counted where the tolerance asks for a share of agreement."""
        same = np.atleast_1d(expected == found)
        self._agreed, self._counted = self._agreed + int(same[:count].sum()), self._counted + same[:count].size
        if self._wanted_agreement is None and not same.all():
            text = f"{int((~same).sum())} of {same.size} values"
            self._fail(f"output '{name}' of the candidate differs from the reference", text, len(same))

    def _fail(self, what: str, detail: str, batch_size: int) -> None:
        self._failures.setdefault(what, (detail, set()))[1].add(batch_size)

    def result(self, problems: Sequence[str], batch_sizes: tuple[int, ...], num_samples: int) -> VerifyResult:
        """What `verify` answers after the last comparison."""
        found = list(problems)
        for what, (detail, sizes) in self._failures.items():
            hint = ""
            if "candidate" in what and batch_sizes and not sizes & set(batch_sizes):
                hint = "; its batch axis is frozen inside the graph (a constant shape?), export it with a symbolic axis"
            plural = "s" if len(sizes) > 1 else ""
            found.append(f"{what} at batch size{plural} {', '.join(map(str, sorted(sizes)))} ({detail}){hint}")
        abs_tolerance = 0.0
        for name, seen in self._seen.items():
            tolerance = self._tolerance_of(seen)
            abs_tolerance = max(abs_tolerance, tolerance.abs)
            if seen.excess > tolerance.abs:
                found.append(
                    f"output '{name}' differs by up to {seen.difference:.3g} where its largest value is "
                    f"{seen.magnitude:.3g} (worst at batch size {seen.batch_size}); allowed are "
                    f"{tolerance.abs:.3g} + {tolerance.rel:.3g} of the value"
                )
        agreement = self._agreed / self._counted if self._counted else None
        wanted = self._wanted_agreement
        if wanted is not None and agreement is not None and agreement < wanted:
            found.append(
                f"the candidate gives the reference's label for {self._agreed} of {self._counted} samples "
                f"({agreement:.1%}); expected at least {wanted:.1%}"
            )
        if not batch_sizes and not found:
            found.append("nothing could be compared: no batch size ran")
        shares = [s.difference / s.magnitude if s.magnitude else float(s.difference > 0) for s in self._seen.values()]
        nothing = 0.0 if batch_sizes else math.inf  # whole numbers only, or nothing that ran
        return VerifyResult(
            ok=not found,
            max_abs_diff=max((s.difference for s in self._seen.values()), default=nothing),
            max_rel_diff=max(shares, default=nothing),
            label_agreement=agreement,
            batch_sizes=batch_sizes,
            num_samples=num_samples,
            tolerance=Tolerance(abs_tolerance, self._rel, wanted),
            problems=tuple(found),
        )

    def _tolerance_of(self, seen: _Seen) -> Tolerance:
        if isinstance(self._tolerance, Tolerance):
            return self._tolerance
        return tolerance_for(self._tolerance, seen.magnitude, labels=self._labels)
