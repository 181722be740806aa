"""What the engine costs: samples per second of training, beside plain loops and torchdistill, in one run.

    python benchmarks/engine_cost.py --root DATA --out engine_cost.json

cnn: Fashion-MNIST with random flips, teacher of 1.9 M and student of 14 thousand parameters. strided: the same, with a
student of 14 thousand parameters that begins at half the size. mlp: MNIST, 784-512-256-10 and 784-128-10. Teachers
have random weights: speed does not depend on what they say.

    plain         the student alone, by hand, as fast as forty lines make it (peers/plain.py)
    alone         (a) the student alone, by `edgekd distill`
    live          (b) `edgekd distill`, the teacher in every step
    cached        (c) `edgekd distill`, the teacher's logits from its cache, which was built before
    textbook      (d) the loop of the tutorials, with 0 and with 2 workers (peers/textbook.py); the better one counts
    torchdistill  (e) where it is installed (peers/torchdistill_loop.py)

Every case runs in fresh processes, one at a time, in turns (a b c ..., then backwards, ...). The first epoch of each
process warms up and is not counted; a case's figure is the median of the epochs that are. All use the same images and
as many threads as torch takes. Unfair to edgekd: its epochs hold validation (2 % of the images), checkpoints and a
look for NaN. Unfair to torchdistill and the textbook: none known; their transforms are lighter than torchvision's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgekd.device.machine import describe, versions
from edgekd.files import write_json

PEERS = Path(__file__).resolve().parent / "peers"
# The recipe of a task is that of its own name, or this one with another student.
RECIPE_OF = {"strided": "cnn"}
IMAGES = {"cnn": 6000, "strided": 6000, "mlp": 30000}
# Epochs per process, the first of which is not counted.
EPOCHS = {"plain": 4, "alone": 4, "live": 3, "cached": 4, "textbook": 2, "torchdistill": 2}
HARD = "distill.terms=[{loss='cross_entropy'}]"
RECIPES = {"alone": [HARD], "live": [], "cached": ["distill.cache=true"]}
_CONVOLUTIONS = {"cached / alone": 0.95, "live / textbook": 8.0, "cached / textbook": 50.0}
TO_REACH = {
    "cnn": _CONVOLUTIONS,
    "strided": _CONVOLUTIONS,
    "mlp": {
        "cached / alone": 0.85,
        "alone / textbook": 9.0,
        "live / textbook": 5.0,
        "cached / textbook": 8.0,
    },
}


def save_teacher(task: str, path: Path) -> None:
    """Random weights: what a teacher costs, whatever it says."""
    sys.path.insert(0, str(PEERS))
    import models
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(getattr(models, f"{task}_teacher")().state_dict(), path)


def ours(task: str, case: str, root: Path, folder: Path) -> list[float]:
    """Samples per second of the counted epochs of one process of edgekd."""
    settings = [
        f"data.root={root}",
        f"student.model=models:{task}_student",
        f"data.limit={IMAGES[task]}",
        f"teacher.weights={folder / 'teacher.safetensors'}",
        f"distill.epochs={EPOCHS[case]}",
        *RECIPES[case],
    ]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [
            "edgekd",
            "distill",
            str(PEERS / f"{RECIPE_OF.get(task, task)}.toml"),
            "--student-only",
            "--quiet",
            "--out",
            f"{out}/run",
        ]
        options = [part for setting in settings for part in ("--set", setting)]
        _run([sys.executable, "-m", *command, *options], {"EDGEKD_CACHE": str(folder / "cache")})
        history = json.loads((Path(out) / "run" / "student" / "history.json").read_text())
    images = history["images_seen"] / len(history["history"])
    return [images / item["seconds"] for item in history["history"]][1:]


def theirs(task: str, case: str, root: Path) -> list[float]:
    """The same of a peer; `case` may end in the number of workers."""
    name, _, workers = case.partition("-")
    script = {"torchdistill": "torchdistill_loop"}.get(name, name)
    options = ["--images", str(IMAGES[task]), "--epochs", str(EPOCHS[name]), "--root", str(root)]
    if workers:
        options += ["--workers", workers]
    done = _run([sys.executable, str(PEERS / f"{script}.py"), task, *options], {})
    speeds: list[float] = json.loads(done.splitlines()[-1])["samples_per_s"]
    return speeds[1:]


def measure(task: str, root: Path, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Samples per second by case, every counted epoch of every process."""
    cases = ["plain", *RECIPES, "textbook-0", "textbook-2"]
    if importlib.util.find_spec("torchdistill") is not None:
        cases.append("torchdistill-0")
    save_teacher(task, folder / "teacher.safetensors")
    ours(task, "cached", root, folder)  # builds the cache
    speeds: dict[str, list[float]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases if number % 2 == 0 else reversed(cases):
            found = ours(task, case, root, folder) if case in RECIPES else theirs(task, case, root)
            speeds[case] += found
            print(f"{task} {case:14} {statistics.median(found):12,.0f} samples/s", flush=True)
    return speeds


def summarize(task: str, speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the ratios with what they should reach."""
    medians = {case: statistics.median(values) for case, values in speeds.items()}
    medians["textbook"] = max(medians["textbook-0"], medians["textbook-2"])
    names = [*TO_REACH[task], "alone / plain", "cached / plain"]
    if "torchdistill-0" in medians:
        medians["torchdistill"] = medians["torchdistill-0"]
        names += ["live / torchdistill", "cached / torchdistill"]
    ratios = {}
    for name in names:
        above, below = name.split(" / ")
        ratios[name] = {"value": medians[above] / medians[below], "to_reach": TO_REACH[task].get(name)}
    return {"samples_per_s": medians, "ratios": ratios}


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Measure, print the ratios, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="MNIST/raw and FashionMNIST/raw lie here")
    parser.add_argument("--tasks", nargs="+", choices=sorted(IMAGES), default=sorted(IMAGES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    results = {}
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            speeds = measure(task, args.root, args.rounds, Path(folder))
        results[task] = {**summarize(task, speeds), "samples": speeds}
        for name, ratio in results[task]["ratios"].items():
            wanted = f" (to reach: {ratio['to_reach']:g})" if ratio["to_reach"] else ""
            print(f"{task} {name:24} {ratio['value']:8.2f}{wanted}", flush=True)
    if args.out is not None:
        write_json(args.out, {"machine": describe(), "versions": versions(), "tasks": results})


if __name__ == "__main__":
    main()
