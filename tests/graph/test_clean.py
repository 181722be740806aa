from __future__ import annotations

import random
import re

import numpy as np
import onnx
import pytest
from graphs import build, cnn, mlp, op_types, run, samples, transformer_block, with_initializers_as_inputs, with_traces
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgekd.errors import ModelError
from edgekd.graph.clean import clean, load_model, save_model


@pytest.mark.parametrize("make", [mlp, cnn, transformer_block])
def test_cleaning_leaves_no_trace_and_changes_no_bit_of_the_result(make):
    dirty = with_traces(make(), "/home/somebody/secret")
    if make is not mlp:
        del dirty.graph.value_info[:]  # with_traces names a tensor of the mlp
    cleaned = clean(dirty)
    data = cleaned.SerializeToString()
    assert b"/home/somebody" not in data
    assert b"stack_trace" not in data
    assert b"com.example.unused" not in data
    assert b"unused" not in data
    assert not cleaned.graph.value_info
    feeds = samples(dirty, 5)
    for name, expected in run(make(), feeds).items():
        assert np.array_equal(run(cleaned, feeds)[name], expected)
    assert op_types(cleaned) == op_types(make())
    onnx.checker.check_model(cleaned, full_check=True)


def test_the_argument_is_not_changed():
    dirty = with_traces(mlp(), "/tmp/x")
    before = dirty.SerializeToString(deterministic=True)
    clean(dirty, metadata={"a": "b"})
    assert dirty.SerializeToString(deterministic=True) == before


def test_two_builds_that_differ_in_traces_and_in_order_give_the_same_bytes():
    first, second = with_traces(mlp(), "/a"), with_traces(mlp(), "/somewhere/else")
    weights = list(second.graph.initializer)
    random.Random(3).shuffle(weights)
    copies = [TensorProto.FromString(weight.SerializeToString()) for weight in weights]
    del second.graph.initializer[:]
    second.graph.initializer.extend(copies)
    assert clean(first).SerializeToString(deterministic=True) == clean(second).SerializeToString(deterministic=True)
    assert clean(clean(first)) == clean(first)


def test_metadata_is_kept_without_the_marks_of_tools_or_replaced_sorted():
    dirty = with_traces(mlp(), "/a")
    kept = {prop.key: prop.value for prop in clean(dirty).metadata_props}
    assert kept == {"names": "{0: 'cat'}"}
    replaced = [(prop.key, prop.value) for prop in clean(dirty, metadata={"z": "1", "b": "2"}).metadata_props]
    assert replaced == [("b", "2"), ("z", "1")]
    assert not clean(dirty, metadata={}).metadata_props


def test_initializers_are_no_inputs_any_more():
    old = with_initializers_as_inputs(cnn(opset=13))
    assert len(old.graph.input) > 1
    cleaned = clean(old)
    assert [value.name for value in cleaned.graph.input] == ["x"]
    assert cleaned.ir_version == 8
    feeds = samples(cnn(), 3)
    assert np.array_equal(run(cleaned, feeds)["logits"], run(cnn(opset=13), feeds)["logits"])


def test_what_inner_graphs_read_is_kept():
    """A branch of an If reads an initializer of the outer graph: no node of the outer graph does."""
    then = helper.make_graph(
        [helper.make_node("Mul", ["x", "outer"], ["t"], doc_string="/home/a.py")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["N", 4])],
        doc_string="/home/b.py",
    )
    otherwise = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, ["N", 4])],
    )
    model = build(
        [helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=otherwise)],
        {"outer": np.array([1, 2, 3, 4], np.float32), "yes": np.array(True)},
        inputs={"x": ["N", 4]},
        outputs={"y": ["N", 4]},
    )
    cleaned = clean(model)
    assert b"/home" not in cleaned.SerializeToString()
    x = np.ones((2, 4), np.float32)
    assert run(cleaned, {"x": x})["y"].tolist() == [[1, 2, 3, 4]] * 2


def test_functions_are_cleaned_and_kept_only_where_they_are_called():
    def function(name: str, op: str, inner: str = ""):
        node = helper.make_node(op, ["a"], ["b"], domain=inner, doc_string="/home/f.py")
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
        return helper.make_function("local", name, ["a"], ["b"], [node], opsets)

    model = build(
        [helper.make_node("Outer", ["x"], ["y"], domain="local")],
        {},
        inputs={"x": ["N", 4]},
        outputs={"y": ["N", 4]},
        domains={"local": 1},
    )
    model.functions.extend([function("Inner", "Neg"), function("Outer", "Inner", "local"), function("Never", "Abs")])
    cleaned = clean(model)
    assert sorted(item.name for item in cleaned.functions) == ["Inner", "Outer"]
    assert b"/home" not in cleaned.SerializeToString()
    assert {item.domain for item in cleaned.opset_import} == {"", "local"}
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(run(cleaned, {"x": x})["y"], -x)


def test_an_ir_version_that_cannot_hold_the_tensors_is_refused():
    model = build(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["wf"]), helper.make_node("Add", ["x", "wf"], ["y"])],
        {"s": np.array(0.5, np.float32)},
        inputs={"x": ["N", 4]},
        outputs={"y": ["N", 4]},
        opset=21,
        ir_version=10,
    )
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, [4], [1, -2, 3, 4]))
    with pytest.raises(
        ModelError, match="tensor 'w' is INT4, which needs IR 10, but IR 8 was asked for; ask for IR 10"
    ):
        clean(model)
    assert clean(model, ir_version=10).ir_version == 10


def test_save_and_load_are_inverse_and_the_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "m.onnx"
    save_model(mlp(), path)
    assert load_model(path) == mlp()
    assert load_model(str(path)) == load_model(path.read_bytes())
    save_model(cnn(), path)
    assert load_model(path) == cnn()
    assert [item.name for item in path.parent.iterdir()] == ["m.onnx"]


def test_a_model_above_two_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekd.graph.clean.MAX_BYTES", 1000)
    with pytest.raises(ModelError, match=r"has \d+ bytes, but one ONNX file holds at most 1000; use a smaller student"):
        save_model(mlp(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"PK\x03\x04 not onnx", b"<html>404</html>", b"\x08\x08"])
def test_garbage_is_refused_with_a_sentence(data, tmp_path):
    path = tmp_path / "garbage.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"garbage\.onnx (is not an ONNX file|holds no graph)"):
        load_model(path)


def test_a_missing_file_a_folder_and_an_invalid_graph_are_refused(tmp_path):
    with pytest.raises(ModelError, match=f"there is no file {re.escape(str(tmp_path))}/none.onnx; expected an ONNX"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match=r"cannot read .*: Is a directory"):
        load_model(tmp_path)
    invalid = mlp()
    invalid.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match=r"is not a valid ONNX model: .*nowhere"):
        load_model(invalid.SerializeToString())


def test_a_model_cut_short_at_any_place_is_refused():
    data = mlp().SerializeToString()
    for end in range(0, len(data), 7):
        with pytest.raises(ModelError):
            load_model(data[:end])


def test_mutated_bytes_are_refused_or_cleaned_and_never_crash():
    """Whatever a file holds, the answer is a model or a ModelError."""
    random_bytes, loaded, refused = random.Random(11), 0, 0
    originals = [model.SerializeToString() for model in (mlp(), cnn(), transformer_block())]
    for _ in range(600):
        data = bytearray(random_bytes.choice(originals))
        for _ in range(random_bytes.choice([1, 1, 2, 8])):
            place = random_bytes.randrange(len(data)) if random_bytes.random() < 0.3 else random_bytes.randrange(400)
            data[place] = random_bytes.randrange(256)
        if random_bytes.random() < 0.2:
            del data[random_bytes.randrange(len(data)) :][: random_bytes.randrange(1, 40)]
        try:
            model = load_model(bytes(data))
            assert isinstance(clean(model), ModelProto)
            loaded += 1
        except ModelError:
            refused += 1
    with pytest.raises(ModelError, match="not UTF-8 text"):
        load_model(originals[0].replace(b"logits", b"log\xc0ts"))
    assert loaded > 50, "the mutations are too coarse to say anything"
    assert refused > 50


def test_numbers_survive_every_encoding_of_a_tensor():
    model = mlp()
    tensor = next(item for item in model.graph.initializer if item.name == "b2")
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(helper.make_tensor("b2", TensorProto.FLOAT, [5], values.tolist()))
    feeds = samples(mlp(), 3)
    assert np.array_equal(run(clean(model), feeds)["logits"], run(mlp(), feeds)["logits"])


def test_nodes_are_put_in_order_and_a_sorted_graph_keeps_its_order():
    for seed in range(20):
        shuffled = transformer_block()
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in shuffled.graph.node]
        random.Random(seed).shuffle(nodes)
        del shuffled.graph.node[:]
        shuffled.graph.node.extend(nodes)
        cleaned = clean(shuffled)
        onnx.checker.check_model(cleaned)
        feeds = samples(shuffled, 2)
        assert np.array_equal(run(cleaned, feeds)["logits"], run(transformer_block(), feeds)["logits"])
    assert [node.name for node in clean(cnn()).graph.node] == [node.name for node in cnn().graph.node]


def test_a_circle_of_nodes_is_refused():
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Neg", ["b"], ["c"], name="third"),
    ]
    model = build(nodes, {}, inputs={"x": ["N", 4]}, outputs={"c": ["N", 4]})
    with pytest.raises(ModelError, match=r"node '\w+' waits for its own result"):
        clean(model)
    with pytest.raises(ModelError, match="is not a valid ONNX model"):
        load_model(model.SerializeToString())
