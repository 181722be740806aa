"""Trainings that several processes run together: torchrun starts this file, and each process leaves what it got.

    torchrun --nproc_per_node 2 tests/distill/processes.py FOLDER CASE...

A test compares with what the same functions give in its own process, alone.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.distill import cache_build
from edgekd.distill.batches import Batches
from edgekd.distill.distribution import ALONE, Division, World, joined
from edgekd.distill.engine import distill
from edgekd.distill.execution import contained
from edgekd.distill.losses.relations import rkd
from edgekd.distill.masking import Masking
from edgekd.distill.objective import Objective, Term
from edgekd.distill.stored import Store
from edgekd.distill.teachers import ModuleTeacher
from edgekd.spec import Dataset, Layout, Scale, Split, Trim

RNG = np.random.default_rng(5)
SPLIT = Split(RNG.integers(0, 256, (133, 6, 6, 1), dtype=np.uint8), RNG.integers(0, 3, 133), np.arange(500, 633))
# 95 samples in batches of 20: the last holds 15. 37 for validation: two processes get different numbers of them.
DATA = Dataset(
    "noise",
    "classification",
    ("a", "b", "c"),
    SPLIT.take(slice(0, 95)),
    SPLIT.take(slice(96, 133)),
    SPLIT.take(slice(96, 133)),
    "none",
    "0" * 64,
)
CE = Term("ce", "cross_entropy")
KD = Term("kd", "kd", weight=0.5)


def mlp(*, seed: int, hidden: int = 12, extra: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, hidden), extra or nn.Identity(), nn.Tanh(), nn.Linear(hidden, 3)
    )  # fmt: skip


def trained(
    world: World,
    *terms: Term,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    data: Dataset = DATA,
    **changed: Any,
) -> dict[str, Any]:
    """Weights, history and adapters of a training."""
    student = student or mlp(seed=1)
    settings: dict[str, Any] = {
        "steps": (Scale(), Layout("CHW")),
        "epochs": 2,
        "batch_size": 20,
        "device": "cpu",
        "threads": 1,
        "lr": 0.05,
        "optimizer": "sgd",
        "augment": {"shift": 1},
        **changed,
    }
    asked = ModuleTeacher(teacher or mlp(seed=2, hidden=20))
    result = distill(student, (asked,), data, Objective(terms or (CE, KD)), world=world, **settings)
    weights = {f"weights.{name}": value.numpy() for name, value in result.student.state_dict().items()}
    return {
        **weights,
        "loss": [item["loss"] for item in result.history],
        "val": [item["val"] for item in result.history],
        "gradients": list(result.history[0]["gradients"].values()),
        "seen": result.images_seen,
        "passes": result.teacher_passes,
        "warnings": list(result.warnings),
    }


def per_sample(world: World) -> dict[str, Any]:
    return trained(world)


def comparing(world: World) -> dict[str, Any]:
    relations = (Term("rkd", "rkd", weight=0.1), Term("dist", "dist", weight=0.5), Term("pkt", "pkt", weight=100.0))
    return trained(world, CE, *relations)


def adapted(world: World) -> dict[str, Any]:
    """One adapter before the mean over samples, one with memories of all samples and draws of its own."""
    hint = Term("hint", "hint", student_tap="1", teacher_tap="1")
    memory = Term(
        "crd",
        "contrastive",
        student_tap="1",
        teacher_tap="1",
        adapter="contrastive_memory",
        adapter_options={"width": 8, "negatives": 16},
    )
    return trained(world, CE, hint, memory, lr=0.01)


def accumulated(world: World) -> dict[str, Any]:
    return trained(world, accumulate=3)


def accumulated_comparing(world: World) -> dict[str, Any]:
    return trained(world, CE, Term("rkd", "rkd", weight=0.1), accumulate=2)


def normalized(world: World) -> dict[str, Any]:
    """With batch norm: each process has statistics of its own rows, and all end with the same.

    The last batch holds two rows, which both processes get: from one nothing could be learned.
    """
    return trained(world, student=mlp(seed=1, extra=nn.BatchNorm1d(12)), batch_size=31)


class Still(nn.BatchNorm1d):
    """Batch norm that leaves everything as it is: what one process computes with it is what several do."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def still() -> nn.Module:
    return mlp(seed=1, extra=Still(12, affine=False, track_running_stats=False))


def uneven(world: World) -> dict[str, Any]:
    """A last batch that both processes get whole: of terms that compare samples, and of memories with draws."""
    memory = Term("crd", "contrastive", student_tap="1", teacher_tap="1", adapter_options={"width": 8, "negatives": 16})
    return trained(world, CE, Term("rkd", "rkd", weight=0.1), memory, student=still(), batch_size=31, lr=0.01)


def uneven_accumulated(world: World) -> dict[str, Any]:
    """Its two rows are too few for two micro-batches as well."""
    return trained(world, CE, Term("rkd", "rkd", weight=0.1), student=still(), batch_size=31, accumulate=2)


def dropped_out(world: World) -> dict[str, Any]:
    """Which units the first dropout of each process left, beside the result."""
    seen: list[Tensor] = []
    dropout = nn.Dropout(0.5)
    dropout.register_forward_hook(lambda module, inputs, output: seen.append(output == 0) if module.training else None)
    result = trained(world, student=mlp(seed=1, extra=dropout))
    return {**result, "mask": seen[0].numpy()}


def averaged(world: World) -> dict[str, Any]:
    """The average of the weights, clipped gradients, and an end before the last epoch."""
    return trained(world, ema=0.9, clip_norm=0.5, epochs=6, patience=1)


class Reader(nn.Module):
    """Tokens (N, L) to logits, and their hidden states (N, L, D), of which padding is no part."""

    def __init__(self, *, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.hidden, self.head = nn.Embedding(20, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, ids_NL: Tensor) -> Tensor:
        hidden_NLD = self.hidden(self.table(ids_NL)).tanh()
        counts_NL1 = (ids_NL != 0)[..., None]
        pooled: Tensor = self.head((hidden_NLD * counts_NL1).sum(dim=1) / counts_NL1.sum(dim=1))
        return pooled


def text_ids() -> NDArray[np.int32]:
    """Texts of very different lengths, one of them with a padding between its tokens."""
    ids = RNG.integers(1, 20, (133, 16)).astype(np.int32)
    ids[np.arange(16) >= RNG.integers(2, 17, 133)[:, None]] = 0
    ids[5, :3] = [7, 0, 7]
    return ids


TEXT_IDS = text_ids()


def texts() -> Dataset:
    """These with classes."""
    split = Split(TEXT_IDS, SPLIT.y, SPLIT.ids)
    parts = split.take(slice(0, 95)), split.take(slice(96, 133)), split.take(slice(96, 133))
    return Dataset("words", "classification", ("a", "b", "c"), *parts, "none", "1" * 64)


TEXTS = texts()


def read(world: World) -> dict[str, Any]:
    """Texts: means over tokens, over pairs of them, and terms that compare samples by all of their tokens."""
    taps = {"student_tap": "hidden", "teacher_tap": "hidden"}
    several = {"student_tap": ("hidden",) * 3, "teacher_tap": ("hidden",) * 3}
    terms = (
        CE,
        Term("hidden", "hidden_mse", **taps),
        Term("cosine", "cosine_embedding", **taps),
        Term(
            "scores", "attention_mse", **{name: tap[:2] for name, tap in several.items()},
            adapter="attention_scores", adapter_options={"heads": 2},
        ),
        Term("relation", "minilm_relation", options={"heads": 2}, **several),
        Term("dist", "dist", weight=0.5),
    )  # fmt: skip
    return of_texts(world, *terms)


def of_texts(world: World, *terms: Term, **changed: Any) -> dict[str, Any]:
    """A training on `TEXTS`."""
    reading: dict[str, Any] = {"steps": (Trim(0),), "augment": None, "data": TEXTS, "student": Reader(seed=1, width=6)}
    return trained(world, *terms, teacher=Reader(seed=2, width=6), **reading, **changed)


def read_adapted(world: World) -> dict[str, Any]:
    """Texts and a term that compares samples through an adapter; the last batch holds one text for each of two."""
    compared = Term("compared", "correlation_congruence", adapter="unit", weight=0.1)
    return of_texts(world, CE, compared, batch_size=31)


def uneven_texts(world: World) -> dict[str, Any]:
    """Micro-batches of one text, which both processes get; tokens count as in all others."""
    hidden = Term("hidden", "hidden_mse", student_tap="hidden", teacher_tap="hidden")
    return of_texts(world, CE, hidden, batch_size=23, accumulate=3)


class Guesser(nn.Module):
    """Masked texts (N, 2, L) to the logits (M, V) of what is asked for, and hidden states (N, L, D)."""

    def __init__(self, *, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.hidden, self.head = nn.Embedding(20, width), nn.Linear(width, width), nn.Linear(width, 20)

    def forward(self, x_N2L: Tensor) -> dict[str, Tensor]:
        hidden_NLD = self.hidden(self.table(x_N2L[:, 0])).tanh()
        return {"logits": self.head(hidden_NLD[x_N2L[:, 1].bool()]), "hidden": hidden_NLD}


def masked(world: World, *, more: tuple[Term, ...] = (), **changed: Any) -> dict[str, Any]:
    """Masked texts: means over the tokens that are asked for, of which each text has another number."""
    zeros = np.zeros((133, 1), np.float32)
    split = Split(TEXT_IDS, zeros, SPLIT.ids)
    parts = split.take(slice(0, 95)), split.take(slice(96, 133)), split.take(slice(96, 133))
    data = Dataset("words", "masked_lm", tuple(map(str, range(20))), *parts, "none", "2" * 64)
    hidden = Term("hidden", "hidden_mse", student_tap="hidden", teacher_tap="hidden")
    masking = Masking(1, np.arange(2, 20), 20, 0.4)
    return trained(
        world, CE, KD, hidden, *more, steps=(Trim(0),), augment=None, data=data, masking=masking,
        student=Guesser(seed=1, width=6), teacher=Guesser(seed=2, width=6), **changed,
    )  # fmt: skip


def uneven_masked(world: World) -> dict[str, Any]:
    """The same of masked texts."""
    return masked(world, batch_size=23, accumulate=3)


class Killed(Exception):
    """Stands for a power cut, in all processes at the same step."""


STEPS = {"left": 0}


def mean_square_that_may_be_cut(student: Tensor, teacher: Tensor) -> Tensor:
    STEPS["left"] -= 1
    if STEPS["left"] == 0:
        raise Killed
    return (student - teacher).square().mean()


def resumed(world: World) -> dict[str, Any]:
    """A training that was cut and goes on, beside one that was not: dropout, memories and average included."""
    folder = world.share(tempfile.mkdtemp() if world.leads else "")
    memory = Term("crd", "contrastive", student_tap="1", teacher_tap="1", adapter="contrastive_memory")
    terms = (CE, Term("cut", mean_square_that_may_be_cut), memory)

    def run(**changed: Any) -> dict[str, Any]:
        student = mlp(seed=1, extra=nn.Dropout(0.3))
        return trained(world, *terms, student=student, epochs=4, ema=0.9, optimizer="adamw", lr=0.01, **changed)

    whole = run()
    STEPS["left"] = 14  # one in the rehearsal, five per epoch: in the third
    try:
        run(run_dir=folder)
    except Killed:
        done = world.share(len(list(Path(folder).glob("checkpoint.pt"))))
    else:
        done = 0
    again = run(run_dir=folder)
    if world.leads:
        shutil.rmtree(folder)
    names = [name for name in whole if name.startswith("weights.")]
    same = all(whole[name].tobytes() == again[name].tobytes() for name in names)
    return {"done": done, "same": same, "loss": np.array(whole["loss"]) - np.array(again["loss"])}


def grown(world: World) -> dict[str, Any]:
    """A training that one process began, and that all of these go on with."""
    folder = world.share(tempfile.mkdtemp() if world.leads else "")
    terms = (CE, Term("cut", mean_square_that_may_be_cut), Term("rkd", "rkd", weight=0.1))
    if world.leads:
        STEPS["left"] = 14  # in the third epoch
        with suppress(Killed):
            trained(ALONE, *terms, epochs=4, run_dir=folder)
    world.collect(None)
    result = trained(world, *terms, epochs=4, run_dir=folder)
    if world.leads:
        shutil.rmtree(folder)
    return result


def gathered(world: World) -> dict[str, Any]:
    """The gradient of rkd through a layer in float64: own rows only, then the mean over the processes."""
    torch.manual_seed(3)
    x, target = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, 4, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    unused = nn.Parameter(torch.ones(2))
    portion = Division(world).portions(11)[0]
    rows = slice(world.rank, None, world.size)
    loss = rkd(portion.gather(x[rows] @ weight), portion.gather(target[rows]))
    loss.backward()
    world.average_gradients([weight, unused])
    order = portion.gather(torch.arange(11)[rows])
    flags = portion.gather(torch.arange(11)[rows] % 3 == 0)
    return {
        "loss": loss.item(),
        "gradient": weight.grad.numpy() if weight.grad is not None else None,
        "unused": unused.grad is None,
        "order": order.numpy(),
        "flags": flags.numpy(),
        "shared": world.share(f"from {world.rank}"),
        "collected": world.collect(world.rank),
    }


def cached(world: World) -> dict[str, Any]:
    """The files of a teacher cache of seven shards, and how often this process asked the teacher."""
    folder = Path(world.share(tempfile.mkdtemp() if world.leads else ""))
    before, cache_build.SHARD_ROWS = cache_build.SHARD_ROWS, 30
    views = Batches(DATA.train, (Scale(), Layout("CHW")), batch_size=20, augment={"shift": 1}, views=2)
    teacher = ModuleTeacher(mlp(seed=2, hidden=20))
    questions = []

    def counting(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        questions.append(len(batch["x"]))
        return teacher(batch)

    order = cache_build.Order(counting, views, Store(), 3, "noise", batch_size=7)
    try:
        # As the stage does it: sums over another number of threads round differently.
        with torch.inference_mode(), contained(torch.device("cpu"), threads=1):
            cache, asked = cache_build.build_cache(folder, {"data": "noise"}, order, world=world)
            _, again = cache_build.build_cache(folder, {"data": "noise"}, order, world=world)
        files = {f"file {path.name}": np.frombuffer(path.read_bytes(), np.uint8) for path in cache.path.glob("[i0]*")}
    finally:
        cache_build.SHARD_ROWS = before
    world.collect(None)
    if world.leads:
        shutil.rmtree(folder)
    return {**files, "asked": asked, "again": again, "own": sum(questions)}


CASES: dict[str, Callable[[World], Mapping[str, Any]]] = {
    function.__name__: function
    for function in (
        per_sample,
        comparing,
        adapted,
        read,
        read_adapted,
        masked,
        accumulated,
        accumulated_comparing,
        normalized,
        uneven,
        uneven_accumulated,
        uneven_texts,
        uneven_masked,
        dropped_out,
        averaged,
        resumed,
        grown,
        gathered,
        cached,
    )
}


def main(folder: Path, *names: str) -> None:
    with joined(os.environ, device=torch.device("cpu")) as world:
        for name in names:
            np.savez(folder / f"{name}.{world.rank}.npz", **CASES[name](world))  # type: ignore[arg-type]
    tasks = Path("/proc/self/task")
    left = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.is_dir() else []
    (folder / f"threads.{world.rank}").write_text("\n".join(left))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
