"""Students that are cut (whole channels, or singular values of linear layers) and taught again, beside dense ones.

    python benchmarks/diet.py --seeds 3 --work runs/diet --out diet.json

Digits, a small teacher. Per seed another split, other weights, another order. A cut student is trained whole, cut, and
taught again, which is twice the epochs of the dense ones beside it. Files of a seed are judged and timed together, in
one interleaved run, on the test split; latencies are the first seed's. What lies finished in --work is not made again.
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
from edgekd.pipeline import some_stages
from edgekd.stages.table import is_training

SETTINGS = (
    "teacher.args={width=16, depth=8}",
    "teacher.train.epochs=12",
    "distill.epochs=40",
)
# Row -> what its recipe says; the student alone of a cut run has the shape that the cut left.
ROWS: dict[str, tuple[str, ...]] = {
    "cnn_m": ("student.model=cnn_m",),
    "cnn_m, half its channels": ("student.model=cnn_m", "student.prune=0.5", "student.prune_by=taylor"),
    "cnn_s": ("student.model=cnn_s",),
    "mlp_l": ("student.model=mlp_l",),
    "mlp_l, low rank": ("student.model=mlp_l", "student.low_rank.energy=0.5"),
}
BASE = "cnn_m"
# Of a cut run: its shape, trained from new weights without a teacher; of a dense one the whole without a teacher.
ALONE = "alone"


def files_of(work: Path, seed: int, overrides: list[str]) -> tuple[dict[str, Path], Any]:
    """The float students of one seed, made where they are missing, and the run's labelled test samples."""
    files: dict[str, Path] = {}
    for row, settings in ROWS.items():
        out = work / f"{row.replace(', ', '-').replace(' ', '_')}-{seed}"
        told = [*SETTINGS, *settings, *overrides, f"seed={seed}"]
        with some_stages(
            "digits", lambda name: is_training(name) or name in ("data", "export"), out=out, overrides=told, threads=1
        ) as (space, _):
            prepared = space.prepared
        files[row] = out / "export" / "student.onnx"
        files[f"{row}, {ALONE}"] = out / "export" / "student_alone.onnx"
    return files, prepared


def judge(files: dict[str, Path], prepared: Any, seconds: float) -> dict[str, Any]:
    """Accuracy and latency of the files in one run."""
    suite = Suite(name="diet", min_calls=1000, max_seconds=seconds, block_ms=40.0, cold_starts=0, memory=False)
    candidates = [
        Candidate(row, str(path), preprocess=prepared.arithmetic, postprocess=prepared.post)
        for row, path in files.items()
    ]
    return benchmark(candidates, suite=suite, against=BASE, samples=prepared.labelled(prepared.dataset.test))


def main() -> None:
    """Make the students that are missing, judge them seed by seed, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/diet"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing, all files together")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    made = [files_of(args.work, seed, args.overrides) for seed in range(args.seeds)]
    results = [judge(files, prepared, args.seconds) for files, prepared in made]
    files, first = made[0][0], {row["candidate"]: row for row in results[0]["rows"]}
    rows = {
        row: {
            "parameters": inspect(path).parameters,
            "size_bytes": path.stat().st_size,
            "latency_ms": first[row]["latency_ms"],
            "speedup": first[row]["speedup"],
            "accuracy_percent": [
                100 * item["accuracy"]["value"]
                for found in results
                for item in found["rows"]
                if item["candidate"] == row
            ],
        }
        for row, path in files.items()
    }
    for row, told in rows.items():
        print(
            f"{row:<33} {told['parameters']:>7,} parameters {told['size_bytes'] / 1000:>6.1f} kB  p50 "
            f"{1000 * told['latency_ms']['p50']['value']:5.1f} us  {statistics.mean(told['accuracy_percent']):.1f} %  "
            f"({' '.join(f'{value:.1f}' for value in told['accuracy_percent'])})"
        )
    verdict = results[0]["verdict"]
    print(f"{verdict['value']}: {'; '.join(verdict['reasons']) or 'nothing against it'}")
    if args.out is not None:
        told = {"command": " ".join(sys.argv), "machine": describe(), "versions": versions()}
        told |= {"settings": [*SETTINGS, *args.overrides], "data": results[0]["data"]}
        write_json(args.out, {**told, "rows": rows, "verdict": verdict})


if __name__ == "__main__":
    main()
