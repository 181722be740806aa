"""Works on ONNX graphs: clean, quantize, verify and inspect them, one's own or somebody else's. Never torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekd.lazy import lazy_names

if TYPE_CHECKING:
    from edgekd.graph.inspection import Inspection, inspect
    from edgekd.graph.quantization import (
        VARIANTS,
        Fp16,
        Int4WeightOnly,
        Int8Dynamic,
        Int8QAT,
        Int8Static,
        MixedPrecision,
        QuantizeResult,
        quantize,
    )
    from edgekd.graph.targets import Target, load_target
    from edgekd.graph.verification import Tolerance, VerifyResult, verify

__all__ = [
    "VARIANTS",
    "Fp16",
    "Inspection",
    "Int4WeightOnly",
    "Int8Dynamic",
    "Int8QAT",
    "Int8Static",
    "MixedPrecision",
    "QuantizeResult",
    "Target",
    "Tolerance",
    "VerifyResult",
    "inspect",
    "load_target",
    "quantize",
    "verify",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Fp16": "edgekd.graph.quantization",
        "Inspection": "edgekd.graph.inspection",
        "Int4WeightOnly": "edgekd.graph.quantization",
        "Int8Dynamic": "edgekd.graph.quantization",
        "Int8QAT": "edgekd.graph.quantization",
        "Int8Static": "edgekd.graph.quantization",
        "MixedPrecision": "edgekd.graph.quantization",
        "QuantizeResult": "edgekd.graph.quantization",
        "Target": "edgekd.graph.targets",
        "Tolerance": "edgekd.graph.verification",
        "VARIANTS": "edgekd.graph.quantization",
        "VerifyResult": "edgekd.graph.verification",
        "inspect": "edgekd.graph.inspection",
        "load_target": "edgekd.graph.targets",
        "quantize": "edgekd.graph.quantization",
        "verify": "edgekd.graph.verification",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
