"""Where and how a training computes: device, precision, threads; and the global state that it must put back."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgekd.distill.randomness import preserved
from edgekd.errors import MissingHere, StageFailed, UsageError, nearest

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
# Options of mallopt (malloc.h): blocks up to the most that every glibc takes come from the heap, which keeps its top.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_MEMORY = ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 1 << 30))
_MEMORY_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@dataclass(frozen=True)
class Precision:
    """In which numbers the forward pass of a network computes, and why."""

    name: Literal["float32", "bfloat16"]
    reason: str


def choose_device(device: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Raises `UsageError` for another name, `MissingHere` for none."""
    kind, _, number = device.partition(":")
    if kind not in DEVICES or (number and not number.isdigit()):
        raise UsageError(f"unknown device '{device}'. {nearest(device, DEVICES)}")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[kind]:
        raise MissingHere(
            f"device '{device}' was asked for, but torch {torch.__version__} sees none here; use --device cpu, or "
            "install a torch build for this device"
        )
    return torch.device(device)


def choose_precision(
    precision: str,
    device: torch.device,
    network: nn.Module,
    input_shape: tuple[int, ...],
    *,
    capabilities: Mapping[str, Any] | None = None,
) -> Precision:
    """float32, or bfloat16 autocast where it helps; never float16, which is hundreds of times slower on CPUs.

    On a CPU `auto` takes bfloat16 only with the instructions for it, images of at least 28x28 and a network of
    dense convolutions with at least 64 channels: these train 1.6 to 2.3 times as fast and answer as teachers 2.5
    times as fast; narrow networks are no faster, depthwise ones half as fast. Transformers of texts at least 128 wide
    train 1.4 to 1.8 times as fast. `capabilities` are those of the CPU as torch names them.
    Raises `UsageError` for another name.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision '{precision}'. {nearest(precision, PRECISIONS)}")
    if precision == "float32":
        return Precision("float32", "asked for")
    if precision == "bfloat16":
        return Precision("bfloat16", "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bfloat16", "this GPU computes it natively")
        return Precision("float32", "this GPU has no bfloat16")
    if device.type != "cpu":
        return Precision("float32", f"not measured on {device.type}")
    found = torch.cpu.get_capabilities() if capabilities is None else capabilities
    if not (found.get("amx_bf16") or found.get("avx512_bf16")):
        return Precision("float32", "this CPU has no bfloat16 instructions")
    if is_wide_transformer(network):
        return Precision("bfloat16", "a transformer on a CPU with bfloat16 instructions")
    if len(input_shape) != 3 or min(input_shape[1:]) < 28:
        return Precision("float32", "bfloat16 pays from images of 28x28 on")
    convolutions = spatial_convolutions(network)
    if any(conv.groups > 1 for conv in convolutions) or max((c.out_channels for c in convolutions), default=0) < 64:
        return Precision("float32", "bfloat16 pays for wide, dense convolutions only")
    return Precision("bfloat16", "wide, dense convolutions on a CPU with bfloat16 instructions")


def autocast(device: torch.device, *, bfloat16: bool) -> AbstractContextManager[object]:
    """Around a forward pass on `device`, as `choose_precision` has decided."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()


def resume_threads(asked: int | None, recorded: int | None, *, where: str | PathLike[str] | None) -> int:
    """How many threads to compute with: as asked for, as the checkpoint says, or as torch has now.

    Raises `StageFailed` when the checkpoint in `where` was trained with another number than is asked for: sums
    over threads round differently, so the weights would differ from those of an uninterrupted run.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"found threads = {asked}, expected a whole number from 1")
    if recorded is None:
        return torch.get_num_threads() if asked is None else asked
    if asked is not None and asked != recorded:
        raise StageFailed(
            f"the checkpoint in {where} was trained with {recorded} threads, but {asked} are asked for: its weights "
            f"would no longer be those of an uninterrupted run. Go on with --threads {recorded}, or delete the "
            "checkpoint to train from the beginning"
        )
    return recorded


@contextmanager
def contained(device: torch.device, *, threads: int) -> Iterator[None]:
    """Compute with `threads` threads and, on a CPU, with deterministic kernels; afterwards all is as it was.

    On a GPU determinism would need settings from before the process began, so it is not promised there.
    """
    before = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    # Seeding torch seeds every GPU that is in use, whether this training is on it or not.
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" or torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with preserved(gpus):
        try:
            if threads != before:
                torch.set_num_threads(threads)
            if device.type == "cpu":
                keep_freed_memory(os.environ)
                # A kernel of the user's model that cannot be deterministic is warned about, not refused.
                torch.use_deterministic_algorithms(True, warn_only=True)
                # Filling fresh memory with NaN finds bugs of kernels and costs time; it changes no result.
                torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            yield
        finally:
            if threads != before:
                torch.set_num_threads(before)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def keep_freed_memory(environ: Mapping[str, str]) -> bool:
    """Let the C library keep the memory that a step frees for the next step; whether it does so now.

    glibc gives larger blocks back to the system, which then hands them out anew, page by page and filled with zeros:
    that takes some percent of a step, and up to a third where it happens to each block. Up to 1 GiB of what was used
    is kept for as long as the process lives.
    Does nothing with another C library, and where the environment says how memory is to be handled.
    """
    if any(name in environ for name in _MEMORY_SETTINGS) or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in _KEEP_MEMORY)


def is_wide_transformer(network: nn.Module) -> bool:
    """Whether texts go through matrices of at least 128 x 128 in layers: four of them, at the least."""
    parts = list(network.modules())
    matrices = [part for part in parts if isinstance(part, nn.Linear)]
    wide = [part for part in matrices if min(part.in_features, part.out_features) >= 128]
    return any(isinstance(part, nn.Embedding) for part in parts) and len(wide) >= 4


def spatial_convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """The 2-D convolutions that look at more than one pixel."""
    found = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return [conv for conv in found if max(conv.kernel_size) > 1]


def faster_layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """With the channels last convolutions train 1.2 to 1.5 times as fast; in a narrow network on a CPU they do not.

    Fewer than 16 channels do not fill a vector of AVX512, and their batch norm takes up to ten times as long as that of
    whole planes: networks that begin with 8 to 12 channels then trained 1.15 to 1.4 times as fast without.
    """
    widths = [conv.out_channels for conv in spatial_convolutions(network)]
    if not widths or (device.type == "cpu" and min(widths) < 16):
        return torch.contiguous_format
    return torch.channels_last


def in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Images (N, C, H, W) in that layout, anything else as it is.

    With one channel both layouts are the same bytes, and convolutions go by the strides.
    """
    if x.dim() != 4:
        return x
    x = x.contiguous(memory_format=layout)
    if x.shape[1] != 1:
        return x
    count, _, height, width = x.shape
    if layout is torch.channels_last:
        return x.flatten().view(count, height, width, 1).permute(0, 3, 1, 2)
    return x.flatten().view(x.shape)


@contextmanager
def placed(student: nn.Module, device: torch.device) -> Iterator[torch.memory_format]:
    """The student on `device`, its convolutions in the faster memory layout there; afterwards back where it was.

    Gives the layout that image batches should have.
    """
    parameter = next(student.parameters(), None)
    home = torch.device("cpu") if parameter is None else parameter.device
    layout = faster_layout(student, device)
    try:
        student.to(device)
        if layout is torch.channels_last:
            student.to(memory_format=layout)  # type: ignore[call-overload]
        yield layout
    finally:
        student.to(home)
        if layout is torch.channels_last:
            student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
