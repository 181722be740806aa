"""Run as a script by test_resume.py: trains in child processes that are killed with SIGKILL, again and again.

Reads a JSON plan from the command line and prints one JSON object. torch is imported once; each attempt is a fork.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # optimizers import it at their first step, which would cost every fork two seconds
from torch import Tensor, nn

from edgekd.distill.engine import TrainResult, distill
from edgekd.distill.objective import Objective, Schedule, Term
from edgekd.distill.programme import Stage
from edgekd.distill.teachers import ModuleTeacher
from edgekd.spec import Dataset, Layout, Scale, Split

EPOCHS = 8
# In which the process dies: Python calls since the training began, or (moment, file name, how often before).
Death = int | tuple[str, str, int]


def train(run_dir: Path) -> TrainResult:
    """A student with everything that could break exactness.

    Dropout, batch norm, augmentation, momentum; features through an adapter that is trained too, in stages; mixed
    samples; an average of the weights.
    """
    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 36, 3)
    )
    teacher = ModuleTeacher(nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (90, 8, 8, 1)).astype(np.uint8)
    y, ids = rng.integers(0, 3, 90), np.arange(90)
    split = Split(x, y, ids)
    data = Dataset("noise", "classification", ("a", "b", "c"), split.take(slice(0, 60)), split.take(slice(60, 90)),
                   split.take(slice(60, 90)), "none", "0" * 64)  # fmt: skip
    return distill(
        student,
        (teacher,),
        data,
        Objective(
            [
                Term("ce", "cross_entropy"),
                Term("kd", "kd", weight=Schedule(0.0, 2.0)),
                Term("hint", hint, student_tap="2", teacher_tap="1", adapter="auto"),
            ]
        ),
        steps=(Scale(), Layout("CHW")),
        epochs=EPOCHS,
        batch_size=16,
        device="cpu",
        augment={"shift": 1, "noise": 4.0},
        mixup=0.3,
        stages=(Stage("hints", 3, ("hint",)), Stage("soft", EPOCHS - 3, ("ce", "kd", "hint"), lr=5e-4)),
        ema=0.9,
        clip_norm=1.0,
        run_dir=run_dir,
    )


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """FitNets' loss: mean squared difference."""
    return (student - teacher).square().mean()


def arm(death: Death) -> None:
    """Make this process kill itself at the moment that `death` names."""
    if isinstance(death, int):
        left = death

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                die()

        sys.setprofile(count)
        return
    moment, name, before = death
    replace, write_bytes = Path.replace, Path.write_bytes

    def is_due(path: Path) -> bool:
        nonlocal before
        if path.name == name or (moment == "half_written" and path.suffix == Path(name).suffix):
            before -= 1
        return before < 0

    def replacing(self: Path, target: Path) -> Path:
        due = is_due(target)
        if due and moment == "before_rename":
            die()
        done = replace(self, target)
        if due:
            die()
        return done

    def writing(self: Path, data: bytes) -> int:
        if is_due(self):
            write_bytes(self, bytes(data)[: len(data) // 2])
            die()
        return write_bytes(self, data)

    if moment == "half_written":
        Path.write_bytes = writing  # type: ignore[method-assign, assignment]
    else:
        Path.replace = replacing  # type: ignore[method-assign, assignment]


def die() -> None:
    """As kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None]) -> int:
    """The status of a forked process that does `work`."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - nothing may go on in a forked copy of this process
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def attempt(run_dir: Path, death: Death | None) -> bool:
    """One attempt to train; whether it was killed."""

    def work() -> None:
        if death is not None:
            arm(death)
        train(run_dir)

    status = in_child(work)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return True
    assert status == 0, f"the training failed with status {status}"
    return False


def outcome(run_dir: Path) -> dict[str, Any]:
    """What must not depend on how often the process was killed."""
    history = json.loads((run_dir / "history.json").read_text())
    for item in history["history"]:
        item.pop("seconds")
    history.pop("seconds")
    weights = (run_dir / "weights.safetensors").read_bytes()
    files = sorted(path.name for path in run_dir.iterdir())
    return {"weights": hashlib.sha256(weights).hexdigest(), "history": history, "files": files}


def count_calls(run_dir: Path) -> int:
    """Profiler events in one uninterrupted training."""
    events = 0
    receive, send = os.pipe()

    def work() -> None:
        def count(frame: object, event: str, argument: object) -> None:
            nonlocal events
            events += 1

        sys.setprofile(count)
        train(run_dir)
        sys.setprofile(None)
        os.write(send, str(events).encode())

    assert in_child(work) == 0
    return int(os.read(receive, 64))


def main() -> None:
    """Train once undisturbed and once for each list of deaths; print both outcomes and the numbers of kills."""
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    calls = count_calls(folder / "whole")
    choice = random.Random(plan["seed"])
    killed = []
    resumed = []
    for number, deaths in enumerate(plan["deaths"]):
        run_dir = folder / f"killed_{number}"
        kills, epochs = 0, []
        # "random" stands for a moment anywhere in what one third of a training calls.
        moments = [choice.randrange(calls // 3) if death == "random" else death for death in deaths]
        for death in moments:
            kills += attempt(run_dir, tuple(death) if isinstance(death, list) else death)
            checkpoint = run_dir / "checkpoint.pt"
            if checkpoint.is_file():
                raw = torch.load(checkpoint, weights_only=True)  # whole, whenever the process died
                epochs.append(len(json.loads(raw["record"])["history"]))
        assert not attempt(run_dir, None)
        killed.append({"kills": kills, "epochs": epochs})
        resumed.append(outcome(run_dir))
    print(json.dumps({"whole": outcome(folder / "whole"), "killed": killed, "resumed": resumed, "calls": calls}))


if __name__ == "__main__":
    main()
