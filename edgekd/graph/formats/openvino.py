"""OpenVINO's intermediate representation: NAME.xml with NAME.bin beside it, in the precision of the model."""

from __future__ import annotations

from edgekd.errors import AnswerIsNo, MissingExtra
from edgekd.graph.formats import Request


def convert(request: Request) -> None:
    """Read the model as OpenVINO does and save it, without halving the weights, and without paths of this machine."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("openvino", "openvino", purpose="the format 'openvino'") from error
    try:
        graph = openvino.Core().read_model(str(request.model))
        openvino.save_model(graph, str(request.out), compress_to_fp16=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise AnswerIsNo(f"openvino cannot convert the model: {(lines or ['it said nothing'])[-1]}") from error
