"""What tells one teacher from another that gives tensors of the same shapes: whose student lies in a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.cache import Cache
from edgekd.distill.cached_teacher import CachedTeacher
from edgekd.distill.file_teacher import LogitsFile
from edgekd.distill.modules import unwrap
from edgekd.distill.teachers import EnsembleTeacher, ModuleTeacher, OnnxTeacher, StandardizedTeacher, Teacher
from edgekd.files import canonical_json, sha256_bytes, sha256_file

_LENGTH = 24


def identities(teachers: Sequence[Teacher]) -> list[str | None]:
    """A hash for each teacher, in their order: of its weights, its file, or the facts of its cache.

    A teacher of the user's own may have an attribute `fingerprint`, a text; without one it is None, not known.
    """
    return [_identity(teacher) for teacher in teachers]


def _identity(teacher: Teacher) -> str | None:
    if isinstance(teacher, ModuleTeacher):
        return _hash(_weights(teacher.module))
    if isinstance(teacher, (OnnxTeacher, LogitsFile)):
        return sha256_file(teacher.path)[:_LENGTH]
    if isinstance(teacher, CachedTeacher):
        return _hash(_facts(teacher.cache))
    if isinstance(teacher, StandardizedTeacher):
        return _hash([_identity(teacher.teacher), [asdict(step) for step in teacher.steps]])
    if isinstance(teacher, EnsembleTeacher):
        weights = None if teacher.weights is None else torch.as_tensor(teacher.weights).tolist()
        classes = None if teacher.classes is None else [list(known) for known in teacher.classes]
        return _hash([identities(teacher.teachers), weights, teacher.temperature, classes])
    stated = getattr(teacher, "fingerprint", None)
    return stated if isinstance(stated, str) else None


def _weights(module: nn.Module) -> dict[str, list[str]]:
    """Each parameter and buffer by name: its type, its shape and what is in it."""
    state = unwrap(module).state_dict()
    return {name: _described(value) for name, value in state.items() if isinstance(value, Tensor)}


def _described(value: Tensor) -> list[str]:
    kind = [str(value.dtype), str(list(value.shape))]
    if type(value.data) is not Tensor or value.is_quantized or value.layout is not torch.strided:
        return kind  # has no bytes of its own that one could read
    flat = value.detach().cpu().contiguous().reshape(-1)
    return [*kind, sha256_bytes(flat.view(torch.uint8).numpy().tobytes())]


def _facts(cache: Cache) -> dict[str, Any]:
    """What a cache's answers depend on; one that keeps further taps gives the same."""
    facts = dict(cache.facts)
    if isinstance(store := facts.get("store"), Mapping):
        facts["store"] = {name: value for name, value in store.items() if name != "taps"}
    return facts


def _hash(value: object) -> str:
    return sha256_bytes(canonical_json(value).encode())[:_LENGTH]
