"""Tables of embeddings in 8 bits: small, near the float ones row by row, and only where nothing else reads them."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgekd.graph.embeddings import LEAST, quantize_tables
from edgekd.graph.quantization import Int4WeightOnly, Int8Dynamic, quantize
from edgekd.graph.sessions import open_graph

ROWS, WIDTH = 600, 32


def table(seed: int = 0) -> NDArray[np.float32]:
    """Rows whose sizes differ a hundredfold: one scale for all would drown the small ones. Row 0 is padding."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((ROWS, WIDTH)) * np.logspace(-2, 0, ROWS)[:, None]
    values[0] = 0
    return values.astype(np.float32)


def model(*, tied: bool = False, rows: int = ROWS) -> ModelProto:
    """Mean of the embeddings of the ids, times a matrix; `tied`: times the table itself."""
    weights = table()[:rows]
    last = weights.T.copy() if tied else np.ones((WIDTH, 4), np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["looked"], "look"),
        helper.make_node("ReduceMean", ["looked", "axes"], ["mean"], keepdims=0),
    ]
    initializers = [numpy_helper.from_array(weights, "table"), numpy_helper.from_array(np.array([1]), "axes")]
    if tied:
        nodes += [
            helper.make_node("Transpose", ["table"], ["turned"]),
            helper.make_node("MatMul", ["mean", "turned"], ["logits"], "last"),
        ]
    else:
        nodes.append(helper.make_node("MatMul", ["mean", "last"], ["logits"], "last"))
        initializers.append(numpy_helper.from_array(last, "last"))
    graph = helper.make_graph(
        nodes,
        "bag",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "L"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", rows if tied else 4])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(proto: ModelProto, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = next(
        iter(open_graph(proto.SerializeToString(), name="test").run({"ids": ids}).values())
    )
    return found


def dtypes(proto: ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


def test_every_row_is_within_half_a_step_of_its_own() -> None:
    before, after = model(), quantize_tables(model())
    onnx.checker.check_model(after)
    for proto in (before, after):
        del proto.graph.node[-1]
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N", WIDTH]))
    ids = np.arange(ROWS).reshape(ROWS, 1)
    step = np.abs(table()).max(axis=1, keepdims=True) / 127
    assert (np.abs(run(after, ids) - run(before, ids)) <= 0.5001 * step).all()
    assert (run(after, ids[:1]) == 0).all(), "padding stays zero"


def test_the_file_shrinks_to_a_quarter(tmp_path) -> None:
    for number, config in enumerate((Int8Dynamic(), Int4WeightOnly(block_size=32))):
        result = quantize(model(), tmp_path / f"{number}.onnx", config)
        assert result.size_bytes < 0.36 * len(model().SerializeToString())
        ids = np.random.default_rng(1).integers(0, ROWS, (8, 5))
        given = run(onnx.load(tmp_path / f"{number}.onnx"), ids)
        wanted = run(model(), ids)
        assert np.abs(given - wanted).max() < 0.05 * np.abs(wanted).max()


def test_equal_models_give_equal_bytes() -> None:
    first, second = (quantize_tables(model()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_table_that_is_multiplied_with_too_stays_float() -> None:
    assert dtypes(quantize_tables(model(tied=True)))["table"] == TensorProto.FLOAT


def test_a_small_table_stays_float() -> None:
    assert dtypes(quantize_tables(model(rows=LEAST // WIDTH - 1)))["table"] == TensorProto.FLOAT
    assert "table_int8" in dtypes(quantize_tables(model(rows=LEAST // WIDTH)))
