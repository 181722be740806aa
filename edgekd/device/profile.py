"""Which operators a model spends its time in, told by runtimes that can tell it.

Timing every operator slows the calls, so it is done in a process of its own, after everything else was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edgekd.device.runtimes import OperatorTime, Session
from edgekd.errors import UsageError
from edgekd.spec import Array

CALLS = 50
WARM_UP = 5
COSTLIEST = 10


@runtime_checkable
class TellsOperators(Protocol):
    """A session that was opened with the option "profile" and can tell what each operator took."""

    def operator_times(self) -> list[OperatorTime]:
        """One entry per operator and call, in the order of time."""
        ...


def can_tell(session: Session) -> bool:
    """Whether the runtime times its operators."""
    return isinstance(session, TellsOperators)


def profile(session: Session, feeds: Mapping[str, Array], *, calls: int = CALLS) -> dict[str, Any]:
    """Run `calls` times, after a few to warm up, and give what `summarize` makes of it.

    Raises `UsageError` for a runtime that does not time its operators.
    """
    if not isinstance(session, TellsOperators):
        raise UsageError("this runtime does not tell what its operators take; onnxruntime and openvino do")
    for _ in range(WARM_UP + calls):
        session.run(feeds)
    return summarize(session.operator_times(), calls=calls)


def summarize(times: Sequence[OperatorTime], *, calls: int, most: int = COSTLIEST) -> dict[str, Any]:
    """`{calls, total_ms, operators: [{name, kind, ms, share}]}`, the costliest first.

    `ms` is the median of an operator's last `calls` calls, `total_ms` the sum over all operators, `share` its part.
    """
    by_name: dict[tuple[str, str], list[float]] = {}
    for item in times:
        by_name.setdefault((item.name, item.kind), []).append(item.ms)
    medians = {key: float(np.median(values[-calls:])) for key, values in by_name.items()}
    total = sum(medians.values())
    ranked = sorted(medians.items(), key=lambda entry: -entry[1])[:most]
    return {
        "calls": calls,
        "total_ms": total,
        "operators": [
            {"name": name, "kind": kind, "ms": ms, "share": ms / total if total else 0.0} for (name, kind), ms in ranked
        ],
    }
