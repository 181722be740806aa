"""onnxruntime behind the stand-in for its Java classes: a graph, then inputs, on stdin; outputs on stdout."""

from __future__ import annotations

import struct
import sys

import numpy as np
import onnxruntime

given, told = sys.stdin.buffer, sys.stdout.buffer


def number() -> int:
    """A whole number; ends the program where the other side is gone."""
    data = given.read(4)
    if len(data) < 4:
        sys.exit(0)
    return int(struct.unpack(">i", data)[0])


def text() -> str:
    """A text as Java writes it, after its two bytes of length."""
    data = given.read(2)
    if len(data) < 2:
        sys.exit(0)
    return given.read(struct.unpack(">H", data)[0]).decode()


def say(problem: str = "") -> None:
    """What went wrong; nothing where all is well."""
    data = problem.encode()[:60000]
    told.write(struct.pack(">H", len(data)) + data)


options = onnxruntime.SessionOptions()
options.intra_op_num_threads = number()
try:
    session = onnxruntime.InferenceSession(given.read(number()), options, providers=["CPUExecutionProvider"])
except Exception as error:  # noqa: BLE001  onnxruntime's errors share no other base
    say(str(error))
    told.flush()
    sys.exit(0)
say()
while True:
    told.flush()
    name = text()
    dtype = np.dtype(text())
    shape = [number() for _ in range(number())]
    x = np.frombuffer(given.read(number()), dtype).reshape(shape)
    names = [text() for _ in range(number())]
    try:
        outputs = session.run(names, {name: x})
    except Exception as error:  # noqa: BLE001  onnxruntime's errors share no other base
        say(str(error))
        continue
    say()
    for output in outputs:
        told.write(struct.pack(f">{output.ndim + 2}i", output.ndim, *output.shape, output.nbytes))
        told.write(output.tobytes())
