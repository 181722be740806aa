"""What a transformer's layers consist of, joined before it is quantized: QuantizeLinear and DequantizeLinear between
the parts would keep onnxruntime from joining them when it loads the file.

The joined operators (SkipLayerNormalization, BiasGelu, MultiHeadAttention, Attention) are onnxruntime's own, of the
domain com.microsoft.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgekd.graph.attention import fuse_attention
from edgekd.graph.first_difference import every_tensor
from edgekd.graph.quantizers import name_nodes, opset_of, silence
from edgekd.graph.sessions import RUNTIME_ERRORS, GraphSession, open_graph
from edgekd.graph.text_inputs import table_rows
from edgekd.spec import Array

_TOLERANCE = 1e-3
# LayerNormalization is younger than the quantizers' oldest opset.
_NORM_OPSET = 17
_NORMS = ("LayerNormalization", "SkipLayerNormalization")
_SKIP_EPSILON = 1e-12
_BATCH, _LENGTH = 2, 6
# The tool walks over graphs of others with indices and lookups that it does not check.
_FAILURES: tuple[type[Exception], ...] = (
    *RUNTIME_ERRORS,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    AssertionError,
    ZeroDivisionError,
)


def fuse(ready: ModelProto, *, attention: bool) -> ModelProto:
    """The graph after onnxruntime's transformer fusions, or `ready` itself where they find nothing, fail, or change
    what it computes.

    attention  also attention as one operator, for which there is a dynamic int8 kernel; a static one there is not
    """
    kinds = {node.op_type for node in ready.graph.node}
    if not {"MatMul", "Softmax"} <= kinds or not kinds & {"LayerNormalization", "ReduceMean"}:
        return ready
    try:
        fused = _with_attention(_fused(ready, attention=attention))
    except _FAILURES:
        return ready
    if len(fused.graph.node) >= len(ready.graph.node) or not _same(ready, fused):
        return ready
    return name_nodes(fused)


def norms_apart(model: ModelProto) -> ModelProto:
    """The same model, in place, with the additions in front of a norm as nodes of their own again.

    SkipLayerNormalization keeps them in float while the graph is quantized. But onnxruntime's kernel for it (seen in
    1.31) adds up a row number by number: for 22 rows of 384 it takes 57 us where the parts take 11. A Sum in place of
    an Add keeps onnxruntime from joining them again when it loads the file.
    """
    if opset_of(model) < _NORM_OPSET:
        return model
    made_by = {name: node for node in model.graph.node for name in node.output}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "SkipLayerNormalization" or any(node.output[1:3]):
            nodes.append(node)
            continue
        first, second, scale, shift, bias = (*node.input, "", "", "")[:5]
        if bias:  # to the product's side, which takes it in when the file is loaded
            before = made_by.get(first)
            if before is not None and before.op_type in _NORMS:
                first, second = second, first
            nodes.append(helper.make_node("Add", [first, bias], [f"{node.output[0]}_biased"], f"{node.name}_bias"))
            first = f"{node.output[0]}_biased"
        total = node.output[3] if len(node.output) > 3 and node.output[3] else f"{node.output[0]}_sum"
        # The operator's own default is another one than LayerNormalization's.
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), _SKIP_EPSILON)
        inputs = [total, scale, *([shift] if shift else [])]
        nodes.append(helper.make_node("Sum", [first, second], [total], f"{node.name}_sum"))
        nodes.append(
            helper.make_node("LayerNormalization", inputs, [node.output[0]], node.name, axis=-1, epsilon=epsilon)
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _with_attention(ready: ModelProto) -> ModelProto:
    """A copy with attention as one operator, or `ready` itself where there is none or it would not say the same."""
    joined = ModelProto()
    joined.CopyFrom(ready)
    return joined if fuse_attention(joined) and _same(ready, joined) else ready


def _fused(ready: ModelProto, *, attention: bool) -> ModelProto:
    with silence():
        from onnxruntime.transformers.fusion_options import FusionOptions
        from onnxruntime.transformers.onnx_model_bert import BertOnnxModel

        options = FusionOptions("bert")
        options.enable_attention = attention
        # Embeddings are looked up, not computed: joining them saves nothing and asks for int32 inputs.
        options.enable_embed_layer_norm = False
        model = ModelProto()
        model.CopyFrom(ready)
        known = _Shapes(model)
        fusing = BertOnnxModel(model, 0, 0)
        # Its own inference does algebra with every axis, a minute and a half for a graph of a thousand nodes; running
        # the graph tells as much.
        fusing.infer_runtime_shape = lambda *_, **__: known
        fusing.optimize(options)
        fusing.topological_sort()
        result: ModelProto = fusing.model
    # onnx cannot infer shapes behind onnxruntime's own operators, but what was joined keeps its outputs' names.
    written = {name for node in result.graph.node for name in node.output}
    del result.graph.value_info[:]
    result.graph.value_info.extend(value for value in ready.graph.value_info if value.name in written)
    return result


class _Shapes:
    """The shapes of a graph's tensors for a small batch, as onnxruntime's fusions ask for them."""

    def __init__(self, model: ModelProto) -> None:
        self._known = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        found = every_tensor(model, _feeds(model, open_graph(model))[0])
        self._known |= {name: list(array.shape) for name, array in found.items()}

    def get_edge_shape(self, edge: str) -> list[int] | None:
        return self._known.get(edge)

    def compare_shape(self, edge: str, other: str) -> bool:
        return edge in self._known and self._known[edge] == self._known.get(other)


def _same(ready: ModelProto, fused: ModelProto) -> bool:
    """Whether both give the same outputs for two samples: fusions match patterns, and patterns may lie."""
    try:
        first, second = open_graph(ready), open_graph(fused)
        return all(_close(first.run(given), second.run(given)) for given in _feeds(ready, first))
    except RUNTIME_ERRORS:
        return False


def _feeds(model: ModelProto, session: GraphSession) -> tuple[dict[str, Array], dict[str, Array]]:
    """Two batches of two samples; of texts the second one is padded with 0, or with the last id."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    turned: dict[str, Array] = {}
    for spec in session.inputs:
        shape = [size if isinstance(size, int) else _LENGTH for size in spec.shape]
        if spec.shape and isinstance(spec.shape[0], str):
            shape[0] = _BATCH
        is_float = np.dtype(spec.dtype).kind == "f"
        # Ids of tokens, or marks of those that count.
        last = max((table_rows(model, spec.name) or 2) - 1, 1)
        marks = rng.integers(1, last + 1, shape)
        marks[1:, ..., _LENGTH // 2 :] = 0
        feeds[spec.name] = (rng.standard_normal(shape) if is_float else marks).astype(spec.dtype)
        turned[spec.name] = feeds[spec.name] if is_float else (last - marks).astype(spec.dtype)
    return feeds, turned


def _close(wanted: dict[str, Array], found: dict[str, Array]) -> bool:
    return all(
        found[name].shape == array.shape
        and np.abs(found[name].astype(np.float64) - array).max(initial=0.0)
        <= _TOLERANCE * max(np.abs(array).max(initial=0.0), 1e-6)
        for name, array in wanted.items()
    )
