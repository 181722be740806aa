"""ExecuTorch's .pte, whose convolutions and matrix products XNNPACK computes. Float, a batch of one."""

from __future__ import annotations

from edgekd.distill.formats import save_program
from edgekd.graph.formats import Request, run_python, working_folder

_PROGRAM = """
import sys, torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
program = torch.export.load(sys.argv[1])
lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
open(sys.argv[2], "wb").write(lowered.to_executorch().buffer)
"""


def convert(request: Request) -> None:
    """Trace the graph with PyTorch here, and let ExecuTorch lower it in its environment."""
    with working_folder(request) as folder:
        save_program(request, folder / "model.pt2")
        made = folder / "model.pte"
        run_python(
            _PROGRAM, ["model.pt2", made.name], module="executorch", package="executorch", request=request, made=made
        )
