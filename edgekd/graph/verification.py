"""Does a candidate graph compute what its reference computes, at every batch size and on real samples?

Exporters freeze batch axes without a word and converters write wrong graphs "successfully", so nothing is trusted
that was not run: several batch sizes, rows in different neighbourhoods, every sample, every output.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from edgekd.errors import UsageError
from edgekd.graph.agreement import BATCH, Comparison, Place, Reference, rows_of
from edgekd.graph.agreement import PRECISIONS as PRECISIONS
from edgekd.graph.agreement import Precision as Precision
from edgekd.graph.agreement import Tolerance as Tolerance
from edgekd.graph.agreement import VerifyResult as VerifyResult
from edgekd.graph.agreement import tolerance_for as tolerance_for
from edgekd.graph.axes import resized
from edgekd.graph.metadata import most_tokens
from edgekd.graph.sessions import GraphSession, open_graph
from edgekd.spec import Array, TensorSpec

BATCH_SIZES = (1, 2, 3, 5, 8, 16)
ROWS_PER_PASS = 64


def verify(
    reference: str | os.PathLike[str] | bytes | Reference,
    candidate: str | os.PathLike[str] | bytes,
    samples: Mapping[str, Array],
    *,
    tolerance: Tolerance | Precision | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    labels: bool = True,
    axes: Mapping[str, Sequence[int]] | None = None,
) -> VerifyResult:
    """Compare `candidate` (ONNX file or bytes) with `reference` (the same, or a function of named arrays).

    samples      input name -> (N, ...), model-ready; N >= 1. At each batch size rows are taken in turn, from the
                 beginning again where N is smaller; then all N samples are compared once more.
    tolerance    None: that of "float32", scaled by the magnitude of each of the reference's outputs; another
                 precision's name scales likewise; a `Tolerance` is taken as it is.
    batch_sizes  a reference file whose own batch axis is fixed is compared at that size only.
    labels       False: the outputs are no scores of classes (regression), agreement is not asked for.
    axes         symbolic axis behind the batch -> sizes at which to compare. Of an axis that is not named, sizes around
                 that of the samples are tried until the reference has taken `edgekd.graph.axes.PROOF` of them: a graph
                 may keep an axis and be wrong at every size but one. Rows of samples are left out or repeated for it.
                 A file that says of itself how long a text it reads (`edgekd.graph.metadata`) is asked for none longer:
                 beyond that no position was ever trained, and no range calibrated.

    A difference is an answer (`ok` False and a sentence in `problems`), not an error. Raises `ModelError` when a
    model cannot be loaded and `UsageError` when the samples do not fit the inputs.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"batch_sizes are {list(batch_sizes)}; expected at least one, each 1 or more")
    session = open_graph(candidate, name="the candidate" if isinstance(candidate, bytes) else "")
    num_samples = session.check_samples(samples)
    fixed = None
    run_reference: Reference
    specs, texts = session.inputs, [most_tokens(session.metadata)]
    if isinstance(reference, (str, bytes, os.PathLike)):
        original = open_graph(reference, name="the reference" if isinstance(reference, bytes) else "")
        original.check_samples(samples)
        run_reference, fixed, specs = original.run, _fixed_batch(original), original.inputs
        texts.append(most_tokens(original.metadata))
    else:
        run_reference = reference
    sizes = tuple(batch_sizes) if fixed is None else (fixed,)
    frozen = _fixed_batch(session)
    problems = _fixed_axes(specs, session.inputs)
    if frozen is not None and frozen != fixed:
        takes = "any batch size" if fixed is None else f"batches of {fixed}"
        problems.append(
            f"the candidate's batch axis is fixed at {frozen} but the reference takes {takes}: "
            "export it with a symbolic first axis"
        )
        sizes = (frozen,) if fixed is None else ()
    comparison = Comparison(run_reference, session.run, tolerance or "float32", labels)
    ran = tuple(size for size in sizes if comparison.compare(rows_of(samples, 0, size), count=0))
    if ran and not problems:
        only = frozen or fixed
        rows = (2, 1, 3) if only is None else (only,)
        comparison.compare_axes(specs, samples, axes or {}, rows, min(filter(None, texts), default=None))
    if ran:
        # Where some sizes fail, the rest of the samples can only be compared at one that runs.
        step = max(ran) if len(ran) < len(sizes) or frozen or fixed else max(ROWS_PER_PASS, *ran)
        for start in range(0, num_samples, step):
            comparison.compare(rows_of(samples, start, step), count=min(step, num_samples - start))
    return comparison.result(problems, ran, num_samples)


def feeds_at(specs: Sequence[TensorSpec], samples: Mapping[str, Array], place: Place) -> dict[str, Array]:
    """Samples as they were where a comparison failed."""
    rows = rows_of(samples, 0, place.rows)
    return rows if place.axis == BATCH else resized(specs, rows, {place.axis: place.size})


def _fixed_axes(wanted: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> list[str]:
    """A sentence for each axis behind the batch that is symbolic in the reference and a number in the candidate."""
    others = {spec.name: spec.shape for spec in found}
    return [
        f"axis {place} ('{size}') of input '{spec.name}' is fixed at {other} in the candidate but any size in the "
        "reference: export it with a symbolic axis"
        for spec in wanted
        for place, (size, other) in enumerate(zip(spec.shape, others.get(spec.name, ())))
        if place and isinstance(size, str) and isinstance(other, int)
    ]


def _fixed_batch(session: GraphSession) -> int | None:
    sizes = [spec.shape[0] for spec in session.inputs if spec.shape]
    return next((size for size in sizes if isinstance(size, int)), None)
