"""Asks the teacher again for some of what a cache holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from edgekd.distill.answers import LOGITS, TOLD
from edgekd.distill.cache import Cache
from edgekd.distill.cache_build import Order
from edgekd.distill.cached_teacher import CachedTeacher
from edgekd.distill.stored import as_kept

# Of the largest value: another batch or machine sums in another order; float16 keeps eleven bits, and where every
# layer computes in bfloat16, eight: whole networks then differ by half a percent from float32.
SHARE = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}


@dataclass(frozen=True)
class CacheCheck:
    """How the cache compares with its teacher, in `compared` answers.

    max_abs_diff  by tensor; `tolerance` alike: what rounding explains
    wrong         (id, view) of answers that differ by more
    """

    compared: int
    max_abs_diff: Mapping[str, float]
    tolerance: Mapping[str, float]
    wrong: tuple[tuple[int, int], ...]

    @property
    def ok(self) -> bool:
        """Whether every answer is the teacher's."""
        return not self.wrong


def verify_cache(cache: Cache, order: Order, *, samples: int, seed: int = 0) -> CacheCheck:
    """Compare `samples` answers, drawn by `seed` from all samples and views, with what the teacher gives now.

    Of features, those that the order names: the cache may hold further ones.
    """
    remembered = CachedTeacher(cache, taps=order.store.taps)
    count = min(samples, order.rows)
    rows = np.sort(np.random.default_rng(seed).choice(order.rows, count, replace=False))
    largest: dict[str, float] = {}
    differences: dict[str, list[tuple[float, int, int]]] = {}
    for batch, fresh in _again(order, rows):
        for name, known in remembered(batch).items():
            if name in TOLD and name != LOGITS:
                continue  # the dense logits tell them
            diff_N = (known - fresh[name]).abs().reshape(len(known), -1).amax(dim=1)
            largest[name] = max(largest.get(name, 0.0), float(known.abs().max()))
            pairs = zip(diff_N.tolist(), batch["id"].tolist(), batch["view"].tolist())
            differences.setdefault(name, []).extend(pairs)
    share = {name: SHARE["float32" if name == "logits" else "float16"] for name in largest}
    if order.store.dtype == "float16":
        share["logits"] = SHARE["float16"]
    if order.bfloat16:
        share = dict.fromkeys(share, SHARE["bfloat16"])
    tolerance = {name: share[name] * max(largest[name], 1.0) for name in largest}
    wrong = {(i, view) for name, found in differences.items() for diff, i, view in found if not diff <= tolerance[name]}
    return CacheCheck(
        count,
        {name: max(diff for diff, _, _ in found) for name, found in differences.items()},
        tolerance,
        tuple(sorted(wrong)),
    )


def _again(
    order: Order, rows: np.ndarray[tuple[int], np.dtype[np.intp]]
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Each batch of these rows, and what the teacher gives for it now, as a cache would give it back."""
    samples = len(order.positions)
    found = []
    for view in range(order.views):
        own = rows[rows // samples == view] % samples
        for start in range(0, len(own), order.batch_size):
            batch = order.batches.at(order.positions[own[start : start + order.batch_size]], view=view)
            answer = order.answer(order.place(batch))
            found.append((batch, as_kept(answer, order.store, num_outputs=order.num_outputs)))
    return found
