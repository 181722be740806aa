"""How each configuration is carried out by onnxruntime's tools, kept silent, in memory or a temporary folder.

`edgekd.graph.quantization` is the public side; these functions take a cleaned model and give a model.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, TensorProto

from edgekd.errors import MissingExtra, ModelError
from edgekd.graph.attention import TAKEN_OUT
from edgekd.graph.clean import clean
from edgekd.graph.rejection import find_rule, with_rule, without_rule
from edgekd.graph.sessions import RUNTIME_ERRORS, first_line, session_options
from edgekd.graph.traversal import reads

EightBits = Literal["int8", "uint8"]
# Scales per channel need the axis of DequantizeLinear, which opset 13 brought.
OLDEST_OPSET = 13
_MATRIX_OPS = ("MatMul", "Gemm")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep print, logging and warnings of the tools inside away from the user, and the root logger as it was.

    onnxruntime's quantizers call `logging.warning` and `logging.basicConfig`, which give the root logger a handler
    of their own for the rest of the process unless it has one.
    """
    root, disabled = logging.getLogger(), logging.root.manager.disable
    placeholder = logging.NullHandler()
    root.addHandler(placeholder)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # Third-party code that runs in here calls what onnx and numpy have deprecated: not the user's to mend.
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            # float16 conversion warns of each weight below 6e-8 that it rounds; verification measures the effect.
            warnings.filterwarnings("ignore", message="the float32 number .* will be truncated", category=UserWarning)
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(placeholder)


def raise_opset(model: ModelProto) -> ModelProto:
    """The model at opset 13 or above. Raises `ModelError` when onnx's converter cannot lift it."""
    found = opset_of(model)
    if found >= OLDEST_OPSET:
        return model
    try:
        with silence():
            return onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        raise ModelError(
            f"the model has opset {found}, quantization needs at least {OLDEST_OPSET}, and it cannot be converted: "
            f"{first_line(error)}; export it again with opset 18"
        ) from error


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators that the model asks for; 1 where it names none."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)


def fold(model: ModelProto) -> ModelProto:
    """The model after onnxruntime's basic, hardware-independent optimizations, with the shapes of inner tensors.

    BatchNormalization goes into the convolution before it and constants are folded, so that weights are initializers
    and every quantized layer is one node. Axes that are symbolic stay symbolic.
    """
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except RUNTIME_ERRORS as error:
            raise ModelError(
                f"onnxruntime {onnxruntime.__version__} cannot load the model: {first_line(error)}; "
                "export it for an older opset or install a newer onnxruntime"
            ) from error
        folded = onnx.load(path)
    del folded.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(folded)


def prepare(source: ModelProto) -> ModelProto:
    """What is calibrated and quantized: clean, opset 13 or above, folded, every node with a name of its own."""
    return name_nodes(fold(clean(raise_opset(clean(source, ir_version=max(source.ir_version, 8))))))


def name_nodes(graph: ModelProto) -> ModelProto:
    """The same graph, whose nodes can be told apart by their names."""
    taken: set[str] = set()
    for index, node in enumerate(graph.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{index}"
        taken.add(node.name)
    return graph


def quantizable_kinds() -> list[str]:
    """The operators that have an int8 kernel, as onnxruntime's quantizer knows them."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def static(
    ready: ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    *,
    activation: EightBits,
    weight: EightBits,
    per_channel: bool,
    symmetric: bool,
    reduce_range: bool,
    keep: Collection[str] = (),
) -> ModelProto:
    """QuantizeLinear/DequantizeLinear around every operator that has an int8 kernel, but for the nodes named in
    `keep` and a reject option at the end. `ready` comes from `prepare`, `ranges` from `edgekd.graph.calibration`."""
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    rule = find_rule(ready)
    graph = ModelProto()
    graph.CopyFrom(ready if rule is None else without_rule(ready, rule))
    excluded = [*_activations_of_outputs(graph.graph), *_masked_scores(graph.graph, ranges), *sorted(keep)]
    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    with silence():
        # Unsigned weights symmetric too: onnxruntime's kernels take one zero point for all channels (128).
        quantizer = QDQQuantizer(
            graph,
            per_channel,
            reduce_range,
            _quant_types()[weight],
            _quant_types()[activation],
            TensorsData(CalibrationMethod.MinMax, data),
            [],  # nodes to quantize: all
            excluded,
            quantizable_kinds(),
            {"WeightSymmetric": True, "ActivationSymmetric": symmetric},
        )
        quantizer.quantize_model()
    result: ModelProto = quantizer.model.model
    _keep_outputs_float(result.graph)
    _drop_zero_points_of_biases(result.graph)
    return result if rule is None else with_rule(result, rule)


def _activations_of_outputs(graph: GraphProto) -> list[str]:
    """Names of Relu and Clip nodes that read a graph output. The tool gives what such a node reads the range of what
    it writes, which is right only where nobody else reads it: it would clip the output at zero."""
    outputs = {value.name for value in graph.output}
    return [node.name for node in graph.node if node.op_type in ("Relu", "Clip") and node.input[0] in outputs]


def _masked_scores(graph: GraphProto, ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of Softmax nodes whose scores hold a mask (-10000, or the lowest float), and of the nodes that put it in.

    256 numbers between the mask and the highest score would leave one for all of the scores: they stay in float.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type == "Softmax" and ranges.get(node.input[0], (0.0, 0.0))[0] < TAKEN_OUT:
            masks = made_by.get(node.input[0])
            found += [node.name, *([] if masks is None else [masks.name])]
    return found


def _keep_outputs_float(graph: GraphProto) -> None:
    """Let a last Gemm or MatMul give float instead of one of 256 numbers.

    Rounded scores tie, and a regression would have 256 answers. onnxruntime has fused kernels with float outputs
    for these two operators only; a last convolution would fall back to float, so it keeps its rounding.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in reads(node))
    for value in graph.output:
        dequantize = made_by.get(value.name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or readers[value.name]:
            continue
        quantize = made_by.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear" or readers[quantize.output[0]] != 1:
            continue
        layer = made_by.get(quantize.input[0])
        if layer is None or layer.op_type not in _MATRIX_OPS or readers[layer.output[0]] != 1:
            continue
        layer.output[0] = value.name
        graph.node.remove(dequantize)
        graph.node.remove(quantize)


def _drop_zero_points_of_biases(graph: GraphProto) -> None:
    """A bias is int32 with the zero point 0, which is the default: leaving it out saves 5 to 9 % of a small CNN.

    Same kernels and same bits in onnxruntime 1.15, 1.19 and 1.31. Weights keep theirs: kernels are lost without.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] in constants:
            zero_point = constants.get(node.input[2])
            if zero_point is None or zero_point.data_type != TensorProto.INT32:
                continue
            if not onnx.numpy_helper.to_array(zero_point).any():
                del node.input[2]


def dynamic(ready: ModelProto, *, weight: EightBits, per_channel: bool) -> ModelProto:
    """8-bit weights of matrix products; activations are quantized at run time, so that no calibration is needed.

    Convolutions stay in float: their dynamic kernels take 2 to 10 times as long as float (measured).
    """
    from onnxruntime.quantization import quantize_dynamic

    # Shapes that the exporter or the folding left behind stop the tool's own shape inference.
    del ready.graph.value_info[:]
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder, silence():
        path = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            ready,
            path,
            op_types_to_quantize=[*_MATRIX_OPS, "Attention"],
            per_channel=per_channel,
            weight_type=_quant_types()[weight],
            # Matrices of a folded graph may have no inferred type; in a float32 model it is this one.
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        return onnx.load(path)


def half(ready: ModelProto) -> ModelProto:
    """Weights and arithmetic in float16; inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    del ready.graph.value_info[:]
    with silence():
        converted: ModelProto = convert_float_to_float16(ready, keep_io_types=True)
    return converted


def four_bits(ready: ModelProto, *, block_size: int) -> ModelProto:
    """Weights of matrix products in blocks of 4-bit numbers (onnxruntime's operator MatMulNBits); the rest in float."""
    with silence():
        try:
            from onnxruntime.quantization.matmul_nbits_quantizer import (
                DefaultWeightOnlyQuantConfig,
                MatMulNBitsQuantizer,
            )
        except ImportError as error:
            raise MissingExtra("onnx-ir", "train", purpose="4-bit quantization") from error
        from onnxruntime.quantization.onnx_model import ONNXModel

        model = ONNXModel(clean(ready))
        model.replace_gemm_with_matmul()  # the tool knows MatMul only
        config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=True, accuracy_level=None)
        quantizer = MatMulNBitsQuantizer(model.model, algo_config=config)
        quantizer.process()
        result: ModelProto = quantizer.model.model
    return result


def count_quantized(model: ModelProto) -> int:
    """How many Conv, MatMul and Gemm layers compute on quantized (or float16) numbers."""
    graph = model.graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    count = 0
    for node in graph.node:
        if node.op_type in ("ConvInteger", "MatMulInteger", "MatMulNBits", "QAttention"):
            count += 1
        elif node.op_type in ("Conv", "MatMul", "Gemm"):
            first, second = node.input[0], node.input[1]
            count += (first in dequantized and second in dequantized) or first in halves or second in halves
    return count


def _quant_types() -> dict[EightBits, object]:
    from onnxruntime.quantization import QuantType

    return {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
