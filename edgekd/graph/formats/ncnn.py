"""ncnn through its converter pnnx: NAME.param with NAME.bin beside it. Float only, and one sample at a time."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from edgekd.errors import AnswerIsNo
from edgekd.graph.formats import Request, find_program, run_program

# What pnnx names the input of what it writes, and the shape that ncnn wants in it: width, height, depth, channels.
_PLACES = {1: ("0",), 2: ("1", "0"), 3: ("2", "1", "0"), 4: ("2", "11", "1", "0")}


def convert(request: Request) -> None:
    """Run pnnx on the model with a batch of one, and write the shape of the input into what it leaves out."""
    program = find_program("pnnx", env=request.env, package="torch pnnx")
    if len(request.inputs) != 1 or request.inputs[0].dtype != "float32":
        raise AnswerIsNo("ncnn is given models with one float32 input; this one has another")
    shape = request.inputs[0].concrete()
    sizes = ",".join(str(size) for size in shape)
    with tempfile.TemporaryDirectory(dir=request.out.parent) as name:
        folder = Path(name)
        shutil.copyfile(request.model, folder / "model.onnx")
        run_program([program, "model.onnx", f"inputshape=[{sizes}]", "fp16=0"], folder=folder)
        made = [folder / f"model.ncnn{suffix}" for suffix in (".param", ".bin")]
        if not all(path.is_file() for path in made):
            raise AnswerIsNo("pnnx wrote no model for ncnn: an operator may have none; see its own output")
        lines = made[0].read_text(encoding="utf-8").splitlines()
        request.out.write_text("\n".join(_with_shape(line, shape[1:]) for line in lines) + "\n", encoding="utf-8")
        shutil.copyfile(made[1], request.out.with_suffix(".bin"))


def _with_shape(line: str, shape: tuple[int, ...]) -> str:
    """`Input in0 0 1 in0` with the sizes behind it."""
    fields = line.split()
    if not fields or fields[0] != "Input" or len(fields) > 5:
        return line
    return line + "".join(f" {place}={size}" for place, size in zip(_PLACES[len(shape)], shape))
