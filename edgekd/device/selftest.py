"""A bundle proves itself: golden inputs through this machine's preprocessing and runtime, against golden outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.device.bundle import Bundle
from edgekd.device.manifest import tensor_specs
from edgekd.device.metrics import agreement
from edgekd.device.preprocess import apply_arithmetic, split_steps
from edgekd.device.runtimes import Session, open_session
from edgekd.device.runtimes.chunks import by_name_or_place, run_in_chunks
from edgekd.errors import BundleError
from edgekd.spec import Array, parse_steps

PREPROCESS_TOLERANCE = 1e-6
# For a bundle that names no tolerance: float rounding, and every answer the same.
DEFAULT_TOLERANCE = {"abs": 1e-4, "rel": 1e-3, "label_agreement": 1.0}


def self_test(bundle: Bundle, *, runtime: str = "onnxruntime", threads: int = 1) -> list[dict[str, Any]]:
    """One row per variant: does this machine give what the bundle's maker saw?

    {variant, ok, max_abs_diff, tolerance{abs, rel, label_agreement}, label_agreement, problem}: a variant is ok when
    preprocessing the golden raw samples gives the golden inputs (within 1e-6), every number of every output is
    within abs + rel * |golden|, and at least the share label_agreement of the samples keeps its answer. `problem`
    says what is wrong, or is None. Raises `BundleError` when the golden arrays do not fit the graphs.
    """
    rows = []
    for variant in bundle.variants:
        session = open_session(bundle, variant=variant, runtime=runtime, threads=threads)
        try:
            rows.append(check_variant(bundle, variant, session))
        finally:
            session.close()
    return rows


def check_variant(bundle: Bundle, variant: str, session: Session, *, converted: bool = False) -> dict[str, Any]:
    """The row of `self_test` for one variant that is already loaded.

    With `converted` the session is of a file that was made from the variant for another runtime, whose converter may
    have renamed the tensors: then they are matched by their place.
    """
    golden = bundle.golden()
    names = [spec.name for spec in tensor_specs(bundle.manifest, "inputs")]
    for name in names:
        if f"input.{name}" not in golden:
            raise BundleError(f"the golden arrays lack 'input.{name}', which the model reads; build the bundle again")
    own = by_name_or_place(names, [spec.name for spec in session.inputs]) if converted else {}
    feeds = {own.get(name, name): golden[f"input.{name}"] for name in names}
    different = _preprocess_problem(bundle, golden, golden[f"input.{names[0]}"])
    outputs = run_in_chunks(session, feeds)
    if converted:
        wanted = bundle.manifest["golden"]["outputs"].get(variant, [])
        outputs = {
            name: outputs[given] for name, given in by_name_or_place(wanted, list(outputs)).items() if given in outputs
        }
    return _row(bundle, variant, outputs, golden, different)


def _preprocess_problem(bundle: Bundle, golden: dict[str, Array], expected: Array) -> str | None:
    if "raw" not in golden:
        return None
    _, arithmetic = split_steps(parse_steps(bundle.manifest["preprocess"]))
    found = apply_arithmetic(arithmetic, golden["raw"])
    if found.shape != expected.shape:
        return f"preprocessing gives the shape {found.shape}, expected {expected.shape}"
    worst = _largest(np.abs(found.astype(np.float64) - expected))
    if worst > PREPROCESS_TOLERANCE:
        return f"preprocessing differs by {worst:.1e}, expected at most {PREPROCESS_TOLERANCE:.0e}"
    return None


def _row(
    bundle: Bundle,
    variant: str,
    outputs: dict[str, Array],
    golden: dict[str, Array],
    problem: str | None,
) -> dict[str, Any]:
    tolerance = {**DEFAULT_TOLERANCE, **bundle.manifest["variants"][variant].get("tolerance", {})}
    expected_names = bundle.manifest["golden"]["outputs"].get(variant, [])
    if not expected_names:
        raise BundleError(f"the golden arrays hold no output of the variant '{variant}'; build the bundle again")
    worst, same = 0.0, 1.0
    for name in expected_names:
        wanted = golden[f"output.{variant}.{name}"]
        if name not in outputs or outputs[name].shape != wanted.shape:
            found = f"the shape {outputs[name].shape}" if name in outputs else "none"
            raise BundleError(
                f"variant '{variant}': output '{name}' was expected with the shape {wanted.shape}, found {found}; "
                "build the bundle again"
            )
        problem = problem or _output_problem(name, outputs[name], wanted, tolerance)
        worst = max(worst, _largest(np.abs(outputs[name].astype(np.float64) - wanted)))
        same = min(same, _agreement(bundle.manifest["task"], outputs[name], wanted, tolerance))
    if problem is None and same < tolerance["label_agreement"]:
        problem = f"{same:.1%} of the answers are the same, expected {tolerance['label_agreement']:.1%}"
    return {
        "variant": variant,
        "ok": problem is None,
        "max_abs_diff": worst,
        "tolerance": tolerance,
        "label_agreement": same,
        "problem": problem,
    }


def _output_problem(name: str, found: Array, wanted: Array, tolerance: dict[str, float]) -> str | None:
    if not np.isfinite(found).all():
        return f"output '{name}' holds NaN or infinite values"
    outside = ~_within(found, wanted, tolerance)
    if outside.any():
        return (
            f"output '{name}' differs by up to {_largest(np.abs(found.astype(np.float64) - wanted)):.1e} in "
            f"{int(outside.sum())} of {outside.size} numbers, expected at most {tolerance['abs']:.1e} + "
            f"{tolerance['rel']:.1e} * |golden|"
        )
    return None


def _within(found: Array, wanted: Array, tolerance: dict[str, float]) -> Array:
    wanted_exact = wanted.astype(np.float64)
    allowed = tolerance["abs"] + tolerance["rel"] * np.abs(wanted_exact)
    close: Array = np.abs(found.astype(np.float64) - wanted_exact) <= allowed
    return close


def _agreement(task: str, found: Array, wanted: Array, tolerance: dict[str, float]) -> float:
    """The share of samples with the same answer; of numbers within the tolerance where there are no labels."""
    same = agreement(task, found, wanted) if found.ndim == 2 else None
    return float(_within(found, wanted, tolerance).mean()) if same is None else same


def _largest(differences: Array) -> float:
    """The largest finite difference (0 where there is none): a NaN is told apart, and is no JSON number."""
    finite = differences[np.isfinite(differences)]
    return float(finite.max()) if finite.size else 0.0
