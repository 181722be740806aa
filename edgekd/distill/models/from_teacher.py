"""A student made from its teacher: some of the layers, narrower ones, the rows of the vocabulary that is left.

    [student]
    model = "hf:FOLDER"
    [student.init]
    layers = "every 2"          # or "first 3", "last 3", or a list, counted from 0: [0, 2, 5]
    hidden_size = 192           # each of these may be left out: as the teacher's
    intermediate_size = 768
    attention_heads = 6
    by = "truncate"             # or "svd": see edgekd.distill.models.narrowing
    pooler = "keep"             # or "drop": the head reads the state of the first token itself (BERT)

"every 2" are the layers 1, 3, 5, ..., so that the last one is among them, as in BERT-PKD (its skip) and TinyBERT.
Encoders of the BERT family of transformers, with a head for classes or for masked words, or without one.

What each cut costs before any training, of a MiniLM-L6 (384 wide) that was fine-tuned on SST-2 (256 sentences, 87.1 %
right): half of the neurons 87.1 %, "every 2" 78.5 %, [0, 2, 5] 77.3 %, width 288 by svd 68.8 %, width 192 by truncation
55.1 %, by svd 49.2 %. So cut neurons first, then layers; a narrower stream begins nearly anew.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.distill.models.narrowing import Basis, basis, narrow_heads, narrow_inner
from edgekd.errors import ModelError, nearest


@dataclass(frozen=True)
class Init:
    """The keys of `[student.init]`; None: as the teacher's."""

    layers: str | tuple[int, ...] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    attention_heads: int | None = None
    by: str = "truncate"
    pooler: str = "keep"


@dataclass(frozen=True)
class _Layout:
    """Where things are in one family: its layers, and in each of them the matrices and the two norms behind them."""

    layers: str
    parts: Mapping[str, str]
    norms: tuple[str, str]
    # the names in its configuration of: layers, width, width inside, heads
    sizes: tuple[str, str, str, str]


_BERT = _Layout(
    "encoder.layer",
    {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "out": "attention.output.dense",
        "widen": "intermediate.dense",
        "narrow": "output.dense",
    },
    ("attention.output.LayerNorm", "output.LayerNorm"),
    ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
)
_DISTILBERT = _Layout(
    "transformer.layer",
    {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "out": "attention.out_lin",
        "widen": "ffn.lin1",
        "narrow": "ffn.lin2",
    },
    ("sa_layer_norm", "output_layer_norm"),
    ("n_layers", "dim", "hidden_dim", "n_heads"),
)
FAMILIES: dict[str, _Layout] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
}
# Behind the layers: matrices from the stream to itself; and those from it to classes or words.
_INSIDE_HEADS = (
    "pooler.dense",
    "classifier.dense",
    "pre_classifier",
    "cls.predictions.transform.dense",
    "vocab_transform",
    "lm_head.dense",
)
_WORD_HEADS = ("cls.predictions.decoder", "vocab_projector", "lm_head.decoder", "cls.predictions", "lm_head")
_HEADS = ("classifier", "classifier.out_proj")
_NORMS = ("LayerNorm", "cls.predictions.transform.LayerNorm", "vocab_layer_norm", "lm_head.layer_norm")
_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


def parse_init(table: Mapping[str, Any]) -> Init:
    """The values of a recipe's `[student.init]`. Raises `ModelError` for what it cannot be."""
    known = [item.name for item in fields(Init)]
    for key in table:
        if key not in known:
            raise ModelError(f"student.init: unknown key '{key}'. {nearest(key, known)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    init = Init(**values)
    if init.by not in ("truncate", "svd"):
        raise ModelError(f"student.init: found by = '{init.by}', expected 'truncate' or 'svd'")
    if init.pooler not in ("keep", "drop"):
        raise ModelError(f"student.init: found pooler = '{init.pooler}', expected 'keep' or 'drop'")
    return init


def student_from(teacher: Any, init: Init, *, rows: Tensor | None = None, pad: int | None = None) -> nn.Module:
    """A model of the teacher's kind with the chosen layers and sizes, and weights made of the teacher's.

    teacher  a transformers model of one of `FAMILIES`; it is not changed. The pooler of one without a head, which is
             never read, goes
    rows     (V,) the teacher's id of each of the student's; None: all of them
    pad      the student's id of the padding

    With all layers and sizes it computes what the teacher does, to the bit. Raises `ModelError` for a model of another
    family and for layers or sizes that it does not have.
    """
    config = copy.deepcopy(teacher.config)
    family = str(config.model_type)
    if family not in FAMILIES:
        raise ModelError(
            f"student.init: a student cannot be made from a model of the family '{family}', whose layout is not "
            f"known here; expected one of {', '.join(sorted(FAMILIES))}. Take a student of another kind"
        )
    layout = FAMILIES[family]
    chosen = layers_of(init.layers, int(getattr(config, layout.sizes[0])))
    width, inner, heads = (int(getattr(config, name)) for name in layout.sizes[1:])
    new_width, new_inner, new_heads = _sizes(init, width, inner, heads)
    for name, value in zip(layout.sizes, (len(chosen), new_width, new_inner, new_heads)):
        setattr(config, name, value)
    if rows is not None:
        config.vocab_size = len(rows)
    if pad is not None and pad != config.pad_token_id:
        if "roberta" in teacher.base_model_prefix:
            raise ModelError(
                f"student.init: the padding has the id {pad}, but {family} counts positions from its own, "
                f"{config.pad_token_id}; cut the vocabulary so that it stays"
            )
        config.pad_token_id = pad
    state = {name: value.detach() for name, value in teacher.state_dict().items()}
    is_bare = teacher.base_model is teacher
    base = "" if is_bare else f"{teacher.base_model_prefix}."
    layers = [_read(state, f"{base}{layout.layers}.{number}", layout) for number in chosen]
    embedding_width = state[f"{base}embeddings.word_embeddings.weight"].shape[1]
    has_projection = embedding_width != width
    if has_projection and embedding_width == new_width:
        raise ModelError(
            f"student.init: hidden_size = {new_width} is the width of the teacher's table, which then has no "
            "projection; take another width"
        )
    first = torch.ones(width) if has_projection else state[f"{base}embeddings.LayerNorm.weight"]
    stream = basis(_readers(layers, first), new_width, by=init.by)
    size = new_width // new_heads
    made: dict[str, Tensor] = {}
    for number, layer in enumerate(layers):
        small = narrow_heads(layer, heads=heads, new_heads=new_heads, new_size=size, by=init.by)
        made.update(_write(narrow_inner(small, new_inner), stream, f"{base}{layout.layers}.{number}", layout))
    embedded = Basis() if has_projection else stream
    for name, value in state.items():
        if not name.startswith(f"{base}{layout.layers}."):
            place = name.removeprefix(base)
            made[name] = _other(place, value, embedded if place.startswith("embeddings.") else stream, rows)
    student = type(teacher)._from_config(config, attn_implementation=config._attn_implementation)
    if init.pooler == "drop":
        _drop_pooler(student, family)
    elif is_bare and getattr(student, "pooler", None) is not None:
        student.pooler = None
    if is_bare or init.pooler == "drop":
        made = {name: value for name, value in made.items() if not name.startswith(f"{base}pooler.")}
    wanted = student.state_dict()
    strange = [name for name in {**wanted, **made} if name not in wanted or name not in made]
    strange += [name for name in wanted.keys() & made.keys() if wanted[name].shape != made[name].shape]
    if strange:
        raise ModelError(
            f"student.init: {type(teacher).__name__} has parts whose meaning is not known here "
            f"({', '.join(sorted(strange)[:4])}); expected a head for classes or for masked words, or none"
        )
    student.load_state_dict(made)
    result: nn.Module = student.train(teacher.training)
    return result


def layers_of(choice: str | tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    """The layers that `choice` names among `count`, from 0. Raises `ModelError` for a choice that is none."""
    if choice is None:
        return tuple(range(count))
    if isinstance(choice, str):
        match = re.fullmatch(r"(every|first|last) (\d+)", choice.strip())
        number = int(match[2]) if match else 0
        if match is None or not 1 <= number <= count:
            raise ModelError(
                f"student.init: found layers = '{choice}' of a teacher with {count}, expected 'every 2', 'first 3', "
                "'last 3' or a list such as [0, 2, 5]"
            )
        every = tuple(range(number - 1, count, number))
        return {"every": every, "first": tuple(range(number)), "last": tuple(range(count - number, count))}[match[1]]
    if not choice or any(not isinstance(number, int) or not 0 <= number < count for number in choice):
        raise ModelError(
            f"student.init: found layers = {list(choice)} of a teacher with {count}, expected numbers from 0 to "
            f"{count - 1}"
        )
    return choice


class FirstToken(nn.Module):
    """In the place of BERT's pooler: the state of the first token as it is."""

    def forward(self, hidden_NLD: Tensor) -> Tensor:
        return hidden_NLD[:, 0]


def _drop_pooler(student: Any, family: str) -> None:
    if getattr(student.base_model, "pooler", None) is None:
        raise ModelError(f"student.init: found pooler = 'drop', but {family} has no pooler; leave it out")
    student.base_model.pooler = FirstToken()


def _sizes(init: Init, width: int, inner: int, heads: int) -> tuple[int, int, int]:
    new_width, new_inner, new_heads = (
        known if wanted is None else wanted
        for wanted, known in ((init.hidden_size, width), (init.intermediate_size, inner), (init.attention_heads, heads))
    )
    found = {
        "hidden_size": (new_width, width),
        "intermediate_size": (new_inner, inner),
        "attention_heads": (new_heads, heads),
    }
    for name, (value, most) in found.items():
        if not isinstance(value, int) or not 1 <= value <= most:
            raise ModelError(f"student.init: found {name} = {value!r}, expected 1 to {most}, which the teacher has")
    if new_width % new_heads or new_width // new_heads > width // heads:
        raise ModelError(
            f"student.init: found hidden_size = {new_width} and attention_heads = {new_heads}: expected a multiple of "
            f"the heads, each of at most {width // heads} dimensions as in the teacher"
        )
    return new_width, new_inner, new_heads


def _read(state: Mapping[str, Tensor], place: str, layout: _Layout) -> dict[str, Tensor]:
    """A layer in the names of `edgekd.distill.models.narrowing`, with its norms as "norm0" and "norm1"."""
    named = {**layout.parts, "norm0": layout.norms[0], "norm1": layout.norms[1]}
    return {
        f"{own}.{kind}": state[f"{place}.{path}.{kind}"] for own, path in named.items() for kind in ("weight", "bias")
    }


def _write(layer: Mapping[str, Tensor], stream: Basis, place: str, layout: _Layout) -> dict[str, Tensor]:
    made = {}
    for own, path in layout.parts.items():
        weight, bias = layer[f"{own}.weight"], layer[f"{own}.bias"]
        writes = own in ("out", "narrow")
        made[f"{place}.{path}.weight"] = stream.write(weight) if writes else stream.read(weight)
        made[f"{place}.{path}.bias"] = stream.write(bias) if writes else bias
    for own, path in zip(("norm0", "norm1"), layout.norms):
        made[f"{place}.{path}.weight"] = stream.scale(layer[f"{own}.weight"])
        made[f"{place}.{path}.bias"] = stream.write(layer[f"{own}.bias"])
    return made


def _readers(layers: list[dict[str, Tensor]], first: Tensor) -> list[tuple[Tensor, Tensor]]:
    """All matrices that read the stream, each with the scale of the norm before it."""
    found = []
    for layer in layers:
        found += [(layer[f"{name}.weight"], first) for name in ("query", "key", "value")]
        found.append((layer["widen.weight"], layer["norm0.weight"]))
        first = layer["norm1.weight"]
    return found


def _other(place: str, value: Tensor, stream: Basis, rows: Tensor | None) -> Tensor:
    """What stands before and behind the layers."""
    path, _, kind = place.rpartition(".")
    is_weight = kind == "weight"
    name = path.rpartition(".")[2]
    if path.startswith("embeddings.") and name in _TABLES:
        if name == "word_embeddings" and rows is not None:
            value = value.index_select(0, rows)
        return stream.read(value)
    if name in _NORMS or path in _NORMS:
        return stream.scale(value) if is_weight else stream.write(value)
    if path == "embeddings_project":
        return stream.write(value)
    if path in _INSIDE_HEADS:
        return stream.write(stream.read(value)) if is_weight else stream.write(value)
    if path in _HEADS:
        return stream.read(value) if is_weight else value
    if path in _WORD_HEADS:
        value = value if rows is None else value.index_select(0, rows)
        return stream.read(value) if is_weight else value
    return value
