"""Graphs of Hugging Face's own exporter, `optimum`: the alternative to torch's for models that it knows well.

It warns and goes on when its own check fails; here its graph is proven like any other before it counts.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

from onnx import ModelProto

from edgekd.distill.silence import silence
from edgekd.errors import AnswerIsNo, MissingExtra
from edgekd.graph.clean import load_model

# What the name of a transformers class says of its task; a folder does not say it otherwise.
_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForMaskedLM": "fill-mask",
}


def trace_with_optimum(reference: str, kind: str, *, opset: int) -> ModelProto:
    """What `optimum` makes of the model in the folder (or of that id) `reference`, whose class is called `kind`.

    Raises `AnswerIsNo` when it cannot, `MissingExtra` without optimum-onnx (which needs transformers below 4.58).
    """
    try:
        exporter = importlib.import_module("optimum.exporters.onnx")
    except ModuleNotFoundError as error:
        raise MissingExtra("optimum-onnx", "optimum", purpose="--exporter optimum") from error
    task = next((task for ending, task in _TASKS.items() if kind.endswith(ending)), "feature-extraction")
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        try:
            with silence("torch", "transformers", "optimum"):
                exporter.main_export(
                    reference,
                    output=folder,
                    task=task,
                    opset=opset,
                    framework="pt",
                    do_validation=False,
                    trust_remote_code=False,
                )
        except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AnswerIsNo(
                f"optimum cannot export {reference}: {first}; try it without --exporter optimum"
            ) from error
        return load_model(Path(folder) / "model.onnx")
