"""ncnn on the CPU: reads NAME.param with NAME.bin beside it, as pnnx writes them. It has no batch axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.runtimes import Session, check_feeds
from edgekd.errors import MissingExtra, ModelError, UsageError
from edgekd.spec import Array, TensorSpec

MAGIC = "7767517"


def open_model(model: Path | bytes, *, threads: int, options: Mapping[str, object]) -> Session:
    """Load a .param file, with the .bin beside it, for `threads` threads, in float32. There are no options.

    The shapes of the inputs stand in the file's Input layers, as `0=width 1=height 2=channels`; pnnx leaves them out,
    so write them in. Raises `MissingExtra` without ncnn, `ModelError` when the model cannot be loaded.
    """
    if isinstance(model, bytes):
        raise UsageError("runtime 'ncnn' opens a .param file with its .bin beside it, found the bytes of a model")
    if options:
        raise UsageError(f"runtime 'ncnn' has no options, found {', '.join(sorted(options))}")
    try:
        import ncnn
    except ImportError as error:
        raise MissingExtra("ncnn", "ncnn", purpose="the runtime 'ncnn'") from error
    weights = model.with_suffix(".bin")
    inputs = _read_inputs(model)
    if not weights.is_file():
        raise ModelError(f"{weights} is not there; expected the weights of {model.name} beside it")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    # Halves where the CPU has them would be another precision than the model's.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
    if net.load_param(str(model)) != 0 or net.load_model(str(weights)) != 0:
        raise ModelError(f"ncnn cannot load {model} with {weights.name}; expected files that pnnx wrote in one go")
    return _NcnnSession(ncnn, net, inputs)


class _NcnnSession:
    def __init__(self, ncnn: Any, net: Any, inputs: Sequence[TensorSpec]) -> None:
        self.inputs = tuple(inputs)
        # ncnn tells no shapes of outputs before it has run.
        self.outputs = tuple(TensorSpec(name, "float32", (1, f"{name}_1")) for name in net.output_names())
        self._ncnn, self._net = ncnn, net
        self._names = [spec.name for spec in self.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        call = self.prepare(feeds)
        return {name: np.array(mat)[np.newaxis] for name, mat in zip(self._names, call())}

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], list[Any]]:
        """Check the feeds now and give the bare call, for timing."""
        net = self._net
        if net is None:
            raise UsageError("this session is closed; open another one")
        check_feeds(self.inputs, feeds)
        # Copies: a Mat made of an array shares its memory, and a run may write into it.
        given = [(name, self._ncnn.Mat(np.ascontiguousarray(array[0])).clone()) for name, array in feeds.items()]
        wanted = self._names

        def call() -> list[Any]:
            extractor = net.create_extractor()
            for name, mat in given:
                extractor.input(name, mat)
            found = [extractor.extract(name) for name in wanted]
            if any(code != 0 for code, _ in found):
                raise ModelError("the model failed while running in ncnn; does it fit this input?")
            return [mat for _, mat in found]

        return call

    def close(self) -> None:
        self._net = None


def _read_inputs(path: Path) -> list[TensorSpec]:
    """The inputs, from the text of a .param file: `Input name 0 1 blob 0=w 1=h 11=d 2=c`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}; expected the text of a .param file") from error
    if not lines or lines[0].strip() != MAGIC:
        raise ModelError(f"{path} does not begin with {MAGIC}; expected a .param file of ncnn")
    inputs = []
    for fields in (line.split() for line in lines[2:]):
        if not fields or fields[0] != "Input":
            continue
        sizes = dict(field.split("=", 1) for field in fields[5:] if "=" in field)
        # Whatever is missing in between would be another rank: c needs h, and h needs w.
        shape = [int(sizes[key]) for key in ("2", "11", "1", "0") if sizes.get(key, "").isdecimal()]
        if not shape or 0 in shape:
            raise ModelError(
                f"{path}: the layer '{' '.join(fields)}' tells no shape; write it in, e.g. "
                f"'{' '.join(fields[:5])} 0=28 1=28 2=1' for width, height and channels"
            )
        inputs.append(TensorSpec(fields[4], "float32", (1, *shape)))
    if not inputs:
        raise ModelError(f"{path} has no Input layer; expected a .param file of ncnn")
    return inputs
