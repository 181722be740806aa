"""Make the small model files that the tests of LiteRT and ncnn read:  python tests/device/make_models.py

Both hold the model of `device_models.linear_model(weights(16, 3))`, logits = flat(x) @ w, so that the golden outputs of
`device_models.write_bundle` must come out of them. No converter is needed: the .tflite is written with the schema that
ai-edge-litert brings, the .param and .bin as ncnn documents them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent / "models"


def litert_model(weights_IO: np.ndarray, *, shape: tuple[int, ...] = (1, 4, 4), signed: bool = True) -> bytes:
    """x (N, *shape) -> logits (N, 3): one fully connected operator, which flattens its input itself.

    Without `signed` it has no signature, and its tensors keep the names that a converter gives.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    inputs, outputs = weights_IO.shape

    def tensor(name: str, shape: list[int], signature: list[int], buffer: int) -> object:
        made = schema.TensorT()
        made.name, made.shape, made.shapeSignature, made.buffer = name, shape, signature, buffer
        made.type = schema.TensorType.FLOAT32
        return made

    def entry(name: str, index: int) -> object:
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name, index
        return made

    weight_buffer = schema.BufferT()
    weight_buffer.data = np.frombuffer(np.ascontiguousarray(weights_IO.T, np.float32).tobytes(), np.uint8)
    operator, options, code = schema.OperatorT(), schema.FullyConnectedOptionsT(), schema.OperatorCodeT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.FullyConnectedOptions, options
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    graph, signature, model = schema.SubGraphT(), schema.SignatureDefT(), schema.ModelT()
    graph.tensors = [
        tensor("serving_default_x:0", [1, *shape], [-1, *shape], 0),
        tensor("weights", [outputs, inputs], [outputs, inputs], 1),
        tensor("StatefulPartitionedCall:0", [1, outputs], [-1, outputs], 0),
    ]
    graph.inputs, graph.outputs, graph.operators, graph.name = [0], [2], [operator], "main"
    signature.inputs, signature.outputs = [entry("x", 0)], [entry("logits", 2)]
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.signatureDefs = [signature] if signed else []
    model.buffers, model.description = [schema.BufferT(), weight_buffer], "edgekd test model"
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def ncnn_model(weights_IO: np.ndarray) -> tuple[str, bytes]:
    """The same as .param and .bin: one InnerProduct; four zero bytes say that its weights are float32."""
    inputs, outputs = weights_IO.shape
    param = (
        "7767517\n2 2\n"
        "Input x 0 1 x 0=4 1=4 2=1\n"
        f"InnerProduct linear 1 1 x logits 0={outputs} 1=0 2={inputs * outputs}\n"
    )
    return param, bytes(4) + np.ascontiguousarray(weights_IO.T, np.float32).tobytes()


def main() -> None:
    """Write the files."""
    sys.path.insert(0, str(FOLDER.parent))
    from device_models import weights

    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "linear.tflite").write_bytes(litert_model(weights(16, 3)))
    param, binary = ncnn_model(weights(16, 3))
    (FOLDER / "linear.param").write_text(param)
    (FOLDER / "linear.bin").write_bytes(binary)
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
