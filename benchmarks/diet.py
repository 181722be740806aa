"""Students that are cut (whole channels, or singular values of linear layers) and taught again, beside dense ones.

    python benchmarks/diet.py --seeds 3 --work runs/diet --out diet.json

Digits, the recipe's teacher and epochs. Each row is a whole run per seed: another split, other weights, another order.
A cut student is trained whole, cut, and taught again, which is twice the epochs of the dense ones beside it. Accuracy
is the float student's on the test split; size and latency are those of the first seed's files, in one interleaved run.
Runs that lie finished in --work are not made again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from edgekd.device.benchmark import Candidate, benchmark
from edgekd.device.machine import describe, versions
from edgekd.device.suites import Suite
from edgekd.files import write_json
from edgekd.graph.inspection import inspect
from edgekd.pipeline import distill_and_export

# Row -> what its recipe says; the student alone of a cut run has the shape that the cut left.
ROWS: dict[str, tuple[str, ...]] = {
    "cnn_m": ("student.model=cnn_m",),
    "cnn_m, half its channels": ("student.model=cnn_m", "student.prune=0.5", "student.prune_by=taylor"),
    "cnn_s": ("student.model=cnn_s",),
    "mlp_l": ("student.model=mlp_l",),
    "mlp_l, low rank": ("student.model=mlp_l", "student.low_rank.energy=0.5"),
}
BASE = "cnn_m"
ALONE = "the same shape, alone"


def name_of(row: str) -> str:
    """A row as the name of a folder."""
    return row.replace(", ", "-").replace(" ", "_")


def accuracy(results: dict[str, Any], candidate: str) -> float:
    """Of a candidate of a run, on test, in percent."""
    return next(100 * float(row["accuracy"]["value"]) for row in results["rows"] if row["candidate"] == candidate)


def main() -> None:
    """Make the runs that are missing, time the first seed's files together, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/diet"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {row: {"taught": [], ALONE: []} for row in ROWS}
    for seed in range(args.seeds):
        for row, overrides in ROWS.items():
            out = args.work / f"{name_of(row)}-{seed}"
            made = distill_and_export("digits", out=out, overrides=[*overrides, *args.overrides, f"seed={seed}"])
            found[row]["taught"].append(accuracy(made.results, "float32"))
            found[row][ALONE].append(accuracy(made.results, "student-alone"))
    files = {row: args.work / f"{name_of(row)}-0" / "export" / "student.onnx" for row in ROWS}
    suite = Suite(name="diet", min_calls=1000, max_seconds=20.0, block_ms=20.0, cold_starts=0, memory=False)
    timed = benchmark([Candidate(row, str(path)) for row, path in files.items()], suite=suite, against=BASE)
    latency = {row["candidate"]: row["latency_ms"] for row in timed["rows"]}
    rows = {
        row: {
            "parameters": inspect(files[row]).parameters,
            "size_bytes": files[row].stat().st_size,
            "latency_ms": latency[row],
            **values,
        }
        for row, values in found.items()
    }
    for row, told in rows.items():
        means = [f"{statistics.mean(told[key]):.1f}" for key in ("taught", ALONE)]
        print(
            f"{row:<26} {told['parameters']:>7,} parameters {told['size_bytes'] / 1000:>6.1f} kB  p50 "
            f"{1000 * told['latency_ms']['p50']['value']:.1f} us  taught {means[0]} %  alone {means[1]} %"
        )
    print(f"{timed['verdict']['value']}: {'; '.join(timed['verdict']['reasons']) or 'nothing against it'}")
    if args.out is not None:
        told = {"command": " ".join(sys.argv), "machine": describe(), "versions": versions()}
        write_json(args.out, {**told, "overrides": args.overrides, "rows": rows, "verdict": timed["verdict"]})


if __name__ == "__main__":
    main()
