"""An integer program as C99: one header and one source file, without heap or libraries.

The layers are those of export/apps/c/kernels.c; here they get their numbers and their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekd import assets
from edgekd.device.integer import (
    Add,
    Bounds,
    Convolution,
    Dequantize,
    IntegerProgram,
    Layer,
    Pool,
    Quantize,
    quantize_inputs,
)
from edgekd.device.preprocess import apply_arithmetic
from edgekd.graph.arena import plan_arena
from edgekd.spec import Array, Step

WIDTH = 120
# What each kernel calls, besides those of "base".
NEEDS: dict[str, tuple[str, ...]] = {
    "quantize": (),
    "dequantize": ("product",),
    "linear": ("product", "linear_sum"),
    "linear_to_float": ("product", "linear_sum"),
    "convolution": ("product", "convolution_sum"),
    "convolution_to_float": ("product", "convolution_sum"),
    "pool": ("product",),
    "add": ("product",),
}


@dataclass(frozen=True)
class RawBytes:
    """How raw bytes (pixels) become the bytes of the first tensor: what scale, normalize and layout do, in tables.

    tables   (C, 256) uint8: the byte of the tensor for each raw byte of a channel
    planar   whether the channels, which lie side by side in the raw sample, come one after the other
    """

    num_bytes: int
    tables: NDArray[np.uint8]
    planar: bool


@dataclass(frozen=True)
class CSource:
    """The two files, and what they take: bytes of RAM besides input and output, of constants in flash."""

    header: str
    source: str
    arena_bytes: int
    constant_bytes: int


def raw_bytes(program: IntegerProgram, steps: Sequence[Step], raw: Array) -> RawBytes | None:
    """Tables for raw samples like `raw` (N, ...) uint8; None where no table of at most four channels can do it."""
    if raw.dtype != np.uint8:
        return None

    def first(samples: Array) -> Array:
        return quantize_inputs(program, apply_arithmetic(steps, samples))

    channels = raw.shape[-1] if raw.ndim == 4 else 1
    each = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(256, *[1] * (raw.ndim - 1)), (256, *raw.shape[1:]))
    answers = first(np.ascontiguousarray(each))
    for planar in (False, True):
        tables = (answers.reshape(256, channels, -1)[:, :, 0] if planar else answers[:, :channels]).T
        found = RawBytes(int(np.prod(raw.shape[1:])), np.ascontiguousarray(tables), planar)
        if channels <= 4 and np.array_equal(_look_up(found, raw), first(raw)):
            return found
    return None


def _look_up(found: RawBytes, raw: Array) -> Array:
    """What the C code makes of raw bytes: (N, num_bytes)."""
    channels = len(found.tables)
    pixels_NPC = raw.reshape(len(raw), -1, channels)
    looked_up_NPC = found.tables[np.arange(channels), pixels_NPC]
    ordered: Array = looked_up_NPC.swapaxes(1, 2) if found.planar else looked_up_NPC
    return ordered.reshape(len(raw), -1)


def write_c(program: IntegerProgram, *, labels: Sequence[str], title: str, raw: RawBytes | None = None) -> CSource:
    """The C files of a program; `title` goes into their first comment, `labels` name the outputs."""
    offsets, arena_bytes = plan_arena(program)
    places = [f"arena + {offset}" for offset in offsets]
    used, constants, calls = {"base", "best"}, [], []
    for at, layer in enumerate(program.layers):
        name = _kernel_name(layer)
        used |= {*NEEDS[name], name}
        data, call = _layer(program, layer, at, name, places)
        constants += data
        calls.append(call)
    num_constants = program.constant_bytes
    if raw is not None:
        used.add("look_up")
        num_constants += raw.tables.size
        constants.append(_array("unsigned char", "raw_tables", map(int, raw.tables.reshape(-1)), raw.tables.size))
    about = (
        f"/* {_comment(title)}\n"
        " * Written by edgekd; the layers, and how they round, are those of its kernels.c (Apache-2.0).\n"
        f" * {program.num_weights} int8 weights; {num_constants} bytes of constants; arena {arena_bytes} bytes.\n */\n"
    )
    sizes = {"INPUTS": program.num_inputs, "OUTPUTS": program.num_outputs}
    sizes |= {"ARENA_BYTES": arena_bytes} | ({} if raw is None else {"RAW_BYTES": raw.num_bytes})
    defines = "".join(f"#define STUDENT_{name} {size}\n" for name, size in sizes.items())
    texts = numbers(c_text(label) for label in labels)
    source = [
        about,
        '#include "student.h"\n\n#include <stddef.h>\n#include <stdint.h>\n',
        *(kernel for name, kernel in _kernels().items() if name in used),
        *constants,
        f"const char *const student_labels[STUDENT_OUTPUTS] = {{\n{texts}\n}};\n",
        _function("static void run_layers(unsigned char *arena, float *output)", calls[1:]),
        _function(
            "int student_run(const float *input, float *output, unsigned char *arena)",
            [
                f"if ({calls[0]}) {{",
                "    return STUDENT_NOT_FINITE;",
                "}",
                "run_layers(arena, output);",
                "return STUDENT_OK;",
            ],
        ),
    ]
    if raw is not None:
        channels = len(raw.tables)
        sizes_of_raw = f"{raw.num_bytes // channels}, {channels}, {int(raw.planar)}"
        first = places[program.layers[0].target] if isinstance(program.layers[0], Quantize) else places[0]
        source.append(
            _function(
                "int student_run_bytes(const unsigned char *raw, float *output, unsigned char *arena)",
                [
                    f"look_up(raw, {first}, {sizes_of_raw}, raw_tables);",
                    "run_layers(arena, output);",
                    "return STUDENT_OK;",
                ],
            )
        )
    header = about + _text("student.h.in").replace("@defines@\n", defines)
    return CSource(header, "\n".join(source), arena_bytes, num_constants)


def numbers(values: Iterable[object], *, indent: int = 4) -> str:
    """`a, b, c` in lines of at most 120 columns."""
    lines, line = [], ""
    for value in values:
        item = f"{value}, "
        if len(line) + len(item) > WIDTH - indent:
            lines.append(line.rstrip())
            line = ""
        line += item
    lines.append(line.rstrip().rstrip(","))
    return "\n".join(" " * indent + item for item in lines)


def c_float(value: object) -> str:
    """A float32 as C99 reads it back exactly: in hexadecimal."""
    return f"{float(np.float32(value)).hex()}f"  # type: ignore[arg-type]


def c_text(text: str) -> str:
    """A string literal with the text in UTF-8; bytes that C might read otherwise are octal."""
    safe = set(b" !#$%&'()*+,-./:;<=>@[]^_`{|}~") | set(range(48, 58)) | set(range(65, 91)) | set(range(97, 123))
    return '"' + "".join(chr(byte) if byte in safe else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _kernels() -> dict[str, str]:
    parts = _text("kernels.c").split("/* -- ")[1:]
    return {name: body.strip() + "\n" for name, body in (part.split(" -- */\n", 1) for part in parts)}


def _kernel_name(layer: Layer) -> str:
    if isinstance(layer, Convolution):
        kind = "linear" if layer.in_shape[1:] == layer.out_shape[1:] == layer.weights.shape[2:] == (1, 1) else ""
        plain = kind == "linear" and layer.groups == 1 and layer.pads == (0, 0)
        return ("linear" if plain else "convolution") + ("_to_float" if layer.target is None else "")
    return type(layer).__name__.lower()


def _layer(program: IntegerProgram, layer: Layer, at: int, name: str, places: Sequence[str]) -> tuple[list[str], str]:
    """The constants of a layer, and its call."""
    tensors = program.tensors
    if isinstance(layer, Dequantize):
        tensor = tensors[layer.source]
        call = (
            f"dequantize({places[layer.source]}, output, {tensor.size}, {tensor.zero_point}, {c_float(tensor.step)});"
        )
        return [], call
    bounds = Bounds() if isinstance(layer, Quantize) else layer.bounds
    data = []
    if layer.target is not None:
        zero_in = tensors[layer.source].zero_point if isinstance(layer, (Convolution, Pool)) else 0
        limits = (zero_in, tensors[layer.target].zero_point, bounds.low, bounds.high)
        data.append(f"static const range range_{at} = {{{', '.join(map(str, limits))}}};\n")
    if isinstance(layer, Quantize):
        tensor = tensors[layer.target]
        turned = layer.rows > 1 and layer.columns > 1
        rows, columns = (layer.rows, layer.columns) if turned else (tensor.size, 1)
        return data, (
            f"quantize(input, {places[layer.target]}, {rows}, {columns}, {c_float(tensor.step)}, &range_{at}) != 0"
        )
    if isinstance(layer, Add):
        left, right = layer.sources
        zeros = f"{tensors[left].zero_point}, {tensors[right].zero_point}"
        multipliers = ", ".join(c_float(item) for item in layer.multipliers)
        place = f"{places[left]}, {places[right]}, {places[layer.target]}, {tensors[layer.target].size}"
        return data, f"add({place}, {zeros}, {multipliers}, &range_{at});"
    target = "output" if layer.target is None else places[layer.target]
    kernel = layer.kernel if isinstance(layer, Pool) else layer.weights.shape[2:]
    if not name.startswith("linear"):
        more = ((1, 1), 1) if isinstance(layer, Pool) else (layer.dilations, layer.groups)
        sides = (*layer.in_shape, *layer.out_shape, *kernel, *layer.strides, *layer.pads, *more[0], more[1])
        data.append(f"static const window window_{at} = {{{', '.join(map(str, sides))}}};\n")
    if isinstance(layer, Pool):
        largest, multiplier = int(layer.kind == "max"), c_float(layer.multiplier)
        place = f"{places[layer.source]}, {target}, &window_{at}"
        return data, f"pool({place}, {largest}, {multiplier}, &range_{at});"
    arrays: dict[str, tuple[str, Array]] = {"weights": ("signed char", layer.weights), "bias": ("int32_t", layer.bias)}
    for kind, (c_type, values) in arrays.items():
        data.append(_array(c_type, f"{kind}_{at}", map(int, values.reshape(-1)), values.size))
    data.append(_array("float", f"multipliers_{at}", map(c_float, layer.multipliers), layer.multipliers.size))
    size = f"{layer.in_shape[0]}, {layer.out_shape[0]}" if name.startswith("linear") else f"&window_{at}"
    last = f"&range_{at}" if layer.target is not None else str(tensors[layer.source].zero_point)
    return data, f"{name}({places[layer.source]}, {target}, {size}, weights_{at}, bias_{at}, multipliers_{at}, {last});"


def _array(c_type: str, name: str, values: Iterable[object], size: int) -> str:
    return f"static const {c_type} {name}[{size}] = {{\n{numbers(values)}\n}};\n"


def _function(head: str, lines: Sequence[str]) -> str:
    return f"{head} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


def _text(name: str) -> str:
    return (assets.folder("export", "apps") / "c" / name).read_text(encoding="utf-8")


def _comment(text: str) -> str:
    """Text that cannot end a comment, on one line."""
    plain = " ".join(text.split()).replace("*/", "* /").replace("/*", "/ *")
    return json.dumps(plain, ensure_ascii=True)[1:-1].replace("\\\\", "/").replace('\\"', '"')
