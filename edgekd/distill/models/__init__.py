"""Students and teachers by name: the built-in models, torchvision's, and the user's own functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import nn

from edgekd.distill.models.hub import hugging_face_model, sentence_encoder, text_classifier, timm_model
from edgekd.distill.models.masked import MaskedLanguageModel, masked_language_model
from edgekd.distill.models.sentence import Pooling, SentenceEncoder, Unit
from edgekd.distill.models.vision import torchvision_model
from edgekd.distill.models.weights import count, load_weights, save_weights
from edgekd.distill.modules import evaluating
from edgekd.errors import ModelError, nearest
from edgekd.references import import_reference, importing_from, locate
from edgekd.spec import Vocabulary

__all__ = [
    "MODELS",
    "TEXT_MODELS",
    "TYPICAL_INPUT",
    "TYPICAL_VOCABULARY",
    "build_model",
    "count",
    "load_weights",
    "logits_of",
    "save_weights",
    "typical_cost",
]

# name -> module:function. Each takes num_outputs=, input_shape= (without the batch axis) where it names it, and its own
# arguments.
MODELS: dict[str, str] = {
    "mlp": "edgekd.distill.models.mlp:mlp",
    "mlp_s": "edgekd.distill.models.mlp:mlp_s",
    "mlp_m": "edgekd.distill.models.mlp:mlp_m",
    "mlp_l": "edgekd.distill.models.mlp:mlp_l",
    "mlp_teacher": "edgekd.distill.models.mlp:mlp_teacher",
    "cnn_s": "edgekd.distill.models.cnn:cnn_s",
    "cnn_m": "edgekd.distill.models.cnn:cnn_m",
    "cnn_l": "edgekd.distill.models.cnn:cnn_l",
    "dscnn_s": "edgekd.distill.models.cnn:dscnn_s",
    "dscnn_m": "edgekd.distill.models.cnn:dscnn_m",
    "dscnn_l": "edgekd.distill.models.cnn:dscnn_l",
    "resnet_s": "edgekd.distill.models.resnet:resnet_s",
    "resnet_m": "edgekd.distill.models.resnet:resnet_m",
    "resnet_l": "edgekd.distill.models.resnet:resnet_l",
    "resnet_teacher": "edgekd.distill.models.resnet:resnet_teacher",
    "tcn_s": "edgekd.distill.models.tcn:tcn_s",
    "tcn_m": "edgekd.distill.models.tcn:tcn_m",
    "tcn_l": "edgekd.distill.models.tcn:tcn_l",
    "tcn_teacher": "edgekd.distill.models.tcn:tcn_teacher",
    "bow_s": "edgekd.distill.models.text:bow_s",
    "bow_m": "edgekd.distill.models.text:bow_m",
    "text_cnn_s": "edgekd.distill.models.text:text_cnn_s",
    "text_cnn_m": "edgekd.distill.models.text:text_cnn_m",
    "bigru_s": "edgekd.distill.models.text:bigru_s",
    "bigru_m": "edgekd.distill.models.text:bigru_m",
    "encoder_xs": "edgekd.distill.models.encoder:encoder_xs",
    "encoder_s": "edgekd.distill.models.encoder:encoder_s",
    "encoder_m": "edgekd.distill.models.encoder:encoder_m",
}

# Those that read the ids of tokens: they take vocabulary= and pad= too.
TEXT_MODELS: frozenset[str] = frozenset(
    name for name in MODELS if name.startswith(("bow_", "text_cnn_", "bigru_", "encoder_"))
)

# The shape of one sample at which lists of models state their cost: what each family is made for.
TYPICAL_INPUT: dict[str, tuple[int, ...]] = {
    name: (32,) if name in TEXT_MODELS else {"mlp": (784,), "tcn": (128, 9)}.get(name.partition("_")[0], (1, 28, 28))
    for name in MODELS
}
TYPICAL_VOCABULARY = 6000


def build_model(
    reference: str,
    *,
    num_outputs: int,
    input_shape: Sequence[int],
    vocabulary: int | None = None,
    pad: int = 0,
    tokens: Sequence[str] = (),
    init: Mapping[str, Any] | None = None,
    embeds: bool = False,
    args: Mapping[str, Any] | None = None,
    search_path: str | PathLike[str] | None = None,
    check: bool = True,
) -> nn.Module:
    """The model that `reference` names, with fresh random weights drawn from torch's global generator.

    reference    a name in `MODELS`; `torchvision:resnet18`; `timm:NAME`; `hf:FOLDER` or `hf:ID`; or the user's
                 `package.module:function`, which gets `num_outputs`, `input_shape`, `vocabulary` and `pad` only where
                 its signature names them
    input_shape  shape of one model-ready sample, without the batch axis: (1, 28, 28), (784,); (L,) of a text
    vocabulary   for texts: number of token ids. A sample is then a row of them (int64), padded with `pad`
    tokens       what the ids stand for, for hf: models, which bring their own vocabulary
    init         of an hf: model: a smaller one made from it (`edgekd.distill.models.from_teacher`)
    embeds       make the outputs unit vectors: a student of vectors. `build_encoder` makes one of an hf: model
    args         further keyword arguments of the model
    search_path  folder in which the user's modules are found, usually that of the recipe

    check        False for models with several inputs or outputs

    With `check`, a forward pass on zeros of shape (2, *input_shape) must give (2, num_outputs). Raises `ModelError`
    otherwise, for an unknown name or argument, and for a model of texts where there is no vocabulary.
    """
    own = dict(args or {})
    if init is not None and not (reference.startswith("hf:") and vocabulary is not None):
        raise ModelError(
            f'{reference}: only a text model of Hugging Face can be made from another one; take model = "hf:FOLDER" '
            "with the step tokenize, or leave out student.init"
        )
    family, _, name = reference.partition(":")
    if vocabulary is not None and (family in ("torchvision", "timm") or reference in MODELS.keys() - TEXT_MODELS):
        raise ModelError(
            f"{reference} reads no texts, but the samples are ids of tokens; take {', '.join(sorted(TEXT_MODELS))} "
            "or hf:FOLDER"
        )
    if family == "torchvision":
        model: object = torchvision_model(name, num_outputs=num_outputs, args=own)
    elif family == "timm":
        model = timm_model(name, num_outputs=num_outputs, args=own)
    elif family == "hf":
        folder = locate(name, search_path)
        source = str(folder or name)
        if vocabulary is None:
            model = hugging_face_model(source, num_outputs=num_outputs, args=own)
        else:
            model = text_classifier(
                source,
                num_outputs=num_outputs,
                vocabulary=vocabulary,
                pad=pad,
                tokens=tokens,
                args=own,
                init=init,
                longest=input_shape[0],
            )
    elif ":" not in reference and reference not in MODELS:
        raise ModelError(
            f"unknown model '{reference}'. {nearest(reference, MODELS)}. Others: torchvision:NAME, timm:NAME, "
            "hf:FOLDER, or your own package.module:function"
        )
    else:
        place = None if reference in MODELS else search_path
        function = import_reference(MODELS.get(reference, reference), search_path=place)
        if reference in TEXT_MODELS and vocabulary is None:
            raise ModelError(
                f'{reference} reads texts, but the samples are no token ids; add {{op = "tokenize", ...}} to '
                "preprocess.steps, or take a model for images, series or tables"
            )
        offered: dict[str, Any] = {"num_outputs": num_outputs, "input_shape": tuple(input_shape)}
        if vocabulary is not None:
            offered.update(vocabulary=vocabulary, pad=pad)
        named = {name: value for name, value in offered.items() if name in inspect.signature(function).parameters}
        # The user's function may import its neighbours only when it is called.
        with importing_from(place):
            model = _call(function, reference, {**named, **own})
    if not isinstance(model, nn.Module):
        raise ModelError(f"{reference} returned a {type(model).__name__}, expected a torch.nn.Module")
    model = Unit(model) if embeds else model
    if check:
        dtype = torch.float32 if vocabulary is None else torch.int64
        _check_forward(model, reference, num_outputs, torch.zeros(2, *input_shape, dtype=dtype))
    return model


def typical_cost(name: str, *, num_outputs: int) -> tuple[int, int]:
    """(parameters, multiply-accumulates) of the built-in model `name` at its `TYPICAL_INPUT`."""
    shape, is_text = TYPICAL_INPUT[name], name in TEXT_MODELS
    model = build_model(
        name, num_outputs=num_outputs, input_shape=shape, vocabulary=TYPICAL_VOCABULARY if is_text else None
    )
    return count(model, shape, dtype=torch.int64 if is_text else torch.float32)


def build_encoder(
    reference: str,
    *,
    outputs: int | None,
    vocabulary: Vocabulary,
    pooling: Pooling = "mean",
    args: Mapping[str, Any] | None = None,
    init: Mapping[str, Any] | None = None,
    search_path: str | PathLike[str] | None = None,
    longest: int | None = None,
) -> SentenceEncoder:
    """The model hf:FOLDER (or hf:ID) as a teacher or student of vectors with so many `outputs` (None: its own).

    init     of a student: a smaller one made from it (`edgekd.distill.models.from_teacher`)
    longest  number of tokens of the longest text that it is given
    """
    name = reference.removeprefix("hf:")
    return sentence_encoder(
        str(locate(name, search_path) or name),
        outputs=outputs,
        vocabulary=vocabulary,
        pooling=pooling,
        args=dict(args or {}),
        init=init,
        longest=longest,
    )


def build_masked(
    reference: str,
    *,
    vocabulary: Vocabulary,
    args: Mapping[str, Any] | None = None,
    init: Mapping[str, Any] | None = None,
    search_path: str | PathLike[str] | None = None,
    longest: int | None = None,
) -> MaskedLanguageModel:
    """The model hf:FOLDER (or hf:ID, or a fresh one of a kind, hf:bert) that guesses the tokens behind masks.

    longest  number of tokens of the longest text that it is given
    """
    name = reference.removeprefix("hf:")
    return masked_language_model(
        str(locate(name, search_path) or name),
        vocabulary=vocabulary.size,
        pad=vocabulary.pad,
        tokens=vocabulary.tokens,
        args=dict(args or {}),
        init=init,
        longest=longest,
    )


def logits_of(output: object, what: str = "the model") -> torch.Tensor:
    """The logits in what a model returned: the tensor itself, or the entry "logits" of a mapping.

    Raises `ModelError` for anything else.
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    if not isinstance(output, torch.Tensor):
        kind = f"a mapping with {sorted(output)}" if isinstance(output, Mapping) else f"a {type(output).__name__}"
        raise ModelError(f"{what} gives {kind}, expected a tensor or a mapping that holds 'logits'")
    return output


def _call(function: Callable[..., object], what: str, arguments: dict[str, Any]) -> object:
    """`function(**arguments)`. Raises `ModelError` when the signature does not take them; `what` names it."""
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise ModelError(
            f"{what}{inspect.signature(function)} does not take the arguments {sorted(arguments)}: {error}"
        ) from error
    return function(**arguments)


def _check_forward(model: nn.Module, reference: str, num_outputs: int, zeros: torch.Tensor) -> None:
    try:
        with torch.no_grad(), evaluating(model):  # batch norm must not learn from zeros
            logits = logits_of(model(zeros), reference)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{reference} fails on an input of shape {list(zeros.shape)}: {error}. Does the model fit the "
            "preprocessing steps (channels, size, layout)?"
        ) from error
    if tuple(logits.shape) != (2, num_outputs):
        raise ModelError(
            f"{reference} turns an input of shape {list(zeros.shape)} into {list(logits.shape)}, expected "
            f"{[2, num_outputs]}: one row per sample and one column per label of the data"
        )
