"""One training on several processes: who they are, and how tensors and gradients come together.

    torchrun --standalone --nproc_per_node 2 -m edgekd distill RECIPE --device cpu
    accelerate launch --multi_gpu --num_processes 4 -m edgekd distill RECIPE

Every process holds the whole student and trains on its rows of every batch: process r of W on the rows r, r + W, ...
The gradients are averaged after the backward pass, as one flat tensor. There is no wrapper around the student: small
ones fit one bucket, for which overlapping gains nothing, and adapters, taps and compiled modules need no tricks. A last
batch with too few rows is trained on by every process as a whole (`Division.of`).

Batches, order and augmentation are functions of seed, epoch and sample, so the processes together see what one alone
would see. What they compute is then the same within rounding, but for batch norm (each process normalizes its own
rows; see `synchronized`) and dropout (each process draws its own masks).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgekd.distill.randomness import CommonDraws
from edgekd.errors import MissingExtra, ProcessLost, UsageError

T = TypeVar("T")

# In a part of a batch of texts: what means over its tokens, over pairs of them, and over those that are asked for count
# (`Batches.parts`).
SHARES = "shares"

# The others wait while the first one caches answers or measures; a process that dies is noticed at once all the same.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class World:
    """The processes of one training, as one of them sees them; by default it is alone, and nothing here costs anything.

    rank        number of this process, from 0; process 0 leads: it alone writes and speaks
    size        how many there are
    local_rank  number of this process on its machine
    local_size  how many there are on its machine
    control     the group for what lies in main memory; None: that of the whole world
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: Any = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def share(self, value: T) -> T:
        """What process 0 calls `value`, in every process. Raises `ProcessLost`, as all of these do."""
        if self.is_alone:
            return value
        box = [value]
        with self._together():
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def collect(self, value: T) -> list[T]:
        """What each process calls `value`, by rank, in every process."""
        if self.is_alone:
            return [value]
        box: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(box, value, group=self.control)
        return box

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the processes of a tensor that has the same shape in all, into `tensor` itself."""
        if not self.is_alone:
            with self._together():
                dist.all_reduce(tensor, group=self._group(tensor))
            tensor /= self.size
        return tensor

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Every process gets process 0's values of these tensors, in place."""
        if not self.is_alone:
            with self._together():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0, group=self._group(tensor))

    def gather(self, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all processes in the order in which they were dealt out; `sizes` are their numbers by rank.

        With gradient: in the backward pass each process keeps the gradient of its own rows, times the number of
        processes. Where all of them compute the same loss of the gathered rows, the mean over the processes is then
        exactly the gradient that one process would have computed, and the backward pass waits for nobody.
        """
        if self.is_alone:
            return tensor
        rows: Tensor = _Gather.apply(tensor, self, tuple(sizes))  # type: ignore[no-untyped-call]
        keys = torch.cat([torch.arange(size) * self.size + rank for rank, size in enumerate(sizes)])
        return rows.index_select(0, keys.argsort().to(rows.device))

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The mean over the processes of all gradients, in one message.

        A parameter that has no gradient in any process stays without one: an optimizer leaves it alone.
        """
        if self.is_alone:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
        if flat.device.type == "cpu":  # in the same message
            flat = self.mean(torch.cat([flat, used]))
            used = flat[-len(used) :]
        else:  # through main memory: asking the GPU would stall it
            self.mean(flat)
            self.mean(used)
        counts = used.tolist()
        start = 0
        for parameter, gradient, count in zip(parameters, gradients, counts):
            end = start + gradient.numel()
            if count > 0:
                gradient.copy_(flat[start:end].view_as(gradient))
                parameter.grad = gradient
            start = end

    def _group(self, tensor: Tensor) -> Any:
        return self.control if tensor.device.type == "cpu" else None

    @contextmanager
    def _together(self) -> Iterator[None]:
        """A block that waits for the other processes."""
        try:
            yield
        except RuntimeError as error:
            raise ProcessLost(
                f"process {self.rank} of {self.size} waited for the others, and one of them has ended without a word "
                f"(was it killed, or is its machine out of memory?): {_first_line(error)}. What was finished is kept: "
                "run the same command again to go on"
            ) from error


ALONE = World()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World, sizes: tuple[int, ...]) -> Tensor:
        ctx.size = world.size
        ctx.start = sum(sizes[: world.rank])
        ctx.end = ctx.start + sizes[world.rank]
        own = tensor.detach().to(torch.uint8) if tensor.dtype is torch.bool else tensor.detach()
        padded = own.new_zeros((max(sizes), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        with world._together():
            dist.all_gather(parts, padded, group=world._group(padded))
        return torch.cat([part[:size] for part, size in zip(parts, sizes)]).to(tensor.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0][ctx.start : ctx.end] * ctx.size, None, None


@dataclass(frozen=True)
class Portion:
    """The rows of one batch that all processes have in hand at the same moment.

    sizes  how many of them each process holds, by rank
    total  rows of the whole batch, of which this is all but where gradients are accumulated
    draws  makes torch draw the same in all processes, for what all of them compute
    """

    world: World
    sizes: tuple[int, ...]
    total: int
    draws: CommonDraws | None = None

    @property
    def own(self) -> float:
        """What a mean over the own rows counts, so that the mean over the processes is that over the batch."""
        return self.sizes[self.world.rank] * self.world.size / self.total

    @property
    def whole(self) -> float:
        """What a loss of all these rows counts."""
        return sum(self.sizes) / self.total

    def gather(self, value: Any) -> Any:
        """A tensor, or each of a list or a mapping of them, with the rows of all processes."""
        if isinstance(value, Tensor):
            return self.world.gather(value, self.sizes)
        if isinstance(value, Mapping):
            return {name: self.gather(value[name]) for name in sorted(value)}
        return [self.gather(item) for item in value]


@dataclass(frozen=True)
class Division:
    """How a batch is dealt out: into `accumulate` micro-batches, and each of them to the processes, row by row.

    Row i goes to micro-batch i mod K, and there to process (i // K) mod W: what is compared with what does not depend
    on the number of processes.

    least  rows that each of them needs: the last batch of an epoch may hold fewer (see `of`)
    """

    world: World = ALONE
    accumulate: int = 1
    least: int = 1

    @property
    def count(self) -> int:
        """Parts of a batch."""
        return self.world.size * self.accumulate

    @property
    def own(self) -> tuple[int, ...]:
        """The numbers of this process's parts: part j holds the rows j, j + count, ..."""
        return tuple(micro + self.accumulate * self.world.rank for micro in range(self.accumulate))

    def of(self, total: int) -> Division:
        """The division of a batch of `total` rows.

        One with too few rows for all processes goes whole to each of them: what these compute has the mean that one
        process alone would find. One with too few for the micro-batches is a single one.
        """
        accumulate = self.accumulate if total >= self.least * self.accumulate else 1
        world = self.world if total >= self.least * accumulate * self.world.size else ALONE
        return Division(world, accumulate, self.least)

    def portions(self, total: int, draws: CommonDraws | None = None) -> tuple[Portion, ...]:
        """One per micro-batch of a batch of `total` rows, enough for all."""
        found = []
        for micro in range(self.accumulate):
            firsts = [micro + self.accumulate * rank for rank in range(self.world.size)]
            sizes = tuple(len(range(first, total, self.count)) for first in firsts)
            found.append(Portion(self.world, sizes, total, draws))
        return tuple(found)

    def check(self, rows: int) -> None:
        """Raise `UsageError` when a batch of so many `rows`, as all but the last are, is too small."""
        needed = self.least * self.count
        if rows < needed:
            parts = f"{self.world.size} processes"
            if self.accumulate > 1:
                parts += f" with {self.accumulate} micro-batches each"
            why = " (the student has batch norm, which cannot learn from 1 sample)" if self.least > 1 else ""
            raise UsageError(
                f"a batch holds {rows} samples, too few for {parts}{why}; expected at least {needed}: take another "
                "batch_size, fewer processes or a smaller accumulate"
            )


WHOLE = Division()


def size_from(environ: Mapping[str, str]) -> int:
    """How many processes the launcher has started, as it says in the environment; 1 without one.

    Raises `UsageError` when `accelerate launch --cpu` was asked for several, and has silently started one.
    """
    text = environ.get("WORLD_SIZE", "1")
    if "RANK" not in environ and "MASTER_ADDR" in environ and "ACCELERATE_MIXED_PRECISION" in environ:
        raise UsageError(
            "accelerate launch was asked for several processes, but has started one: on a CPU it has no launcher of "
            "its own. Take torchrun --standalone --nproc_per_node N -m edgekd ... --device cpu"
        )
    return int(text) if text.isdigit() and "RANK" in environ else 1


@contextmanager
def joined(environ: Mapping[str, str], *, device: torch.device) -> Iterator[World]:
    """Meet the processes that `accelerate launch` or `torchrun` has started; without them, a world of one.

    On a CPU they talk through gloo, on GPUs through nccl, and each gets a GPU of its own. Raises `MissingExtra` without
    Accelerate, and `UsageError` when there are more processes than GPUs.
    """
    if size_from(environ) == 1:
        yield ALONE
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtra("accelerate", "train", purpose="training on several processes") from error

    local_size = int(environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and local_size > torch.cuda.device_count():
        raise UsageError(
            f"{local_size} processes were started here, but there are {torch.cuda.device_count()} GPUs; start one "
            "process per GPU, or take --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"several processes train on cpu or cuda, found --device {device.type}")
    # The first optimizer imports it. Imported after the processes have met, it holds on to their connections: they are
    # then still at work while Python ends, which now and then aborts the process (torch 2.13).
    importlib.import_module("torch._dynamo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads: the training sets its own number of them
        state = PartialState(cpu=device.type == "cpu", timeout=TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT) if device.type == "cuda" else None
    try:
        yield World(state.process_index, state.num_processes, state.local_process_index, local_size, control)
    finally:
        state.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
