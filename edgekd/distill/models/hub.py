"""Models of timm and of Hugging Face transformers by name or folder: optional packages, imported when asked for."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.device.tokens import tokens_of
from edgekd.distill.models.from_teacher import parse_init, student_from
from edgekd.distill.models.sentence import Pooling, SentenceEncoder
from edgekd.distill.models.vision import import_torchvision
from edgekd.errors import MissingExtra, ModelError, nearest
from edgekd.files import sha256_bytes
from edgekd.spec import Array, TensorSpec, Vocabulary

_TOKENS = 16  # length of the random texts
# What transformers calls a table of positions.
_POSITIONS = ("position_embeddings", "wpe")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def timm_model(name: str, *, num_outputs: int, args: Mapping[str, Any]) -> nn.Module:
    """The model `name` of timm with `num_outputs` classes and random weights, unless `args` say pretrained = true.

    Raises `ModelError` for an unknown name or an argument that it refuses, `MissingExtra` without timm.
    """
    timm = _import("timm", "timm", purpose=f"timm:{name}")
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise ModelError(f"timm has no model '{name}'. {_few(base, timm.list_models())}")
    try:
        # Scripted activations cannot be traced.
        with timm.layers.set_scriptable(False), timm.layers.set_exportable(True):
            model: nn.Module = timm.create_model(name, num_classes=num_outputs, **args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"timm:{name} refuses the arguments {dict(args)}: {error}") from error
    return model


class HuggingFace(nn.Module):
    """A transformers model with tensors in the order of `inputs` and named tensors out: "logits" where it has them.

    pad   of a model that reads input_ids alone: which of them are padding. Its attention mask is made of it
    rows  (V,) its own id of each id that it is given, where these are other ones: a tokenizer that was cut down
    """

    rows: torch.Tensor | None

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[TensorSpec, ...],
        vocabulary: int,
        *,
        pad: int | None = None,
        rows: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.vocabulary = vocabulary
        self.pad = pad
        self.register_buffer("rows", rows)
        self.has_logits = "For" in type(model).__name__  # a head; BertModel gives hidden states

    def forward(self, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        given = dict(zip((spec.name for spec in self.inputs), args))
        if self.pad is not None:
            given["attention_mask"] = (given["input_ids"] != self.pad).to(torch.int64)
        if self.rows is not None:
            given["input_ids"] = self.rows[given["input_ids"]]
        found = self.model(**given, return_dict=True)
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor) and name != "loss"}


def inner(module: nn.Module) -> Any:
    """The model of transformers inside a `HuggingFace` or a `SentenceEncoder`."""
    return module.body if isinstance(module, SentenceEncoder) else module.model


def embedding_of(module: nn.Module) -> Array:
    """(V, D) the vectors of the ids that such a module is given."""
    rows, table = module.rows, inner(module).get_input_embeddings().weight.detach()
    vectors: Array = (table if rows is None else table[rows]).numpy()
    return vectors


def config_sha256(module: nn.Module) -> str:
    """What the model of transformers inside `module` is told to compute, wherever it lies and whatever wrote it."""
    told = json.loads(inner(module).config.to_json_string(use_diff=False))
    known = {name: value for name, value in told.items() if name[0] != "_" and name != "transformers_version"}
    return sha256_bytes(json.dumps(known, sort_keys=True).encode())


def hugging_face_model(reference: str, *, num_outputs: int | None, args: Mapping[str, Any]) -> HuggingFace:
    """The model in the folder `reference` (config.json, with or without weights), or of that id on the hub.

    num_outputs  another number than the folder's gives a fresh head; None keeps it
    args         change its configuration

    Nothing of the folder is executed. Raises `ModelError` for a folder that cannot be read, `MissingExtra` without
    transformers.
    """
    model = load(reference, num_outputs=num_outputs, args=args)
    return HuggingFace(model.eval(), _inputs(model), int(getattr(model.config, "vocab_size", 2) or 2))


def text_classifier(
    reference: str,
    *,
    num_outputs: int,
    vocabulary: int,
    pad: int,
    tokens: Sequence[str] = (),
    args: Mapping[str, Any],
    init: Mapping[str, Any] | None = None,
    longest: int | None = None,
) -> HuggingFace:
    """The model of `hugging_face_model` as a classifier that reads input_ids (N, L) alone, padded with `pad`.

    A folder that holds no classifier (BERT as it was pretrained) gets a fresh head, drawn from torch's generator.

    vocabulary  number of ids that it is given
    tokens      what they stand for; none: their order is that of the weights that will be loaded
    init        a student made from it (`edgekd.distill.models.from_teacher`), with rows for these ids only. Without it
                the model keeps all of its rows, and reads the ids of a smaller vocabulary through a map
    longest     number of tokens of the longest text that it is given

    Raises `ModelError` for ids that are not the model's, for texts that are longer than it reads and, as `from_teacher`
    does, for an `init` that does not fit.
    """
    model = load(
        reference, head="SequenceClassification", num_outputs=num_outputs, args=args, vocabulary=vocabulary, pad=pad
    )
    model, rows = fitted(model, reference, vocabulary=vocabulary, pad=pad, tokens=tokens, init=init, longest=longest)
    return HuggingFace(model, (TensorSpec("input_ids", "int64", ("N", "L")),), vocabulary, pad=pad, rows=rows)


def fitted(
    model: Any,
    reference: str,
    *,
    vocabulary: int,
    pad: int,
    tokens: Sequence[str],
    init: Mapping[str, Any] | None,
    longest: int | None,
) -> tuple[Any, torch.Tensor | None]:
    """A model of texts for these ids: made smaller as `init` says, or with the map to its own ids where it needs one.

    The arguments and errors are those of `text_classifier`.
    """
    if str(model.main_input_name) != "input_ids":
        raise ModelError(
            f"hf:{reference} reads '{model.main_input_name}', but the samples are texts; take a text model"
        )
    check_length(model, reference, longest)
    rows = rows_of(reference, int(model.config.vocab_size), vocabulary=vocabulary, tokens=tokens)
    return (model, rows) if init is None else (student_from(model, parse_init(init), rows=rows, pad=pad), None)


def check_length(model: nn.Module, reference: str, longest: int | None) -> None:
    """Raise `ModelError` for texts that are longer than the model's table of positions.

    Models without one read texts of any length. Those of RoBERTa's family leave out the rows up to that of the padding.
    """
    tables = {name.rpartition(".")[2]: part for name, part in model.named_modules() if isinstance(part, nn.Embedding)}
    table = next((tables[name] for name in _POSITIONS if name in tables), None)
    if table is None or longest is None:
        return
    most = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    if longest > most:
        raise ModelError(
            f"hf:{reference}: found max_length = {longest} in preprocess.steps (tokenize), but the model reads at most "
            f"{most} tokens; set max_length = {most}"
        )


def sentence_encoder(
    reference: str,
    *,
    outputs: int | None,
    vocabulary: Vocabulary,
    pooling: Pooling,
    args: Mapping[str, Any],
    init: Mapping[str, Any] | None = None,
    longest: int | None = None,
) -> SentenceEncoder:
    """The encoder in the folder `reference` without its head, as a model of vectors of `outputs` numbers.

    The other arguments and the errors are those of `text_classifier`; a model that is no encoder is refused too.
    """
    model = load(reference, num_outputs=None, args=args, vocabulary=vocabulary.size, pad=vocabulary.pad).base_model
    if str(model.main_input_name) != "input_ids" or not isinstance(getattr(model.config, "hidden_size", None), int):
        raise ModelError(f"hf:{reference} is no encoder of texts; expected one such as all-MiniLM-L6-v2")
    model, rows = fitted(
        model,
        reference,
        vocabulary=vocabulary.size,
        pad=vocabulary.pad,
        tokens=vocabulary.tokens,
        init=init,
        longest=longest,
    )
    width = int(model.config.hidden_size)
    wanted = width if outputs is None else outputs
    return SentenceEncoder(model, pad=vocabulary.pad, rows=rows, width=width, outputs=wanted, pooling=pooling)


def rows_of(reference: str, size: int, *, vocabulary: int, tokens: Sequence[str]) -> torch.Tensor | None:
    """(vocabulary,) the model's own ids of `tokens`, as its own tokenizer says; None where both are the same.

    `size` is that of its table. Without `tokens` the ids count up: weights that are loaded bring the right ones.
    """
    own = _own_tokens(reference)
    if tokens and own is not None:
        strange = [token for token in tokens if token and token not in own]
        ids = [own.get(token, 0) if token else 0 for token in tokens]
        if max(ids) >= size:
            raise ModelError(
                f"hf:{reference} has rows for {size} tokens, but its own tokenizer numbers them up to {max(ids)}: it "
                "is not the tokenizer that the model was trained with; put the right one into its folder"
            )
        if strange or (vocabulary == size and ids != list(range(size))):
            found = f"does not know {len(strange)} of the {len(tokens)} tokens of the data ({_some(strange)})"
            raise ModelError(
                f"hf:{reference} {found if strange else 'numbers its tokens in another order'}: the texts were "
                "tokenized with another tokenizer. Take the model's own in preprocess.steps (tokenize): "
                f'file = "{reference}", or a teacher that reads these tokens'
            )
    elif vocabulary > size or (tokens and vocabulary < size):
        raise ModelError(
            f"hf:{reference} has rows for {size} tokens, but the texts have {vocabulary}, and its folder holds no "
            "tokenizer.json that says which is which; take the model's own tokenizer in preprocess.steps (tokenize)"
        )
    else:
        ids = list(range(vocabulary))
    return None if vocabulary == size else torch.tensor(ids, dtype=torch.int64)


def _own_tokens(reference: str) -> dict[str, int] | None:
    """Token to id, as the tokenizer.json (or vocab.txt) beside the model says; None where there is none."""
    found = file_of(reference, "tokenizer.json")
    if found is not None:
        table = json.loads(found.read_text(encoding="utf-8"))
        vocabulary = table["model"]["vocab"]
        if not isinstance(vocabulary, dict):
            vocabulary = {name: number for number, (name, _) in enumerate(vocabulary)}
        return {**{item["content"]: item["id"] for item in table.get("added_tokens") or ()}, **vocabulary}
    found = file_of(reference, "vocab.txt")
    if found is None:
        return None
    lines = found.read_text(encoding="utf-8").removesuffix("\n")
    return {name: number for number, name in enumerate(lines.split("\n"))}


def stated_tokens(reference: str, module: HuggingFace) -> tuple[str, ...]:
    """What the ids of a model of texts stand for, by the tokenizer.json beside it; none where nothing of use is there.

    One that numbers more tokens than the model has rows for is not its own.
    """
    found = file_of(reference, "tokenizer.json")
    if found is None or module.inputs[0].name != "input_ids":
        return ()
    try:
        tokens = tokens_of(found.read_text(encoding="utf-8"))
    except (ModelError, MissingExtra, ValueError):
        return ()  # the network is exported all the same, and says nothing of its tokens
    return tokens if len(tokens) <= module.vocabulary else ()


def file_of(reference: str, name: str) -> Path | None:
    """A file beside the model, or of that id on the hub where it was fetched; None where there is none."""
    if Path(reference).exists():
        path = Path(reference, name)
        return path if path.is_file() else None
    hub = importlib.import_module("huggingface_hub")  # comes with transformers, and has the model's files by now
    path = hub.try_to_load_from_cache(reference, name)
    return Path(path) if isinstance(path, str) else None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def load(
    reference: str,
    *,
    head: str | None = None,
    num_outputs: int | None,
    args: Mapping[str, Any],
    vocabulary: int | None = None,
    pad: int | None = None,
) -> Any:
    """The transformers model of a folder, of an id on the hub, or a fresh one of a kind ("bert").

    head        "SequenceClassification" or "MaskedLM": with such a head, whatever the folder holds
    vocabulary  and the id of its padding, of a fresh one

    Raises `ModelError` for what cannot be loaded, `MissingExtra` without transformers.
    """
    transformers = _import("transformers", "hf", purpose=f"hf:{reference}")
    folder, is_new = Path(reference), is_fresh(reference)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; expected a folder that save_pretrained wrote")
    # Of two ways to compute attention the eager one is traced everywhere.
    changes = {"attn_implementation": "eager", **args}
    try:
        with quiet():
            if is_new and not folder.exists():
                texts = {} if vocabulary is None else {"vocab_size": vocabulary, "pad_token_id": pad}
                config = transformers.AutoConfig.for_model(reference, **texts, **args)
            else:
                config = transformers.AutoConfig.from_pretrained(reference, trust_remote_code=False, **args)
            name = next(iter(config.architectures or ()), "AutoModel")
            kind = getattr(transformers, name, transformers.AutoModel)
            if head is not None and head not in name:
                kind = getattr(transformers, f"AutoModelFor{head}")._model_mapping[type(config)]
            if num_outputs is not None and (head == "SequenceClassification" or "Classification" in name):
                config.num_labels = num_outputs
            if is_new:
                build = kind.from_config if kind is transformers.AutoModel else kind._from_config
                return build(config, attn_implementation=changes["attn_implementation"])
            model, found = kind.from_pretrained(
                reference,
                config=config,
                attn_implementation=changes["attn_implementation"],
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"hf:{reference} cannot be loaded: {first}; expected a folder that save_pretrained wrote, the id of a "
            "model on the hub, which needs the network, or a kind such as bert for a fresh one"
        ) from error
    _check_body(model, reference, found, args)
    return model


def is_fresh(reference: str) -> bool:
    """Whether the weights are drawn at random: of a kind of transformers ("bert"), and of a folder that holds none."""
    folder = Path(reference)
    if folder.exists():
        return not any((folder / item).is_file() for item in _WEIGHTS)
    return reference in _import("transformers", "hf", purpose=f"hf:{reference}").CONFIG_MAPPING


def _check_body(model: Any, reference: str, found: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Raise `ModelError` where something else than the head did not come out of the folder: it would be random."""
    prefix = f"{model.base_model_prefix}."
    body = {name for name, _ in model.named_parameters() if name.startswith(prefix) or model.base_model is model}
    absent = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    # The pooler belongs to the head of a classifier: what was pretrained on masked words has none.
    random = sorted(name for name in body & absent if "pooler" not in name)
    if random:
        keys = ", ".join(args)
        because = f" with args ({keys}), which change its shape" if args else ""
        raise ModelError(
            f"hf:{reference}: {len(random)} of {len(body)} tensors of the model are not in its weights{because}: "
            f"{_some(random)}; they would be random. Remove what changes the shape (a student is made smaller by "
            "[student.init]), or take the kind, such as hf:bert, for a fresh model"
        )


def read_inputs(module: HuggingFace, names: Sequence[str]) -> None:
    """Let `module` take the inputs `names`, as another exporter chose them: token_type_ids beside the usual ones."""
    known = {spec.name: spec for spec in module.inputs}
    module.inputs = tuple(known.get(name, TensorSpec(name, "int64", ("N", "L"))) for name in names)


def example_feeds(module: HuggingFace, count: int, seed: int) -> dict[str, Array]:
    """Random texts with padding behind them, or random images, for lack of real ones."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in module.inputs:
        shape = (count, *(_TOKENS if isinstance(size, str) else size for size in spec.shape[1:]))
        if spec.name == "attention_mask":
            lengths = rng.integers(_TOKENS // 2, _TOKENS + 1, (count, 1))
            feeds[spec.name] = (np.arange(_TOKENS) < lengths).astype(np.int64)
        elif spec.dtype == "int64":
            feeds[spec.name] = rng.integers(0, module.vocabulary if spec.name == "input_ids" else 1, shape)
        else:
            feeds[spec.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def _inputs(model: nn.Module) -> tuple[TensorSpec, ...]:
    main = str(model.main_input_name)
    if main == "input_ids":
        return tuple(TensorSpec(name, "int64", ("N", "L")) for name in (main, "attention_mask"))
    size: Any = getattr(model.config, "image_size", None)
    if main != "pixel_values" or size is None:
        raise ModelError(
            f"{type(model).__name__} reads '{main}'; expected a model of texts (input_ids) or images (pixel_values): "
            "export it through a function of your own, package.module:function, with --inputs"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return (TensorSpec(main, "float32", ("N", getattr(model.config, "num_channels", 3), height, width)),)


def _import(package: str, extra: str, *, purpose: str) -> ModuleType:
    import_torchvision()  # both import it
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtra(package, extra, purpose=purpose) from error


def _few(name: str, known: list[str]) -> str:
    """`nearest` among those that begin alike: timm has more than a thousand."""
    return nearest(name, [item for item in known if item.startswith(name[:4])] or known[:20])


@contextmanager
def quiet() -> Iterator[None]:
    """Loading prints a report on a fresh head, which is what was asked for; it and saving have bars of their own."""
    log: Any = importlib.import_module("transformers.utils.logging")
    level, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if has_bars:
            log.enable_progress_bar()
