"""Small ONNX models and bundles for the tests of the device side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.device.bundle import Bundle
from edgekd.device.preprocess import apply_arithmetic, split_steps
from edgekd.spec import parse_steps

IMAGE_STEPS = [
    {"op": "decode"},
    {"op": "to_grey"},
    {"op": "resize", "size": [4, 4]},
    {"op": "scale"},
    {"op": "normalize", "mean": [0.5], "std": [0.25]},
    {"op": "layout", "to": "CHW"},
]


def to_bytes(nodes, inputs, outputs, initializers=(), opset=18, ir_version=8) -> bytes:
    """A checked ONNX model; inputs and outputs are (name, ONNX type, shape)."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def linear_model(weights_IO: np.ndarray, *, shape=None, batch="N") -> bytes:
    """logits = flat(x) @ weights; x is (batch, *shape)."""
    inputs, outputs = weights_IO.shape
    return to_bytes(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        [("x", TensorProto.FLOAT, [batch, *(shape or (inputs,))])],
        [("logits", TensorProto.FLOAT, [batch, outputs])],
        [("w", weights_IO.astype(np.float32))],
    )


def weights(inputs=16, outputs=3, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32)


def make_manifest(*, task="classification", labels=("cat", "dog", "owl"), preprocess=None, postprocess=None, **more):
    """A manifest for one (1, 4, 4) image to len(labels) outputs."""
    default_post = {"classification": [{"op": "softmax"}], "multilabel": [{"op": "sigmoid"}, {"op": "threshold"}]}
    return {
        "name": "tiny",
        "task": task,
        "created": "2026-01-02T03:04:05Z",
        "licence": "Apache-2.0",
        "labels": list(labels),
        "default": {"*": "float32"},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 1, 4, 4]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N", len(labels)]}],
        "preprocess": IMAGE_STEPS if preprocess is None else preprocess,
        "postprocess": default_post.get(task, []) if postprocess is None else postprocess,
        "variants": {"float32": {"tolerance": {"abs": 1e-5, "rel": 1e-5, "label_agreement": 1.0}}},
        **more,
    }


def make_parts(**options):
    """(manifest, graphs, golden) of a working bundle."""
    manifest = make_manifest(**options)
    matrix = weights(16, len(manifest["labels"]))
    raw = np.random.default_rng(1).integers(0, 256, (6, 4, 4, 1), dtype=np.uint8)
    ready = apply_arithmetic(split_steps(parse_steps(manifest["preprocess"]))[1], raw)
    graphs, golden = {}, {"raw": raw, "input.x": ready}
    for variant in manifest["variants"]:
        graphs[variant] = {"main": linear_model(matrix, shape=(1, 4, 4))}
        golden[f"output.{variant}.logits"] = ready.reshape(6, 16) @ matrix
    return manifest, graphs, golden


def write_bundle(path: Path, *, as_zip=False, samples=None, **options) -> Bundle:
    return Bundle.write(path, *make_parts(**options), samples, as_zip=as_zip)
