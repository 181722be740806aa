"""Learning rates as functions of the step, and where a training computes."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgekd.distill.execution import choose_device, choose_precision, faster_layout, in_layout, placed, resume_threads
from edgekd.distill.models import build_model
from edgekd.distill.optimization import SCHEDULES, build_optimizer, lr_factor
from edgekd.errors import UsageError

CPU = torch.device("cpu")
BF16 = {"avx512_bf16": True}


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    total=st.integers(1, 300),
    warmup=st.integers(0, 100),
)
def test_factors_stay_between_0_and_1(schedule: str, total: int, warmup: int) -> None:
    warmup = 0 if schedule == "onecycle" else warmup  # it warms up itself; both together are refused
    factors = [
        lr_factor(schedule, step, total_steps=total, warmup_steps=min(warmup, total - 1)) for step in range(total)
    ]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[:peak] == sorted(factors[:peak]), "up"
    assert factors[peak:] == sorted(factors[peak:], reverse=True), "then down, never up again"


def test_known_factors() -> None:
    def of(schedule: str, **kinds: int) -> list[float]:
        return [lr_factor(schedule, step, total_steps=8, **kinds) for step in range(8)]

    assert of("constant") == [1.0] * 8
    assert of("linear") == pytest.approx([1 - step / 8 for step in range(8)])
    assert of("cosine") == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])
    warmed = of("cosine", warmup_steps=3)
    assert warmed[:4] == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1.0])
    assert warmed[4:] == pytest.approx([(1 + math.cos(math.pi * step / 5)) / 2 for step in range(1, 5)])


def test_onecycle_is_that_of_torch() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001)
    mine, known = [], []
    for step in range(1000):
        known.append(theirs.get_last_lr()[0])
        mine.append(lr_factor("onecycle", step, total_steps=1000))
        optimizer.step()
        theirs.step()
    assert mine == pytest.approx(known, abs=0.01)
    assert mine[0] == pytest.approx(1 / 25)


def test_optimizers_are_fused() -> None:
    for name in ("adamw", "adam", "sgd"):
        optimizer = build_optimizer(name, nn.Linear(2, 2).parameters(), lr=0.1, weight_decay=0.0)
        assert optimizer.param_groups[0]["fused"] is True


def test_precision_is_float32_unless_it_helps() -> None:
    def chosen(
        model: str, shape: tuple[int, ...], capabilities: dict[str, Any], asked: str = "auto"
    ) -> tuple[str, str]:
        texts = 500 if model.startswith(("encoder", "bow", "text_cnn")) else None
        module = build_model(model, num_outputs=10, input_shape=shape, vocabulary=texts)
        found = choose_precision(asked, CPU, module, shape, capabilities=capabilities)
        return found.name, found.reason

    assert chosen("cnn_l", (3, 32, 32), BF16)[0] == "bfloat16"
    assert chosen("cnn_l", (3, 32, 32), {"amx_bf16": True})[0] == "bfloat16"
    assert chosen("cnn_l", (3, 32, 32), {}) == ("float32", "this CPU has no bfloat16 instructions")
    assert chosen("cnn_l", (1, 8, 8), BF16) == ("float32", "bfloat16 pays from images of 28x28 on")
    assert chosen("mlp_l", (784,), BF16) == ("float32", "bfloat16 pays from images of 28x28 on")
    assert chosen("encoder_s", (32,), BF16)[0] == "bfloat16"
    for small in ("encoder_xs", "bow_m", "text_cnn_m"):
        assert chosen(small, (32,), BF16)[0] == "float32"
    for narrow_or_depthwise in ("cnn_s", "dscnn_l", "mlp_l"):
        assert chosen(narrow_or_depthwise, (3, 32, 32), BF16) == (
            "float32",
            "bfloat16 pays for wide, dense convolutions only",
        )
    assert chosen("cnn_l", (3, 32, 32), BF16, "float32") == ("float32", "asked for")
    assert chosen("mlp_l", (784,), {}, "bfloat16") == ("bfloat16", "asked for")


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="unknown device 'cuda:first'"):
        choose_device("cuda:first")


def test_convolutions_get_their_layout_and_lose_it_again() -> None:
    conv = nn.Sequential(nn.Conv2d(2, 16, 3))
    with placed(conv, CPU) as layout:
        assert layout is torch.channels_last
        assert conv[0].weight.is_contiguous(memory_format=torch.channels_last)
        assert not conv[0].weight.is_contiguous()
    assert conv[0].weight.is_contiguous()
    for other in (nn.Linear(2, 2), nn.Sequential(nn.Conv2d(2, 12, 3), nn.Conv2d(12, 24, 3))):
        with placed(other, CPU) as layout:
            assert layout is torch.contiguous_format
    assert faster_layout(nn.Conv2d(2, 12, 3), torch.device("cuda")) is torch.channels_last


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_brought_into_a_layout_whatever_they_come_in(channels: int) -> None:
    conv = nn.Conv2d(channels, 16, 3)
    x = torch.randn(2, channels, 8, 8)
    if channels == 1:  # as a camera gives them: pixel by pixel
        x = x.flatten().view(2, 8, 8, 1).permute(0, 3, 1, 2)
    for layout in (torch.channels_last, torch.contiguous_format):
        changed = in_layout(x, layout)
        assert torch.equal(changed, x)
        assert conv(changed).is_contiguous(memory_format=layout), "what comes out of it follows"
    assert in_layout(x[0], torch.channels_last).stride() == x[0].stride()


# Blocks of 4 to 20 MB in sizes that change, as a training's are.
TRAINING = """
import resource
import torch
from edgekd.distill.execution import contained

with contained(torch.device("cpu"), threads=1):
    for step in range(60):
        if step == 20:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = [torch.ones((1 + (step + part) % 5) << 20) for part in range(8)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    def faults(**settings: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", TRAINING], env={**os.environ, **settings}, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    # The user's own word counts: these are about glibc's own beginnings.
    given_back = faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert given_back > 40 * 8  # each block anew
    assert faults() < given_back / 5


def test_threads() -> None:
    assert resume_threads(None, None, where=None) == torch.get_num_threads()
    assert resume_threads(3, None, where=None) == 3
    assert resume_threads(None, 5, where="run") == 5
    assert resume_threads(5, 5, where="run") == 5
