"""Which method helps? Fashion-MNIST, a teacher of 1.95 M parameters, a student of 37 thousand (a fiftieth).

    python benchmarks/fashion_quality.py --work quality --out fashion_quality.json            # an hour on 2 cores
    python benchmarks/fashion_quality.py --work full --budget full --methods kd dist ...      # the best of them
    python benchmarks/fashion_quality.py --work wrong --labels wrong --methods alone kd soft  # robustness
    python benchmarks/fashion_quality.py --work patient --epochs 40 --views 10 --methods alone "soft, mixed"

Teacher, student alone and every method have the same images, epochs, batch size and schedule, and no augmentation or,
with `--augment`, the same one; the teacher's answers are computed once for each view, and remembered. Each method, the
student alone too, tries the same learning rates with seed 0 and is judged on 2,000 validation images; the best one is
trained with the other seeds. Told are errors of the last epoch on the 10,000 test images. Seeds change the student's
weights and the order of the images; the images and the teacher stay the same, so the spread is that of the student's
training. A killed run goes on where it stopped.

augment  everybody cycles through four views of each image, mirrored or not and moved by up to a pixel
views    how many of each image, for `--augment` and for the methods called mixed: those students, the one that is
         alone too, see each image blended with another one, and the teacher answers the blend (Beyer et al.,
         "Knowledge distillation: A good teacher is patient and consistent", 2022, arXiv:2106.05237)
labels   true; wrong: 20 % of the training labels are another class; few: a tenth of the images is labelled: teacher and
         student alone see no others, taught students see all images and no label; none: students see no label
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd.data.registry import load_dataset
from edgekd.device.machine import describe, versions
from edgekd.distill.augmentation import Augment
from edgekd.distill.batches import Batches
from edgekd.distill.engine import distill, evaluate
from edgekd.distill.mixing import Mixing
from edgekd.distill.objective import Objective, Term
from edgekd.distill.programme import Stage
from edgekd.distill.teachers import ModuleTeacher, tapped
from edgekd.files import write_json
from edgekd.spec import Dataset, Split, parse_steps

PEERS = Path(__file__).resolve().parent / "peers"
STEPS = parse_steps(
    [{"op": "scale"}, {"op": "normalize", "mean": [0.2860], "std": [0.3530]}, {"op": "layout", "to": "CHW"}]
)
IMAGES = {"small": 15_000, "full": 58_000}
EPOCHS = 20
RATES = (5e-3, 1e-2)
WRONG, FEW = 0.2, 0.1
AUGMENT: Augment = {"flip": True, "shift": 1}
VIEWS = 4
MIXED, MIXUP = ", mixed", 1.0
# Tensors of the teacher beside its logits: maps of 14x14 and 7x7, and the last hidden layer.
EARLY, LATE, HIDDEN = "6", "14", "19"


def hot(*more: Term) -> list[Term]:
    """Mostly soft labels at temperature 4, some labels, and what a method adds."""
    soft = Term("kd", "kd", weight=0.9, options={"temperature": 4.0})
    return [soft, Term("cross_entropy", "cross_entropy", weight=0.1), *more]


def on_logits(loss: str, weight: float, **options: Any) -> list[Term]:
    """A loss on logits beside half of the labels' cross-entropy."""
    return [Term(loss, loss, weight=weight, options=options), Term("cross_entropy", "cross_entropy", weight=0.5)]


MAPS = {"student_tap": "4", "teacher_tap": LATE}
VECTORS = {"student_tap": "7", "teacher_tap": HIDDEN}
METHODS: dict[str, list[Term]] = {
    "alone": [Term("cross_entropy", "cross_entropy")],
    "label_smoothing": [Term("cross_entropy", "cross_entropy", options={"label_smoothing": 0.1})],
    "kd": on_logits("kd", 0.5, temperature=2.0),
    "kd_hot": hot(),
    "soft": [Term("kd", "kd", options={"temperature": 2.0})],
    "logit_mse": [Term("logit_mse", "logit_mse")],
    "dkd": on_logits("dkd", 0.5, temperature=2.0, beta=2.0),
    "dist": on_logits("dist", 1.0),
    "standardized": on_logits("logit_standardized_kd", 0.5),
    "attention": hot(
        Term("early", "attention_transfer", weight=100.0, student_tap="3", teacher_tap=EARLY),
        Term("late", "attention_transfer", weight=100.0, **MAPS),
    ),
    "fitnets": hot(Term("hint", "hint", weight=1.0, adapter="regressor", **MAPS)),
    "rkd": hot(Term("rkd", "rkd", weight=0.1, **VECTORS)),
    "similarity": hot(Term("similarity", "similarity_preserving", weight=100.0, **MAPS)),
    "alone, mixed": [Term("cross_entropy", "cross_entropy")],
    "kd_hot, mixed": hot(),
    "soft, mixed": [Term("kd", "kd", options={"temperature": 2.0})],
}


def stages_of(method: str, epochs: int) -> tuple[Stage, ...]:
    """FitNets trains towards its hints first."""
    if method != "fitnets":
        return ()
    hints = max(1, epochs // 5)
    return (Stage("hints", hints, ("hint",)), Stage("soft labels", epochs - hints, ("kd", "cross_entropy")))


class Remembered:
    """What the teacher gave, by view and sample id."""

    def __init__(self, module: torch.nn.Module, batches: Batches, taps: list[str]) -> None:
        teacher, size = ModuleTeacher(module), batches.num_samples
        parts: dict[str, list[Tensor]] = {}
        rows = [np.arange(start, min(start + 512, size)) for start in range(0, size, 512)]
        with tapped(teacher, taps, batches.at(rows[0][:2], view=0)):
            for view, positions in itertools.product(range(batches.views or 1), rows):
                for name, value in teacher(batches.at(positions, view=view)).items():
                    parts.setdefault(name, []).append(value if name == "logits" else value.half())
        self._values = {name: torch.cat(found) for name, found in parts.items()}
        self._size = size

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        place = batch["view"] * self._size + batch["index"]
        return {name: value[place].float() for name, value in self._values.items()}


def images(budget: str, labels: str) -> Dataset:
    """The training images of the budget, with their labels as asked for; validation and test have the true ones."""
    data = load_dataset(kind="fashion_mnist", val_fraction=1 / 30, seed=0)
    rng = np.random.default_rng(0)
    train = data.train.take(np.sort(rng.permutation(len(data.train))[: IMAGES[budget]]))
    if labels == "wrong":
        change = rng.random(len(train)) < WRONG
        y = np.where(change, (train.y + rng.integers(1, 10, len(train))) % 10, train.y)
        train = Split(train.x, y.astype(train.y.dtype), train.ids)
    return dataclasses.replace(data, train=train, sha256=f"{data.sha256}-{budget}-{labels}")


def labelled(data: Dataset, labels: str) -> Dataset:
    """What may be learned from with labels: a tenth of the images where labels are few."""
    if labels != "few":
        return data
    chosen = np.arange(0, len(data.train), round(1 / FEW))
    return dataclasses.replace(data, train=data.train.take(chosen), sha256=f"{data.sha256}-labelled")


def network(name: str, seed: int) -> torch.nn.Module:
    """A network of peers/models.py; its first weights are a function of the seed."""
    if str(PEERS) not in sys.path:
        sys.path.insert(0, str(PEERS))
    import models

    torch.manual_seed(seed)
    found: torch.nn.Module = getattr(models, name)()
    return found


def views_of(args: argparse.Namespace, name: str) -> tuple[Augment, float, int | None]:
    """What a method's images go through: augmentation, alpha of mixup, and how many views there are."""
    mixes = name.endswith(MIXED)
    return AUGMENT if args.augment else {}, MIXUP if mixes else 0.0, args.views if args.augment or mixes else None


def settings(
    args: argparse.Namespace, name: str, epochs: int, folder: Path, seed: int, lr: float, threads: int = 1
) -> dict[str, Any]:
    """What all trainings share."""
    common = {"batch_size": 128, "optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine", "threads": threads}
    common |= dict(zip(("augment", "mixup", "views"), views_of(args, name), strict=True))
    return {"steps": STEPS, "epochs": epochs, "run_dir": folder, "seed": seed, "lr": lr, "keep": "last", **common}


def accuracy(model: torch.nn.Module, split: Split) -> float:
    """Percent."""
    return 100 * float((evaluate(model, split, STEPS).argmax(axis=1) == split.y).mean())


def teach(args: argparse.Namespace) -> torch.nn.Module:
    """The teacher, trained or read."""
    data = labelled(images(args.budget, args.labels), args.labels)
    teacher = network("fashion_teacher", 0)
    # As many steps as with all labels.
    epochs = args.epochs * (round(1 / FEW) if args.labels == "few" else 1)
    hard = Objective(METHODS["alone"])
    distill(teacher, (), data, hard, **settings(args, "teacher", epochs, args.work / "teacher", 0, 2e-3, args.workers))
    return teacher


def train(job: tuple[str, int, float, argparse.Namespace]) -> dict[str, Any]:
    """One student: percent on validation and test."""
    name, seed, lr, args = job
    torch.set_num_threads(1)
    data, terms = images(args.budget, args.labels), METHODS[name]
    folder = args.work / f"{name}-{lr:g}-{seed}"
    done = folder / "accuracy.json"
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    objective, teachers, epochs = Objective(terms), (), args.epochs
    if args.labels in ("few", "none") and objective.teacher_terms:
        objective = Objective([term for term in terms if term.loss != "cross_entropy"])
    if objective.teacher_terms:
        taps = [tap for tap in objective.teacher_taps if tap != "logits"]
        augment, mixup, views = views_of(args, name)
        mixing = Mixing(mixup, 0.0, data.num_outputs)
        seen = Batches(data.train, STEPS, batch_size=512, seed=seed, augment=augment, views=views, mixing=mixing)
        teachers = (Remembered(teach(args), seen, taps),)
    elif args.labels == "few":
        data, epochs = labelled(data, args.labels), args.epochs * round(1 / FEW)
    student = network("fashion_student", seed)
    stages = stages_of(name, args.epochs)
    common = settings(args, name, epochs, folder, seed, lr)
    result = distill(student, teachers, data, objective, stages=stages, **common)
    found = {"method": name, "lr": lr, "seed": seed, "val": 100 * (result.last or 0.0)}
    found |= {"test": accuracy(student, data.test), "seconds": result.seconds}
    write_json(done, found)
    print(json.dumps(found), flush=True)
    return found


def summarize(rows: list[dict[str, Any]], alone: list[float], teacher: float) -> dict[str, Any]:
    """Mean and spread on test, and what share of the gap between student alone and teacher is recovered."""
    tests = [row["test"] for row in rows]
    gap = teacher - statistics.mean(alone) if alone else None
    gain = statistics.mean(tests) - statistics.mean(alone) if alone else None
    return {
        "lr": rows[0]["lr"],
        "test": statistics.mean(tests),
        "spread": statistics.stdev(tests) if len(tests) > 1 else None,
        "gain_points": gain,
        "gap_recovered": gain / gap if gap else None,
        "seeds": tests,
    }


def main() -> None:
    """The teacher, the trials, the seeds, a Markdown table, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--budget", choices=sorted(IMAGES), default="small")
    parser.add_argument("--labels", choices=("true", "wrong", "few", "none"), default="true")
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--views", type=int, default=VIEWS)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the teacher and of every student")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=None, help="default: all but the mixed ones"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    args = parser.parse_args()
    methods = args.methods or [name for name in METHODS if not name.endswith(MIXED)]
    names = ["alone", *(name for name in methods if name != "alone")]
    if args.labels == "none":
        names = [name for name in names if Objective(METHODS[name]).teacher_terms]
    torch.set_num_threads(args.workers)
    data, teacher_model = images(args.budget, args.labels), teach(args)
    teacher = accuracy(teacher_model, data.test)
    print(json.dumps({"teacher": teacher}), flush=True)
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        trials = pool.map(train, [(name, 0, lr, args) for name in names for lr in RATES], chunksize=1)
        best = {name: max((t for t in trials if t["method"] == name), key=lambda trial: trial["val"]) for name in names}
        more = [(name, seed, best[name]["lr"], args) for name in names for seed in range(1, args.seeds)]
        seeds = pool.map(train, more, chunksize=1)
    rows = {name: [best[name], *(row for row in seeds if row["method"] == name)] for name in names}
    alone = [row["test"] for row in rows.get("alone", [])]
    table = {name: summarize(found, alone, teacher) for name, found in rows.items()}
    print("| method | lr | test, % | spread | gain, points | gap recovered |\n|---|---|---|---|---|---|")
    for name, found in sorted(table.items(), key=lambda item: -item[1]["test"]):
        spread = "" if found["spread"] is None else f"{found['spread']:.2f}"
        shares = f"{found['gain_points']:+.2f} | {100 * found['gap_recovered']:.0f} %" if alone else "|"
        print(f"| {name} | {found['lr']:g} | {found['test']:.2f} | {spread} | {shares} |")
    facts = {
        "budget": args.budget,
        "labels": args.labels,
        "augment": args.augment,
        "views": args.views,
        "images": len(data.train),
        "epochs": args.epochs,
    }
    result = {**facts, "machine": describe(), "versions": versions(), "teacher": teacher, "methods": table}
    if args.out is not None:
        write_json(args.out, {**result, "trials": trials})


if __name__ == "__main__":
    main()
