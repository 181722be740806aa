"""A small bundle for texts: embeddings, their mean over what is no padding, then three classes or eight numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizer_files import character_tokenizer

from edgekd.device.bundle import Bundle
from edgekd.device.preprocess import apply_arithmetic, prepare, split_steps
from edgekd.device.runtimes import open_session
from edgekd.device.tokens import with_tokenizers
from edgekd.spec import parse_steps

LABELS = ["book", "cancel", "weather"]
WIDTH = 8
MAX_LENGTH = 24
STEPS = [{"op": "tokenize", "file": "tokenizer.json", "max_length": MAX_LENGTH}, {"op": "trim", "pad": 0}]
TEXTS = (
    *(
        "book a table for two",
        "",
        "Ätsch!",
        "ΟΔΥΣΣΕΥΣ",
        "[MASK] x",
        "😀 ok",
        "a" * 30,
        "漢字 and kana かな",
        "\x00 \u200b",
    ),
    "a very long text that has more tokens than the model reads",
)


# In one call the scale of int8_dynamic would be that of the largest of them all.
UNEVEN = ("", "a", "book a table for two", "a" * 20, "Ätsch! Ätsch! [MASK]", "漢", "zzz")


def said_of(vector: np.ndarray) -> str:
    """What every command line and the page show of a vector."""
    first = " ".join(f"{value:.4f}" for value in vector[:3])
    return f"{len(vector)} numbers: {first}{' ...' if len(vector) > 3 else ''}"


def make_text_bundle(folder: Path, *, more: bool = True, vectors: bool = False) -> Path:
    """float32 and int8_dynamic, with golden vectors of the short ones of the texts above; `vectors`: an embedding."""
    import onnx
    from onnx import helper, numpy_helper

    from edgekd.graph import Int8Dynamic, quantize

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = character_tokenizer(folder / "tokenizer.json", known=range(0x20, 0x250), more=more).read_bytes()
    steps = with_tokenizers(parse_steps(STEPS), lambda name: tokenizer)
    random = np.random.default_rng(0)
    size = 2 * (0x250 - 0x20) + 16
    labels = [str(number) for number in range(WIDTH)] if vectors else LABELS
    count = len(labels)
    values = {"table": random.normal(size=(size, WIDTH)), "w": random.normal(size=(WIDTH, count))}
    values["b"] = random.normal(size=count)
    node = helper.make_node
    nodes = [
        node("Equal", ["input_ids", "pad"], ["is_pad"]),
        node("Not", ["is_pad"], ["is_token"]),
        node("Cast", ["is_token"], ["mask"], to=onnx.TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["column"]),
        node("Gather", ["table", "input_ids"], ["embedded"]),
        node("Mul", ["embedded", "column"], ["masked"]),
        node("ReduceSum", ["masked", "middle"], ["sum"], keepdims=0),
        node("ReduceSum", ["column", "middle"], ["count"], keepdims=0),
        node("Max", ["count", "one"], ["at_least_one"]),
        node("Div", ["sum", "at_least_one"], ["mean"]),
        node("MatMul", ["mean", "w"], ["product"]),
        node("Add", ["product", "b"], ["logits"]),
    ]
    constants = {name: value.astype(np.float32) for name, value in values.items()}
    constants |= {"pad": np.array(0), "last": np.array([2]), "middle": np.array([1]), "one": np.float32([1])}
    graph = helper.make_graph(
        nodes,
        "texts",
        [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["N", "L"])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", count])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / "float32.onnx")
    quantize(folder / "float32.onnx", folder / "int8_dynamic.onnx", Int8Dynamic())
    spatial, arithmetic = split_steps(steps)
    raw = np.stack([row for row in (prepare(spatial, text) for text in TEXTS) if row[-1] == 0])
    feeds = {"input_ids": apply_arithmetic(arithmetic, raw)}
    golden = {"raw": raw, "input.input_ids": feeds["input_ids"]}
    names = ("float32", "int8_dynamic")
    for name in names:
        session = open_session(folder / f"{name}.onnx")
        golden[f"output.{name}.logits"] = session.run(feeds)["logits"]
        session.close()
    manifest = {
        "version": 1,
        "name": "small texts",
        "task": "embedding" if vectors else "classification",
        "licence": "MIT",
        "intended_use": "tests",
        "labels": labels,
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["N", "L"]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N", count]}],
        "preprocess": STEPS,
        "postprocess": [] if vectors else [{"op": "softmax"}, {"op": "top_k", "k": 1}],
        "variants": {name: {"tolerance": {"abs": 1e-4, "rel": 1e-3, "label_agreement": 1.0}} for name in names},
        "default": {"*": "float32"},
        "golden": {
            "file": "golden.npz",
            "inputs": ["input_ids"],
            "outputs": {name: ["logits"] for name in names},
            "synthetic": True,
        },
    }
    graphs = {name: {"main": (folder / f"{name}.onnx").read_bytes()} for name in names}
    place = folder / "student.edgekd"
    Bundle.write(place, manifest, graphs, golden, files={"tokenizer.json": tokenizer})
    return place
