"""Which programme helps? Every `digits_*` recipe over several seeds, beside the same student alone.

    python benchmarks/programmes.py --seeds 3 --work programmes --out programmes.json

Same epochs, augmentation and batches for both students; 305 training samples, accuracy on 1,313 test samples that
no choice has seen. Seeds change the split, the weights and the order. Teachers that several recipes share are trained
once per seed. A killed run goes on where it stopped.

The settings of the recipes were chosen by looking at these test samples with the seeds 0 to 2; so what is told here
comes from other seeds, which means from other weights, orders and training samples.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from edgekd import assets
from edgekd.device.machine import describe, versions
from edgekd.device.metrics import score
from edgekd.files import write_json
from edgekd.pipeline import some_stages
from edgekd.recipe import load_recipe
from edgekd.stages.table import is_training
from edgekd.stages.training import load_trained
from edgekd.stages.workspace import Workspace

ROLES = ("teacher", "student_alone", "student")


def programmes() -> list[str]:
    """The recipes that are compared."""
    return [name for name in assets.names("export", "recipes") if name.startswith("digits_")]


def accuracy(space: Workspace, role: str) -> float:
    """Percent of the test samples."""
    from edgekd.distill.engine import evaluate

    prepared = space.prepared
    outputs = evaluate(load_trained(space, role), prepared.dataset.test, prepared.arithmetic)
    return 100 * score("classification", prepared.judge(outputs, prepared.dataset.test))


def measure(name: str, seed: int, work: Path, overrides: list[str]) -> dict[str, float]:
    """One run: test accuracy of each role."""
    settings = [f"seed={seed}", "threads=1", *overrides]
    section = load_recipe(name, overrides=settings).recipe.teacher
    shared = work / f"teacher-{section.train.epochs}-{seed}"
    with some_stages(name, {"data", "teacher"}.__contains__, out=shared, overrides=settings) as (space, _):
        weights = space.path / "teacher" / "weights.safetensors"
        settings.append(f"teacher.weights={weights.absolute()}")
    with some_stages(name, is_training, out=work / f"{name}-{seed}", overrides=settings) as (space, _):
        return {role: accuracy(space, role) for role in ROLES}


def summarize(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Means, the spread over seeds, and the gain over the student alone, seed by seed, in points."""
    gains = [row["student"] - row["student_alone"] for row in rows]
    return {
        **{role: statistics.mean(row[role] for row in rows) for role in ROLES},
        "spread": statistics.stdev(row["student"] for row in rows) if len(rows) > 1 else None,
        "gain_points": statistics.mean(gains),
        "gains": gains,
    }


def main() -> None:
    """All programmes, a Markdown table, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes (default: all digits_*)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=3, help="seeds 0 to 2 chose the recipes' settings")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    results, seeds = {}, range(args.first_seed, args.first_seed + args.seeds)
    print("| recipe | teacher | alone | distilled | gain, points | per seed |\n|---|---|---|---|---|---|")
    for name in args.names or programmes():
        rows = [measure(name, seed, args.work, args.overrides) for seed in seeds]
        found = results[name] = {**summarize(rows), "rows": rows}
        means = " | ".join(f"{found[role]:.1f}" for role in ROLES)
        gains = " ".join(f"{gain:+.1f}" for gain in found["gains"])
        print(f"| {name} | {means} | {found['gain_points']:+.2f} | {gains} |", flush=True)
    if args.out is not None:
        facts = {"seeds": list(seeds), "overrides": args.overrides, "machine": describe(), "versions": versions()}
        write_json(args.out, {**facts, "programmes": results})


if __name__ == "__main__":
    main()
