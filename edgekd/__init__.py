"""edgekd: a teacher goes in; a small ONNX student, proven on the target device, comes out.

Importing edgekd imports numpy and nothing heavier; `edgekd.load` needs onnxruntime besides.
"""

from __future__ import annotations

from edgekd.version import __version__

__all__ = ["__version__"]
