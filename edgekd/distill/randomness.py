"""Random numbers that are a pure function of (seed, epoch, sample): nothing to save, nothing to restore.

A resumed run, a cache of teacher outputs and a test all get the same numbers for the same sample, whatever was drawn
before them and in whichever batch it stands. Counter-based: the mixer is splitmix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014), a bijection of 64-bit words.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def key(seed: int, *parts: int) -> int:
    """One 64-bit word from a seed and further whole numbers; another order or length gives another word."""
    word = seed & _MASK
    for part in (len(parts), *parts):
        word = int(_mix(np.array([(word * _GOLDEN + part + _GOLDEN) & _MASK], dtype=np.uint64))[0])
    return word


def words(key_word: int, ids_N: NDArray[np.int64]) -> Words:
    """One 64-bit word per id (N,); different ids give different words."""
    return _mix(ids_N.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key_word))


def uniforms(words_N: Words, draws: int) -> NDArray[np.float64]:
    """(N, draws) numbers in [0, 1), each row from its word alone."""
    return (_streams(words_N, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(words_N: Words, draws: int) -> NDArray[np.float32]:
    """(N, draws) numbers of the standard normal distribution (Box and Muller, 1958), each row from its word alone."""
    streams = _streams(words_N, (draws + 1) // 2)
    # Two 32-bit halves of a word give two normals. The half step keeps the logarithm away from zero.
    radius = np.sqrt(-2.0 * np.log(((streams >> np.uint64(32)).astype(np.float32) + 0.5) * np.float32(2.0**-32)))
    angle = (streams & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2.0 * np.pi * 2.0**-32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :draws]


def permutation(seed: int, epoch: int, ids_N: NDArray[np.int64]) -> NDArray[np.intp]:
    """The order of the samples in an epoch, a function of seed, epoch and ids."""
    return np.argsort(words(key(seed, epoch, 0), ids_N), kind="stable")


def reseed(seed: int, epoch: int, *, rank: int = 0) -> None:
    """Seed the global generators of torch, numpy and Python for one epoch: dropout in the student draws from them.

    Each process of a training draws its own; process 0 those of a training on one.
    """
    word = key(seed, epoch, 1) if rank == 0 else key(seed, epoch, 1, rank)
    torch.manual_seed(word >> 1)
    np.random.seed(word & 0xFFFFFFFF)
    random.seed(word)


class CommonDraws:
    """A second state of torch's generators, the same in all processes of a training: for what they all compute.

    It begins as torch's generators are when this is made.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states = self._get()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """For the block, torch draws from the common state."""
        own = self._get()
        self._set(self._states)
        try:
            yield
        finally:
            self._states = self._get()
            self._set(own)

    def _get(self) -> tuple[Tensor, ...]:
        cuda = (torch.cuda.get_rng_state(self._device),) if self._device.type == "cuda" else ()
        return torch.get_rng_state(), *cuda

    def _set(self, states: tuple[Tensor, ...]) -> None:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, self._device)


@contextmanager
def preserved(devices: Sequence[int] = ()) -> Iterator[None]:
    """Put the global generators back as they were; `devices` are the numbers of CUDA devices."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _streams(words_N: Words, draws: int) -> Words:
    counters = (np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(_GOLDEN))[None, :]
    return _mix(words_N[:, None] + counters)


def _mix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
