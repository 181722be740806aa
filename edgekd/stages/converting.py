"""A bundle's variants in other runtimes' own formats, beside it; each proven by the bundle's golden vectors."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.bundle import Bundle
from edgekd.device.manifest import tensor_specs
from edgekd.device.preprocess import apply_arithmetic, prepare, split_steps
from edgekd.device.runtimes import Session, open_session
from edgekd.device.selftest import DEFAULT_TOLERANCE, check_variant
from edgekd.device.tokens import texts_of
from edgekd.errors import AnswerIsNo, EdgekdError, UsageError, explain_os_errors, nearest
from edgekd.files import sha256_file
from edgekd.graph.formats import FORMATS, Platform, Request, convert, find_format
from edgekd.graph.targets import Target


def platform_of(target: Target) -> Platform:
    """amd64 for a target that prefers anything on x86-64, else arm, whose files run everywhere."""
    return "amd64" if any(pattern.startswith("x86_64") for pattern in target.default) else "arm"


def convert_bundle(
    bundle: Bundle,
    formats: Sequence[str],
    out: Path,
    *,
    platform: Platform = "amd64",
    variants: Sequence[str] = (),
    env: Path | None = None,
) -> dict[str, Any]:
    """Write OUT/VARIANT.SUFFIX for each variant and format, and keep those that give the golden outputs.

    {"made": {FILE: {variant, format, runtime, files, size_bytes, max_abs_diff, label_agreement}},
     "refused": {FILE: reason}}: no converter here, a model that it cannot convert, or wrong answers. Files of an older
    conversion are replaced, or removed where the new one is refused. Raises `UsageError` for an unknown name.
    """
    for name in formats:
        find_format(name)
    for variant in variants:
        if variant not in bundle.variants:
            raise UsageError(f"{bundle.path} has no variant '{variant}'. {nearest(variant, bundle.variants)}")
    if env is not None and not env.is_dir():
        raise UsageError(f"--converter-env {env}: there is no such folder; expected a virtual environment")
    env = None if env is None else env.absolute()  # converters run in folders of their own
    made: dict[str, Any] = {}
    refused: dict[str, str] = {}
    with explain_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for name in formats:
        for variant in variants or _usual(bundle, name):
            file = f"{variant}{FORMATS[name].suffix}"
            try:
                with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out) as work:
                    made[file] = _convert_one(bundle, variant, name, Path(work), file, platform=platform, env=env)
                    for part in made[file]["files"]:
                        Path(work, part).replace(out / part)
            except EdgekdError as error:
                refused[file] = str(error)
                for stale in (out / file, (out / file).with_suffix(".bin")):
                    stale.unlink(missing_ok=True)
    return {"made": made, "refused": refused}


def check_texts(bundle: Bundle, variant: str, session: Session) -> dict[str, Any]:
    """The row of `self_test` for a graph that reads texts itself, one by one: the golden samples as texts, through it
    and through the bundle's own tokenizer and graph."""
    steps = bundle.steps()
    spatial, arithmetic = split_steps(steps)
    texts = texts_of(steps, bundle.golden()["raw"])
    own = open_session(bundle, variant=variant, threads=1)
    try:
        name = own.inputs[0].name
        wanted = [own.run({name: apply_arithmetic(arithmetic, prepare(spatial, text)[np.newaxis])}) for text in texts]
    finally:
        own.close()
    output = bundle.manifest["outputs"][0]["name"]
    right = np.concatenate([answer[output] for answer in wanted])
    given = [session.run({session.inputs[0].name: np.array([text], object)}) for text in texts]
    found = np.concatenate([answer[output] for answer in given])
    tolerance = {**DEFAULT_TOLERANCE, **bundle.manifest["variants"][variant].get("tolerance", {})}
    apart = np.abs(found.astype(np.float64) - right)
    same = float((found.argmax(-1) == right.argmax(-1)).mean())
    fits = bool((apart <= tolerance["abs"] + tolerance["rel"] * np.abs(right)).all())
    problem = None if fits else f"it differs by up to {apart.max():.1e} from tokenizer and graph"
    return {"ok": fits, "max_abs_diff": float(apart.max()), "label_agreement": same, "problem": problem}


def _usual(bundle: Bundle, name: str) -> list[str]:
    """The variants that a format is made of where none is named: float ones for a converter that takes no others."""
    return [item for item in bundle.variants if not FORMATS[name].float_only or _is_float(bundle, item)]


def _is_float(bundle: Bundle, variant: str) -> bool:
    return bool(bundle.manifest["variants"][variant].get("precision", "float32") == "float32")


def _convert_one(
    bundle: Bundle, variant: str, name: str, work: Path, file: str, *, platform: Platform, env: Path | None
) -> dict[str, Any]:
    form = find_format(name)
    if form.float_only and not _is_float(bundle, variant):
        raise AnswerIsNo(f"the converter for {name} takes float32 graphs only; convert a variant in float32")
    model, target = work / "source" / "model.onnx", work / file
    model.parent.mkdir()
    model.write_bytes(bundle.graph(variant=variant))
    inputs = tensor_specs(bundle.manifest, "inputs")
    convert(name, Request(model, target, inputs, platform, env, bundle.steps()))
    shutil.rmtree(model.parent)
    session = open_session(target, runtime=form.runtime, threads=1)
    try:
        if form.reads_text:
            row = check_texts(bundle, variant, session)
        else:
            row = check_variant(bundle, variant, session, converted=True)
    finally:
        session.close()
    if not row["ok"]:
        raise AnswerIsNo(f"it was converted into a file that gives other answers: {row['problem']}")
    files = sorted(path for path in work.iterdir() if path.is_file())
    return {
        "variant": variant,
        "format": name,
        "runtime": form.runtime,
        "files": {path.name: sha256_file(path) for path in files},
        "size_bytes": sum(path.stat().st_size for path in files),
        "max_abs_diff": row["max_abs_diff"],
        "label_agreement": row["label_agreement"],
    }
