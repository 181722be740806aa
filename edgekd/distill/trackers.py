"""Where the figures of each epoch go: a table in CSV, TensorBoard, and whatever else Accelerate can talk to.

    FOLDER/metrics.csv            one row per epoch
    FOLDER/events.out.tfevents.*  for `tensorboard --logdir RUN/logs`

A training that was killed and goes on from a checkpoint repeats the epochs after it: they are in no table twice.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from edgekd.device.metrics import METRIC
from edgekd.errors import MissingExtra, MissingHere, UsageError, explain_os_errors, nearest
from edgekd.files import write_text

CSV = "csv"
TENSORBOARD = "tensorboard"
# Accelerate's name: what pip calls the package.
PACKAGES: dict[str, str] = {
    TENSORBOARD: "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "comet_ml": "comet-ml",
    "aim": "aim",
    "clearml": "clearml",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
    "trackio": "trackio",
}
TABLE = "metrics.csv"
EVENTS = "events.out.tfevents.*"

History = Sequence[Mapping[str, Any]]
# Hears the history after each epoch, the new one last.
Log = Callable[[History], None]


def check_names(names: Sequence[str]) -> None:
    """Raise `UsageError` for an unknown name."""
    for name in names:
        if name != CSV and name not in PACKAGES:
            raise UsageError(f"unknown tracker '{name}'. {nearest(name, [CSV, *PACKAGES])}")


def check_trackers(names: Sequence[str]) -> None:
    """Raise `UsageError` for an unknown name and `MissingHere` with the pip command for a package that is not here."""
    check_names(names)
    for name in names:
        if name == CSV:
            continue
        try:
            from accelerate.tracking import get_available_trackers
        except ImportError as error:
            raise MissingExtra("accelerate", "train", purpose=f"the tracker {name}") from error
        if name not in {str(found.value) for found in get_available_trackers()}:
            raise MissingHere(
                f"the tracker '{name}' needs a package that is not installed. Install it with: pip install "
                f"{PACKAGES[name]}; or take it out of trackers"
            )


@contextmanager
def opened(names: Sequence[str], folder: Path, *, begun: int, facts: Mapping[str, Any], task: str) -> Iterator[Log]:
    """Trackers that log until the end of the block; `begun` epochs are done already.

    facts  of the training, for the services that show them

    Raises what `check_trackers` raises, and `StorageError` when `folder` cannot be written.
    """
    check_trackers(names)
    if names:
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if begun == 0:
                for left in [*folder.glob(TABLE), *folder.glob(EVENTS)]:  # of an earlier training of this name
                    left.unlink()
    with ExitStack() as stack:
        logs = [
            _table(folder / TABLE, task)
            if name == CSV
            else stack.enter_context(_service(name, folder, begun=begun, facts=facts, task=task))
            for name in dict.fromkeys(names)
        ]

        def log(history: History) -> None:
            for one in logs:
                one(history)

        yield log


def figures(item: Mapping[str, Any], task: str) -> dict[str, float]:
    """The numbers of one epoch by the names that tables and curves have; those that were not measured are not there."""
    named = {
        "loss": item["loss"],
        "lr": item["lr"],
        **{f"terms/{name}": value for name, value in item["terms"].items()},
        **{f"gradients/{name}": value for name, value in (item["gradients"] or {}).items()},
        f"validation/{METRIC[task]}": item["val"],
        "seconds": item["seconds"],
    }
    return {name: float(value) for name, value in named.items() if value is not None}


def _table(path: Path, task: str) -> Log:
    """The whole history, written anew after each epoch: whatever was killed when, no row is missing or there twice."""

    def log(history: History) -> None:
        rows = [{"epoch": item["epoch"], "stage": item["stage"] or "", **figures(item, task)} for item in history]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())

    return log


@contextmanager
def _service(name: str, folder: Path, *, begun: int, facts: Mapping[str, Any], task: str) -> Iterator[Log]:
    """One of Accelerate's trackers. It logs the epochs after `begun`; TensorBoard forgets what it had of them."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    # A folder RUN/logs/student is the run "student" in RUN/logs; a service shows "RUN-student".
    if name == TENSORBOARD:
        tracker = kind(folder.name, logging_dir=folder.parent, purge_step=begun + 1 if begun else None)
    elif kind.requires_logging_directory:
        tracker = kind(folder.name, logging_dir=folder.parent)
    else:
        tracker = kind(f"{folder.absolute().parent.parent.name}-{folder.name}")
    tracker.start()
    if name != TENSORBOARD:  # it would make a run of its own for them
        simple = {key: value for key, value in facts.items() if isinstance(value, (str, int, float))}
        tracker.store_init_configuration(simple)

    def log(history: History) -> None:
        tracker.log(figures(history[-1], task), step=history[-1]["epoch"])

    try:
        yield log
    finally:
        tracker.finish()
