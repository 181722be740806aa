"""How far two models are apart: what counts as equal, and the worst of everything that both ran."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgekd.errors import UsageError, nearest
from edgekd.graph.axes import PROOF, candidates, inner_axes, resized, sizes_of
from edgekd.graph.sessions import RUNTIME_ERRORS, first_line
from edgekd.spec import Array, TensorSpec

Reference = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Precision = Literal["float32", "float16", "int8", "int4"]
BATCH = "batch size"


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
class Place:
    """One comparison: `size` rows, or `rows` rows with the axis `axis` at `size`."""

    axis: str
    size: int
    rows: int


@dataclass(frozen=True)
class VerifyResult:
    """The answer of `verify`. Differences are of floating outputs, over every sample and batch size that ran.

    max_abs_diff     largest |candidate - reference|
    max_rel_diff     the same, divided by the largest |reference| of that output
    label_agreement  share of rows with the same largest output; None where no output has labels
    problems         one sentence each; empty exactly when ok
    axes             symbolic axis behind the batch -> the sizes at which both were compared
    place            where the worst difference or the first failure was seen, to look closer there
    """

    ok: bool
    max_abs_diff: float
    max_rel_diff: float
    label_agreement: float | None
    batch_sizes: tuple[int, ...]
    num_samples: int
    tolerance: Tolerance
    problems: tuple[str, ...]
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    place: Place | None = None

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
            "axes": {name: list(sizes) for name, sizes in self.axes.items()},
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


def rows_of(samples: Mapping[str, Array], start: int, count: int) -> dict[str, Array]:
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
    place: Place | None = None


class Comparison:
    """Runs both models on the same rows, again and again, and keeps the worst that it saw."""

    def __init__(self, reference: Reference, candidate: Reference, tolerance: Tolerance | Precision, labels: bool):
        self._models = (("the reference itself", reference), ("the candidate", candidate))
        self._tolerance = tolerance
        self._labels = labels
        scale_free = tolerance if isinstance(tolerance, Tolerance) else tolerance_for(tolerance, 0.0, labels=labels)
        self._rel, self._wanted_agreement = scale_free.rel, scale_free.label_agreement
        self._seen: dict[str, _Seen] = {}
        self._failures: dict[str, tuple[str, list[Place]]] = {}
        self._axes: dict[str, tuple[int, ...]] = {}
        self._agreed = self._counted = 0

    def compare(self, feeds: Mapping[str, Array], *, count: int, place: Place | None = None) -> bool:
        """Run both; False when they cannot be compared. The first `count` rows are counted for agreement."""
        size = len(next(iter(feeds.values())))
        place = place or Place(BATCH, size, size)
        results: list[Mapping[str, Array]] = []
        for title, run in self._models:
            try:
                results.append(run(feeds))
            except RUNTIME_ERRORS as error:
                self._fail(f"{title} fails", first_line(error), place)
                return False
        expected, found = results
        missing = sorted(set(expected) - set(found))
        if missing:
            self._fail(f"the candidate lacks the outputs {missing}", f"it has {sorted(found)}", place)
            return False
        return all(
            [self._compare_output(name, np.asarray(expected[name]), found[name], count, place) for name in expected]
        )

    def compare_axes(
        self,
        specs: Sequence[TensorSpec],
        samples: Mapping[str, Array],
        wanted: Mapping[str, Sequence[int]],
        rows: Sequence[int],
        most: int | None = None,
    ) -> None:
        """Compare at several sizes of each symbolic axis, none of them above `most`, and with all changed at once."""
        own = sizes_of(specs, samples)
        names = inner_axes(specs)
        for name in wanted:
            if name not in names:
                raise UsageError(
                    f"axes: the inputs have no symbolic axis '{name}' behind the batch. {nearest(name, names)}"
                )
        for name in names:
            sizes = tuple(dict.fromkeys(wanted.get(name, candidates(own[name], most))))
            for index, size in enumerate(sizes):
                ran = self._axes.setdefault(name, () if name in wanted else (own[name],))
                if name not in wanted and len(ran) > PROOF:
                    break
                count = rows[index % len(rows)]
                feeds = resized(specs, rows_of(samples, index, count), {name: size})
                # A size that was only tried, and that the reference does not take, says nothing.
                if name in wanted or self._takes(feeds):
                    self.compare(feeds, count=0, place=Place(name, size, count))
                    self._axes[name] = (*ran, size)
        together = {name: sizes[-1] for name, sizes in self._axes.items() if len(sizes) > 1}
        if len(together) > 1:
            feeds = resized(specs, rows_of(samples, 0, rows[0]), together)
            if self._takes(feeds):
                self.compare(feeds, count=0, place=Place(*next(iter(together.items())), rows[0]))

    def _takes(self, feeds: Mapping[str, Array]) -> bool:
        try:
            self._models[0][1](feeds)
        except RUNTIME_ERRORS:
            return False
        return True

    def _compare_output(self, name: str, expected: Array, found: Array, count: int, place: Place) -> bool:
        if expected.shape != found.shape:
            text = f"{list(found.shape)} instead of {list(expected.shape)}"
            self._fail(f"output '{name}' of the candidate has the wrong shape", text, place)
            return False
        if expected.dtype.kind != "f" or found.dtype.kind != "f":
            self._compare_whole(name, expected, found, count, place)
            return True
        for title, values in (("reference", expected), ("candidate", found)):
            bad = int(np.count_nonzero(~np.isfinite(values)))
            if bad:
                self._fail(
                    f"output '{name}' of the {title} is NaN or infinite", f"{bad} of {values.size} numbers", place
                )
                return False
        seen = self._seen.setdefault(name, _Seen())
        if not expected.size:
            return True
        magnitude = np.abs(expected.astype(np.float64))
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        excess = float((difference - self._rel * magnitude).max())
        if excess > seen.excess:
            seen.excess, seen.place = excess, place
        seen.magnitude = max(seen.magnitude, float(magnitude.max()))
        seen.difference = max(seen.difference, float(difference.max()))
        if self._labels and expected.ndim >= 2 and expected.shape[-1] > 1:
            same = expected[:count].argmax(axis=-1) == found[:count].argmax(axis=-1)
            self._agreed, self._counted = self._agreed + int(same.sum()), self._counted + same.size
        return True

    def _compare_whole(self, name: str, expected: Array, found: Array, count: int, place: Place) -> None:
        """Whole numbers are labels: equal, or counted where the tolerance asks for a share of agreement."""
        same = np.atleast_1d(expected == found)
        self._agreed, self._counted = self._agreed + int(same[:count].sum()), self._counted + same[:count].size
        if self._wanted_agreement is None and not same.all():
            text = f"{int((~same).sum())} of {same.size} values"
            self._fail(f"output '{name}' of the candidate differs from the reference", text, place)

    def _fail(self, what: str, detail: str, place: Place) -> None:
        self._failures.setdefault(what, (detail, []))[1].append(place)

    def result(self, problems: Sequence[str], batch_sizes: tuple[int, ...], num_samples: int) -> VerifyResult:
        """What `verify` answers after the last comparison."""
        found = list(problems)
        for what, (detail, places) in self._failures.items():
            hint = ""
            failed = {place.size for place in places if place.axis == BATCH}
            if "candidate" in what and failed and batch_sizes and not failed & set(batch_sizes):
                hint = "; its batch axis is frozen inside the graph (a constant shape?), export it with a symbolic axis"
            found.append(f"{what} at {_told(places)} ({detail}){hint}")
        abs_tolerance = 0.0
        worst = next((places[0] for _, places in self._failures.values()), None)
        for name, seen in self._seen.items():
            tolerance = self._tolerance_of(seen)
            abs_tolerance = max(abs_tolerance, tolerance.abs)
            if seen.excess > tolerance.abs and seen.place is not None:
                worst = worst or seen.place
                found.append(
                    f"output '{name}' differs by up to {seen.difference:.3g} where its largest value is "
                    f"{seen.magnitude:.3g} (worst at {_told([seen.place])}); allowed are "
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
            axes=dict(self._axes),
            place=worst,
        )

    def _tolerance_of(self, seen: _Seen) -> Tolerance:
        if isinstance(self._tolerance, Tolerance):
            return self._tolerance
        return tolerance_for(self._tolerance, seen.magnitude, labels=self._labels)


def _told(places: Sequence[Place]) -> str:
    """`batch sizes 2, 3` or `L = 5, 7`."""
    texts = []
    for axis in dict.fromkeys(place.axis for place in places):
        sizes = sorted({place.size for place in places if place.axis == axis})
        numbers = ", ".join(map(str, sizes))
        texts.append(f"{BATCH}{'s' if len(sizes) > 1 else ''} {numbers}" if axis == BATCH else f"{axis} = {numbers}")
    return " and ".join(texts)
