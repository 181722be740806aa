"""Graphs of texts with mask and types of tokens made inside."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import build
from onnx import TensorProto, helper

from edgekd.device.texts import all_inputs, ids_of
from edgekd.errors import InputRefused
from edgekd.graph.inspection import inspect
from edgekd.graph.text_inputs import alone, reading_ids_alone, table_rows
from edgekd.spec import TensorSpec

PAD = 3
TABLE = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
TYPES = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)


def bag(
    kind: int = TensorProto.INT64, mask: int = TensorProto.FLOAT, axes: tuple[str, str] = ("N", "L")
) -> onnx.ModelProto:
    """The sum of the rows of the tokens that count, each with that of its type."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["of_types"]),
        helper.make_node("Add", ["rows", "of_types"], ["both"]),
        helper.make_node("Cast", ["attention_mask"], ["counts"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counts", "last"], ["column"]),
        helper.make_node("Mul", ["both", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "first"], ["logits"], keepdims=0),
    ]
    weights = {"table": TABLE, "types": TYPES, "last": np.array([2]), "first": np.array([1])}
    names = ("input_ids", "attention_mask", "token_type_ids")
    model = build(
        nodes, weights, inputs=dict.fromkeys(names, ("N", "L")), outputs={"logits": ["N", 5]}, input_type=kind
    )
    model.graph.input[1].type.tensor_type.elem_type = mask
    return model


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feeds)[0]
    return found


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32])
@pytest.mark.parametrize("mask", [TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.BOOL])
def test_the_graph_says_the_same_of_ids_alone(kind: int, mask: int) -> None:
    model = bag(kind, mask)
    specs = inspect(model.SerializeToString()).inputs
    made = reading_ids_alone(model, specs, PAD)
    assert inspect(made.SerializeToString()).inputs == (TensorSpec("input_ids", "int64", ("N", "L")),)
    ids = np.array([[1, 5, 11, PAD], [2, PAD, PAD, PAD], [PAD, PAD, PAD, PAD]])
    before = all_inputs(specs, ids, PAD)
    assert {name: array.dtype.name for name, array in before.items()} == {spec.name: spec.dtype for spec in specs}
    found = run(made, {"input_ids": ids})
    np.testing.assert_array_equal(found, run(model, before))
    np.testing.assert_allclose(found[0], TABLE[[1, 5, 11]].sum(axis=0) + 3 * TYPES[0], rtol=1e-5)
    assert not found[2].any(), "nothing but padding"
    assert {item.name for item in model.graph.input} == {"input_ids", "attention_mask", "token_type_ids"}, "a copy"


def test_the_rows_that_ids_are_looked_up_in() -> None:
    model = bag()
    assert [table_rows(model, name) for name in ("input_ids", "token_type_ids", "attention_mask")] == [12, 2, None]
    # Behind a cast; in a table that is kept in 8 bits; of two tables the smaller one.
    made = reading_ids_alone(bag(TensorProto.INT32), inspect(bag(TensorProto.INT32).SerializeToString()).inputs, PAD)
    assert table_rows(made, "input_ids") == 12
    nodes = [
        helper.make_node("DequantizeLinear", ["small", "scale"], ["large"]),
        helper.make_node("Gather", ["large", "x"], ["y"]),
    ]
    weights = {"small": np.ones((7, 4), np.int8), "scale": np.float32(0.1), "map": np.arange(5)}
    inputs, outputs = {"x": ["N", "L"]}, {"y": ["N", "L", 4]}
    assert table_rows(build(nodes, weights, inputs=inputs, outputs=outputs, input_type=TensorProto.INT64), "x") == 7
    more = [*nodes, helper.make_node("Gather", ["map", "x"], ["z"])]
    outputs["z"] = ["N", "L"]
    assert table_rows(build(more, weights, inputs=inputs, outputs=outputs, input_type=TensorProto.INT64), "x") == 5
    # Along the columns: nothing is known of the rows.
    nodes[1] = helper.make_node("Gather", ["large", "x"], ["y"], axis=1)
    assert table_rows(build(nodes, weights, inputs=inputs, outputs=outputs, input_type=TensorProto.INT64), "x") is None


def test_axes_without_a_name_get_one() -> None:
    made = alone(TensorSpec("input_ids", "int32", ("?", "?")))
    assert made == TensorSpec("input_ids", "int64", ("N", "L"))
    assert alone(TensorSpec("ids", "int64", (1, 12))).shape == (1, 12)


@pytest.mark.parametrize(
    "specs",
    [
        (TensorSpec("input_ids", "int64", ("N", "L")), TensorSpec("position_ids", "int64", ("N", "L"))),
        (TensorSpec("input_ids", "float32", ("N", "L")),),
        (TensorSpec("ids", "int64", ("N",)),),
    ],
)
def test_what_does_not_follow_from_ids_is_refused(specs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(InputRefused, match="expected of a model of texts"):
        ids_of(specs)
