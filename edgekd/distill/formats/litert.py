"""LiteRT's .tflite through litert-torch, whose environment of 2 GB is best one of its own. Float, a batch of one."""

from __future__ import annotations

from edgekd.distill.formats import save_program
from edgekd.graph.formats import Request, run_python, working_folder

_PROGRAM = """
import sys, torch, litert_torch
program = torch.export.load(sys.argv[1])
litert_torch.convert(program.module(), program.example_inputs[0]).export(sys.argv[2])
"""


def convert(request: Request) -> None:
    """Trace the graph with PyTorch here, and let litert-torch write it in its environment."""
    with working_folder(request) as folder:
        save_program(request, folder / "model.pt2")
        made = folder / "model.tflite"
        run_python(
            _PROGRAM,
            ["model.pt2", made.name],
            module="litert_torch",
            package="litert-torch",
            request=request,
            made=made,
        )
