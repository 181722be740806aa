"""A benchmark as a JSON file that travels to another device: what to measure, with every option resolved.

{"schema": "edgekd.plan/1", "suite": {...}, "against": ID|null, "seed": 0, "profile": false,
 "samples": {"file", "task", "labels"}|null, "candidates": [{id, model, variant, runtime, threads, batch, ...}]}
Paths are relative to the plan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.data.npz import read_npz
from edgekd.device.candidates import Candidate, Samples
from edgekd.device.postprocess import parse_post_steps, post_steps_to_json
from edgekd.device.suites import Suite, parse_suite
from edgekd.device.texts import TextLimits
from edgekd.errors import InputRefused
from edgekd.spec import parse_steps, steps_to_json

SCHEMA = "edgekd.plan/1"


@dataclass(frozen=True)
class Request:
    """What `edgekd.device.benchmark.benchmark` is asked for."""

    candidates: tuple[Candidate, ...]
    suite: Suite
    against: str | None = None
    samples: Samples | None = None
    seed: int = 0
    profile: bool = False


def to_json(request: Request, *, place: Callable[[str], str], samples_file: str) -> dict[str, Any]:
    """The plan of a request; `place` says where a model or bundle will lie beside the plan."""
    samples = request.samples
    return {
        "schema": SCHEMA,
        "suite": asdict(request.suite),
        "against": request.against,
        "seed": request.seed,
        "profile": request.profile,
        "samples": None
        if samples is None
        else {"file": samples_file, "task": samples.task, "labels": list(samples.labels)},
        "candidates": [
            {
                "id": item.id,
                "model": place(str(item.model)),
                "variant": item.variant,
                "runtime": item.runtime,
                "threads": item.threads,
                "batch": item.batch,
                "preprocess": steps_to_json(item.preprocess),
                "postprocess": post_steps_to_json(item.postprocess),
                "options": dict(item.options),
                "same_as": None if item.same_as is None else [place(item.same_as[0]), item.same_as[1]],
                "texts": asdict(item.texts),
            }
            for item in request.candidates
        ],
    }


def read_plan(path: Path) -> Request:
    """The request in a plan file. Raises `InputRefused` for one that is damaged or of another version."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputRefused(f"{path} cannot be read: {error}; expected a plan that edgekd wrote") from error
    if not isinstance(plan, dict) or plan.get("schema") != SCHEMA:
        raise InputRefused(f"{path} is no plan of the version {SCHEMA}; make it and the runner with one edgekd")
    folder = path.resolve().parent
    try:
        suite = dict(plan["suite"])
        name = str(suite.pop("name"))
        return Request(
            tuple(_candidate(item, folder) for item in plan["candidates"]),
            parse_suite(suite, name=name, where=path.name),
            plan["against"],
            _samples(plan["samples"], folder),
            int(plan["seed"]),
            bool(plan["profile"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputRefused(f"{path} lacks {error}; make it and the runner with one edgekd") from error


def _candidate(item: Mapping[str, Any], folder: Path) -> Candidate:
    same_as: Sequence[str] | None = item["same_as"]
    return Candidate(
        item["id"],
        str(folder / item["model"]),
        variant=item["variant"],
        runtime=item["runtime"],
        threads=item["threads"],
        batch=item["batch"],
        preprocess=parse_steps(item["preprocess"]),
        options=item["options"],
        postprocess=parse_post_steps(item["postprocess"]),
        same_as=None if same_as is None else (str(folder / same_as[0]), same_as[1]),
        texts=TextLimits(**item["texts"]),
    )


def _samples(item: Mapping[str, Any] | None, folder: Path) -> Samples | None:
    if item is None:
        return None
    arrays = read_npz(folder / item["file"])
    return Samples(arrays["x"], arrays["y"], item["task"], tuple(item["labels"]))
