"""Other runtimes' own files, made of an ONNX file: one converter per file, one row per format in `FORMATS`.

A converter only writes. Whether what it wrote is right is for golden vectors to say (`edgekd.stages.converting`): some
convert into a wrong model without a word.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekd.errors import AnswerIsNo, MissingHere, UsageError, nearest
from edgekd.spec import Step, TensorSpec

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
    steps     the preprocessing that belongs to the model
    """

    model: Path
    out: Path
    inputs: tuple[TensorSpec, ...]
    platform: Platform
    env: Path | None
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format: the suffix of the file to open, the runtime that proves it, the converter, what it is for, and
    whether its converter takes float graphs only, and whether what it writes reads texts."""

    suffix: str
    runtime: str
    converter: str
    description: str
    float_only: bool = False
    reads_text: bool = False


FORMATS: dict[str, Format] = {
    "ort": Format(
        ".ort", "onnxruntime", "edgekd.graph.formats.ort:convert", "onnxruntime's own, for its minimal mobile builds"
    ),
    "openvino": Format(
        ".xml", "openvino", "edgekd.graph.formats.openvino:convert", "OpenVINO IR, with its weights in a .bin"
    ),
    "extensions": Format(
        ".text.onnx",
        "onnxruntime",
        "edgekd.graph.formats.extensions:convert",
        "ONNX that reads a text, for onnxruntime-extensions",
        reads_text=True,
    ),
    "ncnn": Format(
        ".param", "ncnn", "edgekd.graph.formats.ncnn:convert", "ncnn, with its weights in a .bin; CNNs", float_only=True
    ),
    "mnn": Format(".mnn", "mnn", "edgekd.graph.formats.mnn:convert", "MNN's own", float_only=True),
    "litert": Format(
        ".tflite", "litert", "edgekd.distill.formats.litert:convert", "LiteRT (TensorFlow Lite)", float_only=True
    ),
    "executorch": Format(
        ".pte", "executorch", "edgekd.distill.formats.executorch:convert", "ExecuTorch on XNNPACK", float_only=True
    ),
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
    raise _missing(package, env, name=name)


def _missing(package: str, env: Path | None, *, name: str = "") -> MissingHere:
    found = f"{name or package} is not in {'this environment' if env is None else env}"
    return MissingHere(
        f"{found}; make one for it (python -m venv converters && converters/bin/pip install "
        f"{package}) and name it: --converter-env converters"
    )


@contextmanager
def working_folder(request: Request) -> Iterator[Path]:
    """An empty folder beside the file to write, for what lies in between."""
    with tempfile.TemporaryDirectory(dir=request.out.parent) as name:
        yield Path(name)


def run_python(
    program: str, arguments: Sequence[str], *, module: str, package: str, request: Request, made: Path
) -> None:
    """Run `program` in the Python of the request's environment, in the folder of `made`; that becomes `request.out`.

    Raises `MissingHere` where that Python has no `module`, and what `run_program` raises.
    """
    python = find_program("python", env=request.env, package=package)
    asked = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    if subprocess.run([python, "-I", "-c", asked, module], capture_output=True, check=False).returncode != 0:
        raise _missing(package, request.env)
    run_program([python, "-I", "-c", program, *arguments], folder=made.parent)
    if not made.is_file():
        raise AnswerIsNo(f"{package} wrote no file and did not say why; an operator may have no counterpart in it")
    made.replace(request.out)


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
