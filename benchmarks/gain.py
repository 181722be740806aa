"""What distillation brings: a recipe over several seeds, the distilled student beside the same student alone.

    python benchmarks/gain.py digits --seeds 3 --set distill.terms.0.options.temperature=4 --out gain.json

Each seed is a whole run: another split, other initial weights, another order. Same epochs, same augmentation and same
batches for both students. Accuracy is that of the float student on the test split, which no choice has seen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgekd.device.machine import describe, versions
from edgekd.files import write_json
from edgekd.pipeline import distill_and_export

ROLES = {"teacher": "teacher-onnx", "alone": "student-alone", "distilled": "float32"}


def measure(recipe: str, seed: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """One run: accuracy on test of teacher, student alone and distilled student, and the budget."""
    run = distill_and_export(recipe, out=folder / str(seed), overrides=[*overrides, f"seed={seed}"])
    rows = {row["candidate"]: row for row in run.results["rows"]}
    accuracy = {name: rows[role]["accuracy"]["value"] for name, role in ROLES.items()}
    return {"seed": seed, **accuracy, "n": rows["float32"]["accuracy"]["n"], "budget": run.results["run"]["budget"]}


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread (standard deviation over seeds) in percent, and the gain seed by seed in points."""
    summary: dict[str, Any] = {}
    for name in ROLES:
        values = [100 * row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else None
        summary[name] = {"mean_percent": statistics.mean(values), "spread_points": spread}
    summary["gain_points"] = [100 * (row["distilled"] - row["alone"]) for row in rows]
    return summary


def main() -> None:
    """Run the seeds and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(args.recipe, seed, args.overrides, Path(folder)) for seed in range(args.seeds)]
    result = {
        "command": " ".join(sys.argv),
        "recipe": args.recipe,
        "overrides": args.overrides,
        "machine": describe(),
        "versions": versions(),
        "summary": summarize(rows),
        "rows": rows,
    }
    if args.out is not None:
        write_json(args.out, result)
    print(json.dumps(result["summary"], indent=2))


if __name__ == "__main__":
    main()
