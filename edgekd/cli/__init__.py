"""The command line. The only place that prints; importing it imports neither torch nor onnx nor onnxruntime."""

from edgekd.cli.main import main

__all__ = ["main"]
