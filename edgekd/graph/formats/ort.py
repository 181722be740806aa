"""onnxruntime's own format: a flatbuffer with the optimizations done, for builds that read no ONNX."""

from __future__ import annotations

import onnxruntime

from edgekd.errors import AnswerIsNo
from edgekd.graph.formats import Request
from edgekd.graph.sessions import RUNTIME_ERRORS, first_line, session_options


def convert(request: Request) -> None:
    """Save the session of the model, with all optimizations: what onnxruntime's converter does in the style "Fixed".

    The blocked layout of x86 (NCHWc) is left out for arm: such a file would run on x86 only. Two conversions differ in
    bytes: onnxruntime writes its kernels' types in the order of a hash table that is seeded by an address (1.31).
    """
    options = session_options()
    options.optimized_model_filepath = str(request.out)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    if request.platform == "arm":
        # Or its kernels would take int8 activations for uint8 on the way, which is right on x86 only.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    try:
        onnxruntime.InferenceSession(
            str(request.model),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=None if request.platform == "amd64" else ["NchwcTransformer"],
        )
    except RUNTIME_ERRORS as error:
        raise AnswerIsNo(f"onnxruntime cannot save the model in its own format: {first_line(error)}") from error
