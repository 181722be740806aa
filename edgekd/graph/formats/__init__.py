"""Other runtimes' own files, made of an ONNX file: one converter per file, one row per format in `FORMATS`.

A converter only writes. Whether what it wrote is right is for golden vectors to say (`edgekd.stages.converting`): some
convert into a wrong model without a word.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekd.errors import AnswerIsNo, MissingHere, UsageError, nearest
from edgekd.spec import TensorSpec

Platform = Literal["amd64", "arm"]
TIMEOUT_S = 600


@dataclass(frozen=True)
class Request:
    """What a converter gets.

    model     the ONNX file
    out       the file to write, with the format's suffix; others may lie beside it under the same stem
    inputs    of the model
    platform  where the file will run: amd64, or arm, which runs everywhere
    env       a virtual environment that holds converters which want one of their own
    """

    model: Path
    out: Path
    inputs: tuple[TensorSpec, ...]
    platform: Platform
    env: Path | None


@dataclass(frozen=True)
class Format:
    """A format: the suffix of the file to open, the runtime that proves it, the converter, and what it is for."""

    suffix: str
    runtime: str
    converter: str
    description: str


FORMATS: dict[str, Format] = {
    "ort": Format(
        ".ort", "onnxruntime", "edgekd.graph.formats.ort:convert", "onnxruntime's own, for its minimal mobile builds"
    ),
    "openvino": Format(
        ".xml", "openvino", "edgekd.graph.formats.openvino:convert", "OpenVINO IR, with its weights in a .bin"
    ),
    "ncnn": Format(".param", "ncnn", "edgekd.graph.formats.ncnn:convert", "ncnn, with its weights in a .bin; CNNs"),
}


def find_format(name: str) -> Format:
    """A row of `FORMATS`. Raises `UsageError` with the nearest name."""
    if name not in FORMATS:
        raise UsageError(f"unknown format '{name}'. {nearest(name, FORMATS)}")
    return FORMATS[name]


def convert(name: str, request: Request) -> None:
    """Write `request.out` in the format `name`.

    Raises `MissingHere` or `MissingExtra` where the converter is not there, `AnswerIsNo` where it refuses the model.
    """
    module, _, function = find_format(name).converter.partition(":")
    converter: Callable[[Request], None] = getattr(importlib.import_module(module), function)
    converter(request)


def find_program(name: str, *, env: Path | None, package: str) -> Path:
    """The program `name` of the environment that was given, or of this one.

    Raises `MissingHere` with the lines that make such an environment: nothing is installed unasked.
    """
    folder = Path(sys.executable).parent if env is None else env / ("Scripts" if sys.platform == "win32" else "bin")
    for candidate in (folder / name, folder / f"{name}.exe"):
        if candidate.is_file():
            return candidate
    place = "this environment" if env is None else str(env)
    raise MissingHere(
        f"{name} is not in {place}; make one for it (python -m venv converters && converters/bin/pip install "
        f"{package}) and name it: --converter-env converters"
    )


def run_program(command: Sequence[str | Path], *, folder: Path) -> str:
    """What a converter printed. Raises `AnswerIsNo` with its last line where it fails or takes ten minutes."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise AnswerIsNo(f"{name} did not end within {TIMEOUT_S} s; the model may be too large for it") from error
    except OSError as error:
        raise MissingHere(f"{name} cannot be started: {error.strerror}; install it again in its environment") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise AnswerIsNo(f"{name} ended with {done.returncode}: {lines[-1] if lines else 'it said nothing'}")
    return done.stdout
