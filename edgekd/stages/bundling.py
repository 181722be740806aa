"""Bundles that no run wrote: a run's own again, elsewhere or as a zip, and somebody's ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.bundle import Bundle
from edgekd.device.manifest import spec_to_json
from edgekd.device.postprocess import default_post_steps, parse_post_steps, post_steps_to_json
from edgekd.device.preprocess import prepare, split_steps
from edgekd.device.tokens import tokenize_step
from edgekd.errors import InputRefused, RecipeError, UsageError, nearest
from edgekd.files import sha256_file
from edgekd.graph.inspection import inspect
from edgekd.spec import TASKS, Array, Step, Task, parse_steps, steps_to_json
from edgekd.stages.inside import NOTHING, Contents, Inside, put_inside, run_graph
from edgekd.stages.networks import network_of_numbers, network_of_texts
from edgekd.stages.shipping import BUNDLE, golden_tolerance
from edgekd.stages.texts import bundled, tokenizer_files
from edgekd.version import __version__


def bundle_run(run: Path, out: Path, *, as_zip: bool, samples: int, inside: Inside = NOTHING, seed: int = 0) -> Bundle:
    """A run's bundle again: elsewhere, as a zip, with labelled validation samples, or with its steps `inside`."""
    source = Bundle.open(run / BUNDLE) if (run / BUNDLE).exists() else None
    if source is None:
        raise InputRefused(
            f"{run} holds no {BUNDLE} yet; expected a finished run (distill-and-export --out {run}), or an ONNX file"
        )
    labelled: dict[str, Array] | None = None
    if samples:
        from edgekd.recipe import load_recipe
        from edgekd.stages.workspace import prepare_data

        loaded = load_recipe(run / "recipe.toml")
        prepared = prepare_data(loaded.recipe, loaded.folder)
        val = prepared.labelled(prepared.dataset.val.take(slice(samples)))
        labelled = {"x": val.x[:], "y": val.y}
        if inside.preprocess or source.manifest.get("preprocess_in_graph"):
            check_samples(prepared.steps, labelled["x"])
    graphs = {
        variant: {role: source.graph(role, variant) for role in source.manifest["variants"][variant]["graphs"]}
        for variant in source.variants
    }
    contents = put_inside(Contents(source.manifest, graphs, source.golden(), source.files()), inside, seed=seed)
    return Bundle.write(
        out, contents.manifest, contents.graphs, contents.golden, labelled, files=contents.files, as_zip=as_zip
    )


def check_samples(steps: Sequence[Step], x: Array) -> None:
    """Raise `UsageError` where samples that went through the spatial steps cannot go through them once more."""
    spatial = split_steps(steps)[0]
    once = x[0][..., np.newaxis] if spatial and x[0].ndim == 2 else x[0]
    again = prepare(spatial, once)
    if again.shape != once.shape or not np.array_equal(again, once):
        raise UsageError(
            "--samples: the data are kept after resize and crop, and a graph with preprocessing inside would do both "
            "again; leave --samples out, or --preprocess-in-graph"
        )


def bundle_model(
    model: Path,
    out: Path,
    *,
    name: str,
    task: str,
    labels: str | None,
    steps: Sequence[Mapping[str, Any]],
    licence: str | None,
    as_zip: bool,
    seed: int,
    intended_use: str = "",
    inside: Inside = NOTHING,
    post: Sequence[Mapping[str, Any]] | None = None,
    warn: Callable[[str], object] = lambda text: None,
) -> Bundle:
    """Somebody's ONNX file as a bundle with one variant. Its licence is asked for: whoever gets the bundle needs it.

    `warn` is told what may be wrong, but need not be.
    """
    if not licence:
        raise UsageError(f"bundle {model}: say under which licence the model is, with --licence (for example MIT)")
    if task not in TASKS:
        raise UsageError(f"--task {task}: unknown. {nearest(task, TASKS)}")
    known_task: Task = next(item for item in TASKS if item == task)
    found = inspect(model)
    try:
        parsed = parse_steps(steps, where="--preprocess")
        known_post = default_post_steps(known_task) if post is None else parse_post_steps(post, where="--postprocess")
    except RecipeError as error:
        raise UsageError(str(error)) from error
    reads = network_of_texts if tokenize_step(parsed) is not None else network_of_numbers
    network = reads(model, found, parsed, seed)
    for text in network.warnings:
        warn(text)
    outputs = run_graph(network.graph, network.feeds)
    names = read_labels(labels)
    shape = outputs[found.outputs[0].name].shape
    if reads is network_of_texts and len(shape) != 2:
        raise InputRefused(
            f"{model} gives {found.outputs[0].name} {list(found.outputs[0].shape)}, expected one row of numbers for "
            "each text (N, D); export it with its head, or with the pooling of its vectors"
        )
    if names and len(names) != shape[-1]:
        raise UsageError(f"--labels names {len(names)} labels, but {model} has {shape[-1]} outputs")
    names = names or [str(index) for index in range(shape[-1])]
    golden = {"raw": network.raw, **{f"input.{key}": value for key, value in network.feeds.items()}}
    variant = found.precision
    golden |= {f"output.{variant}.{key}": value for key, value in outputs.items()}
    files = tokenizer_files(network.steps, task=known_task, labels=names)
    manifest = {
        "name": name,
        "task": task,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "edgekd_version": __version__,
        "licence": licence,
        "intended_use": intended_use,
        "provenance": {
            "recipe_sha256": None,
            "teacher": {"name": "none", "licence": "none", "sha256": ""},
            "data": {"name": "not stated", "licence": "not stated", "sha256": ""},
            "seed": seed,
        },
        "labels": names,
        "default": {"*": variant},
        "inputs": [spec_to_json(network.spec)],
        "outputs": [spec_to_json(item) for item in found.outputs],
        "preprocess": steps_to_json(bundled(network.steps)),
        "postprocess": post_steps_to_json(known_post),
        "variants": {
            variant: {
                "precision": variant,
                "scheme": None,
                "opset": found.opset,
                "ir_version": found.ir_version,
                "min_runtime": found.min_runtime,
                "tolerance": golden_tolerance(variant, outputs.values()),
                "metrics": {},
            }
        },
        "golden": {"synthetic": True},
        "metrics": {"teacher": None, "student_alone": None, "student": None},
        "limits": [],
        "source_sha256": sha256_file(model),
    }
    contents = put_inside(Contents(manifest, {variant: {"main": network.graph}}, golden, files), inside, seed=seed)
    return Bundle.write(out, contents.manifest, contents.graphs, contents.golden, files=contents.files, as_zip=as_zip)


def read_labels(text: str | None) -> list[str]:
    """Labels from `a,b,c`, or from a file with one per line."""
    if text is None:
        return []
    path = Path(text)
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except ValueError as error:
        raise InputRefused(f"--labels {path} is not text in UTF-8 ({error}); expected one label per line") from error
