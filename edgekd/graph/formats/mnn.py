"""MNN: one file of its own, for phones. Float; what it makes of quantized graphs aborts or gives other answers."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid

from edgekd.errors import AnswerIsNo
from edgekd.graph.formats import Request, run_python, working_folder

# The function, not the console script mnnconvert: that installs packages and reports to its makers.
_PROGRAM = """
import sys, _tools
model, made = sys.argv[1:]
_tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", model, "--MNNModel", made, "--bizCode", "MNN"])
"""
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def convert(request: Request) -> None:
    """Let MNN convert the file, and put a name made of the content where it draws a random one."""
    with working_folder(request) as folder:
        shutil.copyfile(request.model, folder / "model.onnx")
        made = folder / "model.mnn"
        run_python(_PROGRAM, ["model.onnx", made.name], module="MNN", package="MNN", request=request, made=made)
    content = request.out.read_bytes()
    found = _UUID.findall(content)
    if len(found) != 1:
        raise AnswerIsNo(f"the file of MNN holds {len(found)} names of the form of a UUID, expected one; is it newer?")
    rest = content.replace(found[0], bytes(36))
    name = str(uuid.UUID(bytes=hashlib.sha256(rest).digest()[:16], version=4))
    request.out.write_bytes(content.replace(found[0], name.encode()))
