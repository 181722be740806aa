"""ONNX that reads a text: the tokenizer in front of the graph, as an operator of onnxruntime-extensions.

The device needs that library beside onnxruntime. Its BertTokenizer takes one text per call, and is not quite Hugging
Face's: of 10,000 real texts 2 get other ids, of hostile ones (marks, special tokens written out) most; see
benchmarks/wordpiece.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from onnx import ModelProto, TensorProto, helper

from edgekd.errors import AnswerIsNo
from edgekd.graph.clean import load_model
from edgekd.graph.formats import Request
from edgekd.graph.nodes import Nodes, copy_to_extend, free_name, put, real_inputs, rename_tensor, value_info
from edgekd.spec import TensorSpec, Tokenize

DOMAIN = "ai.onnx.contrib"
TEXT = "text"
LAST = 2**31 - 1
TEMPLATE = ["SpecialToken", "Sequence", "SpecialToken"]
ADVICE = "leave it outside of the graph: the apps for Python, Node, web and C++ have tokenizers"


def convert(request: Request) -> None:
    """Write the model with its tokenizer in front: "text", a tensor of one string, in place of the ids.

    Raises `AnswerIsNo` for a model of something else, and for a tokenizer that the operator cannot be.
    """
    step = next((step for step in request.steps if isinstance(step, Tokenize)), None)
    if step is None:
        raise AnswerIsNo("this model reads no texts, expected one with a tokenizer to put in front")
    model = with_tokenizer(load_model(request.model), json.loads(step.content), step.max_length)
    request.out.write_bytes(model.SerializeToString(deterministic=True))


def with_tokenizer(model: ModelProto, tokenizer: Mapping[str, Any], max_length: int) -> ModelProto:
    """The model (one input, ids (N, L)) behind the tokenizer; longer texts keep their first tokens and the last one."""
    network = copy_to_extend(model)
    inputs = real_inputs(network)
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    kind = inputs[0].type.tensor_type.elem_type
    if len(inputs) != 1 or len(shape) != 2 or shape[1] > 0 or kind != TensorProto.INT64:
        raise AnswerIsNo(
            f"the model reads {len(inputs)} inputs of shape {shape}, expected ids, int64 (N, L) of any length: put "
            '{op = "trim"} into the preprocessing'
        )
    inner = free_name(network, "tokenizer/ids")
    rename_tensor(network, inputs[0].name, inner)
    nodes = Nodes("tokenizer/")
    made = ["tokenizer/made", "tokenizer/types", "tokenizer/mask"]
    nodes.nodes.append(
        helper.make_node(
            "BertTokenizer", [TEXT], made, "tokenizer/BertTokenizer", domain=DOMAIN, **attributes(tokenizer)
        )
    )
    body = nodes.add("Slice", made[0], nodes.whole(0), nodes.whole(-1))
    body = nodes.add("Slice", body, nodes.whole(0), nodes.whole(max_length - 1))
    last = nodes.add("Slice", made[0], nodes.whole(-1), nodes.whole(LAST))
    row = nodes.add("Concat", body, last, attributes={"axis": 0})
    nodes.add("Unsqueeze", row, nodes.whole(0), into=inner)
    put(network, nodes, in_front=True)
    del network.graph.input[:]
    network.graph.input.append(value_info(TensorSpec(TEXT, "str", (1,))))
    network.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return network


def attributes(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """What the operator is told. Raises `AnswerIsNo` with what it cannot do."""
    kinds = {part: (tokenizer.get(part) or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer")}
    wanted = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
    for part, kind in wanted.items():
        if kinds[part] != kind:
            raise AnswerIsNo(
                f"the tokenizer's {part} is {kinds[part]}, expected {kind}: the operator is BERT's; {ADVICE}"
            )
    model, normalizer = tokenizer["model"], tokenizer["normalizer"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    more = [token["content"] for token in tokenizer.get("added_tokens") or () if token["content"] not in model["vocab"]]
    around = _around(tokenizer.get("post_processor") or {})
    if [model["vocab"][token] for token in tokens] != list(range(len(tokens))) or any(
        "\n" in token for token in tokens
    ):
        raise AnswerIsNo(f"the ids of the vocabulary have gaps, or a token has a line break; {ADVICE}")
    if more or not normalizer["clean_text"] or around is None:
        what = f"tokens beyond the vocabulary ({', '.join(more[:3])})" if more else "controls kept, or another template"
        raise AnswerIsNo(f"the tokenizer has {what}, which the operator does not do; {ADVICE}")
    strip = normalizer.get("strip_accents")
    return {
        "vocab_file": "\n".join(tokens) + "\n",
        "do_lower_case": int(normalizer["lowercase"]),
        "strip_accents": int(normalizer["lowercase"] if strip is None else strip),
        "tokenize_chinese_chars": int(normalizer["handle_chinese_chars"]),
        "suffix_indicator": model["continuing_subword_prefix"],
        "unk_token": model["unk_token"],
        "cls_token": tokens[around[0]],
        "sep_token": tokens[around[1]],
    }


def _around(post: Mapping[str, Any]) -> tuple[int, int] | None:
    """The ids before and after a text; None where there is not one on each side."""
    if post.get("type") == "BertProcessing":
        return int(post["cls"][1]), int(post["sep"][1])
    pieces = post.get("single", [])
    if post.get("type") != "TemplateProcessing" or [next(iter(piece)) for piece in pieces] != TEMPLATE:
        return None
    found = [post["special_tokens"][pieces[place]["SpecialToken"]["id"]]["ids"] for place in (0, 2)]
    return (int(found[0][0]), int(found[1][0])) if [len(ids) for ids in found] == [1, 1] else None
