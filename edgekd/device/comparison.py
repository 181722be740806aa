"""Two results of `edgekd benchmark` beside each other: what changed, which changes are real, which are too much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgekd.device.changes import MEASURES, MORE_IS_BETTER, TOLERANCES, UNITS, Change, Measure, Side
from edgekd.device.differences import holm
from edgekd.errors import InputRefused, UsageError, nearest

SCHEMA = "edgekd.comparison/1"
# What must be equal for two machines to count as the same one.
MACHINE = ("cpu", "cores", "cores_allowed", "quota", "governor", "container", "gpu")
SETTINGS = ("runtime", "threads", "batch", "options")


@dataclass(frozen=True)
class Comparison:
    """All changes, what could not be compared and why, and the answer."""

    changes: tuple[Change, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    invalid: tuple[str, ...]
    tolerance: Mapping[str, float]
    confidence: float

    @property
    def regressions(self) -> tuple[str, ...]:
        """One sentence for each regression, and for each candidate that works no more."""
        said = [
            f"{item.candidate}: {item.metric} {item.before:.4g} -> {item.after:.4g} {item.unit} "
            f"({item.change:+.3g} {'points' if item.metric == 'accuracy' else '%'}, tolerance "
            f"{self.tolerance[item.metric]:g})"
            for item in self.changes
            if item.regression
        ]
        return (*said, *self.failures)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `edgekd compare --json` prints them."""
        return {"schema": SCHEMA, **asdict(self), "regressions": list(self.regressions)}


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    tolerance: Mapping[str, float] | None = None,
    across_machines: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two results (the dicts of results.json), candidate by candidate.

    A change is real when its p-value, adjusted by Holm for all comparisons at once, is below 1 - confidence, so that
    two results of the same thing differ anywhere in at most 5 % of cases. Latencies need at least 4 launches of each
    candidate. Accuracy is paired, and told only where both saw the same samples.
    `tolerance` replaces entries of `TOLERANCES`.

    Raises `UsageError` for an unknown metric, for different machines (unless `across_machines`) and where no
    candidate is in both; `InputRefused` for a damaged result.
    """
    limits = {**TOLERANCES, **(tolerance or {})}
    for key, value in limits.items():
        if key not in TOLERANCES:
            raise UsageError(f"tolerance '{key}': there is no such metric. {nearest(key, TOLERANCES)}")
        if not 0 <= value < math.inf:
            raise UsageError(f"tolerance {key}={value}: expected a number from 0")
    try:
        different = _different(before["machine"], after["machine"], MACHINE)
        if different and not across_machines:
            raise UsageError(
                f"the results are from different machines: {'; '.join(different)}. Latencies of different machines say "
                "nothing about a change; measure both on one, or add --across-machines"
            )
        notes = [f"different machines: {item}" for item in different]
        notes += [f"different versions: {item}" for item in _different(before["versions"], after["versions"])]
        changes, failures, more = _compare_candidates(before, after, confidence, seed)
        invalid = tuple(
            f"{side} is INVALID: {'; '.join(result['verdict']['reasons'])}"
            for side, result in (("before", before), ("after", after))
            if result["verdict"]["value"] != "VALID"
        )
    except (UsageError, InputRefused):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as error:
        raise InputRefused(
            f"a result lacks what a comparison needs ({type(error).__name__}: {error}); measure again with "
            "`edgekd benchmark --out`"
        ) from error
    judged = tuple(_judge(changes, limits, 1 - confidence))
    return Comparison(judged, tuple(failures), (*notes, *more), invalid, limits, confidence)


def _compare_candidates(
    before: Mapping[str, Any], after: Mapping[str, Any], confidence: float, seed: int
) -> tuple[list[Change], list[str], list[str]]:
    """The changes of every pair of candidates, those that work no more, and what was not compared and why."""
    pairs, notes = _match(before, after)
    changes: list[Change] = []
    failures: list[str] = []
    for old, new in pairs:
        name = str(new["id"])
        if bad := _bad(new):
            (notes if _bad(old) else failures).append(f"{name}: {bad}")
        elif settings := _different(old, new, SETTINGS):
            notes.append(f"{name} is not compared: {'; '.join(settings)}")
        elif _bad(old):
            notes.append(f"{name} is not compared: before, {_bad(old)}")
        else:
            sides = (Side(before, str(old["id"])), Side(after, name))
            for metric, measure in MEASURES.items():
                found = _measured(measure, *sides, confidence, seed)
                if isinstance(found, str):
                    notes.append(f"{name}: {metric} is not compared: {found}")
                elif found is not None:
                    changes.append(replace(found, candidate=name, metric=metric, unit=UNITS[metric]))
    return changes, failures, notes


def parse_tolerance(text: str) -> dict[str, float]:
    """`latency=5%,accuracy=0.5`: per cent of the value before, percentage points for accuracy.

    Raises `UsageError` for anything else.
    """
    found: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = item.partition("=")
        if key not in TOLERANCES:
            raise UsageError(f"--tolerance {item}: there is no such metric. {nearest(key, TOLERANCES)}")
        if key == "accuracy" and value.endswith("%"):
            raise UsageError(f"--tolerance {item}: accuracy is compared in percentage points; write accuracy=0.5")
        try:
            found[key] = float(value.removesuffix("%"))
        except ValueError as error:
            raise UsageError(f"--tolerance {item}: expected a number, as in {key}=5%") from error
        if not 0 <= found[key] < math.inf:
            raise UsageError(f"--tolerance {item}: expected a number from 0")
    return found


def _judge(changes: Sequence[Change], limits: Mapping[str, float], alpha: float) -> list[Change]:
    """Adjust the p-values, and say which changes are real, for the worse, and beyond their tolerance."""
    tested = [index for index, item in enumerate(changes) if item.p is not None]
    adjusted = dict(zip(tested, holm([item.p for item in changes if item.p is not None])))
    judged = []
    for index, item in enumerate(changes):
        p = adjusted.get(index)
        real = p < alpha if p is not None else item.low > 0 or item.high < 0
        down = -item.change if item.metric in MORE_IS_BETTER else item.change
        worse = real and down > 0
        judged.append(replace(item, p=p, real=real, worse=worse, regression=worse and down > limits[item.metric]))
    return judged


def _measured(measure: Measure, a: Side, b: Side, confidence: float, seed: int) -> Change | str | None:
    try:
        return measure(a, b, confidence, seed)
    except UsageError as error:  # too few blocks, or samples that do not fit each other: this metric only
        return str(error)


def _match(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[list[tuple[Mapping[str, Any], Mapping[str, Any]]], list[str]]:
    """Candidates of one id; one candidate on each side is a pair whatever they are called."""
    old = {str(item["id"]): item for item in before["candidates"]}
    new = {str(item["id"]): item for item in after["candidates"]}
    if len(old) == len(new) == 1:
        return list(zip(old.values(), new.values())), []
    both = [name for name in new if name in old]
    if not both:
        raise UsageError(
            f"no candidate is in both results: before there are {', '.join(old) or 'none'}, after "
            f"{', '.join(new) or 'none'}; compare results of the same candidates"
        )
    alone = [f"{name} is only in the result before" for name in old if name not in new]
    alone += [f"{name} is only in the result after" for name in new if name not in old]
    return [(old[name], new[name]) for name in both], alone


def _bad(candidate: Mapping[str, Any]) -> str:
    if candidate.get("error"):
        return f"it failed: {candidate['error']}"
    return "it does not give its golden outputs" if candidate.get("golden") == "WRONG" else ""


def _different(a: Mapping[str, Any], b: Mapping[str, Any], keys: Sequence[str] | None = None) -> list[str]:
    """`cpu 'x' and 'y'` for every key whose values differ."""
    names = keys if keys is not None else sorted({*a, *b})
    return [f"{key} {a.get(key)!r} and {b.get(key)!r}" for key in names if a.get(key) != b.get(key)]
