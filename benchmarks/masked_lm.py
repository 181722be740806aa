"""What each part of DistilBERT's pre-training brings: its three losses, its beginning, and what comes of it on a task.

    python benchmarks/masked_lm.py --work runs/masked_lm --out masked_lm.json
    python benchmarks/masked_lm.py --work runs/masked_lm --budget full --out masked_lm.json

A teacher is trained once, on raw text. Each arm is the same student on the same epochs, with some of the losses. It is
judged by its pseudo-perplexity on a held-out book: exp of minus the mean log-likelihood of each token, when it alone
is hidden (Salazar et al., "Masked Language Model Scoring", 2020, arXiv:1910.14659), over 200 paragraphs.
Then teacher and student are fine-tuned on SST-2: the student on the labels, or taught by the fine-tuned teacher, by
soft labels alone or by both. Seeds change the students' weights, masks and orders, and on SST-2 those of the teacher
too. `--budget full` is the recipe as it is; `small` has a quarter of the students' epochs, leaves out the last three
arms, and takes about an hour on two cores. The teacher takes as many cores as there are workers, each worker then one.
A killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.data.splits import shuffled
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
TAPS = 'student_tap = "token_logits", teacher_tap = "token_logits"'
KD = f'{{loss = "kd", {TAPS}, weight = 5.0, options = {{temperature = 2.0}}}}'
KD_OF_HIDDEN = '{loss = "kd", weight = 5.0, options = {temperature = 2.0}}'
LABELS = '{loss = "cross_entropy", weight = 2.0}'
COSINE = '{loss = "cosine_embedding", student_tap = "hidden", teacher_tap = "hidden", weight = 1.0}'
# What is changed in the recipe; the first arm is the recipe, and trains the teacher and the student alone.
ARMS: dict[str, tuple[str, ...]] = {
    "all three losses": (),
    "without kd": (f"distill.terms=[{LABELS}, {COSINE}]",),
    "without masked words": (f"distill.terms=[{KD}, {COSINE}]",),
    "without cosine": (f"distill.terms=[{KD}, {LABELS}]",),
    "masked words alone": (f"distill.terms=[{LABELS}]",),
    "all three, kd of the hidden words": (f"distill.terms=[{KD_OF_HIDDEN}, {LABELS}, {COSINE}]",),
    "random beginning": ('student.init.of="pretrained"',),  # of a fresh model
}
BUDGETS: dict[str, tuple[str, ...]] = {
    "small": ("distill.epochs=1",),
    "full": (),
    "smoke": ("data.limit=300", "teacher.train.epochs=2", "distill.epochs=1"),
}
PARAGRAPHS = 200
# On the task: what the student learns from.
TASK_TERMS: dict[str, str] = {
    "soft labels": '[{loss = "kd", weight = 1.0, options = {temperature = 2.0}}]',
    "soft and hard labels": '[{loss = "kd", weight = 0.5, options = {temperature = 2.0}}, '
    '{loss = "cross_entropy", weight = 0.5}]',
}


def pseudo_perplexity(space: Workspace, name: str, paragraphs: int) -> float:
    """Of the model in the folder of the stage `name`, on paragraphs of the test split; the same ones for all seeds."""
    prepared, masking = space.prepared, space.masking
    assert masking is not None
    assert prepared.vocabulary is not None
    reference = f"hf:{(space.path / name / 'model').absolute()}"
    model = build_masked(reference, vocabulary=prepared.vocabulary).eval()
    may = np.isin(np.arange(masking.size), masking.others)
    total, count = 0.0, 0
    test = prepared.dataset.test
    for row in np.asarray(test.x[np.sort(shuffled(test.ids, seed=0)[:paragraphs])], np.int64):
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


def train_teacher(work: Path, budget: tuple[str, ...], threads: int) -> dict[str, Any]:
    """The one teacher of all arms and seeds: its figures."""
    with some_stages(
        RECIPE, {"data", "teacher"}.__contains__, out=work / "teacher", overrides=budget, threads=threads
    ) as (space, _):
        return figures(space, "teacher", budget)


def pretrain(work: Path, budget: tuple[str, ...], seed: int, arm: str) -> dict[str, dict[str, Any]]:
    """Pseudo-perplexity and the validation's log-likelihood of one arm; of the first also of the student alone."""
    number, teacher = list(ARMS).index(arm), work / "teacher" / "teacher"
    overrides = [
        *budget,
        f"seed={seed}",
        f"teacher.weights={(teacher / 'weights.safetensors').absolute()}",
        reads_as(teacher / "model", 32),
        *ARMS[arm],
    ]
    named = {arm: "student"} if number else {arm: "student", "alone: masked words, random beginning": "student_alone"}
    started = time.monotonic()
    with some_stages(
        RECIPE,
        lambda name: is_training(name) and (number == 0 or name != "student_alone"),
        out=work / "arms" / f"{seed}-{number}",
        overrides=overrides,
        threads=1,
    ) as (space, worked):
        found = {title: figures(space, stage, budget) for title, stage in named.items()}
    seconds = time.monotonic() - started
    print(f"seed {seed}, {arm}: {json.dumps(found)} ({seconds:.0f} s, {worked})", flush=True)
    return found


def figures(space: Workspace, stage: str, budget: tuple[str, ...]) -> dict[str, Any]:
    """What is told of a model."""
    result = space.result(stage)
    return {
        "pseudo_perplexity": pseudo_perplexity(space, stage, PARAGRAPHS if budget != BUDGETS["smoke"] else 10),
        "validation_log_likelihood": result["best"],
        "parameters": result["parameters"],
        "epochs": result["epochs"],
        "seconds": sum(item["seconds"] for item in result["history"]),
    }


def reads_as(model: Path, max_length: int) -> str:
    """The setting that gives texts the tokenizer of a folder."""
    tokenizer = (model / "tokenizer.json").absolute()
    return f'preprocess.steps=[{{op = "tokenize", file = "{tokenizer}", max_length = {max_length}}}, {{op = "trim"}}]'


def copy_parts(source: Path, target: Path, parts: tuple[str, ...]) -> None:
    """What two runs have in common, so that it is not made twice."""
    target.mkdir(parents=True)
    for part in parts:
        (shutil.copytree if (source / part).is_dir() else shutil.copy)(source / part, target / part)


def fine_tune(work: Path, budget: tuple[str, ...], seed: int) -> dict[str, float]:
    """Percent right on SST-2's test split: the teacher, and the first arm's students by what they learn from."""
    student = (work / "arms" / f"{seed}-0" / "student" / "model").absolute()
    teacher = (work / "teacher" / "teacher" / "model").absolute()
    limit = ["data.limit=100"] if budget == BUDGETS["smoke"] else []
    found: dict[str, float] = {}
    for number, (title, terms) in enumerate(TASK_TERMS.items()):
        out, before = work / "task" / f"{seed}-{number}", work / "task" / f"{seed}-0"
        if number and not out.exists():
            copy_parts(before, out, ("teacher", "student_alone", "stages", "run.json"))
        overrides = [
            *limit,
            reads_as(teacher, 48),
            f'teacher.model="hf:{teacher}"',
            "teacher.train.epochs=5",
            "teacher.train.lr=2e-4",
            f'student={{model="hf:{student}"}}',
            "distill.epochs=5",
            "distill.lr=2e-4",
            "distill.cache=false",
            f"distill.terms={terms}",
            f"seed={seed}",
        ]
        with some_stages("sst2", is_training, out=out, overrides=overrides, threads=1) as (space, _):
            named = {"teacher": "teacher", "hard labels": "student_alone"} if number == 0 else {}
            for model, stage in {**named, title: "student"}.items():
                test = space.prepared.dataset.test
                outputs = evaluate(load_trained(space, stage), test, space.prepared.arithmetic)
                found[model] = 100 * score("classification", contributions("classification", outputs, test.y))
    print(f"seed {seed}, sst2: {json.dumps(found)}", flush=True)
    return found


def measure(job: tuple[int, str], work: Path, budget: tuple[str, ...]) -> dict[str, Any]:
    """One arm of one seed, and with the first one the task, on one core."""
    seed, arm = job
    torch.set_num_threads(1)
    found: dict[str, Any] = {"seed": seed, "masked_lm": pretrain(work, budget, seed, arm)}
    return found | ({"sst2": fine_tune(work, budget, seed)} if arm == next(iter(ARMS)) else {})


def together(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was found so far, a row for each seed."""
    rows: dict[int, dict[str, Any]] = {}
    for part in parts:
        row = rows.setdefault(part["seed"], {"seed": part["seed"], "masked_lm": {}})
        row["masked_lm"] |= part["masked_lm"]
        row |= {key: value for key, value in part.items() if key != "masked_lm"}
    return [rows[seed] for seed in sorted(rows)]


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds that have a figure."""

    def over(values: list[float]) -> dict[str, float | int | None]:
        spread = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.mean(values), "spread": spread, "seeds": len(values)}

    arms = dict.fromkeys(arm for row in rows for arm in row["masked_lm"])
    tasks = dict.fromkeys(name for row in rows for name in row.get("sst2", {}))
    return {
        "masked_lm": {
            arm: {
                key: over([row["masked_lm"][arm][key] for row in rows if arm in row["masked_lm"]])
                for key in ("pseudo_perplexity", "validation_log_likelihood")
            }
            for arm in arms
        },
        "sst2": {name: over([row["sst2"][name] for row in rows if "sst2" in row]) for name in tasks},
    }


def main() -> None:
    """Train, judge and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="small")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="default: those of the budget")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="students at a time, of one core each")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    budget, started = BUDGETS[args.budget], time.monotonic()
    facts = {"command": " ".join(sys.argv), "budget": args.budget, "machine": describe(), "versions": versions()}
    teacher = train_teacher(args.work, budget, args.workers)
    print(f"teacher: {json.dumps(teacher)}", flush=True)
    # The first arm takes longest, and comes first.
    arms = args.arms or list(ARMS)[: -3 if args.budget == "small" else None]
    jobs = [(seed, arm) for arm in arms for seed in range(args.seeds)]
    parts: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for part in pool.imap_unordered(partial(measure, work=args.work, budget=budget), jobs):
            parts.append(part)
            rows = together(parts)
            if args.out is not None:  # hours are not lost when the rest is stopped
                found = {"minutes": (time.monotonic() - started) / 60, "teacher": teacher, "summary": summarize(rows)}
                write_json(args.out, {**facts, **found, "rows": rows})
    print(json.dumps(summarize(rows), indent=2))


if __name__ == "__main__":
    main()
