"""Taps: what any module of a model gives or gets, by its dotted path, with no change to the model.

    layer2.1.conv1         its output; of several tensors the first
    layer2.1.conv1@input   its first input
    lstm#1, block#hidden   one of several outputs, by number or by key; lstm@input#1 likewise

    with Taps(model, ["layer2", "fc@input"]) as taps:
        logits = model(x)
        features = taps.read()

Paths are those of `model.named_modules()`; wrappers (DistributedDataParallel, torch.compile) are looked through. A
module that runs several times in one forward pass gives what it gave last.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgekd.distill.modules import evaluating, is_compiled, unwrap
from edgekd.errors import ModelError

_FORM = re.compile(r"(?P<module>[^@#]*)(?P<input>@input)?(?:#(?P<element>[^#]+))?")


@dataclass(frozen=True)
class TapPath:
    """A tap path, taken apart."""

    text: str
    module: str
    is_input: bool
    element: int | str | None

    @classmethod
    def parse(cls, text: str) -> TapPath:
        """Raises `ModelError` for a text that cannot be one."""
        match = _FORM.fullmatch(text)
        if match is None or not (match["module"] or match["input"] or match["element"]):
            raise ModelError(
                f"found the tap '{text}', expected a module's path such as layer2.1.conv1, layer2@input for its input, "
                "or lstm#1 for one of several outputs"
            )
        element = match["element"]
        return cls(
            text,
            match["module"],
            match["input"] is not None,
            int(element) if element is not None and element.isdecimal() else element,
        )

    def pick(self, value: object) -> Tensor:
        """The tensor in what the module gave or got. Raises `ModelError` when there is none."""
        found: object = None
        if self.element is None:
            found = _first_tensor(value)
        elif isinstance(value, Mapping):
            found = value.get(self.element)
        elif isinstance(value, (tuple, list)) and isinstance(self.element, int) and self.element < len(value):
            found = value[self.element]
        if not isinstance(found, Tensor):
            raise ModelError(f"the tap '{self.text}' finds no tensor: there is {describe(value)}")
        return found


class Taps:
    """Attaches to `module` while its block runs; `read` gives the tensors of the last forward pass.

    The tensors are copies, because the modules after a tap may overwrite what it gave (ReLU(inplace=True)). They keep
    their gradients; those of a pass in inference mode become ordinary tensors, which may be saved for a backward pass.

    Raises `ModelError` for a path that is not there, naming the nearest.
    """

    def __init__(self, module: nn.Module, paths: Sequence[str]) -> None:
        self._module = module
        self._taps = [(TapPath.parse(path), find_module(module, path)) for path in dict.fromkeys(paths)]
        self._kept: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths, each once."""
        return tuple(tap.text for tap, _ in self._taps)

    def __enter__(self) -> Taps:
        for tap, part in self._taps:
            hook = _input_hook(self._kept, tap) if tap.is_input else _output_hook(self._kept, tap)
            if tap.is_input:
                self._handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                self._handles.append(part.register_forward_hook(hook))
        self._forget_compiled()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._kept.clear()
        self._forget_compiled()

    def read(self) -> dict[str, Tensor]:
        """The tensors by path; they are given away, so that nothing outlives its step.

        Raises `ModelError` for a module that did not run since the last call.
        """
        idle = [tap.text for tap, _ in self._taps if tap.text not in self._kept]
        if idle:
            self._kept.clear()
            raise ModelError(
                f"the tap '{idle[0]}' saw nothing: its module did not run in this forward pass; take one that does "
                "(edgekd taps MODEL lists what each gives)"
            )
        read = {tap.text: self._kept[tap.text] for tap, _ in self._taps}
        self.clear()
        return {path: ordinary_copy(value) if value.is_inference() else value for path, value in read.items()}

    def clear(self) -> None:
        """Forget the tensors of a pass that nobody reads."""
        self._kept.clear()

    def _forget_compiled(self) -> None:
        # Compiled code does not look at hooks that come or go later.
        if self._taps and is_compiled(self._module):
            torch.compiler.reset()


@dataclass(frozen=True)
class TapRow:
    """One module in the list of taps. Shapes are those of one sample; none when it did not run or gave no tensor."""

    path: str
    kind: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    parameters: int
    calls: int


def list_taps(module: nn.Module, x: Tensor) -> list[TapRow]:
    """What can be tapped in `module`, in its own order, with the shapes of one forward pass over `x` (N, ...)."""
    inner = unwrap(module)
    seen: dict[str, tuple[Any, Any, int]] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            seen[path] = ((*args, *kwargs.values()), output, seen[path][2] + 1 if path in seen else 1)

        return hook

    parts = [(path, part) for path, part in inner.named_modules() if path]
    handles = [part.register_forward_hook(watch(path), with_kwargs=True) for path, part in parts]
    try:
        with torch.no_grad(), evaluating(inner):
            inner(x)
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    for path, part in parts:
        given, output, calls = seen.get(path, ((), None, 0))
        rows.append(
            TapRow(
                path=path,
                kind=type(part).__name__,
                inputs=_shapes(given),
                outputs=_shapes(output),
                parameters=sum(parameter.numel() for parameter in part.parameters()),
                calls=calls,
            )
        )
    return rows


def find_module(module: nn.Module, path: str) -> nn.Module:
    """The part of `module` that a tap path names. Raises `ModelError` with the nearest for one that is not there."""
    tap, inner = TapPath.parse(path), unwrap(module)
    parts: dict[str, nn.Module] = dict(inner.named_modules())
    if tap.module in parts:
        return parts[tap.module]
    names = [name for name in parts if name]
    close = difflib.get_close_matches(tap.module, names, n=1, cutoff=0.5)
    parent = tap.module
    while parent not in parts:
        parent = parent.rpartition(".")[0]
    children = [name for name, _ in parts[parent].named_children()]
    hint = f"Did you mean '{close[0]}'? " if close else ""
    raise ModelError(
        f"the tap '{path}' leads nowhere: there is no module '{tap.module}'. {hint}"
        f"{parent or 'The model'} has {', '.join(children) or 'no parts'}; edgekd taps MODEL lists all"
    )


def part_at(module: nn.Module, path: str) -> nn.Module | None:
    """The part of `module` that a tap path names, all of it for "logits"; None when it names none."""
    inner = unwrap(module)
    parts: dict[str, nn.Module] = dict(inner.named_modules())
    return inner if path == "logits" else parts.get(TapPath.parse(path).module)


def describe(value: object) -> str:
    """`a tensor [2, 3]`, `a tuple of 2`, `a mapping with ['a']`, for errors."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with {sorted(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _output_hook(kept: dict[str, Tensor], tap: TapPath) -> Callable[..., None]:
    def hook(part: nn.Module, args: object, output: object) -> None:
        kept[tap.text] = _copy(tap.pick(output))

    return hook


def _input_hook(kept: dict[str, Tensor], tap: TapPath) -> Callable[..., None]:
    def hook(part: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        kept[tap.text] = _copy(tap.pick((*args, *kwargs.values())))

    return hook


def _copy(tensor: Tensor) -> Tensor:
    # Code that is being compiled cannot ask for the mode; `read` does it then.
    return tensor.clone() if torch.compiler.is_compiling() else ordinary_copy(tensor)


def ordinary_copy(tensor: Tensor) -> Tensor:
    """A copy that may be saved for a backward pass, whether the tensor was made in inference mode or not."""
    if not tensor.is_inference():
        return tensor.clone()
    with torch.inference_mode(mode=False):
        return tensor.clone()


def widened(tensor: Tensor) -> Tensor:
    """What autocast made of a tensor, in float32 again: sums over it would be rounded to three digits."""
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


def _first_tensor(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for item in items:
        if isinstance(item, Tensor):
            return item
    return None


def _shapes(value: object) -> tuple[tuple[int, ...], ...]:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else (value,)
    return tuple(tuple(item.shape[1:]) for item in items if isinstance(item, Tensor))
