"""Which layer differs first: by the tensor's name, and without names by the numbers; and axes at other sizes."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import build, cnn, mlp, samples, transformer_block
from onnx import ModelProto, helper, numpy_helper

from edgekd.errors import UsageError
from edgekd.graph.axes import candidates, resized
from edgekd.graph.first_difference import compare_graphs
from edgekd.graph.metadata import metadata, most_tokens
from edgekd.graph.quantization import VARIANTS, quantize
from edgekd.graph.verification import verify
from edgekd.spec import TensorSpec, Tokenize, Trim


def changed(model: ModelProto, weight: str, *, rename: bool = False) -> bytes:
    for tensor in model.graph.initializer:
        if tensor.name == weight:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), weight))
    kept = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    for index, node in enumerate(model.graph.node if rename else ()):
        node.name = f"n{index}"
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name and name not in kept:
                    names[place] = f"other_{name}"
    return model.SerializeToString()


@pytest.mark.parametrize("rename", [False, True])
@pytest.mark.parametrize(
    ("make", "weight", "layer"),
    [
        (mlp, "w1", "'/fc1/Gemm' (Gemm)"),
        (mlp, "b2", "'/fc2/Gemm' (Gemm)"),
        (cnn, "bn2.gamma", "'/bn2/BatchNormalization' (BatchNormalization)"),
        (cnn, "conv3.weight", "'/conv3/Conv' (Conv)"),
        (transformer_block, "wv", "'/attn/v/MatMul' (MatMul)"),
        (transformer_block, "scale", "'scaled' (Mul)"),
    ],
)
def test_the_planted_layer_is_named(make, weight: str, layer: str, rename: bool) -> None:
    found = compare_graphs(make().SerializeToString(), changed(make(), weight, rename=rename), samples(make(), 3))
    assert str(found).startswith(f"the first layer that differs is {layer}")


def test_equal_graphs_have_no_such_layer_and_fused_ones_are_not_to_blame(tmp_path) -> None:
    import onnxruntime

    assert compare_graphs(cnn().SerializeToString(), cnn().SerializeToString(), samples(cnn(), 3)) is None
    # onnxruntime folds each batch norm into its convolution: the convolutions' own outputs are gone.
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(cnn().SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert compare_graphs(cnn().SerializeToString(), tmp_path / "folded.onnx", samples(cnn(), 3)) is None


def test_a_quantized_graph_keeps_the_names(tmp_path) -> None:
    quantize(cnn(), tmp_path / "q.onnx", VARIANTS["int8_u8s8"], calibration=samples(cnn(), 32))
    data = cnn().SerializeToString()
    assert compare_graphs(data, tmp_path / "q.onnx", samples(cnn(), 3), share=0.25) is None
    found = compare_graphs(changed(cnn(), "conv3.weight"), tmp_path / "q.onnx", samples(cnn(), 3), share=0.25)
    assert "'/relu3/Relu' (Relu): by" in str(found), "convolution, batch norm and ReLU are one operator there"


def encoder(frozen: str = "") -> ModelProto:
    """x (N, L, 32) -> logits: over the mean of L; `frozen` plants a fault at other L than 6."""
    model = transformer_block()
    if frozen == "divides":  # a trace that wrote the length down: right at L = 6 only
        node = next(node for node in model.graph.node if node.op_type == "ReduceMean")
        node.op_type, node.output[0] = "ReduceSum", "sum"
        place = list(model.graph.node).index(node)
        model.graph.node.insert(place + 1, helper.make_node("Div", ["sum", "length"], ["mean"], name="/pool/Div"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(6, np.float32), "length"))
    if frozen == "longer than 24":  # positions that nobody trained
        weights = {
            "positions": np.r_[np.zeros(24, np.float32), np.ones(1000, np.float32)][:, None],
            "zero": np.array([0], np.int64),
        }
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
        first = [
            helper.make_node("Shape", ["x"], ["length"], start=1, end=2),
            helper.make_node("Slice", ["positions", "zero", "length"], ["added"]),
            helper.make_node("Add", ["x", "added"], ["x0"]),
        ]
        for node in model.graph.node:
            node.input[:] = ["x0" if name == "x" else name for name in node.input]
        for node in reversed(first):
            model.graph.node.insert(0, node)
    if frozen == "reshapes":
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 6, 32], np.int64), "shape"))
        model.graph.node.insert(0, helper.make_node("Reshape", ["x", "shape"], ["x0"]))
        model.graph.node[1].input[0] = "x0"
    return model


def test_an_axis_behind_the_batch_is_proven_at_six_sizes() -> None:
    result = verify(encoder().SerializeToString(), encoder().SerializeToString(), samples(encoder(), 9))
    assert result.ok
    assert len(result.axes["L"]) >= 5
    assert len(set(result.axes["L"])) == len(result.axes["L"])
    named = verify(
        encoder().SerializeToString(), encoder().SerializeToString(), samples(encoder(), 9), axes={"L": [4, 9, 30]}
    )
    assert named.axes == {"L": (4, 9, 30)}


@pytest.mark.parametrize(
    ("fault", "text"), [("divides", "(worst at L = "), ("reshapes", "the candidate fails at L = ")]
)
def test_an_axis_that_is_kept_but_wrong_at_other_sizes_is_found(fault: str, text: str) -> None:
    wrong = encoder(fault).SerializeToString()
    feeds = samples(encoder(), 9)
    assert verify(encoder().SerializeToString(), wrong, feeds, axes={"L": [6]}).ok, "at its own size it is right"
    result = verify(encoder().SerializeToString(), wrong, feeds)
    assert not result.ok
    assert text in " ".join(result.problems)
    assert result.place is not None
    assert result.place.axis == "L"


def test_an_axis_that_the_candidate_froze_is_found() -> None:
    model = encoder()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 6
    result = verify(encoder().SerializeToString(), model.SerializeToString(), samples(encoder(), 9))
    assert not result.ok
    assert (
        "axis 1 ('L') of input 'x' is fixed at 6 in the candidate but any size in the reference" in result.problems[0]
    )


def test_an_unknown_axis_is_refused() -> None:
    data = encoder().SerializeToString()
    with pytest.raises(UsageError, match="no symbolic axis 'K' behind the batch"):
        verify(data, data, samples(encoder(), 3), axes={"K": [1]})


def test_resized_samples_keep_their_values_and_every_input_that_has_the_axis() -> None:
    specs = (
        TensorSpec("ids", "int64", ("N", "L")),
        TensorSpec("mask", "int64", ("N", "L")),
        TensorSpec("z", "int64", ("N", 3)),
    )
    feeds = {"ids": np.arange(8).reshape(2, 4), "mask": np.ones((2, 4), np.int64), "z": np.zeros((2, 3), np.int64)}
    larger = resized(specs, feeds, {"L": 6})
    assert larger["ids"].tolist() == [[0, 1, 2, 3, 0, 1], [4, 5, 6, 7, 4, 5]]
    assert [larger[name].shape for name in ("mask", "z")] == [(2, 6), (2, 3)]
    assert resized(specs, feeds, {"L": 2})["ids"].tolist() == [[0, 1], [4, 5]]
    for size in (1, 2, 3, 28, 224):
        tried = candidates(size)
        assert len(set(tried)) == len(tried) >= 8
        assert min(tried) >= 1
        assert size not in tried


@pytest.mark.parametrize("most", [2, 3, 5, 24, 64, 512])
def test_sizes_of_an_axis_that_ends_lie_within_it_and_at_both_ends(most: int) -> None:
    for size in range(1, most + 1):
        tried = candidates(size, most)
        assert set(tried) <= set(range(1, most + 1)) - {size}
        assert {1, 2, most, most // 2} <= {size, *tried}
        assert len(set(tried)) == len(tried)
        assert len({size, *tried}) >= min(5, most)


def reads_texts(model: ModelProto, max_length: int) -> bytes:
    """The model, which says of itself that it reads texts of so many tokens."""
    steps = (Tokenize("tokenizer.json", max_length), Trim(0))
    for key, value in metadata(name="texts", task="classification", steps=steps).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def test_no_text_is_longer_than_the_graph_says() -> None:
    """Wrong beyond its longest text alone: nobody will ever ask for it."""
    good, wrong = (encoder(fault).SerializeToString() for fault in ("", "longer than 24"))
    feeds = samples(encoder(), 9)
    assert not verify(good, wrong, feeds, axes={"L": [24, 25]}).ok
    for first, second in (
        (reads_texts(encoder(), 24), wrong),
        (good, reads_texts(encoder("longer than 24"), 24)),
        (reads_texts(encoder(), 25), reads_texts(encoder("longer than 24"), 24)),
    ):
        result = verify(first, second, feeds)
        assert result.ok, result.problems
        assert {1, 2, 12, 24} <= set(result.axes["L"])
        assert max(result.axes["L"]) == 24
        assert len(result.axes["L"]) >= 5
    assert not verify(good, reads_texts(encoder("longer than 24"), 25), feeds).ok


@pytest.mark.parametrize("said", ["", "[", "3", '{"op": "tokenize"}', '[{"op": "tokenise"}]', '["tokenize"]', "null"])
def test_what_a_file_says_of_itself_is_not_believed_blindly(said: str) -> None:
    assert most_tokens({"preprocess": said}) is None


def test_a_model_whose_reference_takes_few_sizes_is_compared_at_those() -> None:
    """Even lengths only: the odd ones that were tried say nothing against the candidate."""
    nodes = [
        helper.make_node("Reshape", ["x", "pairs"], ["p"]),
        helper.make_node("ReduceSum", ["p", "axis"], ["logits"], keepdims=0),
    ]
    weights = {"pairs": np.array([0, -1, 2], np.int64), "axis": np.array([1], np.int64)}
    model = build(nodes, weights, inputs={"x": ["N", "L"]}, outputs={"logits": ["N", 2]}).SerializeToString()
    result = verify(model, model, {"x": np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)})
    assert result.ok
    assert len(result.axes["L"]) >= 5
    assert all(size % 2 == 0 for size in result.axes["L"])
