"""Weights that lie in files beside an ONNX file: read into the model, from its own folder only.

A location is text inside a file that somebody else wrote: it may name /etc/shadow, climb with "..", or be a symbolic
link that leads elsewhere. Nothing is read before its place, its kind and its size are known to be right.
"""

from __future__ import annotations

import math
import stat
from pathlib import Path, PureWindowsPath

from onnx import ModelProto, TensorProto, helper

from edgekd.errors import ModelError
from edgekd.graph.traversal import tensors

MAX_BYTES = (1 << 31) - 1  # protobuf's own limit for one message
_HALF_BYTES = frozenset({"INT4", "UINT4", "FLOAT4E2M1"})
_QUARTER_BYTES = frozenset({"INT2", "UINT2"})


def is_external(tensor: TensorProto) -> bool:
    """Whether the numbers of `tensor` lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def refuse_external(model: ModelProto, name: str) -> None:
    """Raise `ModelError` where a model that has no folder keeps weights in another file."""
    for tensor in filter(is_external, tensors(model)):
        raise ModelError(
            f"{name} keeps its weights in another file (tensor '{tensor.name}'); expected one file: give its path, so "
            "that they can be found, or load it with onnx.load(path) and save it with onnx.save(model, path), which "
            "puts them inside"
        )


def read_external(model: ModelProto, path: Path) -> None:
    """Put the weights that `model`, read from `path`, keeps in other files inside it.

    Raises `ModelError` for a location outside the model's folder, for what is not there or no file, for a piece that
    is not as long as its tensor, and when all is more than one ONNX file holds.
    """
    pieces = [(tensor, *_piece(tensor, path)) for tensor in tensors(model) if is_external(tensor)]
    total = model.ByteSize() + sum(length for *_, length in pieces)
    if total > MAX_BYTES:
        raise ModelError(
            f"{path} and its weights have {total:,} bytes, but one ONNX file holds at most {MAX_BYTES:,}; "
            "use a smaller model or a quantized one"
        )
    for tensor, file, offset, length in pieces:
        try:
            with file.open("rb") as stream:
                stream.seek(offset)
                data = stream.read(length)
        except OSError as error:
            raise ModelError(
                f"cannot read {file}, where {path.name} keeps weights: {error.strerror}; expected a file that you "
                "may read"
            ) from error
        if len(data) != length:
            raise ModelError(f"{file} became shorter while it was read; expected a file that nobody writes")
        tensor.raw_data = data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _piece(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    """The file that holds `tensor`, the offset in it and the length."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    what = f"{path}: the weights '{tensor.name}' are said to lie in '{told.get('location', '')}'"
    file = _inside(told.get("location", ""), path.parent, what)
    try:
        found = file.stat()
    except OSError as error:
        raise ModelError(f"{what}, which cannot be read: {error.strerror}; copy it beside the model") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{what}, which is no file; expected a file beside the model")
    expected = _num_bytes(tensor)
    numbers = {key: told.get(key, str(default)) for key, default in (("offset", 0), ("length", expected))}
    for key, value in numbers.items():
        if not (value.isascii() and value.isdecimal() and len(value) < 20):
            raise ModelError(f"{what} with the {key} '{value}'; expected a whole number: export the model again")
    offset, length = int(numbers["offset"]), int(numbers["length"])
    if length != expected:
        raise ModelError(
            f"{what} with {length:,} bytes, expected {expected:,} for {TensorProto.DataType.Name(tensor.data_type)} "
            f"{list(tensor.dims)}; is the file damaged?"
        )
    if offset + length > found.st_size:
        raise ModelError(
            f"{what} at {offset:,} to {offset + length:,}, but that file has {found.st_size:,} bytes; was it cut short?"
        )
    return file, offset, length


def _inside(location: str, folder: Path, what: str) -> Path:
    """`location` below `folder`, wherever symbolic links lead."""
    strange = "\0" in location or "\\" in location or PureWindowsPath(location).drive
    if not location or strange or location.startswith("/") or ".." in Path(location).parts:
        raise ModelError(
            f"{what}, which is not inside the model's folder; expected the name of a file beside it. Do not open this "
            "model before you know who made it"
        )
    file = folder / location
    try:
        real = file.resolve()
    except (OSError, RuntimeError) as error:  # a circle of links
        raise ModelError(f"{what}, which leads nowhere: {error}; copy the weights beside the model") from error
    if not real.is_relative_to(folder.resolve()):
        raise ModelError(
            f"{what}, a symbolic link out of the model's folder (to {real}); expected a file beside it: copy it there"
        )
    return file


def _num_bytes(tensor: TensorProto) -> int:
    kind = TensorProto.DataType.Name(tensor.data_type)
    if kind in ("STRING", "UNDEFINED") or any(size < 0 for size in tensor.dims):
        raise ModelError(
            f"tensor '{tensor.name}' is {kind} {list(tensor.dims)} and said to lie in another file; expected numbers "
            "of a known size: export the model again"
        )
    count: int = math.prod(int(size) for size in tensor.dims)
    if kind in _HALF_BYTES:
        return (count + 1) // 2
    if kind in _QUARTER_BYTES:
        return (count + 3) // 4
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
