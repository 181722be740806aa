"""What each part of DistilBERT's pre-training brings: its three losses, its beginning, and what comes of it on a task.

    python benchmarks/masked_lm.py --work runs/masked_lm --out masked_lm.json
    python benchmarks/masked_lm.py --work runs/masked_lm --budget small --out masked_lm.json

A teacher is trained once, on raw text. Each arm is the same student on the same epochs, with some of the losses. It is
judged by its pseudo-perplexity on a held-out book: exp of minus the mean log-likelihood of each token, when it alone
is hidden (Salazar et al., "Masked Language Model Scoring", 2020, arXiv:1910.14659), over the first paragraphs.
Then teacher and student are fine-tuned on SST-2, over several seeds: the student on the labels, or taught by the
fine-tuned teacher, by soft labels alone or by both. `--budget small` is the recipe as it is: 64 minutes of
one core's training for the arms, and about 10 for each seed of the task. A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.device.machine import describe, versions
from edgekd.device.metrics import contributions, score
from edgekd.distill.evaluation import evaluate
from edgekd.distill.models import build_masked
from edgekd.files import write_json
from edgekd.pipeline import some_stages
from edgekd.stages.table import is_training
from edgekd.stages.training import load_trained
from edgekd.stages.workspace import Workspace

RECIPE = "mlm_distilbert"
KD = '{loss = "kd", weight = 5.0, options = {temperature = 2.0}}'
LABELS = '{loss = "cross_entropy", weight = 2.0}'
COSINE = '{loss = "cosine_embedding", student_tap = "hidden", teacher_tap = "hidden", weight = 1.0}'
# What is changed in the recipe; the first arm is the recipe, and trains the teacher and the student alone.
ARMS: dict[str, tuple[str, ...]] = {
    "all three losses": (),
    "without kd": (f"distill.terms=[{LABELS}, {COSINE}]",),
    "without masked words": (f"distill.terms=[{KD}, {COSINE}]",),
    "without cosine": (f"distill.terms=[{KD}, {LABELS}]",),
    "masked words alone": (f"distill.terms=[{LABELS}]",),
    "random beginning": ('student.init.of="pretrained"',),  # of a fresh model
}
BUDGETS: dict[str, tuple[str, ...]] = {
    "small": (),
    "full": ("teacher.train.epochs=24", "distill.epochs=12"),
    "smoke": ("data.limit=300", "teacher.train.epochs=2", "distill.epochs=1"),
}
PARAGRAPHS = 200
Keep = Callable[[str, object], None]
# On the task: what the student learns from.
TASK_TERMS: dict[str, str] = {
    "soft labels": '[{loss = "kd", weight = 1.0, options = {temperature = 2.0}}]',
    "soft and hard labels": '[{loss = "kd", weight = 0.5, options = {temperature = 2.0}}, '
    '{loss = "cross_entropy", weight = 0.5}]',
}


def pseudo_perplexity(space: Workspace, name: str, paragraphs: int) -> float:
    """Of the model in the folder of the stage `name`, on the first paragraphs of the test split."""
    prepared, masking = space.prepared, space.masking
    assert masking is not None
    assert prepared.vocabulary is not None
    reference = f"hf:{(space.path / name / 'model').absolute()}"
    model = build_masked(reference, vocabulary=prepared.vocabulary).eval()
    may = np.isin(np.arange(masking.size), masking.others)
    total, count = 0.0, 0
    for row in np.asarray(prepared.dataset.test.x[:paragraphs], np.int64):
        ids = row[row != prepared.vocabulary.pad]
        places = np.flatnonzero(may[ids])
        if not len(places):
            continue
        shown, asked = np.tile(ids, (len(places), 1)), np.zeros((len(places), len(ids)), np.int64)
        shown[np.arange(len(places)), places] = masking.token
        asked[np.arange(len(places)), places] = 1
        with torch.inference_mode():
            logits = model(torch.from_numpy(np.stack([shown, asked], axis=1)))["logits"]
        right = torch.log_softmax(logits, dim=1)[torch.arange(len(places)), torch.from_numpy(ids[places])]
        total, count = total + float(right.sum()), count + len(places)
    return math.exp(-total / count)


def pretrain(work: Path, budget: tuple[str, ...], threads: int | None, keep: Keep) -> None:
    """Pseudo-perplexity and the validation's log-likelihood of the teacher and of every arm; `keep` hears of each."""
    found: dict[str, Any] = {}
    paragraphs = PARAGRAPHS if budget != BUDGETS["smoke"] else 10
    first = work / "arms" / "0"
    for number, (arm, overrides) in enumerate(ARMS.items()):
        out = work / "arms" / str(number)
        if number and not out.exists():
            for part in ("teacher", "stages", "run.json"):
                copy = shutil.copytree if (first / part).is_dir() else shutil.copy
                out.mkdir(parents=True, exist_ok=True)
                copy(first / part, out / part)
        started = time.monotonic()
        with some_stages(
            RECIPE,
            lambda name, number=number: is_training(name) and (number == 0 or name != "student_alone"),
            out=out,
            overrides=[*budget, *overrides],
            threads=threads,
        ) as (space, worked):
            names = {"teacher": "teacher", arm: "student", "alone: masked words, random beginning": "student_alone"}
            for title, stage in names.items() if number == 0 else [(arm, "student")]:
                result = space.result(stage)
                found[title] = {
                    "pseudo_perplexity": pseudo_perplexity(space, stage, paragraphs),
                    "validation_log_likelihood": result["best"],
                    "parameters": result["parameters"],
                    "epochs": result["epochs"],
                    "seconds": sum(item["seconds"] for item in result["history"]),
                }
        print(f"{arm}: {json.dumps(found[arm])} ({time.monotonic() - started:.0f} s, {worked})", flush=True)
        keep("masked_lm", found)


def fine_tune(work: Path, budget: tuple[str, ...], seeds: int, threads: int | None, keep: Keep) -> None:
    """Percent right on SST-2's test split, seed by seed: the teacher, and the students by what they learn from."""
    whole = (work / "arms" / "0").absolute()
    tokenizer = whole / "student" / "model" / "tokenizer.json"
    steps = f'preprocess.steps=[{{op = "tokenize", file = "{tokenizer}", max_length = 48}}, {{op = "trim"}}]'
    limit = ["data.limit=100"] if budget == BUDGETS["smoke"] else []
    rows = []
    for seed in range(seeds):
        row: dict[str, Any] = {"seed": seed}
        for number, (title, terms) in enumerate(TASK_TERMS.items()):
            out = work / "task" / f"{seed}-{number}"
            before = work / "task" / f"{seed}-0"
            if number and not out.exists():
                out.mkdir(parents=True)
                for part in ("teacher", "student_alone", "stages", "run.json"):
                    (shutil.copytree if (before / part).is_dir() else shutil.copy)(before / part, out / part)
            overrides = [
                *limit,
                steps,
                f'teacher.model="hf:{whole}/teacher/model"',
                "teacher.train.epochs=5",
                "teacher.train.lr=2e-4",
                f'student={{model="hf:{whole}/student/model"}}',
                "distill.epochs=5",
                "distill.lr=2e-4",
                "distill.cache=false",
                f"distill.terms={terms}",
                f"seed={seed}",
            ]
            with some_stages("sst2", is_training, out=out, overrides=overrides, threads=threads) as (space, _):
                named = {"teacher": "teacher", "hard labels": "student_alone"} if number == 0 else {}
                for model, stage in {**named, title: "student"}.items():
                    test = space.prepared.dataset.test
                    outputs = evaluate(load_trained(space, stage), test, space.prepared.arithmetic)
                    row[model] = 100 * score("classification", contributions("classification", outputs, test.y))
        print(json.dumps(row), flush=True)
        rows.append(row)
        keep("sst2", {"summary": summarize(rows), "rows": rows})


def summarize(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and standard deviation over the seeds."""
    summary: dict[str, dict[str, float | None]] = {}
    for name in [key for key in rows[0] if key != "seed"]:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else None
        summary[name] = {"mean": statistics.mean(values), "spread": spread}
    return summary


def main() -> None:
    """Train, judge and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    budget = BUDGETS[args.budget]
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "budget": args.budget,
        "machine": describe(),
        "versions": versions(),
    }

    def keep(name: str, value: object) -> None:
        """Hours are not lost when the rest is stopped."""
        result[name] = value
        if args.out is not None:
            write_json(args.out, result)

    pretrain(args.work, budget, args.threads, keep)
    fine_tune(args.work, budget, args.seeds, args.threads, keep)
    print(json.dumps({"masked_lm": result["masked_lm"], "sst2": result["sst2"]["summary"]}, indent=2))


if __name__ == "__main__":
    main()
