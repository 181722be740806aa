"""What is benchmarked, and everything about a candidate that can be told before it runs."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.archive import arrays_to_bytes
from edgekd.device.bundle import Bundle, looks_like_bundle
from edgekd.device.machine import resolve_threads
from edgekd.device.manifest import MANIFEST, MAX_MANIFEST_BYTES
from edgekd.device.postprocess import PostStep, parse_post_steps
from edgekd.device.preprocess import split_steps
from edgekd.device.texts import TextLimits
from edgekd.errors import EdgekdError, ModelError, UsageError, nearest
from edgekd.files import sha256_file
from edgekd.rows import Rows, pieces
from edgekd.spec import Array, Step, Task, parse_steps, steps_to_json


@dataclass(frozen=True)
class Candidate:
    """One model as it is to run: a bundle (folder or zip) and its variant, or a model file.

    preprocess   the arithmetic steps; empty means the bundle's own (none for a model file)
    postprocess  the steps from outputs to what `Samples.y` holds; empty means the bundle's own, or the task's
    options      for the runtime's adapter
    same_as      (bundle, variant) that a plain file was converted from: it must give that one's golden outputs
    texts        what random texts for it may hold, where nobody gives samples
    """

    id: str
    model: str | Path
    variant: str | None = None
    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    preprocess: tuple[Step, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    postprocess: tuple[PostStep, ...] = ()
    same_as: tuple[str, str] | None = None
    texts: TextLimits = field(default_factory=TextLimits)


@dataclass(frozen=True)
class Samples:
    """Labelled samples that training never saw: x (N, ...) before the arithmetic steps, y as in `spec.Split`.

    `labels` name the classes, in order, where they have names.
    """

    x: Rows
    y: Array
    task: Task
    labels: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Which samples these are, for the result: two results on equal ones are compared in pairs."""
        whole = hashlib.sha256()
        for rows in (self.x, self.y):
            whole.update(f"{rows.dtype.str}{rows.shape}".encode())
            for piece in pieces(rows):
                whole.update(np.ascontiguousarray(piece).data)
        return {"task": self.task, "n": len(self.x), "sha256": whole.hexdigest()}


@dataclass
class Plan:
    """A candidate with what was found out about it. `error` set means: it failed, and that is why.

    golden     file of the golden arrays of the bundle and variant in `golden_of`, which the candidate must give
    """

    candidate: Candidate
    variant: str | None = None
    steps: tuple[Step, ...] = ()
    postprocess: tuple[PostStep, ...] = ()
    size_bytes: int | None = None
    golden: Path | None = None
    golden_of: tuple[str, str] | None = None
    error: str | None = None

    def load_command(self, *, samples: Path | None, golden: Path | None, seed: int, memory: bool) -> dict[str, Any]:
        """The command that makes a child process open this candidate."""
        candidate = self.candidate
        return {
            "do": "load",
            "model": str(candidate.model),
            "variant": self.variant,
            "runtime": candidate.runtime,
            "threads": candidate.threads,
            "options": dict(candidate.options),
            "batch": candidate.batch,
            "preprocess": steps_to_json(self.steps),
            "samples": None if samples is None else str(samples),
            "golden": None if golden is None else str(golden),
            "texts": asdict(candidate.texts),
            "seed": seed,
            "memory": memory,
        }


def check_request(candidates: Sequence[Candidate], against: str | None) -> None:
    """Raise `UsageError` for what cannot be measured: no candidate, equal ids, unknown reference, too many threads."""
    ids = [candidate.id for candidate in candidates]
    if not ids:
        raise UsageError("found no candidate, expected at least one bundle or model file")
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise UsageError(f"found the candidate id '{twice[0]}' twice; give each candidate an id of its own")
    if against is not None and against not in ids:
        raise UsageError(f"'{against}', the reference, is not among the candidates. {nearest(against, ids)}")
    for candidate in candidates:
        resolve_threads(candidate.threads)
        if candidate.batch < 1:
            raise UsageError(f"candidate '{candidate.id}': found batch={candidate.batch}, expected at least 1")


def make_plan(candidate: Candidate, folder: Path) -> Plan:
    """Look at the candidate's files; its bundle's golden arrays are laid into `folder` for the children."""
    plan = Plan(candidate, variant=candidate.variant, steps=candidate.preprocess, postprocess=candidate.postprocess)
    path = Path(candidate.model)
    try:
        if not path.exists():
            raise ModelError(f"{path} does not exist; expected a bundle (folder or zip) or a model file")
        if looks_like_bundle(path):
            _look_into_bundle(plan, Bundle.open(path), folder)
        else:
            plan.size_bytes = sum(file.stat().st_size for file in _files(path))
            if candidate.same_as is not None:
                origin = Bundle.open(candidate.same_as[0])
                _take_steps(plan, origin)
                _lay_golden(plan, origin, candidate.same_as[1], folder)
    except EdgekdError as error:
        plan.error = str(error)
    return plan


def _look_into_bundle(plan: Plan, bundle: Bundle, folder: Path) -> None:
    variant = plan.candidate.variant or bundle.default_variant()
    if variant not in bundle.manifest["variants"]:
        raise UsageError(f"{bundle.path} has no variant '{variant}'. {nearest(variant, bundle.manifest['variants'])}")
    plan.variant = variant
    _take_steps(plan, bundle)
    plan.size_bytes = int(bundle.manifest["variants"][variant]["size_bytes"])
    if any(key.startswith(f"output.{variant}.") for key in bundle.golden()):
        _lay_golden(plan, bundle, variant, folder)


def _take_steps(plan: Plan, bundle: Bundle) -> None:
    plan.steps = plan.steps or split_steps(parse_steps(bundle.manifest["preprocess"]))[1]
    plan.postprocess = plan.postprocess or parse_post_steps(bundle.manifest.get("postprocess", ()))


def _lay_golden(plan: Plan, bundle: Bundle, variant: str, folder: Path) -> None:
    if variant not in bundle.manifest["golden"]["outputs"]:
        raise UsageError(f"{bundle.path} has no golden outputs of '{variant}'. {nearest(variant, bundle.variants)}")
    plan.golden_of = (str(bundle.path), variant)
    plan.golden = folder / "golden.npz"
    plan.golden.write_bytes(arrays_to_bytes(bundle.golden()))


def content_of(model: str) -> str:
    """sha256 of a bundle's manifest, which holds those of its files, or of all files of a plain model."""
    path, whole = Path(model), hashlib.sha256()
    if looks_like_bundle(path):
        whole.update(Bundle.open(path).reader.read(MANIFEST, limit=MAX_MANIFEST_BYTES))
    else:
        # The weights of a large .onnx, as torch writes them beside it.
        for file in [*_files(path), *path.parent.glob(f"{glob.escape(path.name)}.data")]:
            whole.update(bytes.fromhex(sha256_file(file)))
    return whole.hexdigest()


def _files(path: Path) -> list[Path]:
    """The files of a plain model: itself and the weights that lie beside it."""
    if path.suffix in (".param", ".xml"):  # ncnn's and OpenVINO's texts
        beside = path.with_suffix(".bin")
    elif path.suffix == ".json":
        try:
            weights = json.loads(path.read_text(encoding="utf-8")).get("weights")
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{path} is no description of a model: {error}; expected a JSON object") from error
        beside = path.parent / weights if isinstance(weights, str) else path
    else:
        beside = path
    return [path, *([beside] if beside != path and beside.is_file() else [])]
