"""Teachers: anything that gives logits for a batch, behind one protocol.

A teacher is frozen and in eval mode, its tensors are constants, and it is stopped when it gives NaN or infinity: a
student would learn that without a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.device.postprocess import Denormalize
from edgekd.device.runtimes import Session, open_session
from edgekd.device.runtimes.chunks import answer_name, run_in_chunks
from edgekd.distill.answers import LOGITS, SUM_TOLERANCE, TOLD
from edgekd.distill.cached_teacher import CachedTeacher
from edgekd.distill.execution import faster_layout, in_layout
from edgekd.distill.losses.ensembles import Weights, mean_logits, mean_probabilities
from edgekd.distill.models import logits_of
from edgekd.distill.stored import Store, as_kept
from edgekd.distill.taps import Taps, ordinary_copy, part_at, widened
from edgekd.errors import ModelError, StageFailed, UsageError
from edgekd.spec import Task

_NAMED_IDS = 5
# On a GPU the answers are looked at every so many batches.
CHECK_CALLS = 50


class Teacher(Protocol):
    """Named tensors in (see `edgekd.distill.batches`), named tensors out, among them `logits` (N, C).

    What else the terms of an objective look at goes by its tap path.
    """

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the teacher says about the batch, without gradients."""
        ...


class ModuleTeacher:
    """A torch module as a teacher. The module is put in eval mode and its parameters are frozen, for good.

    It computes on the device where its parameters are. Inside `tapped` it gives its taps beside the logits. Raises
    `StageFailed` when a logit is NaN or infinite, naming the samples; on a GPU, which would have to wait for that, it
    looks at some of its answers only.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(requires_grad=False)
        self._taps: Taps | None = None
        self._calls = 0
        self._layout: torch.memory_format | None = None

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        assert not any(part.training for part in self.module.modules()), "somebody put a teacher back in train mode"
        parameter = next(self.module.parameters(), None)
        x = batch["x"] if parameter is None else batch["x"].to(parameter.device)
        if self._layout is None:
            self._layout = faster_layout(self.module, x.device)
        x = in_layout(x, self._layout)
        with torch.inference_mode():
            output = self.module(x)
        named = dict(output) if isinstance(output, Mapping) else {}
        named["logits"] = logits_of(output, "the teacher")
        # Tensors of inference mode cannot take part in the student's backward pass; copies can.
        result = {name: widened(ordinary_copy(value)) for name, value in named.items() if isinstance(value, Tensor)}
        # A GPU would have to wait in every step; what is NaN there shows in the loss.
        if x.device.type == "cpu" or self._calls % CHECK_CALLS == 0:
            check_finite(result["logits"], batch, "the teacher")
        self._calls += 1
        return result if self._taps is None else {**self._taps.read(), **result}

    @contextmanager
    def tapped(self, paths: Sequence[str], example: Mapping[str, Tensor]) -> Iterator[None]:
        """Give the tensors at these paths too, for the block; names that the module itself gives need no tap."""
        wanted = set(paths) - {"logits"}
        own = self(example).keys() if wanted else ()
        hooked = [path for path in paths if path in wanted and path not in own]
        if not hooked:
            yield
            return
        with Taps(self.module, hooked) as taps:
            self._taps = taps
            try:
                yield
            finally:
                self._taps = None


class OnnxTeacher:
    """An ONNX file as a teacher: a black box with one input and the output "logits" (or its first output).

    Logits come as float32 on the CPU. Those of a classifier that gives probabilities (rows of numbers from 0 on that
    sum to 1) are their logarithms, exact up to a constant per row; which it gives, its first answers decide. A graph
    with a fixed batch axis is run in pieces of that size. Raises `ModelError` for a graph that cannot be a teacher,
    `StageFailed` as `ModuleTeacher` does.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int | None = None, task: Task = "classification"
    ) -> None:
        self.path = Path(path)
        self._gives_probabilities = None if task == "classification" else False
        self._session: Session = open_session(self.path, runtime="onnxruntime", threads=threads)
        if len(self._session.inputs) != 1:
            names = [spec.name for spec in self._session.inputs]
            raise ModelError(f"{self.path} has the inputs {names}, expected one; wrap it in a teacher of your own")
        self._input = self._session.inputs[0]
        self._output = answer_name(self._session)

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        x = np.ascontiguousarray(batch["x"].detach().cpu().numpy(), dtype=self._input.dtype)
        outputs = run_in_chunks(self._session, {self._input.name: x}, size=len(x))
        logits = torch.from_numpy(outputs[self._output].astype(np.float32))
        check_finite(logits, batch, str(self.path))
        if self._gives_probabilities is None:
            self._gives_probabilities = _are_probabilities(logits)
        if not self._gives_probabilities:
            return {"logits": logits}
        if bool((logits < 0).any()):
            raise StageFailed(
                f"{self.path} gave probabilities before, and now {float(logits.min()):.4g}; expected numbers from 0 to "
                "1 for every sample, or logits for all"
            )
        return {"logits": logits.clamp(min=torch.finfo(logits.dtype).tiny).log()}

    def close(self) -> None:
        """Free the session."""
        self._session.close()


class TeacherToKeep:
    """A teacher that will be asked through a cache: it says what the cache will give back, while there is none."""

    def __init__(self, teacher: ModuleTeacher, store: Store, *, num_outputs: int) -> None:
        self.teacher = teacher
        self.store = store
        self.num_outputs = num_outputs

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return as_kept(self.teacher(batch), self.store, num_outputs=self.num_outputs)


class UnknownTeacher:
    """A black box that is not asked yet, for rehearsals: it gives logits (N, num_outputs), all of them 0."""

    def __init__(self, *, num_outputs: int) -> None:
        self.num_outputs = num_outputs

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"logits": torch.zeros(len(batch["x"]), self.num_outputs)}


class StandardizedTeacher:
    """A teacher that speaks in the units of the targets, brought to what a graph gives before the denormalize steps.

    A regression that was trained elsewhere is one; its student learns standardized targets.
    """

    def __init__(self, teacher: Teacher, steps: Sequence[Denormalize]) -> None:
        self.teacher = teacher
        self.steps = tuple(steps)

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        given = self.teacher(batch)
        logits_ND = given["logits"]
        for step in reversed(self.steps):
            logits_ND = (logits_ND - logits_ND.new_tensor(step.mean)) / logits_ND.new_tensor(step.std)
        return {**given, "logits": logits_ND}


class EnsembleTeacher:
    """Several teachers as one: the weighted mean of their logits, or, with a temperature, of their probabilities.

    temperature  the result are pseudo-logits whose softmax at that temperature is the mean
    classes      per teacher the classes (numbers) that it knows, empty for all: it counts only for samples whose label
                 is one of them. A sample that nobody knows is judged by all
    num_outputs  of the data. A teacher with as many outputs as `classes` of its own is then a specialist: its i-th
                 output is the i-th of these, of the others it says nothing (`edgekd.distill.losses.ensembles`), and it
                 judges no sample that nobody knows. None: all teachers are equally wide

    Weights are divided by their sum. What each teacher gives is there too, under its number: "0/logits",
    "1/layer2.1". Raises `UsageError` for no teacher, or weights, classes or outputs that do not fit.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Weights | None = None,
        *,
        temperature: float | None = None,
        classes: Sequence[Sequence[int]] | None = None,
        num_outputs: int | None = None,
    ) -> None:
        if not teachers:
            raise UsageError("found no teachers, expected at least one")
        if weights is not None and not isinstance(weights, Tensor) and len(weights) != len(teachers):
            raise UsageError(f"found {len(weights)} weights for {len(teachers)} teachers, expected one for each")
        if classes is not None and len(classes) != len(teachers):
            raise UsageError(
                f"found {len(classes)} sets of classes for {len(teachers)} teachers, expected one for each"
            )
        self.teachers = tuple(teachers)
        self.weights = weights
        self.temperature = temperature
        self.classes = classes
        self.num_outputs = num_outputs
        self._knows_CK = None if classes is None else _knows(classes)

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        given = [teacher(batch) for teacher in self.teachers]
        logits, known_KC = self._widened([named["logits"] for named in given])
        weights = self.weights
        if self._knows_CK is not None:
            weights = self._own_classes(batch["y"], self._knows_CK, None if known_KC is None else known_KC.all(dim=1))
        if self.temperature is None:
            mean = mean_logits(logits, weights=weights, known_KC=known_KC)
        else:
            mean = mean_probabilities(logits, temperature=self.temperature, weights=weights, known_KC=known_KC)
        own = {f"{index}/{name}": value for index, named in enumerate(given) for name, value in named.items()}
        return {**own, "logits": mean}

    def _widened(self, logits: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The logits as wide as the data, and (K, C) which of them each teacher knows; None: all of them."""
        logits = [value.to(logits[0].device) for value in logits]
        if self.num_outputs is None or all(value.shape[1:] == (self.num_outputs,) for value in logits):
            return logits, None
        known_KC = torch.ones(len(logits), self.num_outputs, dtype=torch.bool)
        for index, value in enumerate(logits):
            own = list(self.classes[index]) if self.classes is not None else []
            if value.shape[1:] == (self.num_outputs,):
                continue
            if not own or value.shape[1:] != (len(own),):
                or_own = f", or {[len(value), len(own)]}, one for each of its own" if own else ""
                raise UsageError(
                    f"teacher {index} gives logits {list(value.shape)}, expected {[len(value), self.num_outputs]}, one "
                    f"for each class of the data{or_own}"
                )
            known_KC[index] = False
            known_KC[index, own] = True
            columns = torch.tensor(own, device=value.device)
            logits[index] = value.new_zeros(len(value), self.num_outputs).index_copy(1, columns, value)
        return logits, known_KC

    def _own_classes(self, y_N: Tensor, knows_CK: Tensor, is_whole_K: Tensor | None) -> Tensor:
        """Weights (N, K) of the teachers for samples of these classes; of mixed samples (N, C) by their shares.

        is_whole_K  whether a teacher has outputs for all classes, and may judge what nobody knows; None: they all have
        """
        knows_CK = knows_CK.to(y_N.device)
        is_whole_K = torch.ones_like(knows_CK[0]) if is_whole_K is None else is_whole_K.to(y_N.device)
        if y_N.is_floating_point():
            known_K = knows_CK[torch.arange(y_N.shape[1], device=y_N.device).clamp(max=len(knows_CK) - 1)].to(y_N.dtype)
            shares_NK = y_N @ known_K
            knows_NK = torch.where(shares_NK.sum(dim=1, keepdim=True) > 0, shares_NK, is_whole_K.to(y_N.dtype))
        else:
            knows_NK = knows_CK[y_N.clamp(max=len(knows_CK) - 1)]
            knows_NK = knows_NK | (is_whole_K & ~knows_NK.any(dim=1, keepdim=True))
        ones = [1.0] * len(self.teachers)
        weights = torch.as_tensor(ones if self.weights is None else self.weights, device=y_N.device)
        return knows_NK * weights


def _knows(classes: Sequence[Sequence[int]]) -> Tensor:
    """(C + 1, K): whether a teacher knows a class; the last row is that of all classes that nobody names."""
    rows = 2 + max((number for known in classes for number in known), default=0)
    knows_CK = torch.zeros(rows, len(classes), dtype=torch.bool)
    for index, known in enumerate(classes):
        knows_CK[list(known) if known else slice(None), index] = True
    return knows_CK


@contextmanager
def tapped(teacher: Teacher, paths: Sequence[str], example: Mapping[str, Tensor]) -> Iterator[None]:
    """For the block, `teacher` gives the tensors at these tap paths too, as far as it is a module.

    `example` is a batch that it may be asked about once. Teachers of other kinds give what they give. Raises
    `ModelError` for a path that is not there, or that names none of several teachers.
    """
    _check_numbers(teacher, paths)
    with ExitStack() as stack:
        for module, own in _modules_of(teacher, paths):
            stack.enter_context(module.tapped(own, example))
        yield


def _check_numbers(teacher: Teacher, paths: Sequence[str]) -> None:
    """Raise `ModelError` for a path into one of several teachers that does not say into which."""
    while isinstance(teacher, StandardizedTeacher):
        teacher = teacher.teacher
    if not isinstance(teacher, EnsembleTeacher):
        return
    last = len(teacher.teachers) - 1
    for path in paths:
        number = path.partition("/")[0]
        if path != "logits" and not ("/" in path and number.isdecimal() and int(number) <= last):
            raise ModelError(
                f"found the tap '{path}' of {last + 1} teachers, expected the number of one before it, 0 to {last}, "
                f"such as '0/{path}'; or 'logits' for what they say together"
            )


def tapped_module(teacher: Teacher, path: str) -> nn.Module | None:
    """The part of the teacher that a tap path names; None when it is no part of a module.

    Of one that is only remembered, it is looked for in the teacher that was asked.
    """
    while isinstance(teacher, StandardizedTeacher):
        teacher = teacher.teacher
    if isinstance(teacher, EnsembleTeacher):
        number, slash, own_path = path.partition("/")
        return tapped_module(teacher.teachers[int(number)], own_path) if slash else None
    if isinstance(teacher, CachedTeacher):
        module = teacher.module()
        return None if module is None else part_at(module, path)
    for inside, own in _modules_of(teacher, (path,)):
        for tap in own:
            return part_at(inside.module, tap)
    return None


def _modules_of(teacher: Teacher, paths: Sequence[str]) -> Iterator[tuple[ModuleTeacher, list[str]]]:
    """Each module inside `teacher`, with those of the paths that are its own."""
    if isinstance(teacher, ModuleTeacher):
        yield teacher, list(paths)
    elif isinstance(teacher, TeacherToKeep):
        yield teacher.teacher, [path for path in paths if path == LOGITS or path not in TOLD]
    elif isinstance(teacher, StandardizedTeacher):
        yield from _modules_of(teacher.teacher, paths)
    elif isinstance(teacher, EnsembleTeacher):
        for index, one in enumerate(teacher.teachers):
            prefix = f"{index}/"
            yield from _modules_of(one, [path.removeprefix(prefix) for path in paths if path.startswith(prefix)])


def check_finite(logits: Tensor, batch: Mapping[str, Tensor], what: str) -> None:
    """Raise `StageFailed` that names the samples (by `batch["id"]`, else by place) whose logits are not finite."""
    bad_N = ~torch.isfinite(logits).reshape(len(logits), -1).all(dim=1).cpu()
    if not bool(bad_N.any()):
        return
    has_ids = "id" in batch and len(batch["id"]) == len(bad_N)  # a masked text has several rows
    ids = batch["id"].cpu() if has_ids else torch.arange(len(bad_N))
    found = ids[bad_N].tolist()
    more = f" and {len(found) - _NAMED_IDS} more" if len(found) > _NAMED_IDS else ""
    raise StageFailed(
        f"{what} gives NaN or infinite logits for {len(found)} of {len(bad_N)} samples, with the ids "
        f"{', '.join(map(str, found[:_NAMED_IDS]))}{more}; expected finite numbers. Check these samples, the "
        "preprocessing and the teacher's weights; finished work is kept"
    )


def _are_probabilities(values_NC: Tensor) -> bool:
    """Rows of several numbers from 0 on that sum to 1, but for the rounding of a graph in 8 bits."""
    if values_NC.dim() != 2 or values_NC.shape[1] < 2:
        return False
    off_N = (values_NC.sum(dim=1) - 1).abs()
    return bool((values_NC >= 0).all()) and bool((off_N < SUM_TOLERANCE).all())


def modules_of(teachers: Sequence[Teacher]) -> Iterator[nn.Module]:
    """The torch modules among the teachers, which compute fastest where the student does."""
    for teacher in teachers:
        if isinstance(teacher, ModuleTeacher):
            yield teacher.module
        elif isinstance(teacher, EnsembleTeacher):
            yield from modules_of(teacher.teachers)
        elif isinstance(teacher, StandardizedTeacher):
            yield from modules_of((teacher.teacher,))
