"""What a busy machine does to a training: seconds of one small run, by how torch's threads wait for each other.

    python benchmarks/busy_training.py --out busy_training.json

The same `edgekd distill digits` of a few epochs, on as many threads as there are cores, with nothing else running
and beside one busy process for each core, in turns. `asleep` is what edgekd's command does, `spinning` GNU OpenMP's own
default (300,000 rounds before a thread sleeps). Linux only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekd.device.machine import describe, versions
from edgekd.files import write_json

SETTINGS = ("teacher.train.epochs=2", "teacher.args={width=8,depth=8}", "distill.epochs=3")
WAITS: dict[str, dict[str, str]] = {"asleep": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}


def train(wait: str) -> float:
    """Seconds of one run, from the start of its process to the end."""
    own = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "edgekd", "distill", "digits", "--student-only", "--quiet"]
        command += [*(f"--set={setting}" for setting in SETTINGS), "--out", f"{folder}/run"]
        started = time.perf_counter()
        subprocess.run(command, env={**own, **WAITS[wait]}, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


@contextmanager
def beside(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    """Run in turns, print the medians, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    train("asleep")  # files come into the system's cache
    seconds: dict[str, dict[str, list[float]]] = {place: {wait: [] for wait in WAITS} for place in ("alone", "busy")}
    for _ in range(args.rounds):
        for place, found in seconds.items():
            with beside(cores if place == "busy" else 0):
                for wait in WAITS:
                    found[wait].append(train(wait))
                    print(f"{place:6} {wait:9} {found[wait][-1]:7.1f} s", flush=True)
    ratios = {
        place: statistics.median(found["spinning"]) / statistics.median(found["asleep"])
        for place, found in seconds.items()
    }
    print(f"spinning over asleep: alone {ratios['alone']:.2f}, busy {ratios['busy']:.2f}")
    if args.out is not None:
        facts = {"machine": describe(), "versions": versions(), "busy_processes": cores}
        write_json(args.out, {**facts, "spinning_over_asleep": ratios, "seconds": seconds})


if __name__ == "__main__":
    main()
