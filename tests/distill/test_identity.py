"""Which teachers are the same: by their weights, their files, or what their cache depends on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.device.postprocess import Denormalize
from edgekd.distill.batches import Batches
from edgekd.distill.cache_build import Order, build_cache
from edgekd.distill.cached_teacher import CachedTeacher
from edgekd.distill.file_teacher import LogitsFile
from edgekd.distill.identity import identities
from edgekd.distill.stored import Store
from edgekd.distill.teachers import EnsembleTeacher, ModuleTeacher, OnnxTeacher, StandardizedTeacher, Teacher
from edgekd.distill.to_onnx import export
from edgekd.spec import Split, TensorSpec


def network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))


def of(teacher: Teacher) -> str:
    found = identities([teacher])[0]
    assert found is not None
    return found


def test_a_module_is_its_weights_and_statistics() -> None:
    module = network()
    first = of(ModuleTeacher(module))
    assert of(ModuleTeacher(copy.deepcopy(module).to(memory_format=torch.channels_last))) == first
    assert of(ModuleTeacher(nn.DataParallel(module))) == first
    assert of(ModuleTeacher(network(2))) != first
    statistics = copy.deepcopy(module)
    statistics[1].running_mean += 1e-6
    assert of(ModuleTeacher(statistics)) != first
    assert of(ModuleTeacher(copy.deepcopy(module).bfloat16())) != of(ModuleTeacher(copy.deepcopy(module).half()))


class Odd(nn.Module):
    """Tensors of no ordinary kind."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("number", torch.tensor(3))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_without_readable_bytes_stop_nobody() -> None:
    one, other = Odd(), Odd()
    assert of(ModuleTeacher(one)) == of(ModuleTeacher(other))
    other.number += 1
    assert of(ModuleTeacher(one)) != of(ModuleTeacher(other))


def test_files_are_their_bytes(tmp_path: Path) -> None:
    found = []
    for seed in (1, 2, 1):
        path = tmp_path / f"{len(found)}.onnx"
        spec = TensorSpec("x", "float32", ("N", 1, 6, 6))
        export(network(seed).eval(), path, inputs=[spec], samples={"x": np.zeros((2, 1, 6, 6), np.float32)})
        found.append(of(OnnxTeacher(path)))
    assert found[0] == found[2] != found[1]
    logits = np.zeros((2, 3), np.float32)
    for name, value in (("a", 0.0), ("b", 1.0)):
        np.savez(tmp_path / f"{name}.npz", ids=np.arange(2), logits=logits + value)
    files = [LogitsFile(tmp_path / f"{name}.npz", labels=("x", "y", "z")) for name in "ab"]
    assert of(files[0]) != of(files[1])


def test_a_cache_that_keeps_more_is_the_same_teacher(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 1, 6, 6)).astype(np.float32)
    split = Split(x, np.zeros(6, np.int64), np.arange(6))

    def cached(facts: Mapping[str, Any]) -> CachedTeacher:
        order = Order(
            ModuleTeacher(network()), Batches(split, (), batch_size=6), store=Store(), num_outputs=3, name="test"
        )
        return CachedTeacher(build_cache(tmp_path, facts, order)[0])

    facts = {"teacher": "a", "store": {"kind": "logits", "taps": []}}
    more = {**facts, "store": {"kind": "logits", "taps": ["1"]}}
    assert of(cached(facts)) == of(cached(more))
    assert of(cached(facts)) != of(cached({**facts, "teacher": "b"}))


def test_teachers_of_teachers() -> None:
    one, other = ModuleTeacher(network(1)), ModuleTeacher(network(2))
    several = [
        EnsembleTeacher([one, other]),
        EnsembleTeacher([other, one]),
        EnsembleTeacher([one, other], [1.0, 2.0]),
        EnsembleTeacher([one, other], torch.ones(4, 2)),
        EnsembleTeacher([one, other], temperature=2.0),
        EnsembleTeacher([one, other], classes=[[0], [1, 2]]),
        EnsembleTeacher([one, other], classes=[[0, 1], [2]]),
        StandardizedTeacher(one, [Denormalize((1.0,), (2.0,))]),
        StandardizedTeacher(one, [Denormalize((1.0,), (3.0,))]),
    ]
    found = identities(several)
    assert len(set(found)) == len(several)
    assert found == identities(several)


class Stated:
    fingerprint = "version 7"

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"logits": torch.zeros(len(batch["x"]), 3)}


def test_ones_own_says_who_it_is_or_nobody_knows() -> None:
    assert identities([Stated(), lambda batch: {"logits": batch["x"]}]) == ["version 7", None]
