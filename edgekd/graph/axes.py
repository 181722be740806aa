"""Samples at other sizes: rows, columns and tokens are left out or repeated, so that values stay real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekd.errors import UsageError
from edgekd.spec import Array, TensorSpec

# How many sizes of an axis prove it.
PROOF = 5
Sizes = Mapping[str, int]


def inner_axes(specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The named symbolic axes behind the batch axis, in order of appearance; "?" is no name."""
    names = (size for spec in specs for size in spec.shape[1:] if isinstance(size, str) and size.isidentifier())
    batch = {spec.shape[0] for spec in specs if spec.shape}
    return tuple(dict.fromkeys(name for name in names if name not in batch))


def sizes_of(specs: Sequence[TensorSpec], samples: Mapping[str, Array]) -> dict[str, int]:
    """Size of every inner axis in the samples. Raises `UsageError` where two inputs differ in one."""
    found: dict[str, int] = {}
    for spec in specs:
        for name, size in zip(spec.shape[1:], samples[spec.name].shape[1:]):
            if isinstance(name, str) and found.setdefault(name, size) != size:
                raise UsageError(
                    f"the axis '{name}' has {found[name]} and {size} elements in the samples; expected the same in "
                    "every input, or two names"
                )
    return found


def candidates(size: int, most: int | None = None) -> tuple[int, ...]:
    """Sizes to try beside `size`, the telling ones first: odd and even neighbours, larger ones (not all models take
    smaller ones), then multiples, for models whose axis must be divisible.

    most  of an axis that is never longer, as the tokens of a text: nothing beyond it, and both ends come first
    """
    steps = (size + 1, size - 1, size + 3, size // 2, 2 * size, 2 * size + 1, 3 * size // 2, size // 2 + 1, 1, 2)
    multiples = tuple(size + sign * step for step in (8, 16, 32, 64, 96, 128) for sign in (1, -1))
    tried = (*steps, *multiples, 3 * size, 4 * size, size // 4, 3 * size // 4)
    if most is not None:
        tried = tuple(item for item in (most, 1, 2, most // 2, *tried) if item <= most)
    return tuple(dict.fromkeys(item for item in tried if 0 < item != size))


def resized(specs: Sequence[TensorSpec], samples: Mapping[str, Array], sizes: Sizes) -> dict[str, Array]:
    """`samples` with each axis of `sizes` at that size, in every input that has it."""
    changed = dict(samples)
    for spec in specs:
        for place, name in enumerate(spec.shape):
            if place and isinstance(name, str) and name in sizes:
                array = changed[spec.name]
                rows = np.arange(sizes[name]) % array.shape[place]
                changed[spec.name] = np.ascontiguousarray(np.take(array, rows, axis=place))
    return changed
