"""Formats whose converters start from PyTorch: the graph as a traced torch module, read in the converter's environment.

That environment needs nothing of edgekd: it gets a program of torch.export, in a file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgekd.distill.onnx_module import OnnxModule
from edgekd.distill.silence import silence
from edgekd.errors import AnswerIsNo, ModelError
from edgekd.graph.formats import Request


class _AllOutputs(nn.Module):
    def __init__(self, module: OnnxModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.module.all_outputs(*inputs)


def save_program(request: Request, path: Path) -> None:
    """The graph as a program of torch.export, with every symbolic axis at its smallest size: a batch of one.

    Raises `AnswerIsNo` for a graph with an operator that `OnnxModule` lacks, or that torch.export cannot trace.
    """
    try:
        module = OnnxModule(request.model)
    except ModelError as error:
        raise AnswerIsNo(f"the converter starts from PyTorch, and the graph cannot go there: {error}") from error
    examples = tuple(torch.zeros(spec.concrete(), dtype=getattr(torch, spec.dtype)) for spec in request.inputs)
    module.eval().requires_grad_(False)
    try:
        with silence("torch"):
            program = torch.export.export(_AllOutputs(module), examples)
            torch.export.save(program, path)
    except (RuntimeError, ValueError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AnswerIsNo(f"torch.export cannot trace the graph: {first}") from error
