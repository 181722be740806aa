"""Batches of a split: shuffled and augmented for training, in order for evaluation.

    samples in memory -> order(seed, epoch) -> augment(seed, view, id) -> arithmetic steps -> mix(seed, view, id)
    -> named tensors

A batch is {"x": (N, ...) float32, "y": ..., "id": (N,) int64, "index": (N,) int64 position in the split, "view": (N,)
int64}; y is (N,) int64 classes, (N, L) float32 labels or (N, D) float32 targets; mixed samples: see
`edgekd.distill.mixing`. Of texts x is (N, L) int64, as long as the longest of the batch, and "mask" (N, L) says which
tokens are none of the padding; where texts are masked, x is (N, 2, L), y (M,) holds the tokens that are asked for and
"asked" (N,) says how many of them each text has (`edgekd.distill.masking`). Further tensors of each sample may come
with it: "mask" (N, L), "labelled" (N,; see `edgekd.distill.labelled`). Everything is a function of seed, epoch and ids,
so an epoch can be repeated at will.

`view` says which augmentation of the sample this is: (id, view) stands for exactly these pixels, and a teacher's
answer to them may be kept. Epoch e shows view e, or view e mod K where K `views` are cycled. Samples that no
augmentation touches have the one view 0; those left as they are by `full` although there is one have `PLAIN`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgekd.device.preprocess import apply_arithmetic
from edgekd.device.tokens import is_ids
from edgekd.distill.ahead import ahead
from edgekd.distill.augmentation import Augment, augment_batch, check_augment
from edgekd.distill.distribution import SHARES, WHOLE, Division
from edgekd.distill.labelled import LABELLED, LABELLED_ROWS, hidden, weights_of
from edgekd.distill.masking import ASKED, Masking
from edgekd.distill.mixing import Mixing, mix, partners
from edgekd.distill.randomness import permutation
from edgekd.distill.replacement import Substitutes
from edgekd.errors import DataError, UsageError
from edgekd.rows import DiskRows
from edgekd.spec import Array, Layout, Split, Step, Task, Trim

# Samples that never change are made model-ready once, up to this much memory; beyond it batch by batch.
READY_BYTES = 512 << 20
_CHUNK = 4096
# Texts of so many batches are sorted by length together.
_BUCKET = 32
# The view of a sample that was not augmented although its training is.
PLAIN = -1

Positions = np.ndarray[tuple[int], np.dtype[np.intp]]


class Batches:
    """The batches of one split.

    The last batch holds what remains, with one exception: a single remaining sample joins the batch before it,
    because batch norm cannot learn from one. `drop_last=True` leaves the remainder of each epoch out instead (but
    never the only batch). `views=K` cycles through K augmentations of each sample instead of making a new one in every
    epoch. `extras` are further tensors by sample, among them "labelled" (N,) bool: whose labels may be used;
    `substitutes` the words that augmentation puts in the place of others; `masking` hides tokens, which are then asked
    for in the place of labels, in every view others.

    Raises `UsageError` for a batch size or a number of views below 1 and for cutmix of no images, `RecipeError` for an
    augmentation that does not fit and `DataError` for an empty split.
    """

    def __init__(
        self,
        split: Split,
        steps: tuple[Step, ...] = (),
        *,
        batch_size: int,
        seed: int = 0,
        augment: Augment | None = None,
        task: Task = "classification",
        drop_last: bool = False,
        views: int | None = None,
        mixing: Mixing | None = None,
        extras: Mapping[str, Array] | None = None,
        substitutes: Substitutes | None = None,
        masking: Masking | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"found batch_size = {batch_size}, expected a whole number from 1")
        if views is not None and views < 1:
            raise UsageError(f"found views = {views}, expected a whole number from 1")
        if len(split) == 0:
            raise DataError("found a split with 0 samples, expected at least 1; check the fractions of the splits")
        self._split = split
        self._adds_channel = _adds_channel(split, steps)
        self._steps = steps
        self._batch_size = batch_size
        self._seed = seed
        self._augment = check_augment(augment or {}, self._raw(slice(0, 1)), substitutes)
        self._substitutes = substitutes
        self._mixing = mixing if mixing is not None and mixing.is_on else None
        self._masking = masking
        self._is_plain = not self._augment and self._mixing is None and masking is None
        self._views = 1 if self._is_plain else views
        self._targets = _targets(split, task)
        self._extras = _extras(extras or {}, len(split))
        # Stays in main memory: how many rows of a batch have a label must not be asked of a GPU.
        self._labelled = None if LABELLED not in self._extras else self._extras[LABELLED].numpy() > 0
        self._ids = torch.from_numpy(np.ascontiguousarray(split.ids, dtype=np.int64))
        self._bounds = _bounds(len(split), batch_size, drop_last=drop_last)
        self._ready = None if self._augment else _ready(split, steps)
        self._pad = _padding(steps)
        self._lengths, self._tokens = _lengths_and_tokens(split, self._pad, self._extras)
        self._is_on_disk = self._ready is None and isinstance(split.x, DiskRows)
        self._axes = _image_axes(steps)
        if self._mixing is not None and self._pad is not None:
            raise UsageError("mixup and cutmix blend numbers, found ids of tokens; take data.augment for texts")
        if self._mixing is not None and self._mixing.cutmix and len(self.input_shape) != 3:
            raise UsageError(
                f"cutmix cuts boxes out of images, found samples of shape {list(self.input_shape)}; take mixup"
            )
        self._partners: tuple[int, Positions] | None = None
        self._device = torch.device("cpu")

    def place(self, device: torch.device) -> None:
        """Make batches for `device` from now on: of samples that never change there, of others ahead of time here."""
        self._device = device
        if device.type == "cpu" or self._ready is None or self._mixing is not None or self._masking is not None:
            return
        self._ready, self._targets, self._ids = (value.to(device) for value in (self._ready, self._targets, self._ids))
        self._extras = {name: value.to(device) for name, value in self._extras.items()}

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._bounds)

    @property
    def num_samples(self) -> int:
        """Samples per epoch."""
        return self._bounds[-1][1]

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of the split's samples, in their order."""
        return self._split.ids

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one model-ready sample (for texts, of one of many lengths)."""
        return tuple(apply_arithmetic(self._steps, self._split.x[:1]).shape[1:])

    @property
    def smallest(self) -> int:
        """Samples in the smallest batch of an epoch."""
        return min(self.sizes)

    @property
    def views(self) -> int | None:
        """How many views of each sample there are; None: another one in every epoch."""
        return self._views

    @property
    def sizes(self) -> list[int]:
        """Samples in each batch of an epoch."""
        return [end - start for start, end in self._bounds]

    def epoch(self, number: int) -> Iterator[dict[str, Tensor]]:
        """The batches of epoch `number` (from 0), shuffled and augmented."""
        for (batch,) in self.parts(number, WHOLE):
            yield batch

    def parts(self, number: int, division: Division) -> Iterator[list[dict[str, Tensor]]]:
        """Of each batch of epoch `number` the parts of this process."""
        parts = self._parts(number, division)
        if self._device.type == "cuda" and self._targets.device.type == "cpu":
            return ahead([_pinned(part) for part in each] for each in parts)
        return ahead(parts) if self._is_on_disk else parts

    def _parts(self, number: int, division: Division) -> Iterator[list[dict[str, Tensor]]]:
        order = self._bucketed(permutation(self._seed, number, self._split.ids))
        view = number if self._views is None else number % self._views
        for start, end in self._bounds:
            rows = order[start:end]
            dealt = division.of(len(rows))
            own, count = dealt.own, dealt.count
            # All parts as wide as the batch, so that they can be put together again.
            width = None if self._lengths is None or count == 1 else int(self._lengths[rows].max())
            parts = [self.at(rows[part::count], view=view, width=width) for part in own]
            if self._tokens is not None and count > 1:
                counts_3N = self._counts(rows, view, width)
                parts = [{**part, SHARES: _shares(counts_3N, j, len(own), count)} for j, part in zip(own, parts)]
            yield parts

    def _counts(self, rows: Positions, view: int, width: int | None) -> NDArray[np.int64]:
        """(3, N) tokens of each sample, pairs of them, and of masked texts the tokens that are asked for."""
        assert self._tokens is not None
        tokens_N = self._tokens[rows]
        asked_N = np.zeros_like(tokens_N)
        if self._masking is not None:  # which ones are follows from the view: nobody has to be asked
            asked_N = self.at(rows, view=view, width=width)[ASKED].numpy()
        return np.stack([tokens_N, tokens_N**2, asked_N])

    def _bucketed(self, order: Positions) -> Positions:
        """`order` with texts of like length in one batch: those of `_BUCKET` batches are sorted by length, and then
        whole batches are shuffled again, as `order` says."""
        if self._lengths is None:
            return order
        size = self._batch_size * _BUCKET
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        by_length = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in parts])
        # The last batch may be of another size: it stays.
        batches = [by_length[start:end] for start, end in self._bounds]
        shuffled = np.argsort([order[start] for start, _ in self._bounds[:-1]], kind="stable")
        bucketed: Positions = np.concatenate([*(batches[index] for index in shuffled), batches[-1]])
        return bucketed

    def full(self, *, first: int = 0, every: int = 1) -> Iterator[dict[str, Tensor]]:
        """All samples once, in their order and without augmentation; or those from `first` on, `every` so many."""
        batches = self._full(first, every)
        return ahead(batches) if self._is_on_disk else batches

    def _full(self, first: int, every: int) -> Iterator[dict[str, Tensor]]:
        positions = np.arange(first, len(self._split), every)
        for start in range(0, len(positions), self._batch_size):
            yield self.at(positions[start : start + self._batch_size], view=0 if self._is_plain else PLAIN)

    def at(self, indices: Positions, *, view: int, width: int | None = None) -> dict[str, Tensor]:
        """The samples at these positions of the split, all in the same view (`PLAIN`: as they are).

        width  columns of texts, at least; None: as many as the longest needs
        """
        own = self._unmixed(indices, view, width)
        if self._mixing is None or view == PLAIN:
            return self._with_extras(own, indices)
        if self._partners is None or self._partners[0] != view:
            self._partners = view, partners(self._split.ids, seed=self._seed, view=view)
        others = self._partners[1][indices]
        partner = self._unmixed(others, view)
        mixed = mix(own, partner, self._mixing, seed=self._seed, view=view, axes=self._axes)
        return self._with_extras(mixed, indices, others)

    def _with_extras(
        self, batch: dict[str, Tensor], indices: Positions, others: Positions | None = None
    ) -> dict[str, Tensor]:
        """The batch with what else is known of its samples; labels that may not be used are taken out.

        A mixed sample has a label if both of its parts have one.
        """
        if not self._extras:
            return batch
        named = {name: values.index_select(0, batch["index"]) for name, values in self._extras.items()}
        if self._labelled is not None:
            known_N = self._labelled[indices]
            if others is not None:
                known_N &= self._labelled[others]
                named[LABELLED] = named[LABELLED].minimum(self._extras[LABELLED][torch.from_numpy(others)])
            named["y"] = hidden(batch["y"], named[LABELLED])
            rows = torch.from_numpy(np.flatnonzero(known_N))
            named[LABELLED_ROWS] = rows.to(batch["index"].device, non_blocking=True)
        return {**batch, **named}

    def _raw(self, indices: Positions | slice) -> Array:
        raw: Array = self._split.x[indices]
        return raw[..., np.newaxis] if self._adds_channel else raw

    def _unmixed(self, indices: Positions, view: int, width: int | None = None) -> dict[str, Tensor]:
        chosen = torch.from_numpy(indices).to(self._targets.device, non_blocking=True)
        if self._ready is not None:
            x = self._ready.index_select(0, chosen)
        else:
            raw = self._raw(indices)
            if view != PLAIN:
                raw = augment_batch(
                    raw,
                    self._split.ids[indices],
                    self._augment,
                    seed=self._seed,
                    epoch=view,
                    substitutes=self._substitutes,
                )
            x = torch.from_numpy(apply_arithmetic(self._steps, raw))
        if width is not None and self._pad is not None and x.shape[1] < width:
            x = F.pad(x, (0, width - x.shape[1]), value=self._pad)
        named = {} if self._pad is None else {"mask": x != self._pad}
        y = self._targets.index_select(0, chosen)
        if self._masking is not None:
            x, y, named[ASKED] = self._masking(x, self._split.ids[indices], seed=self._seed, view=view)
        return {
            **named,
            "x": x,
            "y": y,
            "id": self._ids.index_select(0, chosen),
            "index": chosen,
            "view": torch.full((len(indices),), view, dtype=torch.int64, device=chosen.device),
        }


def _pinned(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch where a copy to a GPU does not keep the training waiting."""
    return {name: value.pin_memory() for name, value in batch.items()}


def _adds_channel(split: Split, steps: tuple[Step, ...]) -> bool:
    """Grey images (N, H, W) get the channel axis that their layout step means, so that augmentation sees images."""
    return split.x.ndim == 3 and any(isinstance(step, Layout) and step.to != "flat" for step in steps)


def _bounds(count: int, batch_size: int, *, drop_last: bool) -> list[tuple[int, int]]:
    whole, rest = divmod(count, batch_size)
    bounds = [(index * batch_size, (index + 1) * batch_size) for index in range(whole)]
    if rest and not bounds:
        return [(0, rest)]
    if rest == 1 and not drop_last and batch_size > 1:
        bounds[-1] = (bounds[-1][0], count)
    elif rest and not drop_last:
        bounds.append((whole * batch_size, count))
    return bounds


def _image_axes(steps: tuple[Step, ...]) -> tuple[int, int]:
    """Height and width of a model-ready batch of images."""
    layouts = [step.to for step in steps if isinstance(step, Layout)]
    return (1, 2) if layouts and layouts[-1] == "HWC" else (2, 3)


def _targets(split: Split, task: Task) -> Tensor:
    dtype = np.int64 if task == "classification" else np.float32
    return torch.from_numpy(np.ascontiguousarray(split.y, dtype=dtype))


def _extras(extras: Mapping[str, Array], count: int) -> dict[str, Tensor]:
    for name, values in extras.items():
        if len(values) != count:
            raise DataError(f"extras: found {len(values)} rows of '{name}' for {count} samples, expected one for each")
    named = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in extras.items()}
    if LABELLED in extras:
        named[LABELLED] = weights_of(extras[LABELLED])
    return named


def _ready(split: Split, steps: tuple[Step, ...]) -> Tensor | None:
    """All samples after the arithmetic steps (which treat each sample alone), or None if they are too many."""
    first = apply_arithmetic(steps, split.x[:1])
    if len(split) * math.prod(first.shape[1:]) * 4 > READY_BYTES:
        return None
    if is_ids(first):
        return None  # a batch is as long as its longest text
    ready = np.empty((len(split), *first.shape[1:]), dtype=np.float32)
    for start in range(0, len(split), _CHUNK):
        ready[start : start + _CHUNK] = apply_arithmetic(steps, split.x[start : start + _CHUNK])
    return torch.from_numpy(ready)


def _padding(steps: tuple[Step, ...]) -> int | None:
    """The id of the padding of texts; None for samples of something else, and for texts that are not trimmed."""
    return next((step.pad for step in steps if isinstance(step, Trim)), None)


def _shares(counts_3N: NDArray[np.int64], part: int, own: int, count: int) -> Tensor:
    """(3,) what means over the tokens of a part count, over the pairs of tokens of its texts and over what is asked
    there, so that over the parts of a process summed, over the processes averaged, they are the means of the batch."""
    shares_3 = counts_3N[:, part::count].sum(axis=1) / np.maximum(counts_3N.sum(axis=1), 1)
    return torch.from_numpy((shares_3 * (count // own)).astype(np.float32))


def _lengths_and_tokens(
    split: Split, pad: int | None, extras: Mapping[str, Tensor]
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """(N,) how many columns each text needs, at least one, and (N,) how many tokens of each sample count.

    None for samples that are no texts, or have no mask.
    """
    lengths = tokens = None
    if pad is not None:
        used_NL = split.x[: len(split)] != pad
        tokens = used_NL.sum(axis=1)
        lengths = np.where(tokens > 0, used_NL.shape[1] - used_NL[:, ::-1].argmax(axis=1), 1)
    if "mask" in extras:
        tokens = extras["mask"].bool().sum(dim=1).numpy()
    return lengths, tokens
