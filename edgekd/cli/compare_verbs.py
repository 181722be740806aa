"""The verb `compare`: two results of `benchmark --out` beside each other, with an exit code for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.cli import tables
from edgekd.cli.options import Common
from edgekd.errors import AnswerIsNo

if TYPE_CHECKING:
    from edgekd.device.changes import Change
    from edgekd.device.comparison import Comparison

COLUMNS = ("model", "metric", "before", "after", "change", "interval", "p", "")


def compare(
    common: Common,
    before: Annotated[
        Path, typer.Argument(metavar="A.json", help="The result before: of `benchmark --out`, or a run.")
    ],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The result after.")],
    tolerance: Annotated[
        str,
        typer.Option(
            "--tolerance",
            metavar="latency=5%,accuracy=0.5",
            help="How much worse each may become (default: latency=5%, latency_p90=10%, cold_start=10%, speedup=5%, "
            "memory=5%, size=1%, accuracy=0.5 points).",
        ),
    ] = "",
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare although the machines differ.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 also when one of the results is INVALID.")] = False,
) -> None:
    """Which differences between two results are real; exit 1 on a regression beyond the tolerance, for CI.

    Examples:

      edgekd compare main.json branch.json

      edgekd compare main.json branch.json --tolerance latency=3%,accuracy=0.2 --json
    """
    from edgekd.device.comparison import compare as compare_results
    from edgekd.device.comparison import parse_tolerance
    from edgekd.results import read_results

    found = compare_results(
        read_results(before),
        read_results(after),
        tolerance=parse_tolerance(tolerance),
        across_machines=across_machines,
        seed=common.seed or 0,
    )
    if common.as_json:
        common.print_json({"before": str(before), "after": str(after), **found.to_json()})
    else:
        print_comparison(common, found)
    for item in found.invalid:
        common.warn(f"{item}; its latencies say little")
    if found.regressions:
        raise AnswerIsNo(f"regression: {'; '.join(found.regressions)}")
    if strict and found.invalid:
        raise AnswerIsNo("; ".join(found.invalid))


def print_comparison(common: Common, found: Comparison) -> None:
    """The table, what could not be compared, and the answer in one line."""
    rows = [
        (
            item.candidate,
            item.metric,
            f"{item.before:.4g} {item.unit}",
            f"{item.after:.4g} {item.unit}",
            f"{item.change:+.2f} {unit(item)}",
            f"{item.low:+.2f} to {item.high:+.2f}" if item.high > item.low else "exact",
            "" if item.p is None else f"{item.p:.2g}",
            said(item),
        )
        for item in found.changes
    ]
    common.out.print(tables.plain_table(COLUMNS, rows, left=2))
    for note in found.notes:
        common.say(f"note: {note}")
    real = sum(item.real for item in found.changes)
    tested = sum(item.p is not None for item in found.changes)
    common.say(
        f"{real or 'no'} real difference{'' if real == 1 else 's'} in {len(found.changes)} comparisons; p is adjusted "
        f"for {tested} tests (Holm), intervals are {found.confidence:.0%} each"
    )


def unit(item: Change) -> str:
    """The unit of a change."""
    return "points" if item.metric == "accuracy" else "%"


def said(item: Change) -> str:
    """What to make of a change, in a word or two."""
    if not item.real:
        return "no difference" if item.change == 0 or item.p is not None else "within noise"
    if item.regression:
        return "REGRESSION"
    return "worse" if item.worse else "better"
