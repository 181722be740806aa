"""A model against itself, again and again: how often does the benchmark see a difference, or read INVALID?

    python benchmarks/against_itself.py MODEL --runs 20 --out against_itself.json          # a quiet machine
    python benchmarks/against_itself.py MODEL --runs 20 --busy --out against_itself.json   # one core kept busy

To reach, quiet: at most 5 % INVALID, at most 5 % "different"; with one busy core: at least 95 % within 3 % or INVALID,
at most 30 % INVALID. "Different" is an interval of the speed-up that leaves 1 out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.device.benchmark import benchmark
from edgekd.device.candidates import Candidate
from edgekd.device.machine import describe, versions
from edgekd.device.suites import load_suite
from edgekd.files import write_json


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """For the block, another program that never rests."""
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def once(model: Path, suite: str, seed: int) -> dict[str, Any]:
    """One comparison of the model with itself."""
    twins = [Candidate("a", str(model)), Candidate("b", str(model))]
    results = benchmark(twins, suite=load_suite(suite), against="a", seed=seed)
    row = next(row for row in results["rows"] if row["candidate"] == "b")
    return {"speedup": row["speedup"], "verdict": results["verdict"]["value"], "reasons": results["verdict"]["reasons"]}


def main() -> None:
    """The runs, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    rows = []
    with busy(args.busy):
        for seed in range(args.runs):
            rows.append(once(args.model, args.suite, seed))
            print(json.dumps(rows[-1]), flush=True)
    valid = [row["speedup"] for row in rows if row["verdict"] == "VALID" and row["speedup"] is not None]
    summary = {
        "runs": len(rows),
        "invalid": sum(row["verdict"] != "VALID" for row in rows),
        "different": sum(not item["low"] <= 1 <= item["high"] for item in valid),
        "within_3_percent_or_invalid": len(rows) - sum(abs(item["value"] - 1) > 0.03 for item in valid),
    }
    print(json.dumps(summary))
    if args.out is not None:
        facts = {"busy": args.busy, "suite": args.suite, "model": args.model.name}
        write_json(args.out, {**facts, "machine": describe(), "versions": versions(), **summary, "rows": rows})


if __name__ == "__main__":
    main()
