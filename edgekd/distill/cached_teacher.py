"""A teacher that only remembers: answers by sample id and view, without a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.distill.answers import named_ids, with_logits
from edgekd.distill.cache import Cache
from edgekd.distill.stored import PIXELS, decode, needed, pixels_of, shown
from edgekd.errors import DataError, UsageError
from edgekd.spec import Array

# Up to this much is read into memory at once; beyond it the files are mapped and rows are read as they are needed.
MEMORY_BYTES = 1 << 30
# So many samples are compared with those that the teacher saw: what differs, differs from the first batch on.
COMPARED = 256
# A table of places by id may be so many times longer than the ids.
_SPARSEST = 8


class CachedTeacher:
    """The answers of a complete cache, as the teacher gave them to the same view of the same sample.

    Named tensors are float32 and lie where `batch["id"]` does. Logits kept whole in float32 come back bit for bit;
    a top-k comes as `topk_indices` (N, K) int64 and `topk_log_probabilities` (N, K), and as dense `logits`.

    Raises `DataError` for a sample, `UsageError` for a view that the cache does not hold, and for samples that do not
    look as the teacher saw them. On a GPU, where looking would make it wait, answers that are not there are NaN
    instead, and the training names them.

    taps    the tensors that are looked at: other features are not read. None: all of them
    module  gives the teacher itself, for adapters that read its weights; it is called when there is one
    """

    def __init__(
        self, cache: Cache, *, taps: Sequence[str] | None = None, module: Callable[[], nn.Module] | None = None
    ) -> None:
        if not cache.is_complete:
            raise UsageError(f"the teacher cache {cache.path} is not complete; build it first")
        self.cache = cache
        self._module = module
        self._ids = torch.from_numpy(np.array(cache.ids()))
        self._place = _places(self._ids)
        self._num_samples, self._views = cache.num_samples, cache.views
        self._num_outputs = cache.num_outputs
        names = cache.index["tensors"] if taps is None else needed(cache.index["tensors"], taps)
        shards = {name: cache.arrays(name) for name in names}
        in_memory = sum(array.nbytes for arrays in shards.values() for array in arrays) <= MEMORY_BYTES
        self._mapped = {} if in_memory else shards
        self._stops = np.array([shard["stop"] for shard in cache.shards])
        self._values = {name: torch.from_numpy(np.concatenate(a)) for name, a in shards.items()} if in_memory else {}
        self._compared = 0
        cache.touch()

    def module(self) -> nn.Module | None:
        """The teacher itself; None where it is none that could be looked into."""
        return None if self._module is None else self._module()

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        ids_N, view_N = batch["id"], batch["view"]
        device = ids_N.device
        if self._ids.device != device:  # the first batch decides where the answers live
            self._ids = self._ids.to(device)
            self._place = None  # looking whether all are there would make a GPU wait
            self._values = {name: value.to(device) for name, value in self._values.items()}
        row_N, known_N = self._rows(ids_N, view_N)
        if self._mapped:
            stored = {name: self._read(arrays, row_N).to(device) for name, arrays in self._mapped.items()}
        else:
            stored = {name: value.index_select(0, row_N) for name, value in self._values.items()}
        if PIXELS in stored:
            self._compare(batch, stored[PIXELS].cpu())
        named = with_logits(decode(stored), self._num_outputs)
        return named if known_N is None or device.type == "cpu" else _only(named, known_N)

    def _rows(self, ids_N: Tensor, view_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """Where the answers stand, and which of them are there (None: all). Raises as the class says."""
        first = view_N * self._num_samples
        if self._place is not None and _within(ids_N, len(self._place)) and _within(view_N, self._views):
            position_N = self._place.index_select(0, ids_N)
            if int(position_N.min()) >= 0:
                return first + position_N, None
        position_N = torch.searchsorted(self._ids, ids_N).clamp_(max=self._num_samples - 1)
        known_N = self._ids[position_N] == ids_N
        shown_N = (view_N >= 0) & (view_N < self._views)
        if ids_N.device.type == "cpu":
            self._refuse(ids_N, view_N, known_N, shown_N)
        return torch.where(shown_N, first, 0) + position_N, known_N & shown_N

    def _compare(self, batch: Mapping[str, Tensor], seen_N: Tensor) -> None:
        """Whether these are the pixels that were answered to, but for their rounding."""
        x = shown(batch)
        found_N = pixels_of(x)
        size_N = x.detach().cpu().float().reshape(len(found_N), -1).norm(dim=1)
        other_N = (found_N - seen_N).abs() > 1e-3 * size_N + 1e-6
        self._compared += len(found_N)
        if self._compared >= COMPARED:
            self._values.pop(PIXELS, None)
            self._mapped.pop(PIXELS, None)
        if bool(other_N.any()):
            raise UsageError(
                f"the teacher cache {self.cache.path} holds answers to other pixels: {int(other_N.sum())} of "
                f"{len(other_N)} samples look otherwise than the teacher saw them, with the ids "
                f"{named_ids(batch['id'].cpu()[other_N].numpy())}. Preprocessing, augmentation, mixing or seed are "
                "others; build a cache for these"
            )

    def _read(self, arrays: Sequence[Array], row_N: Tensor) -> Tensor:
        """Rows from mapped shards: one gather per shard that is touched."""
        rows = row_N.cpu().numpy()
        shard_N = np.searchsorted(self._stops, rows, side="right")
        starts = np.concatenate([[0], self._stops])
        out = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for shard in np.unique(shard_N):
            chosen = shard_N == shard
            out[chosen] = arrays[shard][rows[chosen] - starts[shard]]
        return torch.from_numpy(out)

    def _refuse(self, ids_N: Tensor, view_N: Tensor, known_N: Tensor, shown_N: Tensor) -> None:
        if not bool(known_N.all()):
            strange = ids_N[~known_N].numpy()
            raise DataError(
                f"the teacher cache {self.cache.path} has no answers for {len(strange)} of {len(ids_N)} samples, with "
                f"the ids {named_ids(strange)}; it belongs to other data: build one for these"
            )
        if not bool(shown_N.all()):
            raise UsageError(
                f"the teacher cache {self.cache.path} holds the views 0 to {self._views - 1}, found view "
                f"{int(view_N[~shown_N][0])}; train with views = {self._views} and the augmentation that it was built "
                "with"
            )


def _only(named: Mapping[str, Tensor], known_N: Tensor) -> dict[str, Tensor]:
    """NaN for all rows but these."""
    return {
        name: value.masked_fill(~known_N.reshape(-1, *(1,) * (value.dim() - 1)), torch.nan)
        if value.is_floating_point()
        else value
        for name, value in named.items()
    }


def _places(ids_N: Tensor) -> Tensor | None:
    """Where each sample id stands, by the id (-1: nowhere); None for ids so sparse that they are to be searched."""
    if not len(ids_N) or int(ids_N[0]) < 0 or int(ids_N[-1]) >= _SPARSEST * len(ids_N):
        return None
    table = torch.full((int(ids_N[-1]) + 1,), -1)
    table[ids_N] = torch.arange(len(ids_N))
    return table


def _within(values_N: Tensor, stop: int) -> bool:
    """Whether all are from 0 to below `stop`."""
    low, high = torch.aminmax(values_N)
    return int(low) >= 0 and int(high) < stop
